//! What a pool writes to the ledger about its jobs: what it knows itself, and what workers say.

use std::sync::Arc;

use super::link::{Job, Payload};
use super::outcome::Outcome;
use super::protocol::Status;
use super::state::Cause;
use super::worker::Bytes;
use crate::ledger::meter::Cost;
use crate::ledger::{Ending, Ledger, Model, Record, Shard, UNKNOWN};
use crate::sys::clock::monotonic_ns;

/// What a worker says a job cost: nanoseconds and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// When it began, on the monotonic clock.
    pub began_ns: u64,
    /// From then until its function was called.
    pub arguments_ns: u64,
    /// From when that had returned until the answer was there.
    pub result_ns: u64,
    /// On the CPU, in the function; or unknown.
    pub cpu_ns: u64,
    /// CPU time of children; or unknown.
    pub children_ns: u64,
    /// Ready, while the CPUs were others'; or unknown.
    pub delayed_ns: u64,
    /// The most memory that the worker has had.
    pub peak_bytes: u64,
}

impl Spent {
    pub(super) fn to_numbers(self) -> [u64; 7] {
        [
            self.began_ns,
            self.arguments_ns,
            self.result_ns,
            self.cpu_ns,
            self.children_ns,
            self.delayed_ns,
            self.peak_bytes,
        ]
    }

    pub(super) fn from_numbers<E>(mut next: impl FnMut() -> Result<u64, E>) -> Result<Self, E> {
        Ok(Self {
            began_ns: next()?,
            arguments_ns: next()?,
            result_ns: next()?,
            cpu_ns: next()?,
            children_ns: next()?,
            delayed_ns: next()?,
            peak_bytes: next()?,
        })
    }

    /// With what the function itself cost.
    #[must_use]
    pub(super) fn with(self, cost: &Cost) -> Self {
        Self {
            cpu_ns: cost.cpu_ns,
            children_ns: cost.children_ns,
            delayed_ns: cost.delayed_ns,
            ..self
        }
    }
}

/// What is known of a job before it is queued.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin {
    /// The number of its function in the ledger.
    pub name: u32,
    /// When it was submitted, if that was earlier; or 0.
    pub submitted_ns: u64,
    /// How long its arguments took to be pickled.
    pub pickled_ns: u64,
}

/// What is known of a job that has not ended.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// When the first one began; 0 if none has, or if that is not known.
    began_ns: u64,
    /// The number of the worker that runs the present one.
    worker: u32,
    /// How many there will be at most after the present one.
    pub(super) left: u32,
    /// What those before the present one cost.
    earlier: Option<Box<Earlier>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Earlier {
    run_ns: u64,
    cpu_ns: u64,
    children_ns: u64,
    delayed_ns: u64,
    arguments_ns: u64,
    result_ns: u64,
    /// There was one whose cost nobody knows.
    is_partial: bool,
}

fn known(ns: u64) -> u64 {
    if ns == UNKNOWN { 0 } else { ns }
}

/// How long an answered job ran, of what a worker says.
fn run_ns(spent: &Spent, occupied_ns: u64) -> u64 {
    occupied_ns
        .saturating_sub(spent.arguments_ns)
        .saturating_sub(spent.result_ns)
}

impl Attempts {
    /// Of a job that is run again up to so many times.
    pub(super) fn of(retries: u32) -> Self {
        Self {
            left: retries,
            ..Self::default()
        }
    }

    /// The worker with this number has begun an attempt, at that time.
    pub(super) fn began(&mut self, worker: u32, began_ns: u64) {
        self.worker = worker;
        if self.began_ns == 0 {
            self.began_ns = began_ns;
        }
    }

    /// The present attempt ends without an answer that counts; with the worker with this number, unless that is 0.
    pub(super) fn lost(&mut self, worker: u32) {
        self.earlier.get_or_insert_default().is_partial = true;
        if worker > 0 {
            self.worker = worker;
        }
    }

    /// An attempt is over that is not the last.
    pub(super) fn again(&mut self, answer: &Answer) {
        let Answer {
            worker,
            occupied_ns,
            spent,
            ..
        } = answer;
        let earlier = self.earlier.get_or_insert_default();
        let run_ns = run_ns(spent, *occupied_ns);
        earlier.run_ns = earlier.run_ns.saturating_add(run_ns);
        earlier.cpu_ns = earlier
            .cpu_ns
            .saturating_add(known(spent.cpu_ns).min(run_ns));
        earlier.children_ns = earlier.children_ns.saturating_add(known(spent.children_ns));
        let delayed_ns = known(spent.delayed_ns).min(run_ns);
        earlier.delayed_ns = earlier.delayed_ns.saturating_add(delayed_ns);
        let arguments_ns = spent.arguments_ns.min(*occupied_ns);
        earlier.arguments_ns = earlier.arguments_ns.saturating_add(arguments_ns);
        let result_ns = spent.result_ns.min(*occupied_ns);
        earlier.result_ns = earlier.result_ns.saturating_add(result_ns);
        self.began(*worker, spent.began_ns);
    }
}

/// An answer as it was heard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    /// The number of the worker.
    pub(super) worker: u32,
    pub(super) occupied_ns: u64,
    pub(super) spent: Spent,
    /// When it had been heard, at the latest.
    pub(super) heard_ns: u64,
}

