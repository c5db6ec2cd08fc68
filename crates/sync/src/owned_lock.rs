//! A lock between processes that knows who holds it, so that one held by a dead process can be taken away.
//!
//! One word: [`FREE`], or the owner with a bit that says "somebody sleeps" ("mutex2" of Drepper, "Futexes Are Tricky",
//! with the owner in the word). It decides who holds the lock and who has to be woken; sleeping, and who is alive, are
//! the caller's business. Memory that is all zero is a free lock.

use crate::primitive::{AtomicU64, Ordering};

/// The word of a lock that nobody holds.
pub const FREE: u64 = 0;
/// Somebody sleeps until the word changes. An owner never has this bit.
pub const SLEEPERS: u64 = 1 << 31;

/// See the module's documentation.
#[repr(transparent)]
#[derive(Debug)]
pub struct OwnedLock {
    word: AtomicU64,
}

/// What came of an attempt to acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The caller holds the lock.
    Acquired,
    /// Somebody else does; the word is this, which says that somebody sleeps. Sleep while it is.
    Held(u64),
}

impl OwnedLock {
    /// A free lock.
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(FREE),
        }
    }

    /// Takes the lock for `owner` if it is free. `slept` says that the caller slept here before: then others may still.
    #[inline]
    pub fn try_acquire(&self, owner: u64, slept: bool) -> bool {
        let taken = if slept { owner | SLEEPERS } else { owner };
        self.word
            .compare_exchange(FREE, taken, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes the lock, or announces that the caller is about to sleep.
    pub fn acquire_or_announce(&self, owner: u64, slept: bool) -> Attempt {
        let mut seen = self.word.load(Ordering::Relaxed);
        loop {
            if seen == FREE {
                if self.try_acquire(owner, slept) {
                    return Attempt::Acquired;
                }
                seen = self.word.load(Ordering::Relaxed);
                continue;
            }
            if seen & SLEEPERS != 0 {
                return Attempt::Held(seen);
            }
            match self.word.compare_exchange(
                seen,
                seen | SLEEPERS,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Attempt::Held(seen | SLEEPERS),
                Err(now) => seen = now,
            }
        }
    }

    /// Frees the lock, whoever holds it: whether somebody has to be woken, or `None` if nobody held it.
    #[inline]
    pub fn release(&self) -> Option<bool> {
        let mut seen = self.word.load(Ordering::Relaxed);
        while seen != FREE {
            match self
                .word
                .compare_exchange(seen, FREE, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return Some(seen & SLEEPERS != 0),
                Err(now) => seen = now,
            }
        }
        None
    }

    /// Frees the lock of an owner that is dead, if it is still the one in `seen`: true for one caller only.
    pub fn bury(&self, seen: u64) -> bool {
        // Acquire: what the dead owner wrote before it took the lock the last time is what the caller goes on from.
        self.word
            .compare_exchange(seen, FREE, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Hands the lock of a dead owner to `owner`, if it is still the one in `seen`. Sleepers are remembered.
    pub fn take_over(&self, seen: u64, owner: u64) -> bool {
        let taken = owner | (seen & SLEEPERS);
        self.word
            .compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// The word as it is now.
    #[inline]
    pub fn peek(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    /// Who holds the lock now.
    #[inline]
    pub fn owner(&self) -> Option<u64> {
        match self.peek() & !SLEEPERS {
            FREE => None,
            owner => Some(owner),
        }
    }

    /// Makes the word of a slot that is used again that of a free lock. Nobody else may have it.
    pub fn reset(&self) {
        self.word.store(FREE, Ordering::Relaxed);
    }

    /// The word to sleep on.
    #[cfg(not(plait_loom))]
    pub fn word(&self) -> &std::sync::atomic::AtomicU64 {
        &self.word
    }
}

impl Default for OwnedLock {
    fn default() -> Self {
        Self::new()
    }
}
