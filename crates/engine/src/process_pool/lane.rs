//! The memory that a pool and one worker share: where everything lies in it, and the types that reach it.
//!
//! ```text
//! 0          Control: headers of the window and of both rings, three bells, what the worker is running
//! REQUESTS   data of the window, pool -> worker: calls that can be taken back until they are claimed
//! REPLIES    data of a ring, worker -> pool: answers
//! RETURNS    data of a ring, pool -> worker: offsets of result pieces that the pool does not use any more
//! ARENA      results too large for a frame; the worker keeps the books
//! ```
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use plait_sync::bell::Bell;
use plait_sync::memory::Memory;
use plait_sync::{ring, window};

use super::fault::{Step, reached};
use super::state::JobId;
use crate::shared_memory::map_largest;
use crate::sys::mapping::Mapping;

const REQUESTS: usize = 16 << 10;
const REQUESTS_LENGTH: usize = 256 << 10;
const REPLIES: usize = 320 << 10;
const REPLIES_LENGTH: usize = 256 << 10;
const RETURNS: usize = 640 << 10;
const RETURNS_LENGTH: usize = 64 << 10;
/// Where the results' arena starts.
pub const ARENA: usize = 1 << 20;
/// Bytes up to this length travel inside a frame; so do all pieces of a frame together.
pub const INLINE_MOST: usize = 32 << 10;

/// How many jobs a worker may run at once at most.
pub const MOST_WIDTH: usize = 256;

/// What stands in `running` while nothing runs: no number of a job, and nothing that a job which writes over the lane
/// is likely to leave there.
const IDLE: u64 = u64::from_le_bytes(*b"all idle");

/// What both sides change by atomics. All zero bytes are a new lane.
#[repr(C)]
#[derive(Debug)]
pub struct Control {
    requests: window::Header,
    replies: ring::Header,
    returns: ring::Header,
    /// The worker sleeps on this when it has no request.
    pub worker_bell: Bell,
    /// The pool's collector announces its sleep here; it is woken through the pool's doorbell.
    pub pool_bell: Bell,
    /// The worker sleeps on this when the replies' ring is full.
    pub room_bell: Bell,
    /// What the worker is running; one that runs a job at a time uses the first.
    slots: [Slot; MOST_WIDTH],
}

/// One of the jobs that a worker runs.
#[repr(C)]
#[derive(Debug)]
struct Slot {
    /// The number of the job whose function is running, plus one; `IDLE` while there is none. 0 before anything has run
    /// there, which in the first slot means: before the worker was ready.
    running: AtomicU64,
    /// When it began, on the monotonic clock.
    began_ns: AtomicU64,
    /// The number of the job that the pool wants to end, plus one. Means nothing unless it is the one that runs.
    interrupt: AtomicU64,
}

/// What a slot of a lane says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// The worker has never used it.
    NothingYet,
    /// Nothing runs there.
    Nothing,
    /// The function of this job, since then.
    Job { job: JobId, began_ns: u64 },
}

const _: () = assert!(
    size_of::<Control>() <= REQUESTS
        && REQUESTS + REQUESTS_LENGTH <= REPLIES
        && REPLIES + REPLIES_LENGTH <= RETURNS
        && RETURNS + RETURNS_LENGTH <= ARENA
);

/// A lane's memory. Cheap to clone; unmapped when the last clone (and the last lease of a result) is gone.
#[derive(Debug, Clone)]
pub struct Lane {
    mapping: Arc<Mapping>,
    control: NonNull<Control>,
}

// SAFETY: `control` points into `mapping`, which is `Send` and kept alive by the lane.
unsafe impl Send for Lane {}
// SAFETY: `Control` is changed through atomics only.
unsafe impl Sync for Lane {}

impl Lane {
    /// A new lane with room for results of up to `largest` bytes (less where address space is scarce).
    pub fn create(largest: usize) -> io::Result<Self> {
        Self::of(map_largest("plait-lane", ARENA, largest)?)
    }

