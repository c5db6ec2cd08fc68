//! A range of a mapping that one process hands out in blocks.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Extents;
use crate::sys::mapping::Mapping;

/// How many bytes of free pages are kept for the next block instead of being given back to the system: touching a
/// fresh page costs ten times as much as writing a used one.
const KEEP_WARM: u64 = 512 << 20;

/// From this length on pages are provided before they are touched. What is smaller can be had, or nothing can.
const WORTH_ASKING: usize = 1 << 20;

/// Hands out blocks of `mapping` from `base` on. Its books are private to this process.
#[derive(Debug)]
pub struct Arena {
    mapping: Arc<Mapping>,
    base: u64,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    extents: Extents,
    /// Everything below this has, or had, its pages.
    backed: u64,
    /// Start and end of what lies below, but whose pages were given back.
    cold: Vec<(u64, u64)>,
}

impl Books {
    /// Whether touching all of `start .. end` could need pages that are not there. They will be there afterwards.
    fn back(&mut self, start: u64, end: u64) -> bool {
        let fresh = end > self.backed
            || self
                .cold
                .iter()
                .any(|&(first, last)| first < end && start < last);
        self.backed = self.backed.max(end);
        self.cold
            .retain(|&(first, last)| first < start || end < last);
        fresh
    }

    /// The pages of `start .. end` were given back.
    fn cool(&mut self, start: u64, end: u64) {
        self.cold
            .retain(|&(first, last)| first < start || end < last);
        self.cold.push((start, end));
    }
}

impl Arena {
    /// Everything from `base` (a multiple of the page size) to the end of the mapping.
    pub fn new(mapping: Arc<Mapping>, base: u64) -> Self {
        let books = Books {
            extents: Extents::new((mapping.len() as u64).saturating_sub(base)),
            backed: 0,
            cold: Vec::new(),
        };
        Self {
            mapping,
            base,
            books: Mutex::new(books),
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

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset (in the mapping) of `length` free bytes, which are the caller's until [`Self::release`]. `None` if there
    /// is no room, or no memory for a large piece: a page that cannot be had is found out here, not when it is touched.
    pub fn allocate(&self, length: usize) -> Option<u64> {
        let (start, fresh) = {
            let mut books = self.books();
            let start = books.extents.allocate(length as u64)?;
            (start, books.back(start, start + length as u64))
        };
        let offset = self.base + start;
        if fresh && length >= WORTH_ASKING && self.mapping.provide(offset as usize, length).is_err()
        {
            // What was provided before it failed.
            let _ = self.mapping.discard(offset as usize, length);
            let mut books = self.books();
            books.cool(start, start + length as u64);
            books.extents.release(start);
            return None;
        }
        Some(offset)
    }

    /// Takes a piece back; false if nothing that is in use starts there.
    pub fn release(&self, offset: u64) -> bool {
        let Some(start) = offset.checked_sub(self.base) else {
            return false;
        };
        let mut books = self.books();
        let Some(length) = books.extents.release(start) else {
            return false;
        };
        if books.extents.free_bytes() > KEEP_WARM {
            // Under the lock: a piece handed out again must not lose its pages. If it fails, the pages just stay.
            let _ = self.mapping.discard(offset as usize, length as usize);
            books.cool(start, start + length);
        }
        true
    }

    /// How many pieces are in use.
    pub fn in_use(&self) -> usize {
        self.books().extents.in_use()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_asked_for_only_where_there_are_none() {
        let mut books = Books {
            extents: Extents::new(1 << 30),
            backed: 0,
            cold: Vec::new(),
        };
        assert!(books.back(0, 100));
        assert!(!books.back(0, 100));
        assert!(books.back(50, 150));
        books.cool(20, 40);
        assert!(!books.back(40, 150));
        assert!(books.back(0, 30));
        assert!(books.back(0, 40));
        assert!(!books.back(0, 150));
    }

    #[test]
    fn a_piece_larger_than_memory_is_refused() {
        let arena = Arena::create("plait-test", 1 << 45);
        // Where address space is scarce there is no such piece in the first place.
        let arena = arena.unwrap();
        assert_eq!(arena.allocate(1 << 44), None);
        assert_eq!(arena.in_use(), 0);
        let offset = arena.allocate(2 << 20).unwrap();
        assert!(arena.release(offset));
    }
}
