//! A lock that its owner may take again: a semaphore of one unit, with an owner and a depth.

use crate::primitive::{AtomicU64, Ordering};
use crate::semaphore::Semaphore;

/// Not an owner's number.
const NOBODY: u64 = 0;

/// See the module's documentation. An owner is any number but 0 that no two living threads share.
pub struct RLock {
    unit: Semaphore,
    /// Only its owner writes its own number here, and takes it away: so who reads its own number has the lock, and who has
    /// not, never reads it. No order is needed for that.
    owner: AtomicU64,
    /// Touched by the owner alone.
    depth: AtomicU64,
}

/// The caller does not own the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOwned;

impl RLock {
    /// A free lock.
    pub fn new() -> Self {
        Self {
            unit: Semaphore::default(),
            owner: AtomicU64::new(NOBODY),
            depth: AtomicU64::new(0),
        }
    }

    /// What to wait for if [`RLock::try_acquire`] did not get it; afterwards [`RLock::own`].
    pub fn unit(&self) -> &Semaphore {
        &self.unit
    }

    /// Takes it if it is free or the caller's own.
    pub fn try_acquire(&self, caller: u64) -> bool {
        if self.is_owned_by(caller) {
            let depth = self.depth.load(Ordering::Relaxed);
            self.depth.store(depth + 1, Ordering::Relaxed);
            return true;
        }
        let acquired = self.unit.try_acquire();
        if acquired {
            self.own(caller, 1);
        }
        acquired
    }

    /// By the one that has the unit: makes it the owner, `depth` times.
    pub fn own(&self, caller: u64, depth: u64) {
        self.depth.store(depth, Ordering::Relaxed);
        self.owner.store(caller, Ordering::Relaxed);
    }

    /// Undoes one [`RLock::try_acquire`].
    pub fn release(&self, caller: u64) -> Result<(), NotOwned> {
        if !self.is_owned_by(caller) {
            return Err(NotOwned);
        }
        let depth = self.depth.load(Ordering::Relaxed);
        if depth > 1 {
            self.depth.store(depth - 1, Ordering::Relaxed);
            return Ok(());
        }
        self.let_go();
        Ok(())
    }

    /// Undoes all of them; returns how many there were.
    pub fn release_all(&self, caller: u64) -> Result<u64, NotOwned> {
        if !self.is_owned_by(caller) {
            return Err(NotOwned);
        }
        let depth = self.depth.load(Ordering::Relaxed);
        self.let_go();
        Ok(depth)
    }

    fn let_go(&self) {
        self.depth.store(0, Ordering::Relaxed);
        self.owner.store(NOBODY, Ordering::Relaxed);
        // The unit was taken, so there is room for it.
        let _ = self.unit.release(1);
    }

    /// Whether the caller has it.
    pub fn is_owned_by(&self, caller: u64) -> bool {
        self.owner.load(Ordering::Relaxed) == caller
    }

    /// Who has it, at this moment.
    pub fn owner(&self) -> Option<u64> {
        match self.owner.load(Ordering::Relaxed) {
            NOBODY => None,
            owner => Some(owner),
        }
    }

    /// How often its owner has it, at this moment.
    pub fn depth(&self) -> u64 {
        self.depth.load(Ordering::Relaxed)
    }

    /// In the child of a fork: free, and nobody in line.
    pub fn reset(&self) {
        self.depth.store(0, Ordering::Relaxed);
        self.owner.store(NOBODY, Ordering::Relaxed);
        self.unit.reset(1, 1);
    }
}

impl Default for RLock {
    fn default() -> Self {
        Self::new()
    }
}
