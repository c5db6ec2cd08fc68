//! What every job cost: one record each, the newest kept, the others summed up. `README.md` says who writes and who reads.

pub mod meter;
mod record;
mod totals;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub use record::{Ending, Model, Record, UNKNOWN};
pub use totals::{Histogram, Quantity, Sums, Totals};

use crate::sys::clock::monotonic_ns;
use crate::sys::process;

/// How many records a ledger keeps if nobody says, besides those in the shards' own blocks.
pub const KEPT: usize = 1 << 16;
/// How many records a shard has for itself.
const BLOCK: usize = 256;
/// While the kept blocks are being read, a shard's own block grows up to so many times that.
const MOST_WAITING: usize = 16;
/// So many functions are told apart; number 0 stands for all others.
const MOST_NAMES: usize = 1024;
/// So many workers that have left are remembered.
const MOST_LEFT: usize = 1024;

/// A pool's (or an executor's) ledger. Clones are the same ledger.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

struct Inner {
    /// The process that it belongs to.
    owner: u32,
    most: usize,
    next_block: AtomicU64,
    shards: Mutex<Vec<Weak<Shard>>>,
    kept: Mutex<Kept>,
    names: Mutex<Names>,
    workers: Mutex<Workers>,
}

/// Records in the order of their writer.
#[derive(Clone, Default)]
struct Block {
    number: u64,
    records: Vec<Record>,
}

#[derive(Default)]
struct Kept {
    /// Oldest first.
    blocks: VecDeque<Arc<Block>>,
    records: usize,
    totals: Totals,
}

/// What one writer writes to.
pub struct Shard {
    ledger: Arc<Inner>,
    current: Mutex<Block>,
}

/// Where a record is, for as long as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    block: u64,
    at: u32,
}

#[derive(Default)]
struct Names {
    numbers: HashMap<String, u32>,
    texts: Vec<Arc<str>>,
}

/// A thread or a process that runs jobs.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Which model's it is.
    pub model: Model,
    /// What a person knows it by.
    pub label: Arc<str>,
    /// Its process, or 0 if that is this one.
    pub pid: u32,
    /// When it began.
    pub since_ns: u64,
    /// When it left; 0 if it has not.
    pub until_ns: u64,
}

#[derive(Default)]
struct Workers {
    by_number: BTreeMap<u32, Worker>,
    last: u32,
    left: VecDeque<u32>,
}

/// A ledger as it was at one moment.
pub struct Snapshot {
    /// The newest jobs, in the order in which they ended.
    pub records: Vec<Record>,
    /// The jobs whose records have fallen out.
    pub fallen: Totals,
    /// The functions' names, by number.
    pub names: Vec<Arc<str>>,
    /// The workers, by number.
    pub workers: BTreeMap<u32, Worker>,
    /// When it was.
    pub now_ns: u64,
}

/// Nothing panics half-way under these locks, so a poisoned one is a good one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// An empty one that keeps about `most` records.
    pub fn new(most: usize) -> Self {
        let names = Names {
            numbers: HashMap::new(),
            texts: vec![Arc::from("(other functions)")],
        };
        Self(Arc::new(Inner {
            owner: process::id(),
            most,
            next_block: AtomicU64::new(1),
            shards: Mutex::default(),
            kept: Mutex::default(),
            names: Mutex::new(names),
            workers: Mutex::default(),
        }))
    }

    /// Whether this is the process that it belongs to, and not a fork: there, nothing may be asked of it.
    pub fn is_here(&self) -> bool {
        process::id() == self.0.owner
    }

    /// Something for one more writer to write to; `None` in a fork.
    pub fn shard(&self) -> Option<Arc<Shard>> {
        if !self.is_here() {
            return None;
        }
        let shard = Arc::new(Shard {
            ledger: Arc::clone(&self.0),
            current: Mutex::new(self.0.empty()),
        });
        let mut shards = lock(&self.0.shards);
        shards.retain(|shard| shard.strong_count() > 0);
        shards.push(Arc::downgrade(&shard));
        Some(shard)
    }

    /// The number of a function's name; 0 if there are too many.
    pub fn name(&self, text: &str) -> u32 {
        let mut names = lock(&self.0.names);
        if let Some(&number) = names.numbers.get(text) {
            return number;
        }
        if names.texts.len() >= MOST_NAMES {
            return 0;
        }
        let number = names.texts.len() as u32;
        names.texts.push(Arc::from(text));
        names.numbers.insert(text.to_owned(), number);
        number
    }

    /// One more worker: its number.
    pub fn worker_came(&self, model: Model, label: &str, pid: u32) -> u32 {
        let mut workers = lock(&self.0.workers);
        workers.last += 1;
        let number = workers.last;
        workers.by_number.insert(
            number,
            Worker {
                model,
                label: Arc::from(label),
                pid,
                since_ns: monotonic_ns(),
                until_ns: 0,
            },
        );
        number
    }

    /// A worker has left.
    pub fn worker_left(&self, number: u32) {
        let mut workers = lock(&self.0.workers);
        if let Some(worker) = workers.by_number.get_mut(&number)
            && worker.until_ns == 0
        {
            worker.until_ns = monotonic_ns();
            workers.left.push_back(number);
        }
        if workers.left.len() > MOST_LEFT
            && let Some(oldest) = workers.left.pop_front()
        {
            workers.by_number.remove(&oldest);
        }
    }

    /// Changes a record that was written before, if it is still kept.
    pub fn amend(&self, place: Place, change: impl FnOnce(&mut Record)) {
        let at = place.at as usize;
        let shards: Vec<_> = lock(&self.0.shards)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for shard in &shards {
            let mut current = lock(&shard.current);
            if current.number == place.block {
                if let Some(record) = current.records.get_mut(at) {
                    change(record);
                }
                return;
            }
        }
        let mut kept = lock(&self.0.kept);
        let block = kept
            .blocks
            .iter_mut()
            .rev()
            .find(|block| block.number == place.block);
        if let Some(record) = block.and_then(|block| Arc::make_mut(block).records.get_mut(at)) {
            change(record);
        }
    }

    /// All that is known at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let shards: Vec<_> = lock(&self.0.shards)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let held: Vec<_> = shards.iter().map(|shard| lock(&shard.current)).collect();
        let kept = lock(&self.0.kept);
        let mut records = Vec::new();
        for current in &held {
            records.extend_from_slice(&current.records);
        }
        let blocks: Vec<_> = kept.blocks.iter().map(Arc::clone).collect();
        let fallen = kept.totals.clone();
        drop(kept);
        drop(held);
        drop(shards);
        for block in blocks {
            records.extend_from_slice(&block.records);
        }
        records.sort_by_key(|record| record.finished_ns);
        Snapshot {
            records,
            fallen,
            names: lock(&self.0.names).texts.clone(),
            workers: lock(&self.0.workers).by_number.clone(),
            now_ns: monotonic_ns(),
        }
    }
}

