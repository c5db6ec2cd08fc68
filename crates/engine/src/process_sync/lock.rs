//! A slot as a lock: spinning, sleeping, and looking whether the owner lives.

use std::sync::atomic::Ordering;
use std::time::Duration;

use plait_sync::owned_lock::{Attempt, FREE, OwnedLock, SLEEPERS};

use super::{Place, Progress, Wait};
use crate::sys::{clock, futex, identity};

/// How often failed attempts on one lock look whether its owner lives.
const LOOK: Duration = Duration::from_millis(20);

impl Place {
    /// Makes the slot a free lock. For a new slot.
    pub fn make_lock(&self) {
        self.lock.reset();
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> bool {
        self.lock.try_acquire(identity::of_this_process(), false)
    }

    /// A step of waiting for the lock.
    pub fn lock_step(&self, wait: &mut Wait) -> Progress {
        let progress = step(&self.lock, wait);
        match progress {
            Step::Acquired => Progress::Done,
            Step::TimedOut => self
                .look_at_owner()
                .map_or(Progress::TimedOut, Progress::OwnerDied),
            Step::Dead(seen) if self.lock.bury(seen) => {
                wake_after(&self.lock, seen & SLEEPERS != 0);
                Progress::OwnerDied(identity::pid(seen))
            }
            Step::Dead(_) | Step::Look => Progress::Look,
        }
    }

    /// After a failed attempt: the id of the owner if it is dead, the lock being free then. Looks only now and then.
    pub fn look_at_owner(&self) -> Option<u32> {
        let (now, looked) = (clock::monotonic_ns(), self.looked.load(Ordering::Relaxed));
        if now.saturating_sub(looked) < LOOK.as_nanos() as u64 {
            return None;
        }
        self.looked.store(now, Ordering::Relaxed);
        let seen = self.lock.peek();
        if seen == FREE || identity::is_alive(seen & !SLEEPERS) || !self.lock.bury(seen) {
            return None;
        }
        wake_after(&self.lock, seen & SLEEPERS != 0);
        Some(identity::pid(seen))
    }

    /// Frees the lock, whoever holds it; false if nobody did.
    #[inline]
    pub fn unlock(&self) -> bool {
        unlock(&self.lock)
    }

    /// Whether somebody holds the lock.
    pub fn is_locked(&self) -> bool {
        self.lock.owner().is_some()
    }
}

/// What a step of waiting for a lock has led to.
pub(super) enum Step {
    Acquired,
    TimedOut,
    /// The owner in this word is dead.
    Dead(u64),
    Look,
}

pub(super) fn step(lock: &OwnedLock, wait: &mut Wait) -> Step {
    let me = identity::of_this_process();
    let slept = wait.slept;
    if wait.spin(|| lock.peek() == FREE && lock.try_acquire(me, slept)) {
        return Step::Acquired;
    }
    let seen = match lock.acquire_or_announce(me, slept) {
        Attempt::Acquired => return Step::Acquired,
        Attempt::Held(seen) => seen,
    };
    let Some(slice) = wait.slice() else {
        return Step::TimedOut;
    };
    wait.slept = true;
    futex::wait(futex::low_half(lock.word()), seen as u32, Some(slice));
    match lock.acquire_or_announce(me, true) {
        Attempt::Acquired => Step::Acquired,
        // The same owner for a whole slice: does it live?
        Attempt::Held(now) if now == seen && !identity::is_alive(seen & !SLEEPERS) => {
            Step::Dead(seen)
        }
        Attempt::Held(_) => Step::Look,
    }
}

pub(super) fn unlock(lock: &OwnedLock) -> bool {
    match lock.release() {
        None => false,
        Some(wake) => {
            wake_after(lock, wake);
            true
        }
    }
}

fn wake_after(lock: &OwnedLock, wake: bool) {
    if wake {
        futex::wake_one(futex::low_half(lock.word()));
    }
}
