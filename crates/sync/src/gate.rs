//! How any number of sleepers wait for something that others publish: a word with a bit "somebody sleeps" and a count of
//! wake-ups, so that a wake-up between a sleeper's last look and its sleep is not missed.
//!
//! Sleeper: [`Gate::announce`], look for what it waits for, sleep while the word is what `announce` gave. Publisher:
//! publish, then [`Gate::open`]. Whoever slept and found what it wanted says [`Gate::pass_on`], because the wake-up of one has
//! taken the announcement of all. Memory that is all zero is a gate where nobody sleeps.

use crate::primitive::{AtomicU32, Ordering, fence};

/// Somebody sleeps, or is about to.
const SLEEPERS: u32 = 1;

/// See the module's documentation.
#[repr(transparent)]
#[derive(Debug)]
pub struct Gate {
    word: AtomicU32,
}

impl Gate {
    /// A gate where nobody sleeps.
    pub fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
        }
    }

    /// "I am about to sleep": the word to sleep on. Look once more before that.
    pub fn announce(&self) -> u32 {
        let word = self.word.fetch_or(SLEEPERS, Ordering::Relaxed) | SLEEPERS;
        fence(Ordering::SeqCst);
        word
    }

    /// After publishing: whether sleepers have to be woken, by this caller.
    #[inline]
    pub fn open(&self) -> bool {
        fence(Ordering::SeqCst);
        let mut seen = self.word.load(Ordering::Relaxed);
        while seen & SLEEPERS != 0 {
            // The carry takes the bit and counts the wake-up.
            match self.word.compare_exchange(
                seen,
                seen.wrapping_add(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// By one that slept and found what it wanted, since others may still sleep: the next publisher has to look. If there
    /// is more already, [`Gate::open`] after this.
    pub fn pass_on(&self) {
        self.announce();
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

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}