impl Inner {
    fn empty(&self) -> Block {
        Block {
            number: self.next_block.fetch_add(1, Ordering::Relaxed),
            records: Vec::new(),
        }
    }

    /// Keeps a block; what falls out for it is summed up, and its memory given back for the next one.
    fn keep(&self, kept: &mut Kept, block: Block) -> Block {
        kept.records += block.records.len();
        kept.blocks.push_back(Arc::new(block));
        let mut next = self.empty();
        while kept.records > self.most {
            let Some(oldest) = kept.blocks.pop_front() else {
                break;
            };
            kept.records -= oldest.records.len();
            for record in &oldest.records {
                kept.totals.add(record);
            }
            // Not if somebody is reading it.
            if let Some(oldest) = Arc::into_inner(oldest) {
                next.records = oldest.records;
                next.records.clear();
            }
        }
        next
    }
}

impl Shard {
    /// The ledger that it is part of.
    pub fn ledger(&self) -> Ledger {
        Ledger(Arc::clone(&self.ledger))
    }

    /// Writes a record.
    pub fn push(&self, record: Record) -> Place {
        let mut current = lock(&self.current);
        let length = current.records.len();
        if length >= BLOCK {
            let waited = length >= BLOCK * MOST_WAITING;
            let kept = if waited {
                Some(lock(&self.ledger.kept))
            } else if length.is_multiple_of(BLOCK) {
                // Whoever reads it takes a moment, for which nobody has to wait.
                self.ledger.kept.try_lock().ok()
            } else {
                None
            };
            if let Some(mut kept) = kept {
                let full = std::mem::take(&mut *current);
                *current = self.ledger.keep(&mut kept, full);
            }
        }
        if current.records.capacity() == 0 {
            current.records.reserve_exact(BLOCK);
        }
        current.records.push(record);
        Place {
            block: current.number,
            at: current.records.len() as u32 - 1,
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        let last = std::mem::take(&mut *lock(&self.current));
        // In a fork the lock may be held for ever.
        if !last.records.is_empty() && process::id() == self.ledger.owner {
            let mut kept = lock(&self.ledger.kept);
            self.ledger.keep(&mut kept, last);
        }
    }
}

impl Snapshot {
    /// Sums over the kept records that `is_wanted` says yes to.
    pub fn sums(&self, is_wanted: impl Fn(&Record) -> bool) -> Sums {
        let mut sums = Sums::default();
        for record in self.records.iter().filter(|record| is_wanted(record)) {
            sums.add(record);
        }
        sums
    }

    /// What all jobs cost, those included that have fallen out, by model and function.
    pub fn totals(&self) -> HashMap<(Model, u32), Sums> {
        let mut totals = self.fallen.sums.clone();
        for record in &self.records {
            let sums = totals.entry((record.model, record.name)).or_default();
            sums.add(record);
        }
        totals
    }

    /// The values below or at which such shares (from 0 to 1) of all jobs are; exact as long as no record has fallen out,
    /// and to 7 % afterwards. Empty if there is nothing to be distributed.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a rank, of a count far below 2^52, between 1 and it"
    )]
    pub fn quantiles(&self, of: Quantity, model: Option<Model>, shares: &[f64]) -> Vec<u64> {
        let is_wanted = |other: Model| model.is_none_or(|model| model == other);
        let wanted = self.records.iter().filter(|record| is_wanted(record.model));
        let mut values: Vec<_> = wanted.filter_map(|record| of.of(record)).collect();
        let at = Quantity::ALL.iter().position(|&each| each == of);
        let fallen: Vec<_> = self
            .fallen
            .histograms
            .iter()
            .filter(|&(&model, _)| is_wanted(model))
            .filter_map(|(_, histograms)| histograms.get(at?))
            .collect();
        if fallen.is_empty() {
            values.sort_unstable();
            let all = values.len();
            let rank = |share: f64| ((all as f64 * share).ceil() as usize).clamp(1, all) - 1;
            return if all == 0 {
                Vec::new()
            } else {
                shares.iter().map(|&share| values[rank(share)]).collect()
            };
        }
        let mut histogram = Histogram::default();
        for other in fallen {
            histogram.merge(other);
        }
        for value in values {
            histogram.add(value);
        }
        shares
            .iter()
            .filter_map(|&share| histogram.quantile(share))
            .collect()
    }
}

#[cfg(test)]
mod tests;
