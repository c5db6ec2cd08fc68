//! What goes in and comes out of a pool: what its users supply, and how jobs and processes end.
#![allow(missing_docs, reason = "each variant's own comment names its fields")]

use std::fmt;
use std::time::Duration;

use super::protocol::Status;
use super::state::Cause;
use super::worker::Bytes;
use crate::ledger::{Ledger, Model, Place};

/// What the caller wants back with a job's outcome.
pub trait Handle: Send + 'static {
    /// The job is about to be sent: false if it was cancelled. Called once, without any lock of the interpreter.
    fn try_start(&self) -> bool;
}

/// Receives outcomes, on the collector's thread, in batches and never under a lock of the pool.
pub trait Deliver<H>: Send + 'static {
    /// Takes every outcome out of `batch`.
    fn deliver(&mut self, batch: Vec<(H, Outcome)>);

    /// Takes what workers have said before the outcomes that are delivered next.
    fn tell(&mut self, notes: Vec<Note>) {
        drop(notes);
    }
}

/// What a worker says besides answers.
#[derive(Debug)]
pub struct Note {
    /// What it is; the engine knows only its own.
    pub kind: u8,
    /// Its bytes.
    pub payload: Bytes,
}

impl Note {
    /// What the engine itself says, once: that a worker uses too much memory, as will others perhaps, and is replaced. The
    /// bytes are a number in decimal: how much it uses.
    pub const RETIRED: u8 = 255;
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// The worker's answer.
    Answer {
        status: Status,
        payload: Bytes,
        buffers: Vec<Bytes>,
        /// Where the ledger has noted it.
        place: Option<Place>,
    },
    /// There is no answer. The process id is 0 if there never was a process.
    Lost {
        cause: Cause,
        pid: u32,
        end: ProcessEnd,
        text: String,
    },
    /// It was cancelled, by its owner or with the pool.
    Cancelled,
}

/// How a worker's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEnd {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Nobody could tell.
    Unknown,
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "with exit status {status}"),
            Self::Killed(signal) => write!(f, "by signal {signal}"),
            Self::Unknown => write!(f, "without telling why"),
        }
    }
}

impl From<i32> for ProcessEnd {
    /// From a status as `wait` gives it.
    fn from(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8) & 0xff),
            signal => Self::Killed(signal),
        }
    }
}

/// What a pool may use.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The most processes.
    pub workers: usize,
    /// How many jobs each is given at once, no more than [`super::ProcessPool::MOST_WIDTH`].
    pub width: usize,
    /// Whether fewer are given where throughput is no worse for it.
    pub adapts_width: bool,
    /// How many jobs each is given until it is replaced.
    pub jobs_per_worker: Option<u32>,
    /// How long a job that was interrupted may take to end before its worker is ended; for ever without.
    pub cancel_grace: Option<Duration>,
    /// How long a worker without work is kept; for ever without.
    pub idle_timeout: Option<Duration>,
    /// Where to note what jobs cost, and as which model's.
    pub ledger: Option<(Ledger, Model)>,
}

impl Settings {
    /// Up to `workers` processes that run one job at a time, and otherwise no limits.
    pub fn of(workers: usize) -> Self {
        Self {
            workers,
            width: 1,
            adapts_width: false,
            jobs_per_worker: None,
            cancel_grace: None,
            idle_timeout: None,
            ledger: None,
        }
    }
}

/// What a pool is doing at the moment; nothing in a fork of its process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Jobs that have not ended.
    pub jobs: usize,
    /// Jobs that no worker has been sent.
    pub pending: usize,
    /// The process ids of the workers, 0 for one that is starting.
    pub workers: Vec<u32>,
    /// Blocks of arguments in use.
    pub blocks: usize,
    /// How many jobs each worker is given at once at the moment.
    pub width: usize,
    /// For how long the first job that no worker has been sent has been waiting, in nanoseconds.
    pub waited_ns: u64,
}

/// Why a job was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The pool was shut down.
    ShutDown,
    /// Its workers cannot be used; the text says why.
    Unusable(String),
    /// This process is a fork of the one that the pool belongs to.
    Forked { owner: u32 },
}
