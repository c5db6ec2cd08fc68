//! Sleeping on a word that other processes can change: a futex without the private flag.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use rustix::thread::futex::{Flags, Timespec};

/// Sleeps while `word` holds `expected`: until woken, a signal arrives, or the time is over. May return for no
/// reason, so callers look again.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|limit| Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    // Every error (changed meanwhile, interrupted, timed out) means the same: look again.
    let _ = rustix::thread::futex::wait(word, Flags::empty(), expected, timeout.as_ref());
}

/// Wakes one sleeper on `word`.
pub fn wake_one(word: &AtomicU32) {
    wake(word, 1);
}

/// Wakes up to `count` sleepers on `word`; how many there were to be woken.
pub fn wake(word: &AtomicU32, count: u32) -> usize {
    // The only possible failure is an address that is not mapped, and a reference always is.
    rustix::thread::futex::wake(word, Flags::empty(), count).unwrap_or_default()
}

/// The half of `word` that the kernel can compare: the one with the low 32 bits.
pub fn low_half(word: &AtomicU64) -> &AtomicU32 {
    let halves = ptr::from_ref(word).cast::<AtomicU32>();
    let low = usize::from(cfg!(target_endian = "big"));
    // SAFETY: both halves lie inside `word`, which is aligned for either and outlives the result; all access is atomic.
    // Only the kernel reads the half (see `wait` and `wake`), so no access of this program is of another size.
    unsafe { &*halves.add(low) }
}
