//! What this thread, this process and its children have used so far.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, Timespec, clock_gettime};

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::ThreadCPUTime))
}

fn process_cpu_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::ProcessCPUTime))
}

fn usage_of(who: libc::c_int) -> Option<libc::rusage> {
    let mut usage = MaybeUninit::uninit();
    // SAFETY: the pointer is to memory for one such structure, which the call fills if it returns 0.
    unsafe { (libc::getrusage(who, usage.as_mut_ptr()) == 0).then(|| usage.assume_init()) }
}

fn since_zero(time: libc::timeval) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_usec.cast_unsigned() * 1_000
}

/// CPU time of the children that have ended and were waited for, in nanoseconds; 0 if the system does not say.
pub fn children_cpu_ns() -> u64 {
    usage_of(libc::RUSAGE_CHILDREN).map_or(0, |usage| {
        since_zero(usage.ru_utime) + since_zero(usage.ru_stime)
    })
}

/// How long the calling thread was ready to run and had no CPU, in nanoseconds; 0 if the system does not say. Takes some
/// microseconds.
pub fn delayed_ns() -> u64 {
    let mut text = [0; 128];
    let read = File::open("/proc/thread-self/schedstat").and_then(|mut file| file.read(&mut text));
    let text = read.map_or(&[][..], |length| &text[..length]);
    let number = text.split(u8::is_ascii_whitespace).nth(1);
    let number = number.and_then(|number| std::str::from_utf8(number).ok());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The most memory that this process has had in use so far, in bytes; 0 if the system does not say.
pub fn peak_bytes() -> u64 {
    usage_of(libc::RUSAGE_SELF).map_or(0, |usage| usage.ru_maxrss.cast_unsigned() << 10)
}

/// What has been used besides the thread's own clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of the process, all threads.
    pub process_ns: u64,
    /// CPU time of its children.
    pub children_ns: u64,
    /// How often the calling thread has gone to sleep.
    pub sleeps: u64,
}

impl Usage {
    /// As it is now.
    pub fn now() -> Self {
        let thread = usage_of(libc::RUSAGE_THREAD);
        Self {
            process_ns: process_cpu_ns(),
            children_ns: children_cpu_ns(),
            sleeps: thread.map_or(0, |usage| usage.ru_nvcsw.cast_unsigned()),
        }
    }

    /// What was used since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            process_ns: self.process_ns.saturating_sub(before.process_ns),
            children_ns: self.children_ns.saturating_sub(before.children_ns),
            sleeps: self.sleeps.saturating_sub(before.sleeps),
        }
    }
}

/// How much of its children's CPU time this process has put to somebody's account.
static CLAIMED: AtomicU64 = AtomicU64::new(0);

/// Of the children's CPU time until now, `total_ns`, what nobody has claimed yet: several threads may have been waiting for
/// children, and none of it is to be counted twice.
pub fn claim_children(total_ns: u64) -> u64 {
    total_ns.saturating_sub(CLAIMED.fetch_max(total_ns, Ordering::AcqRel))
}
