//! An unbounded queue of jobs and the workers that sleep when it is empty. First in, first out; the worker that
//! became idle last is woken first. `README.md` beside this crate's `src` tells why no wake-up is lost.
//!
//! The queue and the list of idle workers share one mutex, held for a few loads and stores: a push must know
//! exactly how many workers are free, because one that wrongly trusts in a busy worker leaves a job lying
//! behind another that may never end. No job runs or is dropped under the mutex, and no thread is woken.

use std::collections::VecDeque;
#[cfg(not(plait_loom))]
use std::time::{Duration, Instant};

use crate::parker::{Parker, Unparker};
use crate::primitive::{AtomicUsize, Mutex, MutexGuard, Ordering};

/// How long one worker looks for a job before it sleeps: about what a sleep and a wake-up cost.
#[cfg(not(plait_loom))]
const SPIN: Duration = Duration::from_micros(30);

/// See the module's documentation.
pub struct JobQueue<T> {
    state: Mutex<State<T>>,
    /// Which worker looks for jobs without sleeping: the last one to become idle, which is called first. More than
    /// one would only take the processor from others.
    spinner: AtomicUsize,
}

struct State<T> {
    jobs: VecDeque<T>,
    /// The workers that found no job, in the order in which they did.
    idle: Vec<Unparker>,
    /// How many were taken from `idle` and have not come back yet.
    waking: usize,
    /// How many were announced by [`JobQueue::expect_worker`] and have not come yet.
    expected: usize,
    closed: bool,
}

impl<T> State<T> {
    /// Takes one idle worker to be woken, if there are jobs for it and nobody is on the way already.
    fn call_worker(&mut self) -> Option<Unparker> {
        if self.waking > 0 || self.jobs.is_empty() {
            return None;
        }
        let worker = self.idle.pop()?;
        self.waking += 1;
        Some(worker)
    }
}

/// Whether the workers that are free suffice for the jobs that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// Each waiting job has a worker that is idle, waking or expected.
    Enough,
    /// There are more waiting jobs than free workers.
    Short,
}

/// What a worker is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Run this.
    Job(T),
    /// There is none: call [`Worker::wait`], then ask again.
    Wait,
    /// There is none and there will be none.
    Leave,
}

/// A thread's part in the protocol.
pub struct Worker {
    parker: Parker,
    place: Place,
}

/// Where the queue counts a worker.
#[derive(PartialEq, Eq)]
enum Place {
    Expected,
    Busy,
    /// In `idle`, or taken from there and in `waking`.
    Idle,
}

impl Worker {
    /// A worker that was announced by [`JobQueue::expect_worker`].
    pub fn new() -> Self {
        Self {
            parker: Parker::new(),
            place: Place::Expected,
        }
    }

    /// After [`Next::Wait`]: returns when the queue calls. True if the thread slept for it. Takes no lock of the queue.
    pub fn wait<T>(&self, queue: &JobQueue<T>) -> bool {
        if self.spin(queue) {
            return false;
        }
        self.parker.park();
        true
    }

    /// As [`Worker::wait`]; `None` if the queue did not call within `limit`. Then [`JobQueue::retire`], or wait again.
    #[cfg(not(plait_loom))]
    pub fn wait_for<T>(&self, queue: &JobQueue<T>, limit: Duration) -> Option<bool> {
        if self.spin(queue) {
            return Some(false);
        }
        let Some(deadline) = Instant::now().checked_add(limit) else {
            self.parker.park();
            return Some(true);
        };
        self.parker.park_until(deadline).then_some(true)
    }

    /// Looks for a call for a moment, as long as no other became idle; true if there was one.
    fn spin<T>(&self, queue: &JobQueue<T>) -> bool {
        let turn = queue
            .spinner
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(1);
        #[cfg(not(plait_loom))]
        return self
            .parker
            .spin(SPIN, || queue.spinner.load(Ordering::Relaxed) == turn);
        #[cfg(plait_loom)]
        {
            let _ = turn;
            false
        }
    }
}

impl Worker {
    /// Whether the worker has been given something to do and is not counted on for anything else: it may leave as it is.
    pub fn is_busy(&self) -> bool {
        self.place == Place::Busy
    }
}

