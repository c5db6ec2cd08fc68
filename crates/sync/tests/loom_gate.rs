//! Every interleaving of two sleepers and a publisher at a gate, with a futex that is modelled.
#![cfg(plait_loom)]
#![allow(missing_docs)]

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use plait_sync::gate::Gate;

struct World {
    gate: Gate,
    /// What the sleepers wait for.
    items: AtomicU32,
    bed: Mutex<()>,
    alarm: Condvar,
}

impl World {
    fn open(&self) {
        if self.gate.open() {
            let _bed = self.bed.lock().unwrap();
            self.alarm.notify_one();
        }
    }

    fn put(&self) {
        self.items.fetch_add(1, Ordering::Release);
        self.open();
    }

    fn take(&self) -> bool {
        self.items
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |items| {
                items.checked_sub(1)
            })
            .is_ok()
    }

    fn get(&self) {
        let mut slept = false;
        while !self.take() {
            let word = self.gate.announce();
            if self.items.load(Ordering::Relaxed) > 0 {
                continue;
            }
            slept = true;
            let bed = self.bed.lock().unwrap();
            if self.gate.peek() == word {
                drop(self.alarm.wait(bed).unwrap());
            }
        }
        if slept {
            self.gate.pass_on();
            if self.items.load(Ordering::Relaxed) > 0 {
                self.open();
            }
        }
    }
}

/// Three threads: every interleaving with at most two preemptions.
fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(body);
}

#[test]
fn everybody_gets_something_and_no_wake_up_is_lost() {
    model(|| {
        let world = Arc::new(World {
            gate: Gate::new(),
            items: AtomicU32::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        });
        let sleepers: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.get())
            })
            .collect();
        world.put();
        world.put();
        for sleeper in sleepers {
            sleeper.join().unwrap();
        }
        assert_eq!(world.items.load(Ordering::Relaxed), 0);
    });
}
