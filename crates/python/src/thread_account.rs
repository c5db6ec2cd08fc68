//! What a pool of threads writes to the ledger: one account for each worker, and one for jobs that no worker ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use plait_engine::ledger::meter::{Begun, Cost, Meter, SWITCH};
use plait_engine::ledger::{Ending, Ledger as EngineLedger, Model, Record, Shard};
use plait_engine::sys::clock::monotonic_ns;
use plait_engine::sys::usage;
use pyo3::prelude::*;

use crate::ledger::{Names, take_crossing};

/// How often a worker asks how much memory the process has used at most.
const PEAK_EVERY: u64 = 20_000_000;

/// A pool's side.
pub(crate) struct Accounts {
    ledger: EngineLedger,
    model: Model,
    /// For jobs that end without a worker.
    beside: Option<Arc<Shard>>,
    /// Only one thread at a time can run Python code here.
    one_interpreter: bool,
    /// How long a worker that came back last had to wait for the interpreter, on average, and when that was.
    asks_ns: AtomicU64,
    asked_at_ns: AtomicU64,
}

impl Accounts {
    pub(crate) fn new(ledger: &EngineLedger, model: Model, one_interpreter: bool) -> Self {
        Self {
            ledger: ledger.clone(),
            model,
            beside: ledger.shard(),
            // A worker of an interpreter of its own waits for nobody.
            one_interpreter: one_interpreter && model != Model::Interpreters,
            asks_ns: AtomicU64::new(0),
            asked_at_ns: AtomicU64::new(0),
        }
    }

    /// A worker has waited for the interpreter from `since_ns` until now.
    pub(crate) fn asked(&self, since_ns: u64) {
        let now_ns = monotonic_ns();
        let wait_ns = now_ns.saturating_sub(since_ns);
        let mean_ns = self.asks_ns.load(Ordering::Relaxed);
        // A lost update of a mean costs nothing.
        self.asks_ns
            .store(mean_ns - mean_ns / 4 + wait_ns / 4, Ordering::Relaxed);
        self.asked_at_ns.store(now_ns, Ordering::Relaxed);
    }

    fn asks_since(&self, began_ns: u64) -> Option<u64> {
        let is_fresh = self.asked_at_ns.load(Ordering::Relaxed) > began_ns;
        self.one_interpreter.then(|| {
            if is_fresh {
                self.asks_ns.load(Ordering::Relaxed)
            } else {
                SWITCH
            }
        })
    }

    /// A worker's own account; `None` in a fork.
    pub(crate) fn open(&self, label: &str) -> Option<Account> {
        let shard = self.ledger.shard()?;
        Some(Account {
            ledger: self.ledger.clone(),
            shard,
            number: self.ledger.worker_came(self.model, label, 0),
            meter: Meter::default(),
            names: Names::default(),
            peak_bytes: 0,
            looked_ns: 0,
        })
    }

    /// A job ends that no worker runs any more, or ever did.
    pub(crate) fn ended_beside(
        &self,
        ending: Ending,
        submitted_ns: u64,
        name: impl FnOnce(&EngineLedger) -> u32,
        change: impl FnOnce(&mut Record),
    ) {
        let Some(shard) = self.beside.as_ref().filter(|_| self.ledger.is_here()) else {
            return;
        };
        let mut record = Record::new(self.model, ending, submitted_ns, monotonic_ns());
        record.name = name(&self.ledger);
        change(&mut record);
        shard.push(record);
    }
}

/// A worker's side. Its thread's own.
pub(crate) struct Account {
    ledger: EngineLedger,
    shard: Arc<Shard>,
    number: u32,
    meter: Meter,
    names: Names,
    peak_bytes: u64,
    looked_ns: u64,
}

/// How a worker has come to a job.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// It has slept.
    Rested,
    /// It has waited, awake.
    Waited,
    /// It took it right after the last one, at this time.
    AfterAnother(u64),
}

/// A job that runs.
pub(crate) struct Running {
    begun: Begun,
    name: u32,
}

impl Running {
    pub(crate) fn began_ns(&self) -> u64 {
        self.begun.began_ns()
    }
}

impl Account {
    /// A job begins, which is called by `name` or else as its function is.
    pub(crate) fn begin(
        &mut self,
        name: Option<&str>,
        function: &Bound<'_, PyAny>,
        at: Start,
    ) -> Running {
        let name = match name {
            Some(name) => self.names.number(&self.ledger, name),
            None => self.names.of(&self.ledger, function),
        };
        take_crossing();
        let now_ns = match at {
            Start::AfterAnother(now_ns) => now_ns,
            Start::Rested | Start::Waited => monotonic_ns(),
        };
        Running {
            begun: self.meter.begin(now_ns, at == Start::Rested),
            name,
        }
    }

    /// Its function has ended: when that was, and what it cost.
    pub(crate) fn ran(&mut self, accounts: &Accounts, running: &Running) -> (u64, Cost) {
        let now_ns = monotonic_ns();
        let asks_ns = accounts.asks_since(running.began_ns());
        (now_ns, self.meter.end(running.begun, now_ns, asks_ns))
    }

    /// The job has ended.
    pub(crate) fn write(
        &mut self,
        accounts: &Accounts,
        running: &Running,
        ending: Ending,
        submitted_ns: u64,
        retries: u32,
        (now_ns, cost): (u64, Cost),
    ) {
        let mut record = Record::new(accounts.model, ending, submitted_ns, now_ns);
        if now_ns.saturating_sub(self.looked_ns) >= PEAK_EVERY {
            self.looked_ns = now_ns;
            self.peak_bytes = usage::peak_bytes();
        }
        record.name = running.name;
        record.worker = self.number;
        record.retries = retries;
        record.started_ns = running.began_ns();
        record.run_ns = cost.run_ns;
        record.cpu_ns = cost.cpu_ns;
        record.children_ns = cost.children_ns;
        record.gil_ns = cost.gil_ns;
        record.delayed_ns = cost.delayed_ns;
        record.peak_bytes = self.peak_bytes;
        if accounts.model != Model::Threads
            && let Some(crossing) = take_crossing()
        {
            if crossing.is_elsewhere {
                return;
            }
            record.arguments_ns = crossing.pickled_ns + crossing.arguments_ns;
            record.result_ns = crossing.result_ns;
            record.arguments_bytes = crossing.arguments_bytes;
            record.result_bytes = crossing.result_bytes;
            record.copied_bytes = crossing.arguments_bytes + crossing.result_bytes;
            let crossed_ns = crossing.arguments_ns + crossing.result_ns;
            record.run_ns = record.run_ns.saturating_sub(crossed_ns);
            record.cpu_ns = record.cpu_ns.min(record.run_ns);
        }
        self.shard.push(record);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.ledger.worker_left(self.number);
    }
}
