//! The ring and the window against a `VecDeque`, over random sequences of operations and frame sizes.
#![cfg(not(plait_loom))]
#![allow(missing_docs)]

mod common;

use std::collections::VecDeque;

use common::Shared;
use plait_sync::{ring, window};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    Pop,
    Revoke(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..70_usize).prop_map(Step::Push),
        3 => Just(Step::Pop),
        1 => (0..4_usize).prop_map(Step::Revoke),
    ];
    prop::collection::vec(step, 0..400)
}

fn frame_of(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (number * 31 + at) as u8).collect()
}

proptest! {
    #[test]
    fn a_ring_is_a_queue(steps in steps()) {
        let shared = Shared::new(ring::Header::new(), 128);
        let mut producer = ring::Producer::new(shared.clone());
        let mut consumer = ring::Consumer::new(shared);
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let mut frame = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push(length) => {
                    let bytes = frame_of(number, length);
                    let used: usize = model.iter().map(|frame| (4 + frame.len()).next_multiple_of(8)).sum();
                    let fits = used + (4 + length).next_multiple_of(8) <= 128;
                    let (left, right) = bytes.split_at(length / 2);
                    prop_assert_eq!(producer.push(&[left, right]).is_ok(), fits);
                    if fits {
                        model.push_back(bytes);
                    }
                }
                Step::Pop | Step::Revoke(_) => {
                    prop_assert_eq!(consumer.has_frame(), !model.is_empty());
                    let got = consumer.pop(&mut frame).unwrap().then(|| frame.clone());
                    prop_assert_eq!(got, model.pop_front());
                }
            }
        }
    }

    #[test]
    fn a_window_is_a_queue_that_can_be_cut_short(steps in steps()) {
        let shared = Shared::new(window::Header::new(), 128);
        let mut producer = window::Producer::new(shared.clone());
        let mut consumer = window::Consumer::new(shared);
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let mut frame = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Push(length) => {
                    let bytes = frame_of(number, length);
                    let fits = model.iter().map(Vec::len).sum::<usize>() + length <= 128;
                    prop_assert_eq!(producer.publish(&[&bytes]).is_ok(), fits);
                    if fits {
                        model.push_back(bytes);
                    }
                }
                Step::Pop => {
                    let got = consumer.claim().unwrap().map(|claim| { claim.read(&mut frame).unwrap(); frame.clone() });
                    prop_assert_eq!(got, model.pop_front());
                }
                Step::Revoke(count) => {
                    let expected = count.min(model.len());
                    prop_assert_eq!(producer.revoke(count), Ok(expected));
                    model.truncate(model.len() - expected);
                }
            }
            prop_assert_eq!(producer.unclaimed(), Ok(model.len()));
        }
    }
}

#[test]
fn a_window_has_a_bounded_number_of_slots() {
    let shared = Shared::new(window::Header::new(), 1024);
    let mut producer = window::Producer::new(shared.clone());
    for _ in 0..window::SLOTS {
        producer.publish(&[b"x"]).unwrap();
    }
    assert_eq!(producer.publish(&[b"x"]), Err(window::PushError::Full));
    let mut frame = Vec::new();
    window::Consumer::new(shared)
        .claim()
        .unwrap()
        .unwrap()
        .read(&mut frame)
        .unwrap();
    assert_eq!(producer.publish(&[b"y"]), Ok(()));
}

#[test]
fn a_consumer_that_did_not_claim_what_was_claimed_says_so() {
    let shared = Shared::new(window::Header::new(), 64);
    let mut producer = window::Producer::new(shared.clone());
    let mut consumer = window::Consumer::new(shared.clone());
    producer.publish(&[b"x"]).unwrap();
    producer.publish(&[b"y"]).unwrap();
    let mut frame = Vec::new();
    let claim = consumer.claim().unwrap().unwrap();
    claim.read(&mut frame).unwrap();
    let mut stranger = window::Consumer::new(shared);
    assert!(matches!(stranger.claim(), Err(window::Corrupt)));
    assert!(matches!(consumer.claim(), Ok(Some(_))));
}

#[test]
fn a_frame_that_can_never_fit_says_so() {
    let mut ring = ring::Producer::new(Shared::new(ring::Header::new(), 32));
    assert_eq!(ring.push(&[&[0; 25]]), Err(ring::PushError::TooLong));
    assert_eq!(ring.push(&[&[0; 24]]), Ok(()));
    let mut window = window::Producer::new(Shared::new(window::Header::new(), 32));
    assert_eq!(window.publish(&[&[0; 33]]), Err(window::PushError::TooLong));
}
