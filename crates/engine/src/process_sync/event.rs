//! An event between processes: set or not, with a count of settings so that none is missed. No lock in it.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Place, Progress, Wait};
use crate::sys::futex;

const SET: u32 = 1;
const SLEEPERS: u32 = 2;
/// The lowest bit of the count of settings.
const ONE: u32 = 4;

/// The word of an event.
#[repr(transparent)]
#[derive(Debug)]
pub struct EventWord(AtomicU32);

impl Place {
    /// Makes the slot an event that is not set. For a new slot.
    pub fn make_event(&self) {
        self.event.0.store(0, Ordering::Relaxed);
    }

    /// Whether the event is set.
    pub fn is_set(&self) -> bool {
        self.event.0.load(Ordering::Acquire) & SET != 0
    }

    /// Sets the event and wakes all who wait for it.
    pub fn set(&self) {
        let word = &self.event.0;
        let set = |seen: u32| {
            (seen & !SLEEPERS).wrapping_add(if seen & SET == 0 { ONE } else { 0 }) | SET
        };
        let before = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |seen| Some(set(seen)));
        if before.is_ok_and(|seen| seen & SLEEPERS != 0) {
            futex::wake(word, i32::MAX.cast_unsigned());
        }
    }

    /// Makes it an event that is not set.
    pub fn clear(&self) {
        self.event.0.fetch_and(!SET, Ordering::AcqRel);
    }

    /// What to wait from; see [`Place::wait_step`].
    pub fn settings(&self) -> u32 {
        self.event.0.load(Ordering::Acquire) & !(SET | SLEEPERS)
    }

    /// A step of waiting until the event is set, or has been since `settings`.
    pub fn wait_step(&self, settings: u32, wait: &mut Wait) -> Progress {
        let word = &self.event.0;
        let is_set = |seen: u32| seen & SET != 0 || seen & !(SET | SLEEPERS) != settings;
        if is_set(word.load(Ordering::Acquire))
            || wait.spin(|| is_set(word.load(Ordering::Acquire)))
        {
            return Progress::Done;
        }
        let Some(slice) = wait.slice() else {
            return Progress::TimedOut;
        };
        let seen = word.fetch_or(SLEEPERS, Ordering::AcqRel);
        if is_set(seen) {
            return Progress::Done;
        }
        futex::wait(word, seen | SLEEPERS, Some(slice));
        if is_set(word.load(Ordering::Acquire)) {
            return Progress::Done;
        }
        Progress::Look
    }
}
