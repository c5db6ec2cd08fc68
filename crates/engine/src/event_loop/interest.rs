//! Which descriptors are watched, for what, and whose turn it is when they are ready.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;

use crate::sys::poller::{Poller, Readiness};

/// The two ways to watch a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Something can be read, or the peer is gone.
    Read,
    /// Something can be written.
    Write,
}

#[derive(Debug)]
struct Watched<T> {
    read: Option<T>,
    write: Option<T>,
}

/// The watched descriptors of one loop.
#[derive(Debug)]
pub struct Interests<T> {
    watched: HashMap<RawFd, Watched<T>>,
}

impl<T> Default for Interests<T> {
    fn default() -> Self {
        Self {
            watched: HashMap::new(),
        }
    }
}

impl<T> Interests<T> {
    /// Watches one side of a descriptor for `item`; gives the item that it replaces. `is_owned`: a source is registered
    /// under this number, and if it is one and the same file, that is an error.
    pub fn set(
        &mut self,
        poller: &Poller,
        fd: RawFd,
        side: Side,
        item: T,
        is_owned: bool,
    ) -> io::Result<Option<T>> {
        let watched = self.watched.get(&fd);
        let read = side == Side::Read || watched.is_some_and(|watched| watched.read.is_some());
        let write = side == Side::Write || watched.is_some_and(|watched| watched.write.is_some());
        if watched.is_some() {
            poller.change(fd, read, write)?;
        } else {
            match poller.add(fd, read, write) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_owned => {
                    poller.change(fd, read, write)?;
                }
                result => result?,
            }
        }
        let watched = self.watched.entry(fd).or_insert(Watched {
            read: None,
            write: None,
        });
        Ok(watched.side(side).replace(item))
    }

    /// Stops watching one side of a descriptor; gives its item.
    pub fn remove(&mut self, poller: &Poller, fd: RawFd, side: Side) -> Option<T> {
        let watched = self.watched.get_mut(&fd)?;
        let item = watched.side(side).take()?;
        let (read, write) = (watched.read.is_some(), watched.write.is_some());
        // A descriptor that is closed already is not watched any more, which is what is wanted.
        if read || write {
            let _ = poller.change(fd, read, write);
        } else {
            self.watched.remove(&fd);
            let _ = poller.remove(fd);
        }
        Some(item)
    }

    /// The items to be run for what the poller found, reader first.
    pub fn found(&self, fd: RawFd, ready: Readiness) -> impl Iterator<Item = &T> {
        let watched = self.watched.get(&fd);
        let read = watched
            .and_then(|watched| watched.read.as_ref())
            .filter(|_| ready.read);
        let write = watched
            .and_then(|watched| watched.write.as_ref())
            .filter(|_| ready.write);
        read.into_iter().chain(write)
    }

    /// Forgets a descriptor that has an owner now, without telling the kernel; gives the items.
    pub fn forget(&mut self, fd: RawFd) -> impl Iterator<Item = T> {
        let watched = self.watched.remove(&fd);
        watched
            .into_iter()
            .flat_map(|watched| watched.read.into_iter().chain(watched.write))
    }

    /// Whether somebody watches this descriptor.
    pub fn has(&self, fd: RawFd) -> bool {
        self.watched.contains_key(&fd)
    }

    /// Takes all items.
    pub fn clear(&mut self) -> Vec<T> {
        let watched = self.watched.drain();
        watched
            .flat_map(|(_, watched)| watched.read.into_iter().chain(watched.write))
            .collect()
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.watched
            .values()
            .flat_map(|watched| watched.read.iter().chain(&watched.write))
    }
}

impl<T> Watched<T> {
    fn side(&mut self, side: Side) -> &mut Option<T> {
        match side {
            Side::Read => &mut self.read,
            Side::Write => &mut self.write,
        }
    }
}
