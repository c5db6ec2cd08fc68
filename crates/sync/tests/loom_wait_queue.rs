//! Every interleaving of granting, giving up and waking: nothing that was granted is lost or had twice.
#![cfg(plait_loom)]
#![allow(missing_docs)]

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use plait_sync::parker::Parker;
use plait_sync::wait_queue::{Granted, WaitQueue, Wake};

/// A waiter that nobody has to wake: it looks by itself.
struct Silent;

impl Wake for Silent {
    fn wake(&self) -> bool {
        true
    }
}

/// A waiter whose event loop is closed.
struct Closed;

impl Wake for Closed {
    fn wake(&self) -> bool {
        false
    }
}

/// A value that is not atomic: loom notices if two reach it at once or without order.
fn value() -> Box<usize> {
    Box::new(7)
}

#[test]
fn who_gives_up_either_has_the_value_or_it_stays_with_the_granter() {
    loom::model(|| {
        let queue = Arc::new(Mutex::new(WaitQueue::new()));
        let waiter = queue.lock().unwrap().enqueue(Box::new(Silent));
        let granting = Arc::clone(&queue);
        let granter = thread::spawn(move || granting.lock().unwrap().grant(value()).err());
        let had = waiter.abandon();
        queue.lock().unwrap().remove(&waiter);
        let kept = granter.join().unwrap();
        assert_eq!(had.is_some() as u8 + kept.is_some() as u8, 1);
        assert!(waiter.take().is_none());
    });
}

#[test]
fn what_one_gave_up_goes_to_the_next() {
    loom::model(|| {
        let queue = Arc::new(Mutex::new(WaitQueue::new()));
        let first = queue.lock().unwrap().enqueue(Box::new(Silent));
        let second = queue.lock().unwrap().enqueue(Box::new(Silent));
        let quitting = Arc::clone(&queue);
        let quitter = thread::spawn(move || {
            let had = first.abandon();
            let mut queue = quitting.lock().unwrap();
            queue.remove(&first);
            had.map(|value| queue.grant(value).is_ok())
        });
        let granted = queue.lock().unwrap().grant(value());
        assert!(granted.is_ok());
        drop(granted);
        assert_ne!(quitter.join().unwrap(), Some(false));
        assert_eq!(second.take(), Some(value()));
    });
}

#[test]
fn two_that_take_share_nothing() {
    loom::model(|| {
        let mut queue = WaitQueue::new();
        let waiter = queue.enqueue(Box::new(Silent));
        assert!(queue.grant(value()).is_ok());
        let other = Arc::clone(&waiter);
        let thief = thread::spawn(move || other.take().is_some());
        let mine = waiter.abandon().is_some();
        assert_ne!(thief.join().unwrap(), mine);
    });
}

#[test]
fn a_parked_thread_is_woken_and_sees_what_was_done_before() {
    loom::model(|| {
        let parker = Parker::new();
        let queue = Arc::new(Mutex::new(WaitQueue::new()));
        let done = Arc::new(AtomicUsize::new(0));
        let waiter = queue.lock().unwrap().enqueue(Box::new(parker.unparker()));
        let (granting, doing) = (Arc::clone(&queue), Arc::clone(&done));
        let granter = thread::spawn(move || {
            doing.store(1, Ordering::Relaxed);
            let granted = granting.lock().unwrap().grant(());
            if let Ok(waiter) = granted {
                assert!(waiter.wake());
            }
        });
        while !waiter.is_granted() {
            parker.park();
        }
        assert_eq!(done.load(Ordering::Relaxed), 1);
        assert!(waiter.take().is_some());
        granter.join().unwrap();
    });
}

/// A waiter that cannot be reached gives up by itself at the same time: one of the two passes the value on.
#[test]
fn what_the_unreachable_was_granted_is_passed_on_once() {
    loom::model(|| {
        let queue = Arc::new(Mutex::new(WaitQueue::new()));
        let lost = queue.lock().unwrap().enqueue(Box::new(Closed));
        let next = queue.lock().unwrap().enqueue(Box::new(Silent));
        let granting = Arc::clone(&queue);
        let granter = thread::spawn(move || {
            let mut granted = Granted::new();
            granted.push(granting.lock().unwrap().grant(value()).unwrap());
            granted.wake(|value| drop(granting.lock().unwrap().grant(value)));
        });
        if let Some(value) = lost.abandon() {
            drop(queue.lock().unwrap().grant(value));
        }
        queue.lock().unwrap().remove(&lost);
        granter.join().unwrap();
        assert_eq!(next.take(), Some(value()));
    });
}
