//! A semaphore whose waiters are threads or coroutines; a lock is one with a single unit. "Locks" in `README.md` beside
//! this crate's `src` tells why no unit and no wake-up is lost.
//!
//! A release makes units *free* and calls as many waiters as there are free units to take them; whoever comes first has
//! one, be it a newcomer. That is what makes a contended lock fast: its holder can release and take it again many times
//! while the one that was called is still on its way. A waiter that came too late is *overtaken*: it goes back to its
//! place in line, and the next unit is given to it, so nobody is overtaken twice in a row.

use crate::primitive::{Arc, Mutex, MutexGuard};
use crate::wait_queue::{Granted, WaitQueue, Waiter, Wake};

/// What a waiter is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// To look once more: there was a free unit when it was called.
    Turn,
    /// The unit itself.
    Unit,
}

/// One that waits for a unit.
pub type UnitWaiter = Waiter<Grant>;

/// What came of an attempt to have a unit.
#[derive(Debug)]
pub enum Attempt {
    /// The caller has a unit.
    Acquired,
    /// It stands in line: sleep, then [`Semaphore::settle`] or [`Semaphore::leave`].
    Waiting(Arc<UnitWaiter>),
}

/// The number of units would exceed the bound, or what a number can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// See the module's documentation.
pub struct Semaphore {
    state: Mutex<State>,
}

struct State {
    /// The units that anybody may take.
    free: u64,
    /// How many waiters were granted a turn and have not come back yet; at least as many as there are free units, or nobody
    /// stands in line.
    turns: u64,
    bound: u64,
    waiters: WaitQueue<Grant>,
}

impl State {
    /// In the child of a fork, nobody is on the way.
    fn renew(&mut self) {
        if self.waiters.renew() {
            self.turns = 0;
        }
    }

    /// Calls waiters for the units that nobody is on the way to take.
    fn call(&mut self) -> Granted<Grant> {
        let mut granted = Granted::new();
        while self.turns < self.free {
            let Some(first) = self.waiters.first() else {
                break;
            };
            let grant = if first.was_overtaken() {
                Grant::Unit
            } else {
                Grant::Turn
            };
            let Ok(waiter) = self.waiters.grant(grant) else {
                break;
            };
            granted.push(waiter);
            match grant {
                Grant::Turn => self.turns += 1,
                Grant::Unit => self.free -= 1,
            }
        }
        granted
    }

    /// Takes back what was granted in vain.
    fn take_back(&mut self, grant: Grant) {
        match grant {
            Grant::Turn => self.turns = self.turns.saturating_sub(1),
            Grant::Unit => self.free += 1,
        }
    }
}

impl Semaphore {
    /// A semaphore with `free` units, of which there will never be more than `bound` free.
    pub fn new(free: u64, bound: u64) -> Self {
        Self {
            state: Mutex::new(State {
                free,
                turns: 0,
                bound,
                waiters: WaitQueue::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes a unit if there is a free one.
    pub fn try_acquire(&self) -> bool {
        let mut state = self.state();
        let acquired = state.free > 0;
        if acquired {
            state.free -= 1;
        }
        acquired
    }

    /// Takes a unit, or stands in line for one.
    pub fn acquire(&self, wake: impl FnOnce() -> Box<dyn Wake>) -> Attempt {
        let mut state = self.state();
        if state.free > 0 {
            state.free -= 1;
            return Attempt::Acquired;
        }
        state.renew();
        Attempt::Waiting(state.waiters.enqueue(wake()))
    }

    /// For a waiter that was woken, or was not and looks nevertheless.
    pub fn settle(&self, waiter: Arc<UnitWaiter>, wake: impl FnOnce() -> Box<dyn Wake>) -> Attempt {
        match waiter.take() {
            None => Attempt::Waiting(waiter),
            Some(Grant::Unit) => Attempt::Acquired,
            Some(Grant::Turn) => {
                let mut state = self.state();
                state.take_back(Grant::Turn);
                if state.free > 0 {
                    state.free -= 1;
                    return Attempt::Acquired;
                }
                Attempt::Waiting(state.waiters.enqueue_again(waiter.place(), wake()))
            }
        }
    }

    /// For a waiter that gives up. True if it has a unit nevertheless, because it was granted one in this instant; a caller
    /// that has no use for it releases it.
    pub fn leave(&self, waiter: &UnitWaiter) -> bool {
        let granted = waiter.abandon();
        let mut state = self.state();
        state.waiters.remove(waiter);
        match granted {
            None => false,
            Some(Grant::Unit) => true,
            Some(Grant::Turn) => {
                state.take_back(Grant::Turn);
                let acquired = state.free > 0;
                if acquired {
                    state.free -= 1;
                }
                // If another took the unit, that one's release calls the next.
                acquired
            }
        }
    }

    /// Gives `count` units back and calls those that wait for them.
    pub fn release(&self, count: u64) -> Result<(), TooMany> {
        let mut state = self.state();
        state.renew();
        match state.free.checked_add(count) {
            Some(free) if free <= state.bound => state.free = free,
            _ => return Err(TooMany),
        }
        if state.waiters.is_empty() {
            return Ok(());
        }
        let granted = state.call();
        drop(state);
        self.wake(granted);
        Ok(())
    }

    /// Wakes those that were called, and calls others instead of those that cannot be reached.
    fn wake(&self, mut granted: Granted<Grant>) {
        while !granted.is_empty() {
            let mut undelivered = Vec::new();
            granted.wake(|grant| undelivered.push(grant));
            if undelivered.is_empty() {
                return;
            }
            let mut state = self.state();
            for grant in undelivered {
                state.take_back(grant);
            }
            granted = state.call();
        }
    }

    /// How many units are free at this moment.
    pub fn free(&self) -> u64 {
        self.state().free
    }

    /// The most units that may be free.
    pub fn bound(&self) -> u64 {
        self.state().bound
    }

    /// How many stand in line at this moment.
    pub fn waiting(&self) -> usize {
        self.state().waiters.len()
    }

    /// Makes it as new, with `free` units and nobody in line: before it is used, and in the child of a fork, where those that
    /// waited do not exist any more.
    pub fn reset(&self, free: u64, bound: u64) {
        let mut state = self.state();
        let forgotten = std::mem::take(&mut state.waiters);
        (state.free, state.turns, state.bound) = (free, 0, bound);
        drop(state);
        drop(forgotten);
    }
}

/// A lock: a semaphore of one unit.
impl Default for Semaphore {
    fn default() -> Self {
        Self::new(1, 1)
    }
}
