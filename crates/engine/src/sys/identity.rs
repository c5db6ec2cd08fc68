//! Who a process is, told apart from any other that had or will have its id, and whether it still lives.
#![allow(unsafe_code)]

use std::fs;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

/// Where the identity is kept: a page that the kernel fills with zeros in the child of a fork. Null before it is first
/// asked for, and where there is no such page.
static CACHED: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// The calling process: its id in the low 31 bits, when it was started (in ticks since the machine was) in the high 32.
/// Right after a fork, too. Never 0, and bit 31 is never set.
#[inline]
pub fn of_this_process() -> u64 {
    // SAFETY: null, or a page that is never unmapped.
    match unsafe { CACHED.load(Ordering::Acquire).as_ref() }
        .map(|cached| cached.load(Ordering::Relaxed))
    {
        None | Some(0) => find_out(),
        Some(identity) => identity,
    }
}

/// The identity that was found out last, where there is no such page.
static LAST: AtomicU64 = AtomicU64::new(0);

#[cold]
fn find_out() -> u64 {
    let last = LAST.load(Ordering::Relaxed);
    if last != 0 && pid(last) == super::process::id() {
        return last;
    }
    let identity = identity();
    let cached = CACHED.load(Ordering::Acquire);
    let cached = if cached.is_null() {
        new_page()
    } else {
        NonNull::new(cached)
    };
    if let Some(cached) = cached {
        // SAFETY: zeroed or written here, aligned, and never unmapped.
        unsafe { cached.as_ref() }.store(identity, Ordering::Relaxed);
        CACHED.store(cached.as_ptr(), Ordering::Release);
    } else {
        LAST.store(identity, Ordering::Relaxed);
    }
    identity
}

/// The id of the process in `identity`.
pub fn pid(identity: u64) -> u32 {
    (identity & 0x7fff_ffff) as u32
}

/// Whether the process lives. One that has ended but was not waited for yet does not; one that is stopped does.
pub fn is_alive(identity: u64) -> bool {
    let Some(process) = i32::try_from(pid(identity)).ok().and_then(Pid::from_raw) else {
        return false; // rubbish, or nobody
    };
    let ended = match pidfd_open(process, PidfdFlags::empty()) {
        Ok(pidfd) => {
            let now = Timespec::default();
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
        }
        // No descriptor is left, or the kernel is older than pidfds: what is left to ask does not tell the ended from the living
        // before they are waited for.
        Err(_) => test_kill_process(process) == Err(rustix::io::Errno::SRCH),
    };
    let started = identity >> 32;
    !ended && (started == 0 || start_of(pid(identity)).is_none_or(|start| start == started))
}

fn identity() -> u64 {
    let pid = super::process::id();
    start_of(pid).unwrap_or_default() << 32 | u64::from(pid)
}

/// When a process was started, modulo 2³² ticks; `None` where `/proc` does not tell.
fn start_of(pid: u32) -> Option<u64> {
    let told = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything, the 20th field is what the manual counts as the 22nd.
    let (_, fields) = told.rsplit_once(')')?;
    let start: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(start & 0xffff_ffff)
}

/// A page that the child of a fork finds empty; `None` where there is none. Two threads may make one each, and one stays unused.
fn new_page() -> Option<NonNull<AtomicU64>> {
    const LENGTH: usize = 4096;
    // SAFETY: a new anonymous mapping at an address that the kernel chooses aliases nothing.
    let page = unsafe {
        mmap_anonymous(
            ptr::null_mut(),
            LENGTH,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }
    .ok()?;
    // SAFETY: the range was mapped just now, and nothing points into it yet.
    unsafe { madvise(page, LENGTH, Advice::LinuxWipeOnFork) }.ok()?;
    NonNull::new(page.cast())
}
