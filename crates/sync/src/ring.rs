//! A ring of byte frames for one producer and one consumer, over memory that both can reach.
//!
//! After Lamport's single-producer single-consumer queue ("Specifying Concurrent Program Modules", 1983), with
//! positions that never wrap (64 bits) and data that does. A frame is its length (`u32`), its bytes, and padding to
//! eight. Each side keeps its *own* position in private memory and only publishes it: a peer that scribbles on
//! the header can make the other side see rubbish, which is checked and reported as [`Corrupt`], but cannot make
//! it read or write outside the ring.
//!
//! A frame exists from the producer's store of `tail` on: a producer that dies half-way has published nothing.

use crate::memory::{self, Memory};
use crate::primitive::{AtomicU64, Ordering};

/// What both sides publish, each on a cache line of its own. All zero bytes are a valid, empty ring.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Header {
    /// Written by the producer: everything before it can be read.
    tail: AtomicU64,
    padding: [u64; 7],
    /// Written by the consumer: everything before it can be overwritten.
    head: AtomicU64,
    padding_after: [u64; 7],
}

impl Header {
    /// An empty ring.
    pub fn new() -> Self {
        Self {
            tail: AtomicU64::new(0),
            padding: [0; 7],
            head: AtomicU64::new(0),
            padding_after: [0; 7],
        }
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

/// A ring's memory: its header and its data, reachable for as long as the value lives.
pub trait Ring: Memory {
    /// The shared header.
    fn header(&self) -> &Header;
}

/// The other side has written something that no correct peer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt;

/// Why a frame was not pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError {
    /// There is no room until the consumer takes something.
    Full,
    /// The frame can never fit.
    TooLong,
    /// The consumer's position makes no sense.
    Corrupt,
}

const LENGTH: u64 = 4;
const ALIGN: u64 = 8;

fn occupied(length: u64) -> u64 {
    (LENGTH + length).next_multiple_of(ALIGN)
}

/// The longest frame that fits into an empty ring of `capacity` bytes.
pub const fn longest_frame(capacity: usize) -> usize {
    capacity - ALIGN as usize
}

/// The writing end. Exactly one exists per ring.
#[derive(Debug)]
pub struct Producer<R> {
    ring: R,
    tail: u64,
    /// The consumer's position when last looked at: saves a look at its cache line per frame.
    head_seen: u64,
}

impl<R: Ring> Producer<R> {
    /// The writing end of a new, empty ring.
    pub fn new(ring: R) -> Self {
        Self {
            ring,
            tail: 0,
            head_seen: 0,
        }
    }

    /// The memory the ring lies in.
    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// Appends one frame made of `parts`, or nothing.
    #[allow(unsafe_code)]
    pub fn push(&mut self, parts: &[&[u8]]) -> Result<(), PushError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let capacity = self.ring.capacity() as u64;
        if length > longest_frame(self.ring.capacity()) {
            return Err(PushError::TooLong);
        }
        let needed = occupied(length as u64);
        if self.tail - self.head_seen + needed > capacity {
            let head = self.ring.header().head.load(Ordering::Acquire);
            if head < self.head_seen || head > self.tail {
                return Err(PushError::Corrupt);
            }
            self.head_seen = head;
            if self.tail - head + needed > capacity {
                return Err(PushError::Full);
            }
        }
        let mut position = self.tail;
        // SAFETY: the bytes in `tail .. tail + needed` were released by the consumer (Acquire above, now or at an
        // earlier frame) and are not published yet, so nobody else touches them.
        unsafe {
            memory::write(&self.ring, position, &(length as u32).to_le_bytes());
            position += LENGTH;
            for part in parts {
                memory::write(&self.ring, position, part);
                position += part.len() as u64;
            }
        }
        self.tail += needed;
        self.ring.header().tail.store(self.tail, Ordering::Release);
        Ok(())
    }
}

/// The reading end. Exactly one exists per ring.
#[derive(Debug)]
pub struct Consumer<R> {
    ring: R,
    head: u64,
    tail_seen: u64,
}

impl<R: Ring> Consumer<R> {
    /// The reading end of a new, empty ring.
    pub fn new(ring: R) -> Self {
        Self {
            ring,
            head: 0,
            tail_seen: 0,
        }
    }

    /// The memory the ring lies in.
    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// Whether a frame is waiting; rubbish counts as one, so that `pop` gets to report it.
    pub fn has_frame(&self) -> bool {
        self.head != self.tail_seen || self.ring.header().tail.load(Ordering::Acquire) != self.head
    }

    /// Takes the oldest frame into `into` (replacing what it holds); false if there is none.
    #[allow(unsafe_code)]
    pub fn pop(&mut self, into: &mut Vec<u8>) -> Result<bool, Corrupt> {
        if self.head == self.tail_seen {
            let tail = self.ring.header().tail.load(Ordering::Acquire);
            if tail == self.head {
                return Ok(false);
            }
            if tail < self.head
                || tail - self.head > self.ring.capacity() as u64
                || !tail.is_multiple_of(ALIGN)
            {
                return Err(Corrupt);
            }
            self.tail_seen = tail;
        }
        let mut length = [0; LENGTH as usize];
        // SAFETY: `head .. tail_seen` was published by the producer (Acquire above), which leaves it alone until the
        // store of `head` below. A peer that breaks this rule tears the copy, not our memory.
        unsafe { memory::read(&self.ring, self.head, &mut length) };
        let length = u64::from(u32::from_le_bytes(length));
        if occupied(length) > self.tail_seen - self.head {
            return Err(Corrupt);
        }
        into.clear();
        into.resize(length as usize, 0);
        // SAFETY: as above, and the frame ends before `tail_seen`.
        unsafe { memory::read(&self.ring, self.head + LENGTH, into) };
        self.head += occupied(length);
        self.ring.header().head.store(self.head, Ordering::Release);
        Ok(true)
    }
}
