//! The link to the zygote: the process that workers are forked from, and what is said on it.
//!
//! To the zygote: `CONFIGURE` (one descriptor: the configuration's bytes) once, then `SPAWN worker` (three descriptors:
//! lane, arguments, doorbell). From it: `STARTED worker pid` (one descriptor: a pidfd), `EXITED worker pid status` (as
//! `wait` gives it; one descriptor if it crashed and left a text about that), `FAILED worker errno` (it could not fork). The end of the link on either side ends the other.
#![allow(missing_docs, reason = "each variant's own comment names its fields")]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::state::WorkerId;
use crate::sys::channel::Channel;
use crate::sys::mapping::Mapping;
use crate::sys::process::{self, Child};

const CONFIGURE: u8 = b'C';
const SPAWN: u8 = b'S';
const STARTED: u8 = b'+';
const EXITED: u8 = b'-';
const FAILED: u8 = b'!';

/// How long a zygote may take to leave, which means to end its workers, before it is ended.
const LONGEST_LEAVE: Duration = Duration::from_secs(2);
/// So much of a crashed worker's text is read.
const LONGEST_CRASH: usize = 64 << 10;

/// How to start a zygote.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program and its arguments. Its standard input will be the link.
    pub command: Vec<OsString>,
    /// Handed to it as it is.
    pub configuration: Vec<u8>,
}

/// What the zygote reports.
#[derive(Debug)]
pub enum Report {
    /// The worker runs.
    Started {
        worker: WorkerId,
        pid: u32,
        pidfd: OwnedFd,
    },
    /// The worker has ended, with this status as `wait` gives it.
    Exited {
        worker: WorkerId,
        pid: u32,
        status: i32,
        /// What it wrote while it crashed.
        crash: String,
    },
    /// The worker could not be forked.
    Failed { worker: WorkerId, errno: i32 },
}

/// A running zygote.
#[derive(Debug)]
pub struct Zygote {
    channel: Channel,
    child: Child,
}

impl Zygote {
    /// Starts one.
    pub fn start(launch: &Launch) -> io::Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let child = process::start(&launch.command, theirs)?;
        let zygote = Self { channel, child };
        zygote.configure(&launch.configuration)?;
        Ok(zygote)
    }

    /// Takes over one that the program has forked, for workers that are to inherit its memory.
    pub fn adopt(link: OwnedFd, pid: u32, configuration: &[u8]) -> io::Result<Self> {
        let zygote = Self {
            channel: Channel::from(link),
            child: Child::with_id(pid)?,
        };
        zygote.configure(configuration)?;
        Ok(zygote)
    }

    fn configure(&self, configuration: &[u8]) -> io::Result<()> {
        let memory = Mapping::create("plait-configuration", configuration.len().max(1))?;
        memory.copy_in(0, configuration);
        self.channel.send(&[CONFIGURE], &[memory.as_fd()])
    }

    /// Asks for a worker; the answer is a [`Report`].
    pub fn spawn(
        &self,
        worker: WorkerId,
        lane: BorrowedFd<'_>,
        arguments: BorrowedFd<'_>,
        doorbell: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut message = vec![SPAWN];
        message.extend_from_slice(&worker.to_le_bytes());
        self.channel.send(&message, &[lane, arguments, doorbell])
    }

    /// The next report, if there is one; an error if the zygote is gone.
    pub fn report(&self) -> io::Result<Option<Report>> {
        let Some(mut message) = self.channel.try_receive()? else {
            return Ok(None);
        };
        let mut rest = &message.bytes[..];
        let kind = *rest.split_off_first().ok_or(io::ErrorKind::InvalidData)?;
        let worker = u64::from_le_bytes(chunk(&mut rest)?);
        let report = match kind {
            STARTED => Report::Started {
                worker,
                pid: u32::from_le_bytes(chunk(&mut rest)?),
                pidfd: message.fds.pop().ok_or(io::ErrorKind::InvalidData)?,
            },
            EXITED => Report::Exited {
                worker,
                pid: u32::from_le_bytes(chunk(&mut rest)?),
                status: i32::from_le_bytes(chunk(&mut rest)?),
                crash: message.fds.pop().map(text_in).unwrap_or_default(),
            },
            FAILED => Report::Failed {
                worker,
                errno: i32::from_le_bytes(chunk(&mut rest)?),
            },
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(Some(report))
    }

    /// Ends the zygote, and the kernel its workers.
    pub fn kill(&self) {
        self.child.kill();
    }

    /// Ends the link, which ends the zygote and all its workers, and waits for that.
    pub fn close(self) {
        let Self { channel, child } = self;
        // A process that was forked from this one may have the other end open, too.
        channel.shut_down();
        drop(channel);
        // One that was stopped, say, does not notice; the kernel ends its workers with it.
        child.wait(LONGEST_LEAVE);
    }
}

impl AsFd for Zygote {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// The text that memory holds; what cannot be read is no text.
fn text_in(memory: OwnedFd) -> String {
    let Ok(mapping) = Mapping::open(memory) else {
        return String::new();
    };
    let mut bytes = vec![0; mapping.len().min(LONGEST_CRASH)];
    mapping.copy_out(0, &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn chunk<const N: usize>(rest: &mut &[u8]) -> io::Result<[u8; N]> {
    let (first, tail) = rest.split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    *rest = tail;
    Ok(*first)
}
