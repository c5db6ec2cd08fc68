//! Permits of a semaphore between processes: how many there are, and whether somebody sleeps, in one word.
//!
//! The sleeping itself is the caller's business. Memory that is all zero is a semaphore without permits.

use crate::primitive::{AtomicU32, Ordering};

/// The most permits there can be.
pub const MOST: u32 = SLEEPERS - 1;
/// Somebody sleeps until the word changes.
const SLEEPERS: u32 = 1 << 31;

/// See the module's documentation.
#[repr(transparent)]
#[derive(Debug)]
pub struct Permits {
    word: AtomicU32,
}

/// What came of an attempt to acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The caller has a permit. If `wake`, it has slept, permits are left, and another sleeper has to be woken.
    Acquired {
        /// Wake one more.
        wake: bool,
    },
    /// There is none; the word is this, which says that somebody sleeps. Sleep while it is.
    None(u32),
}

/// What came of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// There are as many permits as there may be; nothing was changed.
    TooOften,
    /// Nobody sleeps.
    Quietly,
    /// Wake one; if nobody was there to be woken, say so by [`Permits::nobody_slept`] with this.
    Wake(u32),
}

impl Permits {
    /// `count` permits.
    pub fn new(count: u32) -> Self {
        Self {
            word: AtomicU32::new(count.min(MOST)),
        }
    }

    /// Takes a permit if there is one. `slept` says that the caller slept here before: then others may still.
    #[inline]
    pub fn try_acquire(&self, slept: bool) -> Option<Attempt> {
        let mut seen = self.word.load(Ordering::Relaxed);
        while seen & !SLEEPERS != 0 {
            let left = (seen - 1) | if slept { SLEEPERS } else { 0 };
            match self
                .word
                .compare_exchange(seen, left, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => {
                    return Some(Attempt::Acquired {
                        wake: slept && left & !SLEEPERS != 0,
                    });
                }
                Err(now) => seen = now,
            }
        }
        None
    }

    /// Takes a permit, or announces that the caller is about to sleep.
    pub fn acquire_or_announce(&self, slept: bool) -> Attempt {
        loop {
            if let Some(acquired) = self.try_acquire(slept) {
                return acquired;
            }
            match self
                .word
                .compare_exchange(0, SLEEPERS, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) | Err(SLEEPERS) => return Attempt::None(SLEEPERS),
                Err(_) => {}
            }
        }
    }

    /// Adds a permit, unless there are `most` already.
    #[inline]
    pub fn release(&self, most: u32) -> Released {
        let mut seen = self.word.load(Ordering::Relaxed);
        loop {
            if seen & !SLEEPERS >= most.min(MOST) {
                return Released::TooOften;
            }
            match self
                .word
                .compare_exchange(seen, seen + 1, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) if seen & SLEEPERS == 0 => return Released::Quietly,
                Ok(_) => return Released::Wake(seen + 1),
                Err(now) => seen = now,
            }
        }
    }

    /// Nobody was asleep when the word was `seen`: whoever announced itself since then sees a changed word, and looks
    /// again.
    pub fn nobody_slept(&self, seen: u32) {
        let _ = self.word.compare_exchange(
            seen,
            seen & !SLEEPERS,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// How many permits there are now.
    #[inline]
    pub fn count(&self) -> u32 {
        self.word.load(Ordering::Relaxed) & !SLEEPERS
    }

    /// Makes the word of a slot that is used again one of `count` permits. Nobody else may have it.
    pub fn reset(&self, count: u32) {
        self.word.store(count.min(MOST), Ordering::Relaxed);
    }

    /// The word as it is now.
    #[cfg(plait_loom)]
    pub fn peek(&self) -> u32 {
        self.word.load(Ordering::Relaxed)
    }

    /// The word to sleep on.
    #[cfg(not(plait_loom))]
    pub fn word(&self) -> &std::sync::atomic::AtomicU32 {
        &self.word
    }
}