/// What is in a queue at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Jobs that wait.
    pub jobs: usize,
    /// Workers that are idle, waking or expected.
    pub free: usize,
}

impl Default for Worker {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> JobQueue<T> {
    /// An empty, open queue without workers.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                idle: Vec::new(),
                waking: 0,
                expected: 0,
                closed: false,
            }),
            spinner: AtomicUsize::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Appends a job and wakes at most one worker, none if one is waking already. Gives the job back if the queue is
    /// closed.
    pub fn push(&self, job: T) -> Result<Supply, T> {
        let state = self.state();
        if state.closed {
            return Err(job);
        }
        Ok(Self::append(state, job))
    }

    /// Appends a job even if the queue is closed: for one that was accepted earlier and has to run again.
    pub fn push_again(&self, job: T) -> Supply {
        Self::append(self.state(), job)
    }

    fn append(mut state: MutexGuard<'_, State<T>>, job: T) -> Supply {
        state.jobs.push_back(job);
        let free = state.idle.len() + state.waking + state.expected;
        let supply = if state.jobs.len() > free {
            Supply::Short
        } else {
            Supply::Enough
        };
        let called = state.call_worker();
        drop(state);
        if let Some(worker) = called {
            worker.unpark();
        }
        supply
    }

    /// Says that a [`Worker::new`] will come.
    pub fn expect_worker(&self) {
        self.state().expected += 1;
    }

    /// Takes back [`JobQueue::expect_worker`].
    pub fn expect_no_worker(&self) {
        let mut state = self.state();
        state.expected = state.expected.saturating_sub(1);
    }

    /// What `worker` is to do next.
    pub fn next(&self, worker: &mut Worker) -> Next<T> {
        let mut state = self.state();
        match std::mem::replace(&mut worker.place, Place::Busy) {
            Place::Busy => {}
            Place::Expected => state.expected = state.expected.saturating_sub(1),
            Place::Idle => state.waking = state.waking.saturating_sub(1),
        }
        let job = state.jobs.pop_front();
        // Others may have to be woken: while this one was on its way, pushes called nobody else.
        let called = state.call_worker();
        let next = match job {
            Some(job) => Next::Job(job),
            None if state.closed => Next::Leave,
            None => {
                worker.place = Place::Idle;
                state.idle.push(worker.parker.unparker());
                Next::Wait
            }
        };
        drop(state);
        if let Some(worker) = called {
            worker.unpark();
        }
        next
    }

    /// For an idle worker that wants to leave: true if it is not counted on any more. False if it has been called: it has to
    /// wait for that and come.
    pub fn retire(&self, worker: &mut Worker) -> bool {
        let own = worker.parker.unparker();
        let mut state = self.state();
        let Some(at) = state.idle.iter().rposition(|idle| idle.is_same(&own)) else {
            return false;
        };
        let entry = state.idle.remove(at);
        worker.place = Place::Busy;
        drop(state);
        drop(entry);
        true
    }

    /// Takes no more jobs; workers leave when the last one is taken. May be called again.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let idle = std::mem::take(&mut state.idle);
        state.waking += idle.len();
        drop(state);
        for worker in idle {
            worker.unpark();
        }
    }

    /// Whether [`JobQueue::close`] has been called.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Takes all jobs that wait.
    pub fn drain(&self) -> VecDeque<T> {
        std::mem::take(&mut self.state().jobs)
    }

    /// How many jobs wait, and for how many of them there is a worker.
    pub fn census(&self) -> Census {
        let state = self.state();
        Census {
            jobs: state.jobs.len(),
            free: state.idle.len() + state.waking + state.expected,
        }
    }

    /// What `look` sees in the job that has waited longest. It is called under the mutex: it only looks.
    pub fn look_at_first<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.state().jobs.front().map(look)
    }

    /// How many jobs wait.
    pub fn len(&self) -> usize {
        self.state().jobs.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In the child of a fork, where no worker exists any more: forgets them and takes all jobs that wait.
    pub fn forget_workers(&self) -> VecDeque<T> {
        let mut state = self.state();
        let idle = std::mem::take(&mut state.idle);
        state.waking = 0;
        state.expected = 0;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        drop(idle);
        jobs
    }
}

impl<T> Default for JobQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}
