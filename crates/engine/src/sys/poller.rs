//! Waiting for many descriptors at once, and being woken from that by another thread: epoll and an eventfd.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// How many descriptors one wait can report.
const MOST_EVENTS: usize = 256;
/// What stands in the place of a descriptor for the poller's own bell.
const BELL: u64 = u64::MAX;
/// Set in what stands for a source; the rest is its number.
const SOURCE: u64 = 1 << 63;

/// Everything that one can wait for, told of once.
const ALL_EDGES: EventFlags = EventFlags::ET
    .union(EventFlags::IN)
    .union(EventFlags::PRI)
    .union(EventFlags::RDHUP)
    .union(EventFlags::OUT);

/// For what a descriptor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// A read would not block: there is data, an end or an error.
    pub read: bool,
    /// A write would not block.
    pub write: bool,
    /// There is more to be found out than data: an end, an error, or something urgent. Only sources are told.
    pub more: bool,
}

/// Who is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Whoever watches this descriptor.
    Fd(RawFd),
    /// The source that was registered under this number.
    Source(u64),
}

/// What a source is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch {
    /// That something can be read, or the peer is gone.
    pub read: bool,
    /// That something can be written.
    pub write: bool,
    /// Tell of changes only, not every time as long as it is so.
    pub edges: bool,
}

/// What a wait has found.
#[derive(Default)]
pub struct Found(Vec<epoll::Event>);

// SAFETY: what the kernel has put there is what we gave it, a number; rustix could hold a pointer in its place.
unsafe impl Send for Found {}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Found {
    /// Forgets what was found.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Who is ready, and for what.
    pub fn iter(&self) -> impl Iterator<Item = (Who, Readiness)> {
        self.0.iter().filter(|event| !is_bell(event)).map(|event| {
            let (flags, data) = (event.flags, event.data.u64());
            let who = if data & SOURCE == 0 {
                Who::Fd(data as RawFd)
            } else {
                Who::Source(data & !SOURCE)
            };
            // An end or an error is for whoever watches: the read or write that it tries says which.
            let over = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            let more = over || flags.intersects(EventFlags::RDHUP | EventFlags::PRI);
            let readiness = Readiness {
                read: over || flags.contains(EventFlags::IN),
                write: over || flags.contains(EventFlags::OUT),
                more,
            };
            (who, readiness)
        })
    }
}

fn is_bell(event: &epoll::Event) -> bool {
    event.data.u64() == BELL
}

/// How many forks this process is away from its first ancestor that polled.
static FORKS: AtomicUsize = AtomicUsize::new(0);

/// To be called in a forked child: what its parent polls is the parent's alone.
pub fn note_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Waits for descriptors that belong to others.
#[derive(Debug)]
pub struct Poller {
    /// In which process it was made.
    forks: usize,
    epoll: OwnedFd,
    bell: OwnedFd,
}

impl Poller {
    /// One that waits for nothing but its bell.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL), EventFlags::IN)?;
        Ok(Self {
            forks: FORKS.load(Ordering::Relaxed),
            epoll,
            bell,
        })
    }

    /// Watches a descriptor. One that is watched already is an error.
    pub fn add(&self, fd: RawFd, read: bool, write: bool) -> io::Result<()> {
        let (flags, data) = (flags(read, write), data(fd));
        Ok(epoll::add(&self.epoll, borrowed(fd)?, data, flags)?)
    }

    /// Watches a descriptor for something else. One that was closed meanwhile, and whose number is in use again, is added.
    pub fn change(&self, fd: RawFd, read: bool, write: bool) -> io::Result<()> {
        let (flags, data) = (flags(read, write), data(fd));
        match epoll::modify(&self.epoll, borrowed(fd)?, data, flags) {
            Err(rustix::io::Errno::NOENT) => {
                Ok(epoll::add(&self.epoll, borrowed(fd)?, data, flags)?)
            }
            result => Ok(result?),
        }
    }

    /// Watches a descriptor for whatever becomes ready, and tells of each change once. One that is watched already is an error.
    pub fn add_edges(&self, fd: RawFd) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, borrowed(fd)?, data(fd), ALL_EDGES)?)
    }

    /// The same with one that is watched already. What it is ready for counts as a change.
    pub fn change_edges(&self, fd: RawFd) -> io::Result<()> {
        match epoll::modify(&self.epoll, borrowed(fd)?, data(fd), ALL_EDGES) {
            Err(rustix::io::Errno::NOENT) => self.add_edges(fd),
            result => Ok(result?),
        }
    }

    /// Watches a descriptor for its one owner, who is told on every edge.
    pub fn add_source(&self, fd: RawFd, number: u64, watch: Watch) -> io::Result<()> {
        let (flags, data) = (source_flags(watch), EventData::new_u64(SOURCE | number));
        match epoll::add(&self.epoll, borrowed(fd)?, data, flags) {
            Err(rustix::io::Errno::EXIST) => {
                Ok(epoll::modify(&self.epoll, borrowed(fd)?, data, flags)?)
            }
            result => Ok(result?),
        }
    }

    /// Watches it for something else. What it is ready for already counts as an edge.
    pub fn change_source(&self, fd: RawFd, number: u64, watch: Watch) -> io::Result<()> {
        let (flags, data) = (source_flags(watch), EventData::new_u64(SOURCE | number));
        Ok(epoll::modify(&self.epoll, borrowed(fd)?, data, flags)?)
    }

    /// Does not watch a descriptor any more. In a forked child nothing happens: the parent still does.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        if self.forks != FORKS.load(Ordering::Relaxed) {
            return Ok(());
        }
        Ok(epoll::delete(&self.epoll, borrowed(fd)?)?)
    }

    /// Waits until something is ready, the bell is rung, or the time is over; what is ready is in `found` then.
    pub fn wait(&self, timeout: Option<Duration>, found: &mut Found) -> io::Result<()> {
        let timeout = timeout.map(|limit| Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        found.0.clear();
        found.0.reserve(MOST_EVENTS);
        epoll::wait(&self.epoll, spare_capacity(&mut found.0), timeout.as_ref())?;
        if found.0.iter().any(is_bell) {
            // Resets the counter; it cannot block.
            let _ = rustix::io::read(&self.bell, &mut [0_u8; 8]);
        }
        Ok(())
    }

    /// Ends a wait in another thread, or the next one.
    pub fn ring(&self) {
        // A counter that is full has been rung often enough, and the descriptor is ours.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

fn flags(read: bool, write: bool) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::IN, read);
    flags.set(EventFlags::OUT, write);
    flags
}

fn source_flags(watch: Watch) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::ET, watch.edges);
    flags.set(
        EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI,
        watch.read,
    );
    flags.set(EventFlags::OUT, watch.write);
    flags
}

fn data(fd: RawFd) -> EventData {
    EventData::new_u64(u64::from(fd.cast_unsigned()))
}

fn borrowed<'fd>(fd: RawFd) -> io::Result<BorrowedFd<'fd>> {
    if fd < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: not -1, and used for one system call, for which a number that stands for nothing is an error and no more.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
