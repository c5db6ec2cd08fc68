//! The bell of one sleeper: others ring it only when it is needed, and never in vain.
//!
//! The sleeper says that it will sleep ([`Bell::announce`]), looks for work *once more*, and only then sleeps
//! for as long as [`Bell::word`] holds [`ASLEEP`]. Whoever makes work first publishes it and then asks
//! [`Bell::must_ring`]; if it is told so, it wakes the sleeper (a futex on the word, an eventfd, …).
//!
//! Why no wake-up is lost: both sides store, then fence (sequentially consistent), then load what the other
//! stored. Of two such fences one comes first; the side whose fence comes second sees the other's store. So
//! either the sleeper's second look finds the work, or the ringer finds the sleeper announced.
//!
//! The word may live in memory that another process can scribble on: the worst that does is a wake-up too
//! many, or one too few for that process's own work.

use crate::primitive::{AtomicU32, Ordering, fence};

/// The word while the sleeper is awake.
pub const AWAKE: u32 = 0;
/// The word while the sleeper sleeps or is about to.
pub const ASLEEP: u32 = 1;

/// See the module's documentation.
#[repr(C)]
#[derive(Debug)]
pub struct Bell {
    word: AtomicU32,
}

impl Bell {
    /// A bell whose sleeper is awake; all zero bytes, so a fresh mapping holds a valid one.
    pub fn new() -> Self {
        Self {
            word: AtomicU32::new(AWAKE),
        }
    }

    /// Sleeper: "I am about to sleep". Look for work again after this, before sleeping.
    pub fn announce(&self) {
        self.word.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sleeper: "I am awake", after sleeping or when the second look found work.
    pub fn withdraw(&self) {
        self.word.store(AWAKE, Ordering::Relaxed);
    }

    /// Ringer, after publishing work: whether the sleeper has to be woken, by this caller and by no other.
    pub fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // What is neither is rubbish from another process: better one wake-up too many than one too few.
        self.word.load(Ordering::Relaxed) != AWAKE
            && self.word.swap(AWAKE, Ordering::Relaxed) != AWAKE
    }

    /// Whether the sleeper has announced itself and nobody has rung since.
    pub fn is_asleep(&self) -> bool {
        self.word.load(Ordering::Relaxed) == ASLEEP
    }

    /// The word to sleep on while it holds [`ASLEEP`].
    #[cfg(not(plait_loom))]
    pub fn word(&self) -> &std::sync::atomic::AtomicU32 {
        &self.word
    }
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}
