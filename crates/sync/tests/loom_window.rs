//! Every interleaving of claiming, publishing and taking back: each frame is claimed or taken back, never both.
#![cfg(plait_loom)]
#![allow(missing_docs)]

mod common;

use common::Shared;
use loom::thread;
use plait_sync::window::{Consumer, Header, Producer};

#[test]
fn a_frame_is_claimed_or_taken_back_never_both() {
    loom::model(|| {
        let window = Shared::new(Header::new(), 8);
        let mut producer = Producer::new(window.clone());
        producer.publish(&[&[1]]).unwrap();
        producer.publish(&[&[2]]).unwrap();
        let thread = thread::spawn(move || {
            let mut consumer = Consumer::new(window);
            let (mut frame, mut claimed) = (Vec::new(), Vec::<u8>::new());
            for _ in 0..2 {
                if let Some(claim) = consumer.claim().unwrap() {
                    claim.read(&mut frame).unwrap();
                    claimed.extend(&frame);
                }
            }
            (consumer, claimed)
        });
        let revoked = producer.revoke(2).unwrap();
        let (mut consumer, claimed) = thread.join().unwrap();
        let expected: Vec<u8> = [1, 2][..2 - revoked].to_vec();
        assert!(claimed.len() <= expected.len() && claimed == expected[..claimed.len()]);
        // What was neither claimed then nor taken back can still be claimed, and nothing else.
        let mut frame = Vec::new();
        for byte in &expected[claimed.len()..] {
            consumer.claim().unwrap().unwrap().read(&mut frame).unwrap();
            assert_eq!(frame, [*byte]);
        }
        assert!(consumer.claim().unwrap().is_none());
    });
}

/// The bytes and the number of a frame that was taken back are used again at once, while the consumer is claiming.
#[test]
fn what_was_taken_back_is_replaced_under_the_consumers_eyes() {
    loom::model(|| {
        let window = Shared::new(Header::new(), 4);
        let mut producer = Producer::new(window.clone());
        producer.publish(&[&[1, 1, 1]]).unwrap();
        let thread = thread::spawn(move || {
            let mut consumer = Consumer::new(window);
            let mut frame = Vec::new();
            consumer.claim().unwrap().map(|claim| {
                claim.read(&mut frame).unwrap();
                frame
            })
        });
        let revoked = producer.revoke(1).unwrap();
        if revoked == 1 {
            producer.publish(&[&[2, 2, 2]]).unwrap();
        }
        match thread.join().unwrap() {
            Some(frame) if revoked == 1 => assert_eq!(frame, [2, 2, 2]),
            Some(frame) => assert_eq!(frame, [1, 1, 1]),
            None => assert_eq!(revoked, 1),
        }
    });
}

/// A slot and its bytes are only used again after the consumer has copied them out.
#[test]
fn a_full_window_waits_for_the_copy() {
    loom::model(|| {
        let window = Shared::new(Header::new(), 4);
        let mut producer = Producer::new(window.clone());
        producer.publish(&[&[1, 1, 1]]).unwrap();
        let thread = thread::spawn(move || {
            let mut consumer = Consumer::new(window);
            let (mut frame, mut all) = (Vec::new(), Vec::<u8>::new());
            while all.len() < 6 {
                match consumer.claim().unwrap() {
                    Some(claim) => {
                        claim.read(&mut frame).unwrap();
                        all.extend(&frame);
                    }
                    None => thread::yield_now(),
                }
            }
            all
        });
        while producer.publish(&[&[2, 2, 2]]).is_err() {
            thread::yield_now();
        }
        assert_eq!(thread.join().unwrap(), [1, 1, 1, 2, 2, 2]);
    });
}
