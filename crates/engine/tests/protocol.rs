//! Frames come back as they were written; rubbish is refused, and never believed about how long it is.
#![allow(missing_docs)]

use plait_engine::process_pool::Spent;
use plait_engine::process_pool::protocol::{Piece, Reply, Request, Status};
use proptest::prelude::*;

/// A piece that owns its bytes.
#[derive(Debug, Clone)]
enum Owned {
    Inline(Vec<u8>),
    Shared(u64, u64),
}

impl Owned {
    fn piece(&self) -> Piece<'_> {
        match self {
            Self::Inline(bytes) => Piece::Inline(bytes),
            Self::Shared(offset, length) => Piece::Shared {
                offset: *offset,
                length: *length,
            },
        }
    }
}

fn piece() -> impl Strategy<Value = Owned> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Owned::Inline),
        // The largest offset stands for bytes that follow.
        (0..u64::MAX, any::<u64>()).prop_map(|(offset, length)| Owned::Shared(offset, length)),
    ]
}

fn pieces() -> impl Strategy<Value = Vec<Owned>> {
    prop::collection::vec(piece(), 0..8)
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![
        Just(Status::Value),
        Just(Status::Nothing),
        Just(Status::Raised),
        Just(Status::Unpicklable)
    ]
}

/// Bytes that a frame could begin with, so that decoding gets beyond the first of them.
fn rubbish() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        Just(0_u64),
        Just(1),
        Just(16),
        Just(u64::MAX),
        Just(u64::MAX - 1),
        Just(1 << 60),
        any::<u64>(),
        0..100_u64
    ];
    (
        0..8_u8,
        prop::collection::vec(number, 0..12),
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(kind, numbers, tail)| {
            let mut bytes = vec![kind];
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            bytes.extend(tail);
            bytes
        })
}

/// How much a decoded list may hold: its items were really in the frame.
fn is_modest<T>(list: &[T], frame: &[u8], shortest: usize) -> bool {
    list.len() * shortest <= frame.len()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_request_comes_back(
        job: u64, slot: u64, definition in prop::option::of(piece()), arguments in piece(), buffers in pieces(), cut: usize
    ) {
        let request = Request::Call {
            job,
            slot,
            definition: definition.as_ref().map(Owned::piece),
            arguments: arguments.piece(),
            buffers: buffers.iter().map(Owned::piece).collect(),
        };
        let mut frame = Vec::new();
        request.encode(&mut frame);
        prop_assert_eq!(Request::decode(&frame), Ok(request));
        // A frame that is cut short anywhere is refused.
        prop_assert!(Request::decode(&frame[..cut % frame.len()]).is_err());
    }

    #[test]
    fn a_reply_comes_back(
        job: u64,
        status in status(),
        run_ns: u64,
        payload in piece(),
        buffers in pieces(),
        released in prop::collection::vec(any::<u64>(), 0..8),
        cut: usize,
    ) {
        let replies = [
            Reply::Answer {
                job, status, run_ns,
                spent: Spent { began_ns: run_ns, cpu_ns: job, peak_bytes: !run_ns, ..Spent::default() },
                payload: payload.piece(),
                buffers: buffers.iter().map(Owned::piece).collect(),
                released: released.clone(),
            },
            Reply::Released { released },
            Reply::Unusable { text: payload.piece() },
            Reply::Retire { resident_bytes: run_ns },
            Reply::Note { kind: run_ns as u8, payload: payload.piece() },
            Reply::Ready,
        ];
        for reply in replies {
            let mut frame = Vec::new();
            reply.encode(&mut frame);
            let back = Reply::decode(&frame);
            prop_assert_eq!(back.as_ref(), Ok(&reply));
            prop_assert!(Reply::decode(&frame[..cut % frame.len()]).is_err());
        }
    }

    #[test]
    fn rubbish_is_refused_or_modest(frame in prop_oneof![rubbish(), prop::collection::vec(any::<u8>(), 0..200)]) {
        if let Ok(Request::Call { buffers, .. }) = Request::decode(&frame) {
            prop_assert!(is_modest(&buffers, &frame, 16));
            prop_assert!(buffers.capacity() * 16 <= frame.len().max(64) * 4);
        }
        match Reply::decode(&frame) {
            Ok(Reply::Answer { buffers, released, .. }) => {
                prop_assert!(is_modest(&buffers, &frame, 16) && is_modest(&released, &frame, 8));
            }
            Ok(Reply::Released { released }) => prop_assert!(is_modest(&released, &frame, 8)),
            _ => {}
        }
    }

    /// One byte of a good frame is changed: decoding gives an error or another frame, never a panic.
    #[test]
    fn a_damaged_frame_does_no_harm(arguments in piece(), buffers in pieces(), at: usize, byte: u8) {
        let mut frame = Vec::new();
        Request::Call {
            job: 1, slot: 2, definition: None,
            arguments: arguments.piece(),
            buffers: buffers.iter().map(Owned::piece).collect(),
        }
        .encode(&mut frame);
        let length = frame.len();
        frame[at % length] = byte;
        let _ = Request::decode(&frame);
        let _ = Reply::decode(&frame);
    }
}
