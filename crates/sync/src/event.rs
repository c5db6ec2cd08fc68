//! A flag that threads and coroutines wait for.

use crate::primitive::{Arc, AtomicBool, Mutex, MutexGuard, Ordering};
use crate::wait_queue::{Granted, WaitQueue, Waiter, Wake};

/// See the module's documentation. Whoever waits when it is set is woken, even if it is cleared at once.
pub struct Event {
    /// Written under the mutex; read without it where an answer of a moment ago will do.
    flag: AtomicBool,
    waiters: Mutex<WaitQueue<()>>,
}

impl Event {
    /// An event that is not set.
    pub fn new() -> Self {
        Self {
            flag: AtomicBool::new(false),
            waiters: Mutex::new(WaitQueue::new()),
        }
    }

    fn waiters(&self) -> MutexGuard<'_, WaitQueue<()>> {
        self.waiters
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether it is set. What was done before it was set is seen after a true.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// Sets it and wakes everybody.
    pub fn set(&self) {
        let mut waiters = self.waiters();
        self.flag.store(true, Ordering::Release);
        let mut granted = Granted::new();
        while let Ok(waiter) = waiters.grant(()) {
            granted.push(waiter);
        }
        drop(waiters);
        // Who cannot be reached misses nothing that another could have.
        granted.wake(|()| {});
    }

    /// Takes it back.
    pub fn clear(&self) {
        // Under the mutex, so that it comes before or after a `set` as a whole.
        let _waiters = self.waiters();
        self.flag.store(false, Ordering::Relaxed);
    }

    /// Stands in line until it is set; None if it is. Sleep until [`Waiter::is_granted`], or [`Event::leave`].
    pub fn wait(&self, wake: impl FnOnce() -> Box<dyn Wake>) -> Option<Arc<Waiter<()>>> {
        let mut waiters = self.waiters();
        if self.flag.load(Ordering::Acquire) {
            return None;
        }
        Some(waiters.enqueue(wake()))
    }

    /// For one that gives up: true if the event was set just before.
    pub fn leave(&self, waiter: &Waiter<()>) -> bool {
        let granted = waiter.abandon().is_some();
        self.waiters().remove(waiter);
        granted
    }

    /// In the child of a fork: those that waited do not exist any more. The flag stays as it is.
    pub fn forget_waiters(&self) {
        let forgotten = std::mem::take(&mut *self.waiters());
        drop(forgotten);
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}
