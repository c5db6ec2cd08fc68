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

/// A descriptor that somebody watches. While nobody does so for good it may be watched for *edges*: then the kernel has been told
/// once, and those who wait come and go without its knowing.
#[derive(Debug)]
struct Watched<T> {
    read: Option<T>,
    write: Option<T>,
    /// Those who wait for one readiness each.
    waits: Vec<(Side, T)>,
    edges: bool,
}

impl<T> Watched<T> {
    fn new() -> Self {
        Self {
            read: None,
            write: None,
            waits: Vec::new(),
            edges: false,
        }
    }

    /// Whether it is watched for good.
    fn is_kept(&self) -> bool {
        self.read.is_some() || self.write.is_some()
    }

    /// Whether anybody is to be told.
    fn wants(&self, side: Side) -> bool {
        let kept = match side {
            Side::Read => &self.read,
            Side::Write => &self.write,
        };
        kept.is_some() || self.waits.iter().any(|(waits_for, _)| *waits_for == side)
    }

    fn items(&self) -> impl Iterator<Item = &T> {
        let waits = self.waits.iter().map(|(_, item)| item);
        self.read.iter().chain(&self.write).chain(waits)
    }

    fn into_items(self) -> impl Iterator<Item = T> {
        let waits = self.waits.into_iter().map(|(_, item)| item);
        self.read.into_iter().chain(self.write).chain(waits)
    }
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
        let wants = |other| watched.is_some_and(|watched| watched.wants(other));
        let read = side == Side::Read || wants(Side::Read);
        let write = side == Side::Write || wants(Side::Write);
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
        let watched = self.watched.entry(fd).or_insert_with(Watched::new);
        watched.edges = false;
        Ok(watched.side(side).replace(item))
    }

    /// Stops watching one side of a descriptor; gives its item.
    pub fn remove(&mut self, poller: &Poller, fd: RawFd, side: Side) -> Option<T> {
        let watched = self.watched.get_mut(&fd)?;
        let item = watched.side(side).take()?;
        self.update(poller, fd);
        Some(item)
    }

    /// Tells the kernel what a descriptor is watched for, now that somebody has left. If it is closed already, it is not
    /// watched any more, which is what is wanted.
    fn update(&mut self, poller: &Poller, fd: RawFd) {
        let Some(watched) = self.watched.get_mut(&fd) else {
            return;
        };
        if watched.is_kept() {
            let _ = poller.change(fd, watched.wants(Side::Read), watched.wants(Side::Write));
        } else if watched.waits.is_empty() {
            self.watched.remove(&fd);
            let _ = poller.remove(fd);
        } else {
            watched.edges = poller.change_edges(fd).is_ok();
        }
    }

    /// Has an item told when a side of a descriptor is ready, until it leaves. To be called after a try that found it not
    /// ready. `is_known`: it is certain that the number stands for the same file as at the last wait. `is_owned`: as above.
    pub fn wait(
        &mut self,
        poller: &Poller,
        fd: RawFd,
        side: Side,
        item: T,
        is_known: bool,
        is_owned: bool,
    ) -> io::Result<()> {
        match self.watched.get_mut(&fd) {
            Some(watched) if watched.is_kept() => {
                let read = side == Side::Read || watched.wants(Side::Read);
                let write = side == Side::Write || watched.wants(Side::Write);
                poller.change(fd, read, write)?;
            }
            Some(watched) => {
                if !is_known || !watched.edges {
                    poller.change_edges(fd)?;
                    watched.edges = true;
                }
            }
            None => {
                match poller.add_edges(fd) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_owned => {
                        poller.change_edges(fd)?;
                    }
                    result => result?,
                }
                self.watched.entry(fd).or_insert_with(Watched::new).edges = true;
            }
        }
        if let Some(watched) = self.watched.get_mut(&fd) {
            watched.waits.push((side, item));
        }
        Ok(())
    }

    /// Whether a descriptor is watched for those who wait, and for nobody else.
    pub fn has_edges(&self, fd: RawFd) -> bool {
        self.watched.get(&fd).is_some_and(|watched| watched.edges)
    }

    /// Ends a wait; gives its item.
    pub fn leave(&mut self, poller: &Poller, fd: RawFd, is_mine: impl Fn(&T) -> bool) -> Option<T> {
        let watched = self.watched.get_mut(&fd)?;
        let place = watched.waits.iter().position(|(_, item)| is_mine(item))?;
        let (_, item) = watched.waits.remove(place);
        if watched.is_kept() {
            self.update(poller, fd);
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
        let waits = watched.into_iter().flat_map(|watched| &watched.waits);
        let waits = waits.filter(move |(side, _)| match side {
            Side::Read => ready.read,
            Side::Write => ready.write,
        });
        let waits = waits.map(|(_, item)| item);
        read.into_iter().chain(write).chain(waits)
    }

    /// Forgets a descriptor that has an owner now, without telling the kernel; gives the items.
    pub fn forget(&mut self, fd: RawFd) -> impl Iterator<Item = T> {
        let watched = self.watched.remove(&fd);
        watched.into_iter().flat_map(Watched::into_items)
    }

    /// Whether somebody watches this descriptor.
    pub fn has(&self, fd: RawFd) -> bool {
        self.watched.contains_key(&fd)
    }

    /// Takes all items.
    pub fn clear(&mut self) -> Vec<T> {
        let watched = self.watched.drain();
        watched
            .flat_map(|(_, watched)| watched.into_items())
            .collect()
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.watched.values().flat_map(Watched::items)
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
