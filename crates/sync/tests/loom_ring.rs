//! Every interleaving of a ring's producer and consumer, with the bell between them.
#![cfg(plait_loom)]
#![allow(missing_docs)]

mod common;

use common::Shared;
use loom::sync::Arc;
use loom::thread;
use plait_sync::bell::Bell;
use plait_sync::ring::{Consumer, Header, Producer, PushError};

#[test]
fn frames_arrive_whole_and_in_order_through_a_full_ring() {
    loom::model(|| {
        let ring = Shared::new(Header::new(), 16);
        let mut producer = Producer::new(ring.clone());
        let thread = thread::spawn(move || {
            for byte in [1_u8, 2, 3] {
                while producer.push(&[&[byte, byte]]) == Err(PushError::Full) {
                    thread::yield_now();
                }
            }
        });
        let mut consumer = Consumer::new(ring);
        let mut frame = Vec::new();
        for byte in [1_u8, 2, 3] {
            while !consumer.pop(&mut frame).unwrap() {
                thread::yield_now();
            }
            assert_eq!(frame, [byte, byte]);
        }
        thread.join().unwrap();
        assert_eq!(consumer.pop(&mut frame), Ok(false));
    });
}

/// The consumer sleeps until the bell is rung: if a wake-up could be lost, loom would report a deadlock.
#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let ring = Shared::new(Header::new(), 64);
        let bell = Arc::new(Bell::new());
        let alarm = Arc::new(loom::sync::Notify::new());
        let mut producer = Producer::new(ring.clone());
        let thread = {
            let (bell, alarm) = (Arc::clone(&bell), Arc::clone(&alarm));
            thread::spawn(move || {
                producer.push(&[b"x"]).unwrap();
                if bell.must_ring() {
                    alarm.notify();
                }
            })
        };
        let mut consumer = Consumer::new(ring);
        let mut frame = Vec::new();
        while !consumer.pop(&mut frame).unwrap() {
            bell.announce();
            if !consumer.has_frame() {
                alarm.wait();
            }
            bell.withdraw();
        }
        assert_eq!(frame, b"x");
        thread.join().unwrap();
    });
}
