//! Every interleaving of a semaphore between processes, with a futex that is modelled.
#![cfg(plait_loom)]
#![allow(missing_docs)]

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use plait_sync::permits::{Attempt, MOST, Permits, Released};

struct World {
    permits: Permits,
    /// How many sleep.
    bed: Mutex<usize>,
    alarm: Condvar,
}

impl World {
    fn new(count: u32) -> Arc<Self> {
        Arc::new(Self {
            permits: Permits::new(count),
            bed: Mutex::new(0),
            alarm: Condvar::new(),
        })
    }

    fn wake_one(&self) -> bool {
        let sleepers = self.bed.lock().unwrap();
        self.alarm.notify_one();
        *sleepers > 0
    }

    fn acquire(&self) {
        let mut slept = false;
        loop {
            match self.permits.acquire_or_announce(slept) {
                Attempt::Acquired { wake } => {
                    if wake {
                        self.wake_one();
                    }
                    return;
                }
                Attempt::None(word) => {
                    slept = true;
                    let mut sleepers = self.bed.lock().unwrap();
                    if self.permits.peek() == word {
                        *sleepers += 1;
                        sleepers = self.alarm.wait(sleepers).unwrap();
                        *sleepers -= 1;
                    }
                }
            }
        }
    }

    fn release(&self) {
        match self.permits.release(MOST) {
            Released::TooOften => panic!("released too often"),
            Released::Quietly => {}
            Released::Wake(seen) => {
                if !self.wake_one() {
                    self.permits.nobody_slept(seen);
                }
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
fn as_many_get_through_as_there_are_permits_and_no_wake_up_is_lost() {
    model(|| {
        let world = World::new(0);
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.acquire())
            })
            .collect();
        world.release();
        world.release();
        for taker in takers {
            taker.join().unwrap();
        }
        assert_eq!(world.permits.count(), 0);
    });
}

#[test]
fn a_permit_that_is_handed_on_wakes_the_next() {
    model(|| {
        let world = World::new(1);
        let others: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    world.acquire();
                    world.release();
                })
            })
            .collect();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(world.permits.count(), 1);
    });
}
