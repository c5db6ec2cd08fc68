//! The line of those that wait to be notified: a condition variable without its lock, which its user takes and lets go of.
//!
//! A waiter joins the line while it holds that lock and then lets go of it; whoever notifies holds it too. So no
//! notification falls between the two.

use crate::primitive::{Arc, Mutex, MutexGuard};
use crate::wait_queue::{Granted, WaitQueue, Waiter, Wake};

/// See the module's documentation.
pub struct Condition {
    waiters: Mutex<WaitQueue<()>>,
}

impl Condition {
    /// Nobody waits.
    pub fn new() -> Self {
        Self {
            waiters: Mutex::new(WaitQueue::new()),
        }
    }

    fn waiters(&self) -> MutexGuard<'_, WaitQueue<()>> {
        self.waiters
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Stands in line. Let go of the lock, and sleep until [`Waiter::is_granted`], or [`Condition::leave`].
    pub fn wait(&self, wake: Box<dyn Wake>) -> Arc<Waiter<()>> {
        self.waiters().enqueue(wake)
    }

    /// For one that gives up: true if it was notified just before. If it has no use for that, it notifies another.
    pub fn leave(&self, waiter: &Waiter<()>) -> bool {
        let granted = waiter.abandon().is_some();
        self.waiters().remove(waiter);
        granted
    }

    /// Wakes the first `count` that wait and can be reached.
    pub fn notify(&self, count: usize) {
        let mut left = count;
        while left > 0 {
            let mut waiters = self.waiters();
            if waiters.is_empty() {
                return;
            }
            let mut granted = Granted::new();
            while left > 0
                && let Ok(waiter) = waiters.grant(())
            {
                granted.push(waiter);
                left -= 1;
            }
            drop(waiters);
            if granted.is_empty() {
                return;
            }
            let mut unreachable = 0;
            granted.wake(|()| unreachable += 1);
            left = unreachable;
        }
    }

    /// How many wait at this moment.
    pub fn waiting(&self) -> usize {
        self.waiters().len()
    }

    /// In the child of a fork: those that waited do not exist any more.
    pub fn forget_waiters(&self) {
        let forgotten = std::mem::take(&mut *self.waiters());
        drop(forgotten);
    }
}

impl Default for Condition {
    fn default() -> Self {
        Self::new()
    }
}
