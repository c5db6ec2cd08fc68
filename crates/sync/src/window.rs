//! A queue of byte frames whose producer may take back what the consumer has not claimed yet.
//!
//! This is what lets a pool send jobs to a worker ahead of time without ever being stuck with them: a short job
//! behind a long one is taken back and given to whoever is free, and of a worker that died it is known exactly
//! which frames it had claimed.
//!
//! One word, `next << 32 | limit`, holds the truth: frames `next .. limit` (counting modulo 2³²) are up for grabs. The
//! consumer claims by `next + 1`, the producer publishes by `limit + 1` and takes back by a smaller `limit`; all are
//! compare-and-swap on the same word, so each frame is claimed or taken back, never both. A frame is *read* only after
//! it is claimed, so the bytes of a frame that was taken back can be reused at once, under the same number.
//!
//! `slots` says where frame `n` lies (at `n % SLOTS`); `consumed` says up to where the consumer has copied frames
//! out, so that their bytes are free again. The producer trusts nothing it reads here beyond its own records: a
//! word with another `limit` than its own, or a `next` outside what it has published, is [`Corrupt`]. So is, for the
//! consumer, a `next` that it has not left there itself: what it claims next could be a frame that it has had.

use std::collections::VecDeque;

use crate::memory::{self, Memory};
use crate::primitive::{AtomicU32, AtomicU64, Ordering};
pub use crate::ring::{Corrupt, PushError};

/// How many frames may be outstanding at once.
pub const SLOTS: usize = 256;

/// What both sides share. All zero bytes are a valid, empty window.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Header {
    /// `next << 32 | limit`.
    word: AtomicU64,
    padding: [u64; 7],
    /// Written by the consumer: frames before this number have been copied out.
    consumed: AtomicU32,
    padding_after: [u32; 15],
    /// Written by the producer before it publishes: `position (mod 2³²) << 32 | length` of each frame.
    slots: [AtomicU64; SLOTS],
}

impl Header {
    /// An empty window.
    pub fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            padding: [0; 7],
            consumed: AtomicU32::new(0),
            padding_after: [0; 15],
            slots: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn slot(&self, number: u32) -> &AtomicU64 {
        &self.slots[number as usize % SLOTS]
    }
}

impl Default for Header {
    fn default() -> Self {
        Self::new()
    }
}

/// A window's memory: its header and its data, reachable for as long as the value lives.
pub trait Window: Memory {
    /// The shared header.
    fn header(&self) -> &Header;
}

fn pack(next: u32, limit: u32) -> u64 {
    u64::from(next) << 32 | u64::from(limit)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// The end that publishes and takes back. Exactly one exists per window.
#[derive(Debug)]
pub struct Producer<W> {
    window: W,
    /// The number of the next frame to publish: the producer's own copy of `limit`.
    limit: u32,
    /// Where each frame lies (start and end), oldest first, that may not have been copied out yet.
    outstanding: VecDeque<(u64, u64)>,
}

impl<W: Window> Producer<W> {
    /// The publishing end of a new, empty window.
    pub fn new(window: W) -> Self {
        Self {
            window,
            limit: 0,
            outstanding: VecDeque::new(),
        }
    }

    /// The memory the window lies in.
    pub fn window(&self) -> &W {
        &self.window
    }

    /// The oldest frame that may not have been copied out, as a number.
    fn oldest(&self) -> u32 {
        self.limit.wrapping_sub(self.outstanding.len() as u32)
    }

    /// Forgets the frames that the consumer has copied out: their bytes are free.
    fn reclaim(&mut self) -> Result<(), Corrupt> {
        let consumed = self.window.header().consumed.load(Ordering::Acquire);
        let count = consumed.wrapping_sub(self.oldest()) as usize;
        if count > self.outstanding.len() {
            return Err(Corrupt);
        }
        self.outstanding.drain(..count);
        Ok(())
    }

    /// Publishes one frame made of `parts`, or nothing.
    #[allow(unsafe_code)]
    pub fn publish(&mut self, parts: &[&[u8]]) -> Result<(), PushError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let capacity = self.window.capacity() as u64;
        if length > self.window.capacity() {
            return Err(PushError::TooLong);
        }
        let mut start = 0;
        for attempt in 0..2 {
            start = self.outstanding.back().map_or(0, |&(_, end)| end);
            let oldest = self.outstanding.front().map_or(start, |&(start, _)| start);
            if self.outstanding.len() < SLOTS && start - oldest + length as u64 <= capacity {
                break;
            }
            if attempt == 1 {
                return Err(PushError::Full);
            }
            self.reclaim().map_err(|Corrupt| PushError::Corrupt)?;
        }
        let mut position = start;
        // SAFETY: the bytes in `start .. start + length` lie outside every outstanding frame: those before were
        // released by the consumer (Acquire in `reclaim`), and frames taken back are read by nobody.
        unsafe {
            for part in parts {
                memory::write(&self.window, position, part);
                position += part.len() as u64;
            }
        }
        let header = self.window.header();
        header
            .slot(self.limit)
            .store(start << 32 | length as u64, Ordering::Relaxed);
        let limit = self.limit.wrapping_add(1);
        self.exchange(|_| limit)
            .map_err(|Corrupt| PushError::Corrupt)?;
        self.limit = limit;
        self.outstanding.push_back((start, position));
        Ok(())
    }

    /// Takes back up to `count` of the newest frames that are not claimed; returns how many it got.
    pub fn revoke(&mut self, count: usize) -> Result<usize, Corrupt> {
        let limit = self.limit;
        let next = self.exchange(|next| {
            let unclaimed = limit.wrapping_sub(next);
            limit.wrapping_sub(unclaimed.min(u32::try_from(count).unwrap_or(u32::MAX)))
        })?;
        let revoked = (limit.wrapping_sub(next) as usize).min(count);
        self.limit = limit.wrapping_sub(revoked as u32);
        let kept = self.outstanding.len() - revoked.min(self.outstanding.len());
        self.outstanding.truncate(kept);
        Ok(revoked)
    }

    /// How many published frames the consumer has not claimed.
    pub fn unclaimed(&self) -> Result<usize, Corrupt> {
        let word = self.window.header().word.load(Ordering::Acquire);
        self.check(word)
            .map(|next| self.limit.wrapping_sub(next) as usize)
    }

    /// The word's `next`, if the word is one that a correct consumer could have left.
    fn check(&self, word: u64) -> Result<u32, Corrupt> {
        let (next, limit) = unpack(word);
        if limit == self.limit && limit.wrapping_sub(next) as usize <= self.outstanding.len() {
            Ok(next)
        } else {
            Err(Corrupt)
        }
    }

    /// Replaces `limit` by `change(next)`; returns the `next` it was replaced under.
    fn exchange(&self, change: impl Fn(u32) -> u32) -> Result<u32, Corrupt> {
        let cell = &self.window.header().word;
        let mut word = cell.load(Ordering::Acquire);
        loop {
            let next = self.check(word)?;
            // Release publishes the frame; Acquire because a `next` that moved allows what follows to be reused.
            match cell.compare_exchange_weak(
                word,
                pack(next, change(next)),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(next),
                Err(seen) => word = seen,
            }
        }
    }
}

