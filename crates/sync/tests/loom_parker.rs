//! Every interleaving of a sleeper and its wakers: a token is never lost, and what was written before it is seen.
#![cfg(plait_loom)]
#![allow(missing_docs)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use plait_sync::parker::Parker;

#[test]
fn what_was_written_before_a_wake_up_is_seen_after_it() {
    loom::model(|| {
        let parker = Parker::new();
        let waker = parker.unparker();
        let written = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&written);
        let thread = thread::spawn(move || {
            written.store(1, Ordering::Relaxed);
            waker.unpark();
        });
        parker.park();
        assert_eq!(seen.load(Ordering::Relaxed), 1);
        thread.join().unwrap();
    });
}

/// Two conditions, two wakers, one sleeper that looks again after each token: a lost one would be a deadlock.
#[test]
fn no_waker_is_overlooked() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let parker = Parker::new();
        let done = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let waker = parker.unparker();
                let done = Arc::clone(&done);
                thread::spawn(move || {
                    done.fetch_add(1, Ordering::Relaxed);
                    waker.unpark();
                })
            })
            .collect();
        while done.load(Ordering::Relaxed) < 2 {
            parker.park();
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
