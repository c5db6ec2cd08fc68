//! A log driven by chance, next to a queue that is obviously right; and logs full of rubbish.
#![cfg(not(plait_loom))]
#![allow(missing_docs, unsafe_code)]

mod common;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use common::Shared;
use plait_sync::log::{self, Header, Log, PutError};
use plait_sync::memory::Memory;
use proptest::prelude::*;

impl Log for Shared<Header> {
    fn header(&self) -> &Header {
        &self.0.header
    }
}

const CAPACITY: usize = 4 << 20;

#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    /// A producer that dies after it has copied, before it publishes.
    PutHalf(usize),
    Get,
    /// A consumer that dies before it takes.
    GetHalf,
    /// One that dies before it gives memory back.
    GetAndDie,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length =
        prop_oneof![3 => 0_usize..200, 2 => 1000_usize..20_000, 1 => 200_000_usize..1_500_000];
    let step = prop_oneof![
        6 => length.clone().prop_map(Step::Put),
        1 => length.prop_map(Step::PutHalf),
        5 => Just(Step::Get),
        1 => Just(Step::GetHalf),
        1 => Just(Step::GetAndDie),
    ];
    prop::collection::vec(step, 1..60)
}

fn fill(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|index| (index as u8).wrapping_add(seed))
        .collect()
}

fn give_back(log: &impl Log, warm: u64) {
    let mut rounds = 0;
    while let Some(spent) = log::spent(log, warm) {
        assert!(spent.pages.start <= spent.pages.end);
        assert!(spent.pages.end <= log.capacity() as u64);
        // What is given back reads as something else afterwards: nobody may need it.
        let rubbish = vec![0xee; (spent.pages.end - spent.pages.start) as usize];
        // SAFETY: the log has said that nobody uses these bytes, and there is one thread.
        unsafe {
            log.write_at(spent.pages.start as usize, &rubbish);
        }
        log::freed(log, &spent);
        rounds += 1;
        assert!(rounds < 10);
    }
}

/// The header as words; the first is `tail`.
fn words(log: &Shared<Header>) -> &[AtomicU64] {
    let header: *const Header = log.header();
    let count = size_of::<Header>() / size_of::<AtomicU64>();
    // SAFETY: the header is made of words of this size, all of which may be anything.
    unsafe { std::slice::from_raw_parts(header.cast(), count) }
}

/// What a `put` that dies half-way leaves behind: everything but the published position.
fn put_half(log: &Shared<Header>, bytes: &[u8], warm: u64) {
    let tail = words(log)[0].load(Ordering::Relaxed);
    let _ = log::put(log, &[bytes], warm);
    words(log)[0].store(tail, Ordering::Relaxed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_log_is_a_queue(steps in steps(), warm in prop_oneof![Just(64 << 10), Just(1 << 20), Just(64 << 20)]) {
        let log = Shared::new(Header::new(), CAPACITY);
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let (mut puts, mut gets) = (0, 0);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put(length) => {
                    let bytes = fill(length, number as u8);
                    match log::put(&log, &[&bytes[..length / 2], &bytes[length / 2..]], warm) {
                        Ok(()) => {
                            model.push_back(bytes);
                            puts += 1;
                        }
                        Err(error) => {
                            prop_assert_eq!(error, PutError::Full);
                            prop_assert!(!model.is_empty(), "an empty log takes any frame");
                        }
                    }
                }
                Step::PutHalf(length) => put_half(&log, &fill(length, 0xaa), warm),
                Step::Get | Step::GetHalf | Step::GetAndDie => {
                    let frame = log::peek(&log).unwrap();
                    prop_assert_eq!(frame.is_some(), !model.is_empty());
                    let Some(frame) = frame else { continue };
                    let mut bytes = vec![0; frame.len() as usize];
                    prop_assert!(log::read(&log, &frame, 0, &mut bytes));
                    prop_assert!(bytes == model[0]);
                    if matches!(step, Step::GetHalf) {
                        continue;
                    }
                    log::take(&log, &frame);
                    model.pop_front();
                    gets += 1;
                    if matches!(step, Step::Get) {
                        give_back(&log, warm);
                    }
                }
            }
            prop_assert_eq!(log.header().is_empty(), model.is_empty());
            prop_assert_eq!((log.header().puts(), log.header().gets()), (puts, gets));
        }
    }

    /// Whatever lies in the memory, nothing outside of it is touched, and nothing panics.
    #[test]
    fn rubbish_is_told(
        rubbish in prop::collection::vec(prop_oneof![any::<u64>(), 0_u64..300, Just(64), Just(4096)], 26),
        bytes in any::<[u8; 64]>(),
    ) {
        let log = Shared::new(Header::new(), 4096);
        for (word, value) in words(&log).iter().zip(rubbish) {
            word.store(value, Ordering::Relaxed);
        }
        // SAFETY: inside the memory, and there is one thread.
        unsafe {
            log.write_at(0, &bytes);
        }
        let _ = log::put(&log, &[b"something"], 1024);
        if let Ok(Some(frame)) = log::peek(&log) {
            let mut into = vec![0; frame.len() as usize];
            log::read(&log, &frame, 0, &mut into);
        }
        give_back(&log, 1024);
        log.header().puts();
    }
}
