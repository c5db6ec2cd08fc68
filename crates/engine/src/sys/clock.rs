//! Time that every process of the machine agrees on.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock: comparable between processes, unaffected by changes of the date.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The same clock as the kernel's last tick left it: a few milliseconds late, for a quarter of the cost.
pub fn coarse_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
