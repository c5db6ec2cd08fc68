//! Every interleaving of a lock between processes, with a futex that is modelled, and owners that die.
#![cfg(plait_loom)]
#![allow(missing_docs, unsafe_code)]

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use plait_sync::owned_lock::{Attempt, OwnedLock, SLEEPERS};

/// The lock, what it guards, and a futex: it sleeps only while the word is what the sleeper has seen.
struct World {
    lock: OwnedLock,
    guarded: UnsafeCell<u32>,
    bed: Mutex<()>,
    alarm: Condvar,
}

// SAFETY: the cell is guarded by the lock, which is what loom checks here.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            lock: OwnedLock::new(),
            guarded: UnsafeCell::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        })
    }

    fn sleep(&self, seen: u64) {
        let bed = self.bed.lock().unwrap();
        if self.lock.peek() as u32 == seen as u32 {
            drop(self.alarm.wait(bed).unwrap());
        }
    }

    fn wake_one(&self) {
        let _bed = self.bed.lock().unwrap();
        self.alarm.notify_one();
    }

    fn acquire(&self, me: u64) {
        let mut slept = false;
        while let Attempt::Held(seen) = self.lock.acquire_or_announce(me, slept) {
            slept = true;
            self.sleep(seen);
        }
    }

    fn release(&self) {
        if self.lock.release() == Some(true) {
            self.wake_one();
        }
    }

    fn add_one(&self) {
        // SAFETY: only the owner of the lock is here; loom would see a second one.
        self.guarded.with_mut(|value| unsafe { *value += 1 });
    }
}

/// Three threads: every interleaving with at most two preemptions.
fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(body);
}

#[test]
fn one_owner_at_a_time_and_no_wake_up_is_lost() {
    model(|| {
        let world = World::new();
        let threads: Vec<_> = [1, 2]
            .map(|me| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    world.acquire(me);
                    world.add_one();
                    world.release();
                })
            })
            .into();
        world.acquire(3);
        world.add_one();
        world.release();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(world.lock.owner(), None);
        assert_eq!(world.lock.release(), None);
    });
}

/// A dead owner is taken out by exactly one of those that find it, and what it did before its last acquire is seen.
#[test]
fn a_dead_owner_is_buried_once() {
    model(|| {
        let world = World::new();
        world.acquire(7);
        world.add_one();
        world.release();
        let dead = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.acquire(9))
        };
        dead.join().unwrap();
        let waiters: Vec<_> = [1, 2]
            .map(|me| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    let mut buried = 0;
                    loop {
                        match world.lock.acquire_or_announce(me, true) {
                            Attempt::Acquired => break,
                            Attempt::Held(seen) if seen & !SLEEPERS == 9 => {
                                buried += u32::from(world.lock.bury(seen));
                            }
                            Attempt::Held(seen) => world.sleep(seen),
                        }
                    }
                    world.add_one();
                    world.release();
                    buried
                })
            })
            .into();
        let buried: u32 = waiters
            .into_iter()
            .map(|waiter| waiter.join().unwrap())
            .sum();
        assert_eq!(buried, 1);
    });
}

#[test]
fn a_dead_owners_lock_is_taken_over_by_one() {
    model(|| {
        let world = World::new();
        world.acquire(9); // and dies
        let others: Vec<_> = [1, 2]
            .map(|me| {
                let world = Arc::clone(&world);
                thread::spawn(move || {
                    loop {
                        match world.lock.acquire_or_announce(me, true) {
                            Attempt::Acquired => break,
                            Attempt::Held(seen) if seen & !SLEEPERS == 9 => {
                                if world.lock.take_over(seen, me) {
                                    break;
                                }
                            }
                            Attempt::Held(seen) => world.sleep(seen),
                        }
                    }
                    world.add_one();
                    world.release();
                })
            })
            .into();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(world.lock.owner(), None);
    });
}