    /// The lane behind a mapping that came from the pool.
    pub fn of(mapping: Mapping) -> io::Result<Self> {
        if mapping.len() <= ARENA {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // The start of a mapping is aligned to a page.
        let control = mapping
            .address(0, size_of::<Control>())
            .ok_or(io::ErrorKind::InvalidData)?
            .cast();
        Ok(Self {
            mapping: Arc::new(mapping),
            control,
        })
    }

    /// The memory itself.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// What both sides change by atomics.
    pub fn control(&self) -> &Control {
        // SAFETY: `of` checked that it lies inside the mapping; any bytes are valid integers for its atomics.
        unsafe { self.control.as_ref() }
    }

    /// Worker: the function of `job` begins now. The slot is one in which nothing runs.
    pub fn begin(&self, slot: usize, job: JobId, now_ns: u64) {
        let slot = &self.control().slots[slot];
        slot.began_ns.store(now_ns, Ordering::Relaxed);
        // What was meant for an earlier run of the same job.
        slot.interrupt.store(0, Ordering::Relaxed);
        slot.running.store(job.wrapping_add(1), Ordering::Release);
    }

    /// Worker: nothing runs in the slot; the answer of the last job there, if there was one, is published.
    pub fn end(&self, slot: usize) {
        let slot = &self.control().slots[slot];
        slot.running.store(IDLE, Ordering::Release);
    }

    /// Pool: the job that runs in the slot is to end.
    pub fn interrupt(&self, slot: usize, job: JobId) {
        let slot = &self.control().slots[slot];
        slot.interrupt.store(job.wrapping_add(1), Ordering::Release);
    }

    /// Worker: whether the job, which runs in the slot, is to end.
    pub fn is_interrupted(&self, slot: usize, job: JobId) -> bool {
        let slot = &self.control().slots[slot];
        slot.interrupt.load(Ordering::Acquire) == job.wrapping_add(1)
    }

    /// What a slot says.
    pub fn slot(&self, slot: usize) -> Running {
        let slot = &self.control().slots[slot];
        match slot.running.load(Ordering::Acquire) {
            IDLE => Running::Nothing,
            0 => Running::NothingYet,
            job => Running::Job {
                job: job - 1,
                began_ns: slot.began_ns.load(Ordering::Relaxed),
            },
        }
    }

    /// The window's memory.
    pub fn requests(&self) -> Requests {
        Part(self.clone())
    }

    /// The answers' ring.
    pub fn replies(&self) -> Replies {
        Part(self.clone())
    }

    /// The ring of pieces that come back.
    pub fn returns(&self) -> Returns {
        Part(self.clone())
    }
}

/// `LENGTH` bytes of a lane from `START` on.
#[derive(Debug)]
pub struct Part<const START: usize, const LENGTH: usize>(Lane);

/// Where the pool's calls lie.
pub type Requests = Part<REQUESTS, REQUESTS_LENGTH>;
/// Where the worker's answers lie.
pub type Replies = Part<REPLIES, REPLIES_LENGTH>;
/// Where the offsets lie that come back.
pub type Returns = Part<RETURNS, RETURNS_LENGTH>;

// SAFETY: the length is a constant power of two, and the part keeps the mapping alive.
unsafe impl<const START: usize, const LENGTH: usize> Memory for Part<START, LENGTH> {
    fn capacity(&self) -> usize {
        const { assert!(LENGTH.is_power_of_two()) };
        LENGTH
    }

    unsafe fn write_at(&self, at: usize, from: &[u8]) {
        debug_assert!(
            at + from.len() <= LENGTH,
            "the algorithms stay inside their capacity"
        );
        self.0.mapping.copy_in(START + at, from);
        if START == REPLIES {
            reached(Step::Put);
        }
    }

    unsafe fn read_at(&self, at: usize, into: &mut [u8]) {
        debug_assert!(
            at + into.len() <= LENGTH,
            "the algorithms stay inside their capacity"
        );
        self.0.mapping.copy_out(START + at, into);
        if START == REQUESTS {
            reached(Step::Copied);
        }
    }
}

impl window::Window for Requests {
    fn header(&self) -> &window::Header {
        &self.0.control().requests
    }
}

impl ring::Ring for Replies {
    fn header(&self) -> &ring::Header {
        &self.0.control().replies
    }
}

impl ring::Ring for Returns {
    fn header(&self) -> &ring::Header {
        &self.0.control().returns
    }
}
