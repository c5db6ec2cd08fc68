//! Starting the zygote, signalling a worker, dying with one's parent.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(feature = "fault-hooks")]
use rustix::process::kill_process;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitpid,
};
use rustix::thread::gettid;

/// The id of the calling process; asks the kernel, so it is right after a fork.
pub fn id() -> u32 {
    getpid().as_raw_nonzero().get().cast_unsigned()
}

/// The id of the calling thread.
pub fn thread_id() -> u32 {
    gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Nanoseconds for which a thread of this process has waited for a processor although it had something to do; 0 where the
/// system does not tell.
pub fn run_delay(thread: u32) -> u64 {
    let told = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"));
    let delay = told.ok().and_then(|told| {
        let delay = told.split_ascii_whitespace().nth(1)?;
        delay.parse().ok()
    });
    delay.unwrap_or_default()
}

/// Starts `command` with `stdin` as its standard input. The standard library does this by `posix_spawn`, which
/// neither copies the caller's page tables nor runs anything of the caller's in the child.
///
/// The child begins in a process group of its own, where Ctrl-C does not reach it, and may join the caller's when it is
/// ready for that.
pub fn start(command: &[OsString], stdin: OwnedFd) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let child = Command::new(program)
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::from(stdin))
        .spawn()?;
    Ok(Child(Pid::from_child(&child)))
}

/// A child of this process that nobody else waits for.
#[derive(Debug)]
pub struct Child(Pid);

impl Child {
    /// The child with this process id.
    pub fn with_id(pid: u32) -> io::Result<Self> {
        let pid = pid.try_into().ok().and_then(Pid::from_raw);
        Ok(Self(pid.ok_or(io::ErrorKind::InvalidInput)?))
    }

    /// Kills it.
    pub fn kill(&self) {
        // Without a pidfd it is gone already.
        if let Ok(pidfd) = pidfd_open(self.0, PidfdFlags::empty()) {
            let _ = kill(&pidfd);
        }
    }

    /// Waits until it has ended; if that takes longer than `limit`, it is killed.
    pub fn wait(self, limit: Duration) {
        // Without a pidfd it is gone already.
        if let Ok(pidfd) = pidfd_open(self.0, PidfdFlags::empty())
            && !wait_end(&pidfd, limit)
        {
            let _ = kill(&pidfd);
        }
        // Somebody else's `waitpid(-1)` may have been first: gone is gone.
        while matches!(
            waitpid(Some(self.0), WaitOptions::empty()),
            Err(rustix::io::Errno::INTR)
        ) {}
    }
}

/// Ends the process behind a pidfd, whatever it is doing. One that is gone already is no error.
pub fn kill(pidfd: impl AsFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The signal that [`interrupt`] sends: nobody else needs it, and a process that does not handle it ignores it.
pub const INTERRUPT: i32 = Signal::URG.as_raw();

/// Sends [`INTERRUPT`] to the process behind a pidfd. One that is gone already is no error.
pub fn interrupt(pidfd: impl AsFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::URG) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the process behind a pidfd has ended; false if that takes longer than `limit`.
pub fn wait_end(pidfd: impl AsFd, limit: Duration) -> bool {
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ended => return ended.is_ok_and(|count| count > 0),
        }
    }
}

/// How many bytes of memory the calling process has for itself: without files and memory that it shares.
pub fn own_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| kilobytes << 10)
        .ok_or(io::ErrorKind::InvalidData.into())
}

/// Asks the kernel to have this process go on, if it is stopped, when its parent's thread ends.
pub fn go_on_without_parent() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::CONT))?)
}

/// Asks the kernel to end this process when its parent's thread ends; false if the parent is gone already.
///
/// Only right for a child of a single-threaded parent: the signal follows the *thread* that forked.
pub fn die_with_parent(parent: u32) -> io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(getppid().is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == parent))
}

/// Ends this process here and now, as if somebody else had killed it.
#[cfg(feature = "fault-hooks")]
pub fn end_here() -> ! {
    let _ = kill_process(getpid(), Signal::KILL);
    // The signal is delivered before the call returns, but for a thread that is not the first to be chosen.
    loop {
        std::thread::park();
    }
}

/// Stops this process here until somebody lets it go on.
#[cfg(feature = "fault-hooks")]
pub fn stop_here() {
    // A process can always stop itself.
    let _ = kill_process(getpid(), Signal::STOP);
}
