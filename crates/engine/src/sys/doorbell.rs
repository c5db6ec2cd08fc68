//! A descriptor that wakes a poll: an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::fstat;

/// One side rings, the other waits for it, possibly together with another descriptor.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
    /// Which file the descriptor stood for: a job that closes every descriptor may open others in their places.
    identity: Option<Identity>,
}

type Identity = (u64, u64, u32);

fn identity(fd: &OwnedFd) -> Option<Identity> {
    let status = fstat(fd).ok()?;
    Some((status.st_dev, status.st_ino, status.st_mode))
}

impl Doorbell {
    /// A bell that nobody has rung.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self::from_fd(eventfd(0, flags)?))
    }

    /// The bell behind a descriptor that came from the other side.
    pub fn from_fd(fd: OwnedFd) -> Self {
        let identity = identity(&fd);
        Self { fd, identity }
    }

    /// Wakes whoever waits, or the next one who does. An error if the descriptor is not the bell's any more.
    pub fn ring(&self) -> io::Result<()> {
        if self.identity.is_none() || identity(&self.fd) != self.identity {
            return Err(rustix::io::Errno::BADF.into());
        }
        match rustix::io::write(&self.fd, &1_u64.to_ne_bytes()) {
            // The counter is full: it has been rung often enough.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the bell is rung, one of `others` is readable or its peer is gone, or the time is over.
    pub fn wait(&self, others: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|limit| Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut fds = vec![PollFd::new(&self.fd, PollFlags::IN)];
        fds.extend(
            others
                .iter()
                .map(|&other| PollFd::from_borrowed_fd(other, PollFlags::IN)),
        );
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
            self.silence();
        }
        Ok(())
    }

    /// Forgets that it was rung.
    pub fn silence(&self) {
        // Resets the counter; it cannot block, and a bell that was not rung is silent already.
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
