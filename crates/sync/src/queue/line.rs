//! One line before one end of a queue: who is called to take what is available, and what is kept for whom.

use crate::primitive::Arc;
use crate::wait_queue::{Granted, WaitQueue, Waiter, Wake};

/// What one that stands in line is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// To look once more: there was something when it was called.
    Turn,
    /// Something is kept for it.
    Kept,
    /// To look once more, and then to go: there will be nothing for it.
    Nothing,
}

/// Plain data under the mutex of its queue. `turns` and `kept` count what was granted and not given back; there are at
/// least as many turns as things that are available and not kept, or nobody stands in line.
pub(super) struct Line {
    waiters: WaitQueue<Grant>,
    turns: usize,
    kept: usize,
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            waiters: WaitQueue::new(),
            turns: 0,
            kept: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// How many of the things that are available are somebody's already.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    pub(super) fn join(&mut self, wake: Box<dyn Wake>) -> Arc<Waiter<Grant>> {
        self.waiters.enqueue(wake)
    }

    /// For one that came too late.
    pub(super) fn join_again(&mut self, place: u64, wake: Box<dyn Wake>) -> Arc<Waiter<Grant>> {
        self.waiters.enqueue_again(place, wake)
    }

    pub(super) fn remove(&mut self, waiter: &Waiter<Grant>) {
        self.waiters.remove(waiter);
    }

    /// Calls those that are first in line, as many as there are things that nobody is on the way to take.
    pub(super) fn call(&mut self, available: usize, granted: &mut Granted<Grant>) {
        while self.turns + self.kept < available {
            let Some(first) = self.waiters.first() else {
                break;
            };
            let grant = if first.was_overtaken() {
                Grant::Kept
            } else {
                Grant::Turn
            };
            let Ok(waiter) = self.waiters.grant(grant) else {
                break;
            };
            granted.push(waiter);
            match grant {
                Grant::Kept => self.kept += 1,
                Grant::Turn | Grant::Nothing => self.turns += 1,
            }
        }
    }

    /// Tells everybody in line that there will be nothing.
    pub(super) fn send_away(&mut self, granted: &mut Granted<Grant>) {
        while let Ok(waiter) = self.waiters.grant(Grant::Nothing) {
            granted.push(waiter);
        }
    }

    /// One that was granted something has come for it, or will not come.
    pub(super) fn give_back(&mut self, grant: Grant) {
        match grant {
            Grant::Turn => self.turns = self.turns.saturating_sub(1),
            Grant::Kept => self.kept = self.kept.saturating_sub(1),
            Grant::Nothing => {}
        }
    }
}
