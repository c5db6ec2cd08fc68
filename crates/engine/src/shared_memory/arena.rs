//! A range of a mapping that one process hands out in blocks.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::Extents;
use crate::sys::mapping::Mapping;

/// How many bytes of free pages are kept for the next block instead of being given back to the system: touching a
/// fresh page costs ten times as much as writing a used one.
const KEEP_WARM: u64 = 512 << 20;

/// Hands out blocks of `mapping` from `base` on. Its books are private to this process.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    base: u64,
    extents: Mutex<Extents>,
}

impl Arena {
    /// Everything from `base` (a multiple of the page size) to the end of the mapping.
    pub fn new(mapping: Arc<Mapping>, base: u64) -> Self {
        let extents = Mutex::new(Extents::new((mapping.len() as u64).saturating_sub(base)));
        Self {
            mapping,
            base,
            extents,
        }
    }

    /// New memory of its own for an arena, as large as the machine allows up to `largest` bytes.
    pub fn create(name: &str, largest: usize) -> io::Result<Self> {
        Ok(Self::new(Arc::new(map_largest(name, 0, largest)?), 0))
    }

    /// The memory that blocks lie in.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The offset (in the mapping) of `length` free bytes, which are the caller's until [`Self::release`].
    pub fn allocate(&self, length: usize) -> Option<u64> {
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        extents
            .allocate(length as u64)
            .map(|start| self.base + start)
    }

    /// Takes a piece back; false if nothing that is in use starts there.
    pub fn release(&self, offset: u64) -> bool {
        let Some(start) = offset.checked_sub(self.base) else {
            return false;
        };
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(length) = extents.release(start) else {
            return false;
        };
        if extents.free_bytes() > KEEP_WARM {
            // Under the lock: a piece handed out again must not lose its pages. If it fails, the pages just stay.
            let _ = self.mapping.discard(offset as usize, length as usize);
        }
        true
    }

    /// How many pieces are in use.
    pub fn in_use(&self) -> usize {
        self.extents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .in_use()
    }

    /// Copies `bytes` into a block of its own; `None` if there is no room.
    pub fn store(self: &Arc<Self>, bytes: &[u8]) -> Option<Block> {
        let offset = self.allocate(bytes.len())?;
        let block = Block {
            arena: Arc::clone(self),
            offset,
            length: bytes.len(),
        };
        self.mapping
            .copy_in(offset as usize, bytes)
            .then_some(block)
    }
}

/// Maps as much as possible between `control + 64 KiB` and `control + largest` bytes, halving until it works: a limit
/// on address space is no reason to fail.
pub(crate) fn map_largest(name: &str, control: usize, largest: usize) -> io::Result<Mapping> {
    let mut length = largest;
    loop {
        match Mapping::create(name, control + length) {
            Err(_) if length > 64 << 10 => length /= 2,
            result => return result,
        }
    }
}

/// A piece of an arena in the process that keeps its books; free again when dropped.
#[derive(Debug)]
pub struct Block {
    arena: Arc<Arena>,
    offset: u64,
    length: usize,
}

impl Block {
    /// Where it starts in the mapping.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A block of its own with the same bytes; `None` if there is no room.
    pub fn duplicate(&self) -> Option<Self> {
        let mut bytes = vec![0; self.length];
        if !self
            .arena
            .mapping
            .copy_out(self.offset as usize, &mut bytes)
        {
            return None;
        }
        self.arena.store(&bytes)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.release(self.offset);
    }
}
