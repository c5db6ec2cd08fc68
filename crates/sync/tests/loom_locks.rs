//! Every interleaving of a few steps of the locks: nothing is had twice, nobody sleeps for ever, what was done before is seen.
#![cfg(plait_loom)]
#![allow(missing_docs)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use plait_sync::barrier::{Arrival, Barrier, Fate, TimedOut};
use plait_sync::condition::Condition;
use plait_sync::event::Event;
use plait_sync::parker::Parker;
use plait_sync::rlock::RLock;
use plait_sync::semaphore::{Attempt, Semaphore};
use plait_sync::wait_queue::{Waiter, Wake};

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(body);
}

/// A waiter that looks by itself.
struct Silent;

impl Wake for Silent {
    fn wake(&self) -> bool {
        true
    }
}

fn silent() -> Box<dyn Wake> {
    Box::new(Silent)
}

fn sleep<T>(parker: &Parker, waiter: &Waiter<T>) {
    while !waiter.is_granted() {
        parker.park();
    }
}

fn acquire(semaphore: &Semaphore) {
    let parker = Parker::new();
    let mut attempt = semaphore.acquire(|| Box::new(parker.unparker()));
    while let Attempt::Waiting(waiter) = attempt {
        sleep(&parker, &waiter);
        attempt = semaphore.settle(waiter, || Box::new(parker.unparker()));
    }
}

/// Adds one as only somebody may who is alone.
fn add(counter: &AtomicUsize) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

#[test]
fn one_unit_is_had_by_one_at_a_time_and_all_have_it() {
    model(3, || {
        let lock = Arc::new(Semaphore::default());
        let counter = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (lock, counter) = (Arc::clone(&lock), Arc::clone(&counter));
                thread::spawn(move || {
                    acquire(&lock);
                    add(&counter);
                    lock.release(1).unwrap();
                })
            })
            .collect();
        acquire(&lock);
        add(&counter);
        lock.release(1).unwrap();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(counter.load(Ordering::Relaxed), 3);
        assert_eq!((lock.free(), lock.waiting()), (1, 0));
    });
}

/// One that gives up takes nothing along, whatever it was granted: the next has it.
#[test]
fn what_one_gives_up_another_has() {
    model(3, || {
        let lock = Arc::new(Semaphore::new(0, 1));
        let Attempt::Waiting(quits) = lock.acquire(silent) else {
            unreachable!()
        };
        let other = Arc::clone(&lock);
        let waits = thread::spawn(move || acquire(&other));
        let releasing = Arc::clone(&lock);
        let releases = thread::spawn(move || releasing.release(1).unwrap());
        if lock.leave(&quits) {
            lock.release(1).unwrap();
        }
        waits.join().unwrap();
        releases.join().unwrap();
        assert_eq!((lock.free(), lock.waiting()), (0, 0));
    });
}

/// Somebody is quicker than the one that was called: that one has the next unit for certain, though others come.
#[test]
fn who_was_overtaken_is_given_the_next_unit() {
    loom::model(|| {
        let lock = Semaphore::new(0, 1);
        let Attempt::Waiting(waiter) = lock.acquire(silent) else {
            unreachable!()
        };
        lock.release(1).unwrap();
        assert!(lock.try_acquire());
        let Attempt::Waiting(waiter) = lock.settle(waiter, silent) else {
            unreachable!()
        };
        lock.release(1).unwrap();
        assert!(!lock.try_acquire());
        assert!(matches!(lock.settle(waiter, silent), Attempt::Acquired));
    });
}

