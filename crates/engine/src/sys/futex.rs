//! Sleeping on a word that other processes can change: a futex without the private flag.

use std::sync::atomic::AtomicU32;
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
    // The only possible failure is an address that is not mapped, and a reference always is.
    let _ = rustix::thread::futex::wake(word, Flags::empty(), 1);
}
