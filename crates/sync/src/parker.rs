//! Block one thread until another wakes it: a token that is either there or not.
//!
//! [`Unparker::unpark`] leaves the token, [`Parker::park`] waits for it and takes it, so the order of the two
//! does not matter and a wake-up is never lost. A token may be left over from an earlier wait that ended by
//! its deadline: callers look at their own condition again after every return.
//!
//! The algorithm is that of crossbeam-utils' `Parker`: an atomic that says who has to act, and a mutex with a
//! condition variable for the sleep itself. Waking a thread that does not sleep is one swap, no system call.

#[cfg(not(plait_loom))]
use std::time::{Duration, Instant};

use crate::primitive::{Arc, AtomicU8, Condvar, Mutex, MutexGuard, Ordering};

/// No token, nobody sleeps.
const EMPTY: u8 = 0;
/// No token, the owner sleeps or is about to.
const PARKED: u8 = 1;
/// The token is there.
const NOTIFIED: u8 = 2;

struct Shared {
    state: AtomicU8,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Shared {
    /// Nothing is guarded by the mutex, so a panic elsewhere while it was held means nothing here.
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take_token(&self) -> bool {
        self.state
            .compare_exchange(NOTIFIED, EMPTY, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }
}

/// The sleeping side: held by the one thread that waits with it.
pub struct Parker {
    shared: Arc<Shared>,
}

impl Parker {
    /// A parker without a token.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: AtomicU8::new(EMPTY),
                lock: Mutex::new(()),
                wake: Condvar::new(),
            }),
        }
    }

    /// The waking side; any number of them may exist.
    pub fn unparker(&self) -> Unparker {
        Unparker {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Sleeps until there is a token, and takes it.
    pub fn park(&self) {
        let shared = &*self.shared;
        if shared.take_token() {
            return;
        }
        let mut guard = shared.lock();
        if !self.announce() {
            return;
        }
        loop {
            guard = shared
                .wake
                .wait(guard)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if shared.take_token() {
                return;
            }
        }
    }

    /// Sleeps until there is a token, and takes it: true. Or until `deadline`: false.
    #[cfg(not(plait_loom))]
    pub fn park_until(&self, deadline: Instant) -> bool {
        let shared = &*self.shared;
        if shared.take_token() {
            return true;
        }
        let mut guard = shared.lock();
        if !self.announce() {
            return true;
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Withdraw the announcement; a token that arrived this instant counts.
                return shared.state.swap(EMPTY, Ordering::Acquire) == NOTIFIED;
            }
            guard = shared
                .wake
                .wait_timeout(guard, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
            if shared.take_token() {
                return true;
            }
        }
    }

    /// Looks for a token, without sleeping, for at most about `limit` and while `worthwhile`; true if it took one.
    ///
    /// After a moment it offers the processor to others between two looks: whoever is to leave the token may have
    /// been put on this very one, and would otherwise wait there until this thread sleeps.
    #[cfg(not(plait_loom))]
    pub fn spin(&self, limit: Duration, worthwhile: impl Fn() -> bool) -> bool {
        /// Looks between two offers: an offer costs several of these.
        const LOOKS: u32 = 64;
        let began = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.shared.state.load(Ordering::Relaxed) == NOTIFIED {
                    return self.shared.take_token();
                }
                std::hint::spin_loop();
            }
            if began.elapsed() >= limit || !worthwhile() {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Says that the owner is about to sleep; false if a token was there, which is then taken.
    /// The caller holds the lock, so a waker that sees the announcement cannot notify before the wait.
    fn announce(&self) -> bool {
        let state = &self.shared.state;
        if state
            .compare_exchange(EMPTY, PARKED, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            return true;
        }
        // Only the owner takes tokens or parks, so it was NOTIFIED. The swap reads that store, with its Release.
        state.swap(EMPTY, Ordering::Acquire);
        false
    }
}

impl Default for Parker {
    fn default() -> Self {
        Self::new()
    }
}

/// The waking side of a [`Parker`].
#[derive(Clone)]
pub struct Unparker {
    shared: Arc<Shared>,
}

impl Unparker {
    /// Leaves a token, and wakes the owner if it sleeps.
    pub fn unpark(&self) {
        if self.shared.state.swap(NOTIFIED, Ordering::Release) == PARKED {
            // Between its announcement and its wait the owner holds the lock: after this it does wait.
            drop(self.shared.lock());
            self.shared.wake.notify_one();
        }
    }

    /// Whether both wake the same parker.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}
