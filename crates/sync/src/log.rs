//! A log of byte frames between processes: one producer and one consumer at a time (each behind a lock of its own), and
//! a put that never has to wait for a reader.
//!
//! `tail` and `head` are virtual positions that only grow: lap × capacity + offset. A frame lies in one piece, and exists
//! from the one store of `tail` on; it is taken by the one store of `head`. A producer prefers memory that was used
//! before: rather than go beyond `limit`, it starts a new lap at offset 0 if the frame fits before the first byte that is
//! still needed (`freed`). A lap that catches up with unread frames of the lap before leaves a *skip* frame and goes on
//! behind them. So the tail is in the lap of `freed` or the next, and there is room until the address space is used up.
//!
//! A side that dies half-way has published nothing; who takes over its lock goes on from what was published.

use std::ops::Range;

use crate::memory::Memory;
use crate::primitive::{AtomicU64, Ordering};

/// Bytes before each frame's payload: its kind and its length (or where a skip leads).
const HEAD: u64 = 16;
const ALIGN: u64 = 16;
const PAGE: u64 = 4096;
/// How many bytes are given back to the system at a time.
const CHUNK: u64 = 1 << 20;
/// Memory up to this offset is used before a new lap begins, however little the log holds.
const NARROW: u64 = 256 << 10;
/// No position comes near this: a sum that begins here does not overflow.
const LAST: u64 = 1 << 62;
const DATA: u64 = 1;
const SKIP: u64 = 2;

/// How many frames had gone by when a position was reached; see [`Notes::count`].
#[repr(C)]
#[derive(Debug)]
struct Note {
    position: AtomicU64,
    count: AtomicU64,
}

/// Two notes, of which the one whose position is current counts. The other is written before a publication.
#[repr(C)]
#[derive(Debug)]
struct Notes([Note; 2]);

impl Notes {
    fn new() -> Self {
        let note = || Note {
            position: AtomicU64::new(0),
            count: AtomicU64::new(0),
        };
        Self([note(), note()])
    }

    fn count(&self, position: u64) -> Option<u64> {
        self.0
            .iter()
            .find(|note| note.position.load(Ordering::Acquire) == position)
            .map(|note| note.count.load(Ordering::Relaxed))
    }

    /// Prepares for the publication of `next`; dying before or after this is the same.
    fn prepare(&self, position: u64, next: u64) {
        let count = self.count(position).unwrap_or_default();
        let current = self.0[0].position.load(Ordering::Relaxed) == position;
        let other = &self.0[usize::from(current)];
        other.count.store(count.wrapping_add(1), Ordering::Relaxed);
        other.position.store(next, Ordering::Release);
    }
}

/// What both sides publish. All zero bytes are a valid, empty log.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Header {
    /// Written by producers: everything before it can be read.
    tail: AtomicU64,
    /// Where the lap before the tail's ended, if `freed` is still in it.
    lap_end: AtomicU64,
    /// The highest offset that was ever written.
    touched: AtomicU64,
    padding: u64,
    put: Notes,
    /// Written by consumers: the next frame to read.
    head: AtomicU64,
    /// Written by consumers: everything before it can be overwritten.
    freed: AtomicU64,
    padding_after: [u64; 2],
    got: Notes,
}

impl Header {
    /// An empty log.
    pub fn new() -> Self {
        Self {
            tail: AtomicU64::new(0),
            lap_end: AtomicU64::new(0),
            touched: AtomicU64::new(0),
            padding: 0,
            put: Notes::new(),
            head: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            padding_after: [0; 2],
            got: Notes::new(),
        }
    }

    /// Whether nothing is there to be read.
    pub fn is_empty(&self) -> bool {
        self.tail.load(Ordering::Acquire) == self.head.load(Ordering::Acquire)
    }

    /// How many frames were ever put.
    pub fn puts(&self) -> u64 {
        settled(&self.tail, &self.put)
    }

