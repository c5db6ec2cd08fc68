//! The line of waiters against a plain list: order, giving up, standing in line again, those that cannot be reached.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use plait_sync::wait_queue::{Granted, WaitQueue, Waiter, Wake};
use proptest::prelude::*;

struct Silent;

impl Wake for Silent {
    fn wake(&self) -> bool {
        true
    }
}

struct Closed;

impl Wake for Closed {
    fn wake(&self) -> bool {
        false
    }
}

#[derive(Debug, Clone)]
enum Step {
    Join,
    Grant(u32),
    /// The n-th of those that wait gives up; it is taken out of the line at once or only later.
    Abandon(usize, bool),
    /// The n-th of those that were granted something stands in line again, at its old place.
    Again(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Join),
        2 => any::<u32>().prop_map(Step::Grant),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(at, now)| Step::Abandon(at, now)),
        1 => any::<usize>().prop_map(Step::Again),
    ]
}

proptest! {
    #[test]
    fn the_line_is_what_a_sorted_list_is(steps in prop::collection::vec(step(), 0..80)) {
        let mut queue = WaitQueue::new();
        let mut waiting: BTreeMap<u64, Arc<Waiter<u32>>> = BTreeMap::new();
        let mut granted: Vec<Arc<Waiter<u32>>> = Vec::new();
        let mut left_behind = Vec::new();
        for step in steps {
            match step {
                Step::Join => {
                    let waiter = queue.enqueue(Box::new(Silent));
                    prop_assert!(!waiter.was_overtaken());
                    prop_assert!(waiting.keys().all(|&place| place < waiter.place()));
                    waiting.insert(waiter.place(), waiter);
                }
                Step::Grant(value) => match (queue.grant(value), waiting.pop_first()) {
                    (Ok(waiter), Some((place, expected))) => {
                        prop_assert_eq!(waiter.place(), place);
                        prop_assert!(waiter.is_granted());
                        prop_assert_eq!(expected.take(), Some(value));
                        prop_assert_eq!(expected.take(), None);
                        granted.push(expected);
                    }
                    (Err(back), None) => prop_assert_eq!(back, value),
                    (got, expected) => prop_assert!(false, "{:?} for {:?}", got, expected),
                },
                Step::Abandon(at, now) if !waiting.is_empty() => {
                    let place = *waiting.keys().nth(at % waiting.len()).unwrap();
                    let waiter = waiting.remove(&place).unwrap();
                    prop_assert_eq!(waiter.abandon(), None);
                    if now {
                        prop_assert!(queue.remove(&waiter));
                        prop_assert!(!queue.remove(&waiter));
                    } else {
                        left_behind.push(waiter);
                    }
                }
                Step::Again(at) if !granted.is_empty() => {
                    let at = at % granted.len();
                    let waiter = queue.enqueue_again(granted.remove(at).place(), Box::new(Silent));
                    prop_assert!(waiter.was_overtaken());
                    waiting.insert(waiter.place(), waiter);
                }
                Step::Abandon(..) | Step::Again(_) => {}
            }
        }
        for waiter in &left_behind {
            queue.remove(waiter);
        }
        prop_assert_eq!(queue.len(), waiting.len());
        prop_assert_eq!(queue.is_empty(), waiting.is_empty());
        prop_assert_eq!(queue.first().map(Waiter::place), waiting.keys().next().copied());
    }
}

#[test]
fn what_cannot_be_delivered_comes_back() {
    let mut queue = WaitQueue::new();
    let _lost = queue.enqueue(Box::new(Closed));
    let reached = queue.enqueue(Box::new(Silent));
    let mut granted = Granted::new();
    for value in [1, 2] {
        granted.push(queue.grant(value).unwrap());
    }
    let mut back = Vec::new();
    granted.wake(|value| back.push(value));
    assert_eq!(back, [1]);
    assert_eq!(reached.abandon(), Some(2));
}
