//! What is known of one job that has ended.

/// Stands for a duration that nobody could measure.
pub const UNKNOWN: u64 = u64::MAX;

/// Under which model a job ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Model {
    /// A coroutine on an event loop.
    Tasks,
    /// A thread.
    Threads,
    /// A process.
    Processes,
    /// A thread with an interpreter of its own.
    Interpreters,
    /// A process that runs many jobs at once.
    Hybrid,
}

impl Model {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Tasks,
        Self::Threads,
        Self::Processes,
        Self::Interpreters,
        Self::Hybrid,
    ];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::Threads => "threads",
            Self::Processes => "processes",
            Self::Interpreters => "interpreters",
            Self::Hybrid => "hybrid",
        }
    }

    /// The one that users write like this.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|model| model.name() == name)
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// It has a value.
    Returned,
    /// It raised an exception, or gave what cannot be sent back.
    Raised,
    /// Its owner did not want it any more, or the pool was closed.
    Cancelled,
    /// It used up its time.
    TimedOut,
    /// With its worker.
    Lost,
}

impl Ending {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// As users read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Raised => "raised",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed out",
            Self::Lost => "lost",
        }
    }
}

/// One job. Times of the monotonic clock and durations in nanoseconds; `README.md` says who measures what.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// Which function, by its number in the ledger.
    pub name: u32,
    /// Which worker, by its number in the ledger; 0 for none.
    pub worker: u32,
    /// How often it was run again.
    pub retries: u32,
    /// Under which model it ran, or would have.
    pub model: Model,
    /// How it ended.
    pub ending: Ending,
    /// When it was submitted.
    pub submitted_ns: u64,
    /// When a worker began with it; 0 if none did.
    pub started_ns: u64,
    /// When it had ended.
    pub finished_ns: u64,
    /// Pickling and unpickling its arguments.
    pub arguments_ns: u64,
    /// Pickling and unpickling its result.
    pub result_ns: u64,
    /// The arguments, pickled.
    pub arguments_bytes: u64,
    /// The result, pickled.
    pub result_bytes: u64,
    /// What was copied on the way, both ways.
    pub copied_bytes: u64,
    /// What did not have to be, because it lies in memory that was shared before.
    pub shared_bytes: u64,
    /// In its function; [`UNKNOWN`] if nobody could tell.
    pub run_ns: u64,
    /// Of these, on a CPU; or [`UNKNOWN`].
    pub cpu_ns: u64,
    /// CPU time of child processes that it waited for; or [`UNKNOWN`].
    pub children_ns: u64,
    /// Waiting for the interpreter, by estimate; or [`UNKNOWN`].
    pub gil_ns: u64,
    /// Ready to go on, while the CPUs were others'; or [`UNKNOWN`].
    pub delayed_ns: u64,
    /// The most memory that the worker's process has had so far; 0 if that was not asked.
    pub peak_bytes: u64,
}

impl Record {
    /// A job of which nothing is known but its beginning as one and its end.
    pub fn new(model: Model, ending: Ending, submitted_ns: u64, finished_ns: u64) -> Self {
        Self {
            name: 0,
            worker: 0,
            retries: 0,
            model,
            ending,
            submitted_ns,
            started_ns: 0,
            finished_ns: finished_ns.max(submitted_ns),
            arguments_ns: 0,
            result_ns: 0,
            arguments_bytes: 0,
            result_bytes: 0,
            copied_bytes: 0,
            shared_bytes: 0,
            run_ns: UNKNOWN,
            cpu_ns: UNKNOWN,
            children_ns: UNKNOWN,
            gil_ns: UNKNOWN,
            delayed_ns: UNKNOWN,
            peak_bytes: 0,
        }
    }

    /// From its submission to its end.
    pub fn latency_ns(&self) -> u64 {
        self.finished_ns.saturating_sub(self.submitted_ns)
    }

    /// From its submission to its beginning; `None` if it never began.
    pub fn queued_ns(&self) -> Option<u64> {
        (self.started_ns > 0).then(|| self.started_ns.saturating_sub(self.submitted_ns))
    }

    /// Neither computing nor waiting for a CPU or, by estimate, the interpreter; `None` if that is not known.
    pub fn waiting_ns(&self) -> Option<u64> {
        if self.run_ns == UNKNOWN || self.cpu_ns == UNKNOWN {
            return None;
        }
        let known = |ns: u64| if ns == UNKNOWN { 0 } else { ns };
        let busy = self
            .cpu_ns
            .saturating_add(known(self.children_ns))
            .saturating_add(known(self.gil_ns))
            .saturating_add(known(self.delayed_ns));
        Some(self.run_ns.saturating_sub(busy))
    }
}
