//! Nameless shared memory: a `memfd`, mapped whole. Nothing of it can stay behind in `/dev/shm`. Where the system (or a filter of
//! system calls) has no such thing, it is a file that never has a name, in the first folder that takes one.
#![allow(unsafe_code)]

use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use super::copy::copy;
use super::memory;
use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, Stat, fallocate, fcntl_add_seals, fstat,
    ftruncate, memfd_create, open, stat,
};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A piece of memory that several processes map. Pages come into being when they are touched, so a large one costs
/// address space only.
#[derive(Debug)]
pub struct Mapping {
    fd: OwnedFd,
    start: NonNull<u8>,
    length: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to the process, not to a thread; `munmap` may happen on any.
unsafe impl Send for Mapping {}
// SAFETY: all access goes through raw copies whose callers arrange who touches which bytes when.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// New memory, all zero; `name` is only for `/proc/PID/maps`.
    pub fn create(name: &str, length: usize) -> io::Result<Self> {
        let fd = nameless(name)?;
        ftruncate(&fd, length as u64)?;
        Self::of(fd, length, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// The memory behind a descriptor that came from another process.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        let length = length_of(&fd)?;
        Self::of(fd, length, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// The same, to be read only: writing to it ends the process, so nothing of this program offers that.
    pub fn open_read_only(fd: OwnedFd) -> io::Result<Self> {
        let length = length_of(&fd)?;
        Self::of(fd, length, ProtFlags::READ)
    }

    /// The memory behind a descriptor of another process, if it is the one that is meant; an error of kind `NotFound` if
    /// it is not, or not any more.
    pub fn of_process(
        pid: u32,
        descriptor: u64,
        identity: Identity,
        writable: bool,
    ) -> io::Result<Self> {
        let path = format!("/proc/{pid}/fd/{descriptor}");
        // Looked at before it is opened: opening whatever has that number now could wait, or have an effect.
        if Identity::from(stat(&path)?) != identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        let access = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = open(&path, flags, Mode::empty())?;
        if Identity::of(&fd)? != identity {
            return Err(io::ErrorKind::NotFound.into());
        }
        if writable {
            Self::open(fd)
        } else {
            Self::open_read_only(fd)
        }
    }

    fn of(fd: OwnedFd, length: usize, protection: ProtFlags) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address the kernel chooses aliases nothing of this process.
        let start = unsafe { mmap(ptr::null_mut(), length, protection, flags, &fd, 0)? };
        // SAFETY: the range was mapped just now. A core dump of the caller need not contain gigabytes of arena.
        let _ = unsafe { madvise(start, length, Advice::LinuxDontDump) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            fd,
            start,
            length,
            writable: protection.contains(ProtFlags::WRITE),
        })
    }

    /// How many bytes are mapped.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is mapped (never so: the kernel refuses an empty mapping).
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The address of `length` bytes at `offset`, or `None` if they do not lie inside.
    pub fn address(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        // SAFETY: `offset <= end <= self.length`, so the result stays inside the mapping.
        (end <= self.length).then(|| unsafe { self.start.add(offset) })
    }

    /// Copies `from` to `offset`; false (and nothing copied) if it does not fit there, or nothing may be written.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> bool {
        let target = self.address(offset, from.len());
        let Some(target) = target.filter(|_| self.writable) else {
            return false;
        };
        // SAFETY: the target lies inside the mapping; `from` is memory of this process outside of it.
        unsafe { copy(from.as_ptr(), target.as_ptr(), from.len()) };
        true
    }

    /// Copies from `offset` into `into`; false (and nothing copied) if those bytes do not lie inside.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) -> bool {
        let Some(source) = self.address(offset, into.len()) else {
            return false;
        };
        // SAFETY: the source lies inside the mapping; `into` is memory of this process outside of it.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), into.as_mut_ptr(), into.len()) };
        true
    }

    /// A word that other processes may change, at a multiple of eight; `None` if it does not lie inside.
    pub fn word(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self
            .address(offset, size_of::<AtomicU64>())?
            .cast::<AtomicU64>();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY: it lies inside the mapping, is aligned, and any bytes are a valid integer; every process changes it by
        // atomics only. Whoever maps it read-only must not store to it, and `Segment`, the only user, does not.
        Some(unsafe { at.as_ref() })
    }

    /// Has the system provide the pages of a range now, so that touching them cannot fail later: that would be a signal.
    pub fn provide(&self, offset: usize, length: usize) -> io::Result<()> {
        // The system is careful only with what is not much.
        let needed = length as u64 + (length as u64 >> 4);
        if length >= MUCH && memory::available().is_some_and(|left| left < needed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let start = self
            .address(offset, length)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the range lies inside the mapping, and this changes no byte of it.
        let provided =
            unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxPopulateWrite) };
        match provided {
            // Linux before 5.14, or a range that does not begin at a page.
            Err(Errno::INVAL) => {
                let mode = FallocateFlags::KEEP_SIZE;
                Ok(fallocate(&self.fd, mode, offset as u64, length as u64)?)
            }
            result => Ok(result?),
        }
    }

    /// Nobody can change its length from now on; where the system has no such thing, nobody of ours does.
    pub fn seal_size(&self) {
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        let _ = fcntl_add_seals(&self.fd, seals);
    }

    /// Which memory it is.
    pub fn identity(&self) -> io::Result<Identity> {
        Identity::of(&self.fd)
    }

    /// Gives the pages of a range back to the system; they read as zero afterwards. By address, as the descriptor may
    /// have been closed by a job, and stand for a file of the user's by now.
    pub fn discard(&self, offset: usize, length: usize) -> io::Result<()> {
        let start = self
            .address(offset, length)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the range lies inside the mapping, and its bytes are the caller's to lose.
        Ok(unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxRemove) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this length, and nobody holds an address inside it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

impl AsFd for Mapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// From this length on it is asked first whether there is so much memory.
const MUCH: usize = 64 << 20;

/// Where the files are that stand in for nameless memory, if they do.
static FALLBACK: OnceLock<PathBuf> = OnceLock::new();

/// The folder of the files that are used because there is no `memfd_create`; `None` if there is, or nothing was needed yet.
pub fn fallback() -> Option<&'static Path> {
    FALLBACK.get().map(PathBuf::as_path)
}

fn nameless(name: &str) -> io::Result<OwnedFd> {
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING) {
        Err(refused @ (Errno::NOSYS | Errno::PERM | Errno::ACCESS)) => {
            let folders = [PathBuf::from("/dev/shm"), env::temp_dir()];
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE | OFlags::EXCL;
            for folder in folders {
                if let Ok(fd) = open(&folder, flags, Mode::RUSR | Mode::WUSR) {
                    let _ = FALLBACK.set(folder);
                    return Ok(fd);
                }
            }
            Err(refused.into())
        }
        result => Ok(result?),
    }
}

/// What tells a piece of memory from every other that exists at the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are what they are called")]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
}

impl Identity {
    /// Of the memory behind a descriptor.
    pub fn of(fd: &OwnedFd) -> io::Result<Self> {
        Ok(fstat(fd)?.into())
    }
}

impl From<Stat> for Identity {
    fn from(status: Stat) -> Self {
        Self {
            device: status.st_dev,
            inode: status.st_ino,
        }
    }
}

fn length_of(fd: &OwnedFd) -> io::Result<usize> {
    usize::try_from(fstat(fd)?.st_size).map_err(|_| io::ErrorKind::InvalidData.into())
}
