//! Every interleaving of a log's producer and consumer, with laps, skips and memory that is given back.
#![cfg(plait_loom)]
#![allow(missing_docs)]

mod common;

use common::Shared;
use loom::thread;
use plait_sync::log::{self, Header, Log};

impl Log for Shared<Header> {
    fn header(&self) -> &Header {
        &self.0.header
    }
}

fn get(log: &impl Log, warm: u64) -> Option<u8> {
    let frame = log::peek(log).unwrap()?;
    let mut bytes = vec![0; frame.len() as usize];
    assert!(log::read(log, &frame, 0, &mut bytes));
    log::take(log, &frame);
    while let Some(spent) = log::spent(log, warm) {
        log::freed(log, &spent);
    }
    assert!(bytes.iter().all(|&byte| byte == bytes[0]));
    Some(bytes[0])
}

/// The log is so narrow that the last frame begins another lap, if the first ones have been read.
fn frames_arrive(capacity: usize, warm: u64, lengths: &'static [usize]) {
    loom::model(move || {
        let log = Shared::new(Header::new(), capacity);
        let producer = {
            let log = log.clone();
            thread::spawn(move || {
                for (index, &length) in lengths.iter().enumerate() {
                    let bytes = vec![index as u8 + 1; length];
                    while log::put(&log, &[&bytes], warm).is_err() {
                        thread::yield_now();
                    }
                }
            })
        };
        for index in 0..lengths.len() {
            let byte = loop {
                match get(&log, warm) {
                    Some(byte) => break byte,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(usize::from(byte), index + 1);
        }
        producer.join().unwrap();
        assert!(log.header().is_empty());
        assert_eq!((log.header().puts(), log.header().gets()), (3, 3));
    });
}

#[test]
fn around_within_the_warm_part() {
    frames_arrive(128, 96, &[4, 4, 4]);
}

#[test]
fn around_after_memory_was_given_back() {
    frames_arrive(256, 64, &[4, 60, 4]);
}
