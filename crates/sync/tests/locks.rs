//! The locks from many threads at once, without an interpreter: each test prints the seed by which it chooses.
#![cfg(not(plait_loom))]
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use plait_sync::barrier::{Arrival, Barrier, Fate};
use plait_sync::condition::Condition;
use plait_sync::event::Event;
use plait_sync::parker::Parker;
use plait_sync::rlock::RLock;
use plait_sync::semaphore::{Attempt, Semaphore};
use plait_sync::wait_queue::Wake;

const LONG: Duration = Duration::from_secs(60);

/// A waiter that nobody can reach.
struct Closed;

impl Wake for Closed {
    fn wake(&self) -> bool {
        false
    }
}

/// Numbers that look random, the same for the same seed (xorshift).
struct Numbers(u64);

impl Numbers {
    fn of(thread: u64) -> Self {
        let seed = std::env::var("PLAIT_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(20_261_120_u64);
        println!("PLAIT_SEED={seed}, thread {thread}");
        Self(seed.wrapping_mul(2 * thread + 1) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// True once there is a unit; false if `deadline` came first.
fn acquire(semaphore: &Semaphore, parker: &Parker, deadline: Instant) -> bool {
    let mut attempt = semaphore.acquire(|| Box::new(parker.unparker()));
    loop {
        let Attempt::Waiting(waiter) = attempt else {
            return true;
        };
        while !waiter.is_granted() {
            if !parker.park_until(deadline) && !waiter.is_granted() {
                return semaphore.leave(&waiter);
            }
        }
        attempt = semaphore.settle(waiter, || Box::new(parker.unparker()));
    }
}

fn at_once<R: Send + 'static>(
    threads: u64,
    body: impl Fn(u64) -> R + Clone + Send + 'static,
) -> Vec<R> {
    let running: Vec<_> = (0..threads)
        .map(|number| {
            let body = body.clone();
            thread::spawn(move || body(number))
        })
        .collect();
    running
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect()
}

/// Some wait long, some hardly, some give up at once, some cannot be reached: no unit is lost or made, and no two have one.
#[test]
fn units_are_neither_lost_nor_made() {
    for units in [1, 3] {
        let semaphore = Arc::new(Semaphore::new(units, units));
        let inside = Arc::new(AtomicUsize::new(0));
        let (shared, holders) = (Arc::clone(&semaphore), Arc::clone(&inside));
        at_once(8, move |number| {
            let (mut numbers, parker) = (Numbers::of(number), Parker::new());
            for _ in 0..2_000 {
                let acquired = match numbers.below(5) {
                    0 => shared.try_acquire(),
                    1 => acquire(&shared, &parker, Instant::now()),
                    2 => match shared.acquire(|| Box::new(Closed)) {
                        Attempt::Acquired => true,
                        Attempt::Waiting(waiter) => {
                            thread::yield_now();
                            shared.leave(&waiter)
                        }
                    },
                    3 => acquire(&shared, &parker, Instant::now() + Duration::from_micros(50)),
                    _ => {
                        let acquired = acquire(&shared, &parker, Instant::now() + LONG);
                        assert!(acquired, "somebody was forgotten");
                        acquired
                    }
                };
                if acquired {
                    assert!(holders.fetch_add(1, Ordering::SeqCst) < units as usize);
                    if numbers.below(4) == 0 {
                        thread::yield_now();
                    }
                    holders.fetch_sub(1, Ordering::SeqCst);
                    shared.release(1).unwrap();
                }
            }
        });
        assert_eq!((semaphore.free(), semaphore.waiting()), (units, 0));
        assert!(semaphore.release(1).is_err());
    }
}

#[test]
fn an_rlock_excludes_others_and_not_its_owner() {
    let lock = Arc::new(RLock::new());
    let counter = Arc::new(AtomicUsize::new(0));
    let (shared, counting) = (Arc::clone(&lock), Arc::clone(&counter));
    at_once(6, move |number| {
        let (me, parker) = (number + 1, Parker::new());
        for _ in 0..2_000 {
            if !shared.try_acquire(me) {
                assert!(acquire(shared.unit(), &parker, Instant::now() + LONG));
                shared.own(me, 1);
            }
            assert!(shared.try_acquire(me));
            // As only one that is alone may.
            counting.store(counting.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            assert!(shared.release(me + 100).is_err());
            shared.release(me).unwrap();
            shared.release(me).unwrap();
        }
    });
    assert_eq!(counter.load(Ordering::Relaxed), 12_000);
    assert_eq!((lock.owner(), lock.depth()), (None, 0));
}

#[test]
fn everybody_hears_of_an_event_that_is_set_and_cleared_again_and_again() {
    let event = Arc::new(Event::new());
    let left = Arc::new(AtomicUsize::new(4));
    let (waiting, leaving) = (Arc::clone(&event), Arc::clone(&left));
    let waits = thread::spawn(move || {
        at_once(4, move |_| {
            let parker = Parker::new();
            for _ in 0..500 {
                if let Some(waiter) = waiting.wait(|| Box::new(parker.unparker())) {
                    while !waiter.is_granted() {
                        assert!(parker.park_until(Instant::now() + LONG));
                    }
                }
            }
            leaving.fetch_sub(1, Ordering::SeqCst);
        });
    });
    while left.load(Ordering::SeqCst) > 0 {
        event.set();
        event.clear();
        thread::yield_now();
    }
    waits.join().unwrap();
}

/// Tokens go round by a condition; some waiters time out, and what they were notified of goes to others.
#[test]
fn no_notification_is_lost() {
    let lock = Arc::new(Semaphore::default());
    let condition = Arc::new(Condition::new());
    let tokens = Arc::new(AtomicUsize::new(0));
    let (locking, waiting, taking) = (
        Arc::clone(&lock),
        Arc::clone(&condition),
        Arc::clone(&tokens),
    );
    let takers = thread::spawn(move || {
        at_once(4, move |number| {
            let (mut numbers, parker) = (Numbers::of(number), Parker::new());
            for _ in 0..1_000 {
                assert!(acquire(&locking, &parker, Instant::now() + LONG));
                while taking.load(Ordering::Relaxed) == 0 {
                    let patience = if numbers.below(3) == 0 {
                        Duration::ZERO
                    } else {
                        LONG
                    };
                    let deadline = Instant::now() + patience;
                    let waiter = waiting.wait(Box::new(parker.unparker()));
                    locking.release(1).unwrap();
                    while !waiter.is_granted() && parker.park_until(deadline) {}
                    if !waiter.is_granted() {
                        assert!(patience.is_zero(), "a notification was lost");
                        // What came in this instant is made use of by looking at the tokens again.
                        waiting.leave(&waiter);
                    }
                    assert!(acquire(&locking, &parker, Instant::now() + LONG));
                }
                taking.store(taking.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
                locking.release(1).unwrap();
            }
        });
    });
    let parker = Parker::new();
    for _ in 0..4_000 {
        assert!(acquire(&lock, &parker, Instant::now() + LONG));
        tokens.store(tokens.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        condition.notify(1);
        lock.release(1).unwrap();
    }
    takers.join().unwrap();
    assert_eq!(
        (tokens.load(Ordering::Relaxed), condition.waiting()),
        (0, 0)
    );
}

#[test]
fn each_round_of_a_barrier_has_each_index_once() {
    const ROUNDS: usize = 1_000;
    let barrier = Arc::new(Barrier::new(4));
    let rounds = at_once(4, move |_| {
        let parker = Parker::new();
        let mut indices = Vec::with_capacity(ROUNDS);
        while indices.len() < ROUNDS {
            match barrier.arrive(|| Box::new(parker.unparker())) {
                Arrival::Broken => panic!("nobody broke it"),
                Arrival::Last(index) => {
                    thread::yield_now();
                    barrier.open(true);
                    indices.push(index);
                }
                Arrival::Waiting { index, waiter } => {
                    while !waiter.is_granted() {
                        assert!(parker.park_until(Instant::now() + LONG));
                    }
                    match waiter.take() {
                        Some(Fate::Passed) => indices.push(index.unwrap()),
                        fate => assert_eq!(fate, Some(Fate::Again)),
                    }
                }
            }
        }
        indices
    });
    for round in 0..ROUNDS {
        let mut seen: Vec<_> = rounds.iter().map(|indices| indices[round]).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3]);
    }
}
