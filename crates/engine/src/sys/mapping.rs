//! Nameless shared memory: a `memfd`, mapped whole. Nothing of it can stay behind in `/dev/shm`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A piece of memory that several processes map. Pages come into being when they are touched, so a large one costs
/// address space only.
#[derive(Debug)]
pub struct Mapping {
    fd: OwnedFd,
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `munmap` may happen on any.
unsafe impl Send for Mapping {}
// SAFETY: all access goes through raw copies whose callers arrange who touches which bytes when.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// New memory, all zero; `name` is only for `/proc/PID/maps`.
    pub fn create(name: &str, length: usize) -> io::Result<Self> {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, length as u64)?;
        Self::of(fd, length)
    }

    /// The memory behind a descriptor that came from another process.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        let length =
            usize::try_from(fstat(&fd)?.st_size).map_err(|_| io::ErrorKind::InvalidData)?;
        Self::of(fd, length)
    }

    fn of(fd: OwnedFd, length: usize) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address the kernel chooses aliases nothing of this process.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                &fd,
                0,
            )?
        };
        // SAFETY: the range was mapped just now. A core dump of the caller need not contain gigabytes of arena.
        let _ = unsafe { madvise(start, length, Advice::LinuxDontDump) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { fd, start, length })
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

    /// Copies `from` to `offset`; false (and nothing copied) if it does not fit there.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> bool {
        let Some(target) = self.address(offset, from.len()) else {
            return false;
        };
        // SAFETY: the target lies inside the mapping; `from` is memory of this process outside of it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), target.as_ptr(), from.len()) };
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

    /// Gives the pages of a range back to the system; they read as zero afterwards.
    pub fn discard(&self, offset: usize, length: usize) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.fd, mode, offset as u64, length as u64)?)
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
