//! The buffer against a plain vector, and the search against the obvious one.

use proptest::prelude::*;

use super::{Found, Separators, StreamBuffer, WrongSeparators};

#[derive(Debug, Clone)]
enum Step {
    Feed(Vec<u8>),
    FeedChunk(Vec<u8>),
    Take(usize),
    PutBack(usize),
    Clear,
}

fn bytes(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    // Few different bytes, so that separators do occur.
    proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'\n')], 0..longest)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => bytes(20).prop_map(Step::Feed),
        4 => bytes(20).prop_map(Step::FeedChunk),
        1 => (3000_usize..9000).prop_map(|size| Step::Feed(vec![b'c'; size])),
        6 => (0_usize..60).prop_map(Step::Take),
        1 => (0_usize..10_000).prop_map(Step::Take),
        1 => (0_usize..30).prop_map(Step::PutBack),
        1 => Just(Step::Clear),
    ]
}

fn take(buffer: &mut StreamBuffer<Vec<u8>>, size: usize) -> Vec<u8> {
    if let Some(chunk) = buffer.take_chunk(size) {
        return chunk;
    }
    let taken = buffer.as_slice().iter().copied().take(size).collect();
    buffer.consume(size);
    taken
}

/// As asyncio's `readuntil` looks: each separator by itself, from the beginning.
fn search(model: &[u8], separators: &[Vec<u8>]) -> Option<(usize, usize)> {
    let mut sorted: Vec<_> = separators.to_vec();
    sorted.sort_by_key(Vec::len);
    let mut best = None;
    for separator in &sorted {
        let found = model
            .windows(separator.len())
            .position(|window| window == separator.as_slice());
        if let Some(start) = found {
            let end = start + separator.len();
            if best.is_none_or(|(_, best_end)| end < best_end) {
                best = Some((start, end));
            }
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_buffer_is_a_vector(steps in proptest::collection::vec(step(), 0..40)) {
        let mut buffer = StreamBuffer::default();
        let mut model: Vec<u8> = Vec::new();
        let mut last = Vec::new();
        for step in steps {
            match step {
                Step::Feed(data) => {
                    buffer.feed(&data);
                    model.extend(data);
                }
                Step::FeedChunk(data) => {
                    model.extend(&data);
                    buffer.feed_chunk(data);
                }
                Step::Take(size) => {
                    let expected: Vec<u8> = model.drain(..size.min(model.len())).collect();
                    last = take(&mut buffer, size);
                    prop_assert_eq!(&last, &expected);
                }
                Step::PutBack(size) => {
                    let data = &last[last.len().saturating_sub(size)..];
                    buffer.put_back(data);
                    model.splice(..0, data.iter().copied());
                    last = Vec::new();
                }
                Step::Clear => {
                    buffer.clear();
                    model.clear();
                }
            }
            prop_assert_eq!(buffer.as_slice(), model.as_slice());
            prop_assert_eq!(buffer.len(), model.len());
            prop_assert!(!model.is_empty() || buffer.bytes.capacity() <= super::MOST_KEPT);
        }
    }

    #[test]
    fn what_is_found_piece_by_piece_is_what_is_there(
        pieces in proptest::collection::vec(bytes(12), 0..12),
        separators in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'\n')], 1..5), 1..4),
        limit in 0_usize..40,
    ) {
        let known = Separators::new(separators.iter().map(|one| one.clone().into()).collect());
        let known = known.expect("none is empty");
        let mut buffer: StreamBuffer<Vec<u8>> = StreamBuffer::default();
        let mut model = Vec::new();
        let mut from = 0;
        for piece in pieces {
            model.extend(&piece);
            buffer.feed(&piece);
            let found = buffer.find(&known, limit, from);
            let expected = search(&model, &separators);
            match found {
                Found::At(end) => {
                    prop_assert_eq!(expected.map(|(_, end)| end), Some(end));
                    prop_assert!(expected.is_some_and(|(start, _)| start <= limit));
                    return Ok(());
                }
                Found::BeyondLimit(start) => {
                    prop_assert_eq!(expected.map(|(start, _)| start), Some(start));
                    prop_assert!(start > limit);
                    return Ok(());
                }
                Found::NotWithinLimit(searched) => {
                    prop_assert_eq!(expected, None);
                    prop_assert!(searched > limit && searched <= model.len());
                    return Ok(());
                }
                Found::NotYet(next) => {
                    prop_assert_eq!(expected, None);
                    prop_assert!(next >= from && next <= limit);
                    from = next;
                }
            }
        }
    }
}

#[test]
fn a_chunk_that_is_wanted_whole_is_handed_on_as_it_is() {
    let chunk = b"hello".to_vec();
    let address = chunk.as_ptr();
    let mut buffer = StreamBuffer::default();
    buffer.feed_chunk(chunk);
    assert!(buffer.take_chunk(4).is_none());
    let taken = buffer.take_chunk(5).expect("it is there");
    assert_eq!(taken.as_ptr(), address);
    assert!(buffer.is_empty());
}

#[test]
fn a_separator_has_bytes() {
    let none = Separators::new(Vec::new()).map(|_| ());
    assert_eq!(none, Err(WrongSeparators::None));
    let empty = Separators::new(vec![Box::from(*b"a"), Box::from(*b"")]).map(|_| ());
    assert_eq!(empty, Err(WrongSeparators::Empty));
}
