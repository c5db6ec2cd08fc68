//! A pool of threads that somebody else starts: which jobs wait, how many workers there are, when they leave. Work items of
//! a type `H` are stored, ordered and handed back; none is run here, and none is dropped under a lock. See `README.md`.

mod deadlines;
mod saturation;

pub use deadlines::{Deadlines, Ticket};
pub use saturation::{SATURATED_FOR, Saturation};

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use plait_sync::job_queue::{Census, JobQueue, Supply};
pub use plait_sync::job_queue::{Next, Worker};

/// See the module's documentation. Every method may be called from any thread.
pub struct ThreadPool<H> {
    queue: JobQueue<H>,
    limit: usize,
    /// How many workers there may be at present.
    width: AtomicUsize,
    /// Workers that were asked for and have not left.
    workers: AtomicUsize,
    /// Jobs that have ended, as far as [`ThreadPool::job_ended`] was told.
    ended: AtomicU64,
}

/// What a pool is doing at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Workers, including those asked for and not started yet.
    pub workers: usize,
    /// How many of them have a job.
    pub running: usize,
    /// Jobs that wait.
    pub waiting: usize,
    /// How many workers there may be at present.
    pub width: usize,
    /// How many there may ever be.
    pub limit: usize,
}

/// What the caller of [`ThreadPool::submit`] has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Submitted {
    /// Nothing: a worker that is there will take the job.
    Queued,
    /// Start a thread that takes part as a worker ([`ThreadPool::next`]), or say that it cannot be done
    /// ([`ThreadPool::worker_did_not_start`]).
    StartWorker,
}

/// What came of [`ThreadPool::retire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Retired {
    /// The worker has left, and must not ask again.
    Left,
    /// It has been called in this instant: [`ThreadPool::wait`], then ask.
    Called,
    /// A job came in this instant that nobody else will take: ask.
    Needed,
}

impl<H> ThreadPool<H> {
    /// A pool that asks for at most `limit` workers, and for none until there is a job.
    pub fn new(limit: usize) -> Self {
        Self {
            queue: JobQueue::new(),
            limit,
            width: AtomicUsize::new(limit),
            workers: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
        }
    }

    /// Queues a job; gives it back if the pool is closed.
    pub fn submit(&self, job: H) -> Result<Submitted, H> {
        self.queue.push(job).map(|supply| self.see_to(supply))
    }

    /// Queues a job that was accepted earlier, even if the pool has been closed since.
    pub fn submit_again(&self, job: H) -> Submitted {
        let supply = self.queue.push_again(job);
        self.see_to(supply)
    }

    fn see_to(&self, supply: Supply) -> Submitted {
        if supply == Supply::Enough || !self.join() {
            return Submitted::Queued;
        }
        self.queue.expect_worker();
        Submitted::StartWorker
    }

    /// Counts one more worker; false if there are as many as there may be.
    fn join(&self) -> bool {
        let width = self.width();
        let more = |workers| (workers < width).then_some(workers + 1);
        self.workers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .is_ok()
    }

    /// The thread that [`Submitted::StartWorker`] asked for could not be started. If that leaves nobody to run them, the
    /// jobs that wait are handed back.
    pub fn worker_did_not_start(&self) -> VecDeque<H> {
        self.queue.expect_no_worker();
        if self.worker_left() {
            self.queue.drain()
        } else {
            VecDeque::new()
        }
    }

    /// What a worker is to do next. After [`Next::Leave`] the worker has left and must not ask again.
    pub fn next(&self, worker: &mut Worker) -> Next<H> {
        if worker.is_busy() && self.is_surplus() {
            return Next::Leave;
        }
        loop {
            let next = self.queue.next(worker);
            if !matches!(next, Next::Leave) {
                return next;
            }
            self.worker_left();
            // A job that came again (`submit_again`) since the queue was seen empty may have counted on this worker.
            if self.queue.is_empty() || !self.join() {
                return Next::Leave;
            }
        }
    }

    /// Whether there are more workers than there may be, so that the one that asks has to leave; it is not counted then.
    fn is_surplus(&self) -> bool {
        let width = self.width();
        if self.workers.load(Ordering::Relaxed) <= width {
            return false;
        }
        let fewer = |workers| (workers > width).then(|| workers - 1);
        self.workers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer)
            .is_ok()
    }

    /// From now on there may be `width` workers, between 1 and the limit. Surplus ones leave after their jobs. The caller
    /// has to start as many threads as this returns, or say for each that it cannot be done.
    #[must_use]
    pub fn set_width(&self, width: usize) -> usize {
        let width = width.clamp(1, self.limit.max(1));
        self.width.store(width, Ordering::Release);
        let Census { jobs, free } = self.queue.census();
        let mut started = 0;
        while started < jobs.saturating_sub(free) && self.join() {
            self.queue.expect_worker();
            started += 1;
        }
        started
    }

    /// How many workers there may be at present.
    pub fn width(&self) -> usize {
        self.width.load(Ordering::Acquire)
    }

    /// A worker has run a job: for whoever adapts the width.
    pub fn job_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// How many jobs have ended since this was asked last.
    pub fn take_ended(&self) -> u64 {
        self.ended.swap(0, Ordering::Relaxed)
    }

    /// What the pool is doing.
    pub fn statistics(&self) -> Statistics {
        let Census { jobs, free } = self.queue.census();
        let workers = self.workers();
        Statistics {
            workers,
            running: workers.saturating_sub(free),
            waiting: jobs,
            width: self.width(),
            limit: self.limit,
        }
    }

    /// What `look`, which is called under a lock, sees in the job that has waited longest.
    pub fn look_at_first<R>(&self, look: impl FnOnce(&H) -> R) -> Option<R> {
        self.queue.look_at_first(look)
    }

    /// Sleeps after [`Next::Wait`] until there may be something to do; true if the thread really slept. Takes no lock that
    /// another method takes.
    pub fn wait(&self, worker: &Worker) -> bool {
        worker.wait(&self.queue)
    }

    /// As [`ThreadPool::wait`]; `None` if there was nothing to do within `limit`. Then [`ThreadPool::retire`], or wait again.
    pub fn wait_for(&self, worker: &Worker, limit: Duration) -> Option<bool> {
        worker.wait_for(&self.queue, limit)
    }

    /// For a worker that has been idle for long enough.
    pub fn retire(&self, worker: &mut Worker) -> Retired {
        if !self.queue.retire(worker) {
            return Retired::Called;
        }
        self.worker_left();
        // A submit may have found nobody idle and, while this one was still counted, no room for another.
        if self.queue.is_empty() || !self.join() {
            Retired::Left
        } else {
            Retired::Needed
        }
    }

    /// A worker leaves without having been told to; true if it was the last one.
    pub fn worker_left(&self) -> bool {
        self.workers.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Takes no more jobs; the workers leave when none waits.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Whether the pool has been closed.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Hands back all jobs that wait.
    pub fn drain(&self) -> VecDeque<H> {
        self.queue.drain()
    }

    /// How many jobs wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// How many workers there are, including those asked for and not started yet.
    pub fn workers(&self) -> usize {
        self.workers.load(Ordering::Acquire)
    }

    /// The most workers there may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// In the child of a fork, where no worker exists any more: the pool is as new, and the jobs that waited are handed
    /// back. No lock may have been held by another thread at the fork (see `README.md`).
    pub fn forget_workers(&self) -> VecDeque<H> {
        self.workers.store(0, Ordering::Release);
        self.queue.forget_workers()
    }
}
