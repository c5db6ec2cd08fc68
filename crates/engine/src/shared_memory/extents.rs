//! Which pieces of a range are free: best fit, neighbours joined, used pages before fresh ones.
//!
//! Plain data that knows nothing of memory, so that one side can keep the books for memory that another side
//! writes, and nothing that other side does can spoil them.

use std::collections::BTreeMap;

/// Pieces are whole pages, so that each can be given back to the system and none shares a cache line.
const PAGE: u64 = 4096;

/// The free pieces of `0 .. capacity`.
#[derive(Debug)]
pub struct Extents {
    capacity: u64,
    /// Everything from here on was never handed out.
    top: u64,
    /// Start and length of each free piece below `top`.
    free: BTreeMap<u64, u64>,
    /// Start and length of each piece in use.
    used: BTreeMap<u64, u64>,
    free_bytes: u64,
}

impl Extents {
    /// All of `0 .. capacity` is free.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity,
            top: 0,
            free: BTreeMap::new(),
            used: BTreeMap::new(),
            free_bytes: 0,
        }
    }

    /// Takes a piece of at least `length` bytes; `None` if none is left. Used pieces are preferred: their pages exist.
    pub fn allocate(&mut self, length: u64) -> Option<u64> {
        let length = length.max(1).checked_next_multiple_of(PAGE)?;
        let best = self
            .free
            .iter()
            .filter(|&(_, &size)| size >= length)
            .min_by_key(|&(_, &size)| size);
        let start = if let Some((&start, &size)) = best {
            self.free.remove(&start);
            if size > length {
                self.free.insert(start + length, size - length);
            }
            self.free_bytes -= length;
            start
        } else {
            // A free piece right before the fresh ones is where they begin.
            let last = self.free.last_key_value();
            let (start, free) = last
                .filter(|&(&start, &size)| start + size == self.top)
                .map_or((self.top, 0), |(&start, &size)| (start, size));
            self.top = start
                .checked_add(length)
                .filter(|&end| end <= self.capacity)?;
            self.free.remove(&start);
            self.free_bytes -= free;
            start
        };
        self.used.insert(start, length);
        Some(start)
    }

    /// Gives back the piece that starts at `start`; its length, or `None` if no piece in use does.
    pub fn release(&mut self, start: u64) -> Option<u64> {
        let length = self.used.remove(&start)?;
        self.free_bytes += length;
        let (mut first, mut size) = (start, length);
        if let Some((&before, &before_size)) = self.free.range(..start).next_back()
            && before + before_size == start
        {
            self.free.remove(&before);
            (first, size) = (before, before_size + size);
        }
        if let Some(after_size) = self.free.remove(&(start + length)) {
            size += after_size;
        }
        self.free.insert(first, size);
        Some(length)
    }

    /// How many bytes are in free pieces that were used before, so may have pages behind them.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// How many pieces are in use.
    pub fn in_use(&self) -> usize {
        self.used.len()
    }
}