/// The end that claims. Exactly one exists per window.
#[derive(Debug)]
pub struct Consumer<W> {
    window: W,
    /// The number of the next frame to claim: the consumer's own copy of `next`.
    next: u32,
}

impl<W: Window> Consumer<W> {
    /// The claiming end of a new, empty window.
    pub fn new(window: W) -> Self {
        Self { window, next: 0 }
    }

    /// The memory the window lies in.
    pub fn window(&self) -> &W {
        &self.window
    }

    /// Whether a frame could be claimed right now.
    pub fn has_frame(&self) -> bool {
        let (next, limit) = unpack(self.window.header().word.load(Ordering::Acquire));
        next != limit
    }

    /// Claims the oldest frame; it is this side's from then on. `None` if there is none.
    pub fn claim(&mut self) -> Result<Option<Claim<'_, W>>, Corrupt> {
        let cell = &self.window.header().word;
        let mut word = cell.load(Ordering::Acquire);
        loop {
            let (next, limit) = unpack(word);
            // Nobody else moves `next`; a frame claimed under another number could be an old one.
            if next != self.next || limit.wrapping_sub(next) as usize > SLOTS {
                return Err(Corrupt);
            }
            if next == limit {
                return Ok(None);
            }
            match cell.compare_exchange_weak(
                word,
                pack(next.wrapping_add(1), limit),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    self.next = next.wrapping_add(1);
                    return Ok(Some(Claim {
                        window: &self.window,
                        number: next,
                    }));
                }
                Err(seen) => word = seen,
            }
        }
    }
}

/// A frame that was claimed and not read yet.
#[derive(Debug)]
#[must_use = "a claimed frame that is not read blocks its bytes"]
pub struct Claim<'w, W: Window> {
    window: &'w W,
    number: u32,
}

impl<W: Window> Claim<'_, W> {
    /// Copies the frame into `into` (replacing what it holds) and gives its bytes back to the producer.
    #[allow(unsafe_code)]
    pub fn read(self, into: &mut Vec<u8>) -> Result<(), Corrupt> {
        let header = self.window.header();
        let slot = header.slot(self.number).load(Ordering::Relaxed);
        let (position, length) = unpack(slot);
        if length as usize > self.window.capacity() {
            return Err(Corrupt);
        }
        into.clear();
        into.resize(length as usize, 0);
        // SAFETY: the frame was published before it could be claimed (Acquire of the claim), and the producer does
        // not touch a claimed frame's bytes before `consumed` says so.
        unsafe { memory::read(self.window, u64::from(position), into) };
        header
            .consumed
            .store(self.number.wrapping_add(1), Ordering::Release);
        Ok(())
    }
}