/// A pool's account.
pub(super) struct Account {
    shard: Arc<Shard>,
    model: Model,
}

fn length(payload: &Payload) -> u64 {
    match payload {
        Payload::Inline(bytes) => bytes.len() as u64,
        Payload::Shared(block) => block.len() as u64,
    }
}

fn length_back(bytes: &Bytes) -> u64 {
    match bytes {
        Bytes::Inline(bytes) => bytes.len() as u64,
        Bytes::Shared(lease) => lease.len() as u64,
    }
}

impl Account {
    pub(super) fn new(ledger: &Ledger, model: Model) -> Option<Self> {
        let shard = ledger.shard()?;
        Some(Self { shard, model })
    }

    /// A worker has started as process `pid`: its number.
    pub(super) fn worker_came(&self, pid: u32) -> u32 {
        let label = format!("process {pid}");
        self.shard.ledger().worker_came(self.model, &label, pid)
    }

    /// It has ended.
    pub(super) fn worker_left(&self, number: u32) {
        if number > 0 {
            self.shard.ledger().worker_left(number);
        }
    }

    /// A job has ended, `outcome` says how, and `answer`, if there is one, what it cost.
    pub(super) fn write(
        &self,
        job: &Job,
        queued_ns: u64,
        attempts: &Attempts,
        outcome: &mut Outcome,
        answer: Option<&Answer>,
    ) {
        let now_ns = match answer {
            // What it says is looked at below.
            Some(answer) => answer.heard_ns,
            None => monotonic_ns(),
        };
        let ending = match outcome {
            Outcome::Answer { status, .. } => match status {
                Status::Value | Status::Nothing => Ending::Returned,
                Status::Raised | Status::Unpicklable => Ending::Raised,
            },
            Outcome::Lost {
                cause: Cause::Overdue,
                ..
            } => Ending::TimedOut,
            Outcome::Lost { .. } => Ending::Lost,
            Outcome::Cancelled => Ending::Cancelled,
        };
        let submitted_ns = match job.origin.submitted_ns {
            0 => queued_ns,
            earlier => earlier.min(queued_ns),
        };
        let mut record = Record::new(self.model, ending, submitted_ns, now_ns);
        record.name = job.origin.name;
        record.retries = job.retries.saturating_sub(attempts.left);
        record.arguments_ns = job.origin.pickled_ns;
        record.arguments_bytes = length(&job.arguments);
        if !job.buffers.is_empty() {
            record.arguments_bytes += job.buffers.iter().map(length).sum::<u64>();
            let shared: usize = job.kept.iter().map(|segment| segment.size()).sum();
            record.shared_bytes = shared as u64;
        }
        record.copied_bytes = record.arguments_bytes;
        record.worker = attempts.worker;
        if attempts.began_ns > 0 {
            record.started_ns = attempts.began_ns.clamp(submitted_ns, now_ns);
        }
        if let Some(answer) = answer {
            add(&mut record, attempts, answer);
        }
        if let Outcome::Answer {
            payload,
            buffers,
            place,
            ..
        } = outcome
        {
            record.result_bytes = length_back(payload);
            if !buffers.is_empty() {
                record.result_bytes += buffers.iter().map(length_back).sum::<u64>();
            }
            record.copied_bytes += record.result_bytes;
            *place = Some(self.shard.push(record));
        } else {
            self.shard.push(record);
        }
    }
}

/// What an answer says, as far as this side's clock agrees: it is the worker's, but a job may have written over it.
fn add(record: &mut Record, attempts: &Attempts, answer: &Answer) {
    let Answer {
        worker,
        occupied_ns,
        spent,
        ..
    } = answer;
    let earlier = attempts.earlier.as_deref().copied().unwrap_or_default();
    let began_ns = spent
        .began_ns
        .clamp(record.submitted_ns, record.finished_ns);
    // How long it took us to hear of it is not the job's.
    let occupied_ns = (*occupied_ns).min(record.finished_ns - began_ns);
    record.finished_ns = began_ns + occupied_ns;
    record.worker = *worker;
    if record.started_ns == 0 {
        record.started_ns = began_ns;
    }
    record.peak_bytes = spent.peak_bytes;
    let arguments_ns = spent.arguments_ns.min(occupied_ns);
    record.arguments_ns += arguments_ns.saturating_add(earlier.arguments_ns);
    let result_ns = spent.result_ns.min(occupied_ns);
    record.result_ns += result_ns.saturating_add(earlier.result_ns);
    if earlier.is_partial {
        return;
    }
    let run_ns = run_ns(spent, occupied_ns);
    record.run_ns = run_ns.saturating_add(earlier.run_ns);
    if spent.cpu_ns != UNKNOWN {
        record.cpu_ns = spent.cpu_ns.min(run_ns).saturating_add(earlier.cpu_ns);
    }
    if spent.children_ns != UNKNOWN {
        record.children_ns = spent.children_ns.saturating_add(earlier.children_ns);
    }
    if spent.delayed_ns != UNKNOWN {
        let delayed_ns = spent.delayed_ns.min(run_ns);
        record.delayed_ns = delayed_ns.saturating_add(earlier.delayed_ns);
    }
}
