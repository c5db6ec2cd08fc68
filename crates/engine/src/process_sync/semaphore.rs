//! A slot as a semaphore.

use plait_sync::permits::{Attempt, Released};

use super::{Place, Progress, Wait};
use crate::sys::futex;

impl Place {
    /// Makes the slot a semaphore with `count` permits. For a new slot.
    pub fn make_semaphore(&self, count: u32) {
        self.permits.reset(count);
    }

    /// Takes a permit if there is one.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.permits.try_acquire(false).is_some()
    }

    /// A step of waiting for a permit.
    pub fn acquire_step(&self, wait: &mut Wait) -> Progress {
        let slept = wait.slept;
        let permits = &self.permits;
        let mut acquired = None;
        wait.spin(|| {
            acquired = if permits.count() > 0 {
                permits.try_acquire(slept)
            } else {
                None
            };
            acquired.is_some()
        });
        match acquired.unwrap_or_else(|| permits.acquire_or_announce(slept)) {
            Attempt::Acquired { wake } => self.acquired(wake),
            Attempt::None(word) => {
                let Some(slice) = wait.slice() else {
                    return Progress::TimedOut;
                };
                wait.slept = true;
                futex::wait(permits.word(), word, Some(slice));
                match permits.try_acquire(true) {
                    Some(Attempt::Acquired { wake }) => self.acquired(wake),
                    _ => Progress::Look,
                }
            }
        }
    }

    fn acquired(&self, wake: bool) -> Progress {
        if wake {
            futex::wake_one(self.permits.word());
        }
        Progress::Done
    }

    /// Adds a permit; false if there are `most` already.
    #[inline]
    pub fn release(&self, most: u32) -> bool {
        match self.permits.release(most) {
            Released::TooOften => return false,
            Released::Quietly => {}
            Released::Wake(seen) => {
                if futex::wake(self.permits.word(), 1) == 0 {
                    self.permits.nobody_slept(seen);
                }
            }
        }
        true
    }

    /// How many permits there are.
    #[inline]
    pub fn permits(&self) -> u32 {
        self.permits.count()
    }
}
