//! A piece of memory whose books another process keeps: used in place, and given back when dropped.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::sys::mapping::Mapping;

/// How the owner of a piece is told that it is free again. Called from whichever thread drops the last use.
pub trait GiveBack: Send + Sync {
    /// The piece at `offset` is not used here any more.
    fn give_back(&self, offset: u64);
}

/// The right to use a piece until it is dropped.
pub struct Lease {
    mapping: Arc<Mapping>,
    offset: u64,
    length: usize,
    start: NonNull<u8>,
    owner: Arc<dyn GiveBack>,
}

// SAFETY: `start` points into `mapping`, which is `Send` and `Sync` and kept alive by the lease.
#[allow(unsafe_code)]
unsafe impl Send for Lease {}
// SAFETY: as above; the lease hands out an address, and who dereferences it answers for that.
#[allow(unsafe_code)]
unsafe impl Sync for Lease {}

impl Lease {
    /// Takes over the piece at `offset`; `None` if it does not lie inside the mapping (a peer wrote rubbish).
    pub fn new(
        mapping: &Arc<Mapping>,
        offset: u64,
        length: u64,
        owner: Arc<dyn GiveBack>,
    ) -> Option<Self> {
        let (at, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        let start = mapping.address(at, length)?;
        Some(Self {
            mapping: Arc::clone(mapping),
            offset,
            length,
            start,
            owner,
        })
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.mapping.copy_out(self.offset as usize, &mut bytes);
        bytes
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("offset", &self.offset)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.owner.give_back(self.offset);
    }
}