    /// How many frames were ever taken.
    pub fn gets(&self) -> u64 {
        settled(&self.head, &self.got)
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

fn settled(position: &AtomicU64, notes: &Notes) -> u64 {
    // Somebody else may be publishing: then the notes and the position match again in a moment. What never matches is
    // rubbish, and any count is as good.
    for _ in 0..1000 {
        if let Some(count) = notes.count(position.load(Ordering::Acquire)) {
            return count;
        }
        std::hint::spin_loop();
    }
    0
}

/// A log's memory: its header and its data, reachable for as long as the value lives.
pub trait Log: Memory {
    /// The shared header.
    fn header(&self) -> &Header;
}

/// The header or a frame says what no correct process writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corrupt;

/// Why a frame was not put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutError {
    /// The address space is used up by frames that nobody has read.
    Full,
    /// The frame can never fit: half the log is the most.
    TooLong,
    /// The positions make no sense.
    Corrupt,
}

/// A frame that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    payload: u64,
    length: u64,
    next: u64,
}

impl Frame {
    /// How many bytes its payload has.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether its payload is empty.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

/// Memory that holds nothing any more, to be given back before [`freed`] says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// Offsets of whole pages; may be empty.
    pub pages: Range<u64>,
    next: u64,
}

/// The most bytes that a frame may take: then it fits into an empty log, wherever the last one ended.
fn longest(capacity: u64) -> u64 {
    capacity / 2
}

fn split(log: &impl Memory, position: u64) -> (u64, u64) {
    let capacity = log.capacity() as u64;
    (position / capacity, position & (capacity - 1))
}

/// Appends one frame made of `parts`, or nothing. The caller holds the producers' lock. Memory up to offset `warm`
/// stays when it has been read.
#[allow(unsafe_code)]
pub fn put(log: &impl Log, parts: &[&[u8]], warm: u64) -> Result<(), PutError> {
    let (header, capacity) = (log.header(), log.capacity() as u64);
    let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
    // With room behind it for the skip that may have to follow.
    let needed = length
        .checked_next_multiple_of(ALIGN)
        .and_then(|padded| padded.checked_add(2 * HEAD))
        .filter(|&needed| needed <= longest(capacity))
        .ok_or(PutError::TooLong)?;
    let tail = header.tail.load(Ordering::Relaxed);
    let freed = header.freed.load(Ordering::Acquire);
    if !tail.is_multiple_of(ALIGN) || freed > tail || tail > LAST {
        return Err(PutError::Corrupt);
    }
    let ((tail_lap, at), (freed_lap, free_to)) = (split(log, tail), split(log, freed));
    let touched = header.touched.load(Ordering::Relaxed);
    let start = if tail_lap == freed_lap {
        let limit = touched.max(NARROW).min(warm);
        if at + needed > limit && needed <= free_to {
            // Nobody reads this while the tail is in the lap of `freed`, so dying after it changes nothing.
            header.lap_end.store(at + HEAD, Ordering::Relaxed);
            (tail_lap + 1) * capacity
        } else {
            tail
        }
    } else if tail_lap == freed_lap + 1 {
        let lap_end = header.lap_end.load(Ordering::Relaxed);
        if !lap_end.is_multiple_of(ALIGN) || lap_end <= free_to || lap_end > capacity {
            return Err(PutError::Corrupt);
        }
        if at > free_to || at + needed <= free_to {
            tail
        } else {
            tail_lap * capacity + lap_end
        }
    } else {
        return Err(PutError::Corrupt);
    };
    let (_, offset) = split(log, start);
    if offset + needed > capacity {
        return Err(PutError::Full);
    }
    // SAFETY: see `write`. The bytes at `at` are free for a skip: every frame leaves that much room behind it. Those from
    // `offset` on hold nothing that is unread: they end before `freed` of the lap before, or lie behind all of it.
    unsafe {
        if start != tail {
            write(log, at, &SKIP.to_le_bytes());
            write(log, at + 8, &start.to_le_bytes());
        }
        write(log, offset, &DATA.to_le_bytes());
        write(log, offset + 8, &length.to_le_bytes());
        let mut to = offset + HEAD;
        for part in parts {
            write(log, to, part);
            to += part.len() as u64;
        }
    }
    let next = start + needed - HEAD;
    if offset + needed > touched {
        header.touched.store(offset + needed, Ordering::Relaxed);
    }
    header.put.prepare(tail, next);
    header.tail.store(next, Ordering::Release);
    Ok(())
}