#[test]
fn an_rlock_is_its_owners_alone() {
    model(2, || {
        let lock = Arc::new(RLock::new());
        let counter = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (1..3_u64)
            .map(|me| {
                let (lock, counter) = (Arc::clone(&lock), Arc::clone(&counter));
                thread::spawn(move || {
                    if !lock.try_acquire(me) {
                        acquire(lock.unit());
                        lock.own(me, 1);
                    }
                    assert!(lock.try_acquire(me));
                    add(&counter);
                    assert!(lock.release(3).is_err());
                    assert_eq!(lock.release_all(me), Ok(2));
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(counter.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn who_sees_the_event_set_sees_what_was_done_before() {
    loom::model(|| {
        let event = Arc::new(Event::new());
        let done = Arc::new(AtomicUsize::new(0));
        let (setting, doing) = (Arc::clone(&event), Arc::clone(&done));
        let sets = thread::spawn(move || {
            doing.store(1, Ordering::Relaxed);
            setting.set();
        });
        if event.is_set() {
            assert_eq!(done.load(Ordering::Relaxed), 1);
        } else {
            let parker = Parker::new();
            if let Some(waiter) = event.wait(|| Box::new(parker.unparker())) {
                sleep(&parker, &waiter);
            }
            assert_eq!(done.load(Ordering::Relaxed), 1);
        }
        sets.join().unwrap();
    });
}

/// As a program uses a condition: joins the line with the lock, lets go of it, sleeps. No notification is missed.
#[test]
fn no_notification_falls_between_letting_go_and_sleeping() {
    model(3, || {
        let lock = Arc::new(Semaphore::default());
        let condition = Arc::new(Condition::new());
        let ready = Arc::new(AtomicUsize::new(0));
        let (locking, notifying, making) = (
            Arc::clone(&lock),
            Arc::clone(&condition),
            Arc::clone(&ready),
        );
        let notifies = thread::spawn(move || {
            acquire(&locking);
            making.store(1, Ordering::Relaxed);
            notifying.notify(1);
            locking.release(1).unwrap();
        });
        acquire(&lock);
        while ready.load(Ordering::Relaxed) == 0 {
            let parker = Parker::new();
            let waiter = condition.wait(Box::new(parker.unparker()));
            lock.release(1).unwrap();
            sleep(&parker, &waiter);
            acquire(&lock);
        }
        lock.release(1).unwrap();
        notifies.join().unwrap();
    });
}

/// One of two that wait gives up while another notifies one: the one that stays is notified.
#[test]
fn a_notification_of_one_that_gives_up_is_passed_on() {
    model(3, || {
        let condition = Arc::new(Condition::new());
        let quits = condition.wait(silent());
        let parker = Parker::new();
        let stays = condition.wait(Box::new(parker.unparker()));
        let notifying = Arc::clone(&condition);
        let notifies = thread::spawn(move || notifying.notify(1));
        if condition.leave(&quits) {
            condition.notify(1);
        }
        sleep(&parker, &stays);
        notifies.join().unwrap();
        assert_eq!(condition.waiting(), 0);
    });
}

fn pass(barrier: &Barrier) -> Option<usize> {
    let parker = Parker::new();
    loop {
        match barrier.arrive(|| Box::new(parker.unparker())) {
            Arrival::Broken => return None,
            Arrival::Last(index) => {
                barrier.open(true);
                return Some(index);
            }
            Arrival::Waiting { index, waiter } => {
                sleep(&parker, &waiter);
                match waiter.take() {
                    Some(Fate::Passed) => return index,
                    Some(Fate::Again) => {}
                    Some(Fate::Broken) | None => return None,
                }
            }
        }
    }
}

#[test]
fn two_that_arrive_both_go_on_twice() {
    model(2, || {
        let barrier = Arc::new(Barrier::new(2));
        let other = Arc::clone(&barrier);
        let passes = thread::spawn(move || [pass(&other).unwrap(), pass(&other).unwrap()]);
        let mine = [pass(&barrier).unwrap(), pass(&barrier).unwrap()];
        let theirs = passes.join().unwrap();
        assert_eq!([mine[0] + theirs[0], mine[1] + theirs[1]], [1, 1]);
        assert_eq!(barrier.waiting(), 0);
    });
}

/// A timeout and the arrival of the last one at once: both go on, or both are told that it is broken.
#[test]
fn a_barrier_breaks_for_all_or_for_none() {
    model(3, || {
        let barrier = Arc::new(Barrier::new(2));
        let parker = Parker::new();
        let Arrival::Waiting { waiter, .. } = barrier.arrive(|| Box::new(parker.unparker())) else {
            unreachable!()
        };
        let other = Arc::clone(&barrier);
        let arrives = thread::spawn(move || pass(&other));
        let fate = match barrier.time_out(&waiter) {
            TimedOut::Decided(fate) => fate,
            TimedOut::TooLate => {
                sleep(&parker, &waiter);
                waiter.take().unwrap()
            }
        };
        let passed = fate == Fate::Passed;
        assert_eq!(arrives.join().unwrap().is_some(), passed);
        assert_eq!(barrier.is_broken(), !passed);
    });
}

/// One is interrupted while the last one arrives: that one goes on, or still waits for another.
#[test]
fn who_leaves_a_barrier_has_not_arrived() {
    model(3, || {
        let barrier = Arc::new(Barrier::new(2));
        let Arrival::Waiting { waiter, .. } = barrier.arrive(silent) else {
            unreachable!()
        };
        let other = Arc::clone(&barrier);
        let arrives = thread::spawn(move || match other.arrive(silent) {
            Arrival::Last(_) => other.open(true),
            Arrival::Waiting { index, .. } => assert_eq!(index, Some(0)),
            Arrival::Broken => unreachable!(),
        });
        barrier.leave(&waiter);
        arrives.join().unwrap();
        assert!(barrier.waiting() < 2 && !barrier.is_broken());
    });
}
