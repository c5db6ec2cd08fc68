//! Every interleaving of putting, getting and giving up: no item and no wake-up is lost.
#![cfg(plait_loom)]
#![allow(missing_docs)]

use loom::sync::Arc;
use loom::thread;
use plait_sync::parker::Parker;
use plait_sync::queue::{Get, Order, Put, Queue};
use plait_sync::wait_queue::Wake;

/// Gets one item and sleeps for it if it has to; None if there will be none.
fn get(queue: &Queue<u32>) -> Option<u32> {
    let parker = Parker::new();
    let wake = || -> Box<dyn Wake> { Box::new(parker.unparker()) };
    let mut outcome = queue.get(Some(&wake));
    loop {
        match outcome {
            Get::Item(item) => return Some(item),
            Get::Waiting(waiter) => {
                while !waiter.is_granted() {
                    parker.park();
                }
                outcome = queue.settle_get(waiter, &wake);
            }
            Get::ShutDown | Get::Empty | Get::Elsewhere => return None,
        }
    }
}

/// Puts one item and sleeps for a place if it has to; false if the queue was shut down.
fn put(queue: &Queue<u32>, item: u32) -> bool {
    let parker = Parker::new();
    let wake = || -> Box<dyn Wake> { Box::new(parker.unparker()) };
    let mut outcome = queue.put(item, Some(&wake));
    loop {
        match outcome {
            Put::Done => return true,
            Put::Waiting(waiter, item) => {
                while !waiter.is_granted() {
                    parker.park();
                }
                outcome = queue.settle_put(waiter, item, &wake);
            }
            Put::ShutDown(_) | Put::Full(_) | Put::Elsewhere(_) => return false,
        }
    }
}

/// As `loom::model`, with at most so many switches that nothing forced.
fn bounded(switches: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.check(body);
}

#[test]
fn two_getters_and_two_items() {
    bounded(2, || {
        let queue = Arc::new(Queue::new(Order::Fifo, None));
        let getters: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || get(&queue))
            })
            .collect();
        assert!(put(&queue, 1));
        assert!(put(&queue, 2));
        let sum: u32 = getters
            .into_iter()
            .map(|g| g.join().unwrap().unwrap())
            .sum();
        assert_eq!(sum, 3);
    });
}

#[test]
fn two_putters_and_one_place() {
    bounded(2, || {
        let queue = Arc::new(Queue::new(Order::Fifo, Some(1)));
        assert!(put(&queue, 1));
        let putters: Vec<_> = (2..4)
            .map(|item| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || put(&queue, item))
            })
            .collect();
        let sum: u32 = (0..3).map(|_| get(&queue).unwrap()).sum();
        assert_eq!(sum, 6);
        for putter in putters {
            assert!(putter.join().unwrap());
        }
    });
}

/// A getter gives up at the very moment at which it is called: the item goes to the other one.
#[test]
fn who_gives_up_takes_nothing_along() {
    bounded(3, || {
        let queue = Arc::new(Queue::new(Order::Fifo, None));
        let parker = Parker::new();
        let wake = || -> Box<dyn Wake> { Box::new(parker.unparker()) };
        let Get::Waiting(first) = queue.get(Some(&wake)) else {
            unreachable!("there was nothing to get")
        };
        let getting = Arc::clone(&queue);
        let other = thread::spawn(move || get(&getting));
        let putting = Arc::clone(&queue);
        let putter = thread::spawn(move || put(&putting, 7));
        queue.leave_get(&first);
        assert_eq!(other.join().unwrap(), Some(7));
        assert!(putter.join().unwrap());
    });
}

#[test]
fn a_shutdown_lets_nobody_wait_and_loses_no_item() {
    bounded(2, || {
        let queue = Arc::new(Queue::new(Order::Fifo, None));
        let getters: Vec<_> = (0..2)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || get(&queue))
            })
            .collect();
        assert!(put(&queue, 5));
        assert!(queue.shut_down(false).is_empty());
        let got: Vec<u32> = getters
            .into_iter()
            .filter_map(|g| g.join().unwrap())
            .collect();
        assert_eq!(got, [5]);
    });
}