/// # Safety
/// The caller holds the producers' lock, the bytes lie inside the log, and none of them is between `freed` and `tail`.
#[allow(unsafe_code)]
unsafe fn write(log: &impl Log, offset: u64, from: &[u8]) {
    // SAFETY: no consumer reads there (`freed` was loaded with Acquire), and no other producer writes.
    unsafe { log.write_at(offset as usize, from) };
}

/// The oldest frame that was not taken. The caller holds the consumers' lock.
pub fn peek(log: &impl Log) -> Result<Option<Frame>, Corrupt> {
    let header = log.header();
    let mut head = header.head.load(Ordering::Relaxed);
    let tail = header.tail.load(Ordering::Acquire);
    while head != tail {
        let (_, at) = split(log, head);
        if head > tail || !(head | tail).is_multiple_of(ALIGN) || at + HEAD > log.capacity() as u64
        {
            return Err(Corrupt);
        }
        match (read_word(log, at), read_word(log, at + 8)) {
            (DATA, length) => {
                let payload = head + HEAD;
                let end = length
                    .checked_next_multiple_of(ALIGN)
                    .and_then(|padded| padded.checked_add(payload));
                return match end {
                    Some(next) if next <= tail && at + (next - head) <= log.capacity() as u64 => {
                        Ok(Some(Frame {
                            payload,
                            length,
                            next,
                        }))
                    }
                    _ => Err(Corrupt),
                };
            }
            (SKIP, target) if target > head && target < tail => head = target,
            _ => return Err(Corrupt),
        }
    }
    Ok(None)
}

#[allow(unsafe_code)]
fn read_word(log: &impl Log, at: u64) -> u64 {
    let mut word = [0; 8];
    // SAFETY: the bytes lie between `head` and `tail`, so no producer writes them; a process that breaks this rule tears
    // the copy, not our memory.
    unsafe { log.read_at(at as usize, &mut word) };
    u64::from_le_bytes(word)
}

/// Copies a part of a frame, from `offset` of its payload on; false if it has not that many bytes. The caller holds the
/// consumers' lock since it peeked.
#[allow(unsafe_code)]
pub fn read(log: &impl Log, frame: &Frame, offset: u64, into: &mut [u8]) -> bool {
    let end = offset.checked_add(into.len() as u64);
    if end.is_none_or(|end| end > frame.length) {
        return false;
    }
    let (_, at) = split(log, frame.payload);
    // SAFETY: the frame lies inside the log (`peek` has looked) and is not taken yet, so no producer writes there.
    unsafe { log.read_at((at + offset) as usize, into) };
    true
}

/// Takes the frame that `peek` has found. The caller has held the consumers' lock since then.
pub fn take(log: &impl Log, frame: &Frame) {
    let header = log.header();
    header
        .got
        .prepare(header.head.load(Ordering::Relaxed), frame.next);
    header.head.store(frame.next, Ordering::Release);
}

/// After taking, under the same lock and until it is `None`: memory to give back to the system, and then [`freed`].
pub fn spent(log: &impl Log, warm: u64) -> Option<Spent> {
    let header = log.header();
    let (head, freed) = (
        header.head.load(Ordering::Relaxed),
        header.freed.load(Ordering::Relaxed),
    );
    let ((head_lap, head_at), (freed_lap, freed_at)) = (split(log, head), split(log, freed));
    let from = freed_at
        .next_multiple_of(PAGE)
        .max(warm.min(log.capacity() as u64));
    if freed_lap < head_lap {
        let lap_end = header.lap_end.load(Ordering::Relaxed);
        let to = lap_end.min(log.capacity() as u64) / PAGE * PAGE;
        return Some(Spent {
            pages: from..to.max(from),
            next: head - head_at,
        });
    }
    if head_at <= warm {
        // Stays for the next lap.
        header.freed.store(head, Ordering::Release);
        return None;
    }
    let to = (head_at / PAGE * PAGE).max(from);
    let next = if header.tail.load(Ordering::Acquire) == head {
        head // nothing is unread, so all of it is free: the next frame may be a long one
    } else {
        head - head_at + to
    };
    (to - from >= CHUNK || next == head && freed != head).then_some(Spent {
        pages: from..to,
        next,
    })
}

/// What [`spent`] has told is given back.
pub fn freed(log: &impl Log, spent: &Spent) {
    log.header().freed.store(spent.next, Ordering::Release);
}
