//! What a process pool does next: `supervise(event)` gives actions. Plain data; no clock, no process, no thread.
//!
//! It knows jobs and workers by number only. Every job that is submitted ends in exactly one of `Deliver`, `Lose`
//! and `Cancel`; the property test in `tests/supervisor.rs` drives it through random lives and deaths to hold it to that.
#![allow(missing_docs, reason = "each variant's own comment names its fields")]

use std::collections::{BTreeMap, VecDeque};

use super::outcome::Settings;
use crate::number_map::NumberMap;

/// A job's number, never used twice in a pool.
pub type JobId = u64;
/// A worker's number, never used twice in a pool.
pub type WorkerId = u64;

/// So many workers in a row may end before they were ready until the pool gives up.
const MOST_FAILED_STARTS: usize = 3;
/// The same for a pool that has had a worker: they can start, but somebody (the out-of-memory killer, say) ends them.
const MOST_FAILED_RESTARTS: usize = 32;
/// A worker is sent so much work ahead, judged by what its last jobs took; what it has not begun can be taken back.
const AHEAD_NS: u64 = 400_000;
/// A job this short ends before a thread that waits for it has fallen asleep and been woken again.
const QUICK_NS: u64 = 30_000;
/// The most jobs that one worker is sent ahead.
const MOST_AHEAD: u64 = 96;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new job, to be run again up to `retries` times if it fails.
    Submitted { job: JobId, retries: u32 },
    /// The worker has started and takes jobs.
    Ready { worker: WorkerId },
    /// The worker has run the job: it took `run_ns`, and `failed` says whether it raised.
    Answered {
        worker: WorkerId,
        job: JobId,
        failed: bool,
        run_ns: u64,
    },
    /// The job's future was cancelled before the job was sent.
    Withdrawn { worker: WorkerId, job: JobId },
    /// The job could not be sent: the worker's window is full.
    NoRoom { worker: WorkerId, job: JobId },
    /// The last `count` jobs that were sent to the worker were taken back.
    Revoked { worker: WorkerId, count: usize },
    /// The worker's process has ended; `begun` are the jobs it was running.
    Gone { worker: WorkerId, begun: Vec<JobId> },
    /// A job that the worker is running has used up its time.
    Overdue { worker: WorkerId, job: JobId },
    /// The job's owner does not want it any more. `sent` says that a worker has claimed it and not answered it; if none
    /// has, and it was sent, it was taken back for this. So were the last `behind` that its worker was sent after it.
    Cancelled {
        job: JobId,
        sent: bool,
        behind: usize,
    },
    /// The worker was interrupted and has had the time to heed that. `last` says that its other jobs do not count any more.
    Unheeded { worker: WorkerId, last: bool },
    /// The worker has had nothing to do for a long time.
    Idle { worker: WorkerId },
    /// The worker has grown too large, and is to be replaced when it has done what it has begun.
    Retire { worker: WorkerId },
    /// The worker has written what no correct worker writes.
    Corrupt { worker: WorkerId },
    /// From now on a worker runs up to `width` jobs at once, within what the pool was made for.
    Width { width: usize },
    /// The workers cannot be used at all (their initializer failed).
    Unusable,
    /// No more jobs come; with `cancel`, those that have not been sent are dropped.
    ShutDown { cancel: bool },
    /// Everything ends now, whatever it is doing.
    Terminate,
}

/// Why a job is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its worker's process ended while it ran.
    Died,
    /// It used up its time.
    Overdue,
    /// Workers cannot be started, or their initializer failed.
    Unusable,
    /// The pool was terminated while it ran.
    Terminated,
    /// Its arguments do not fit into a worker's window, or there is no memory for them.
    TooLarge,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a process for this worker. Jobs may be sent to it at once.
    Spawn { worker: WorkerId },
    /// Put the job into the worker's window.
    Send { worker: WorkerId, job: JobId },
    /// Take back up to `count` jobs and report how many in [`Event::Revoked`].
    Revoke { worker: WorkerId, count: usize },
    /// Tell the worker to leave when its window is empty.
    Stop { worker: WorkerId },
    /// Interrupt the job, and report in [`Event::Unheeded`] if it has not ended some time later.
    Interrupt { worker: WorkerId, job: JobId },
    /// End the worker's process.
    Kill { worker: WorkerId },
    /// The job's answer is its outcome.
    Deliver { job: JobId },
    /// The job's answer is a failure that is not its last: forget it, the job runs again.
    Discard { job: JobId },
    /// The job fails; `worker` is the one it was lost with.
    Lose {
        job: JobId,
        worker: Option<WorkerId>,
        cause: Cause,
    },
    /// The job's future is cancelled: it never ran, or nobody wants it any more.
    Cancel { job: JobId },
    /// Every job has ended and every worker is gone: the pool is closed.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Phase {
    Running,
    Draining,
    Terminated,
    Closed,
}

#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each can be so whatever the others are"
)]
struct Worker {
    ready: bool,
    stopping: bool,
    /// To be told to leave when it has answered what it was sent.
    retiring: bool,
    full: bool,
    condemned: Option<Cause>,
    /// Sent and not answered, in order.
    queue: VecDeque<JobId>,
    /// Jobs that run though nobody waits for this run any more. It is sent nothing while there are any.
    ghosts: Vec<Ghost>,
    /// How many jobs it may be sent until it is replaced.
    jobs_left: u32,
    /// What its jobs took lately, if it has answered one.
    run_ns: Option<u64>,
}

/// A job that was interrupted.
#[derive(Debug, Clone, Copy)]
struct Ghost {
    job: JobId,
    /// It has not ended by that: it runs again when this run of it is over.
    again: bool,
}

impl Worker {
    fn takes_jobs(&self) -> bool {
        !self.stopping
            && !self.retiring
            && !self.full
            && self.jobs_left > 0
            && self.condemned.is_none()
            && self.ghosts.is_empty()
    }

    /// A job that was sent did not reach it after all.
    fn unsend(&mut self) {
        // At its maximum it does not count.
        self.jobs_left = self.jobs_left.saturating_add(1);
    }

    fn stop(&mut self, id: WorkerId, actions: &mut Vec<Action>) {
        self.stopping = true;
        actions.push(Action::Stop { worker: id });
    }

    /// The last `count` jobs that it was sent are pending again.
    fn take_back(&mut self, count: usize, pending: &mut VecDeque<JobId>) {
        for _ in 0..count {
            if let Some(job) = self.queue.pop_back() {
                self.unsend();
                pending.push_front(job);
            }
        }
        self.full &= count == 0;
    }

    /// How many jobs that it has not answered it may have. One that runs them one at a time is sent some ahead.
    fn depth(&self, width: Width) -> usize {
        if width.most > 1 {
            return width.now;
        }
        self.run_ns.map_or(2, |run_ns| {
            1 + (AHEAD_NS / run_ns.max(1)).clamp(1, MOST_AHEAD) as usize
        })
    }
}

/// How many jobs a worker runs at once.
#[derive(Debug, Clone, Copy)]
struct Width {
    most: usize,
    now: usize,
}

/// The state of a pool.
#[derive(Debug)]
pub struct Supervisor {
    most_workers: usize,
    width: Width,
    jobs_per_worker: u32,
    workers: BTreeMap<WorkerId, Worker>,
    /// The retries left of every job that has not ended.
    jobs: NumberMap<u32>,
    /// Not sent to any worker, in order.
    pending: VecDeque<JobId>,
    next_worker: WorkerId,
    /// Workers in a row that ended before they were ready.
    failed_starts: usize,
    /// Whether a worker was ready once.
    has_started: bool,
    unusable: bool,
    phase: Phase,
}

impl Supervisor {
    /// A pool none of whose workers exists yet.
    pub fn new(settings: &Settings) -> Self {
        let width = settings.width.max(1);
        Self {
            most_workers: settings.workers,
            width: Width {
                most: width,
                now: width,
            },
            jobs_per_worker: settings.jobs_per_worker.unwrap_or(u32::MAX),
            workers: BTreeMap::new(),
            jobs: NumberMap::default(),
            pending: VecDeque::new(),
            next_worker: 0,
            failed_starts: 0,
            has_started: false,
            unusable: false,
            phase: Phase::Running,
        }
    }

    /// Whether new jobs are taken.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Running && !self.unusable
    }

    /// Whether the pool can never run a job again because its workers cannot be used.
    pub fn is_unusable(&self) -> bool {
        self.unusable
    }

    /// Whether jobs have been so short lately that waiting for one awake is cheaper than sleeping.
    pub fn is_quick(&self) -> bool {
        self.workers
            .values()
            .any(|worker| worker.run_ns.is_some_and(|run_ns| run_ns < QUICK_NS))
    }

    /// Jobs that have not ended.
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// Jobs that no worker has been sent.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The first of those.
    pub fn first_pending(&self) -> Option<JobId> {
        self.pending.front().copied()
    }

    /// How many jobs each worker is given at once.
    pub fn width(&self) -> usize {
        self.width.now
    }

    /// How often the job, if it has not ended, is run again at most.
    pub fn retries_left(&self, job: JobId) -> u32 {
        self.jobs.get(&job).copied().unwrap_or(0)
    }

    /// Workers whose processes have not ended.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The jobs that the worker was sent and has not answered, oldest first, without those that were interrupted.
    pub fn queue(&self, worker: WorkerId) -> impl Iterator<Item = JobId> {
        let queue = self.workers.get(&worker).map(|worker| worker.queue.iter());
        queue.into_iter().flatten().copied()
    }

    /// The worker that was sent the job and has not answered it.
    pub fn holder(&self, job: JobId) -> Option<WorkerId> {
        let holds = |worker: &Worker| worker.queue.contains(&job);
        let holder = self.workers.iter().find(|(_, worker)| holds(worker));
        holder.map(|(&id, _)| id)
    }

    /// Whether the worker has nothing to do, and waits for jobs.
    pub fn is_idle(&self, worker: WorkerId) -> bool {
        let worker = self.workers.get(&worker);
        worker.is_some_and(|worker| worker.ready && worker.queue.is_empty() && worker.takes_jobs())
    }

    /// Whether the worker has started.
    pub fn is_ready(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.ready)
    }

    /// Whether the worker is being ended.
    pub fn is_condemned(&self, worker: WorkerId) -> bool {
        self.workers
            .get(&worker)
            .is_some_and(|worker| worker.condemned.is_some())
    }

    /// What to do about `event`, appended to `actions`.
    pub fn supervise(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Submitted { job, retries } => {
                self.jobs.insert(job, retries);
                self.pending.push_back(job);
                self.dispatch(actions);
            }
            Event::Ready { worker } => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.ready = true;
                    self.failed_starts = 0;
                    self.has_started = true;
                }
                self.settle(actions);
            }
            Event::Answered {
                worker,
                job,
                failed,
                run_ns,
            } => self.answered(worker, job, failed, run_ns, actions),
            Event::Withdrawn { worker, job } => {
                if self.unsend(worker, job) {
                    self.jobs.remove(&job);
                    actions.push(Action::Cancel { job });
                }
                self.settle(actions);
            }
            Event::NoRoom { worker, job } => {
                self.no_room(worker, job, actions);
                self.settle(actions);
            }
            Event::Revoked { worker, count } => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.take_back(count, &mut self.pending);
                }
                self.dispatch(actions);
                self.leave(actions);
            }
            Event::Gone { worker, begun } => self.gone(worker, &begun, actions),
            Event::Overdue { worker, job } => self.overdue(worker, job, actions),
            Event::Cancelled { job, sent, behind } => {
                self.cancelled(job, sent, behind, actions);
                self.settle(actions);
            }
            Event::Unheeded { worker: id, last } => {
                let last = last || self.width.most == 1;
                if let Some(worker) = self.workers.get(&id)
                    && !worker.ghosts.is_empty()
                    && (last || worker.queue.is_empty())
                {
                    self.condemn(id, Cause::Died, actions);
                }
            }
            Event::Idle { worker: id } => {
                if self.is_idle(id)
                    && let Some(worker) = self.workers.get_mut(&id)
                {
                    worker.stop(id, actions);
                }
            }
            Event::Retire { worker } => {
                self.retire(worker, actions);
                self.settle(actions);
            }
            Event::Corrupt { worker } => self.condemn(worker, Cause::Died, actions),
            Event::Width { width } => {
                self.width.now = width.clamp(1, self.width.most);
                self.settle(actions);
            }
            Event::Unusable => {
                self.give_up(actions);
                self.condemn_all(Cause::Unusable, actions);
                self.settle(actions);
            }
            Event::ShutDown { cancel } => {
                if self.phase == Phase::Running {
                    self.phase = Phase::Draining;
                }
                if cancel {
                    self.cancel_pending(actions);
                }
                self.settle(actions);
            }
            Event::Terminate => {
                if self.phase < Phase::Terminated {
                    self.phase = Phase::Terminated;
                }
                self.cancel_pending(actions);
                self.condemn_all(Cause::Terminated, actions);
                self.settle(actions);
            }
        }
    }

    fn no_room(&mut self, worker: WorkerId, job: JobId, actions: &mut Vec<Action>) {
        if self.unsend(worker, job) {
            self.pending.push_front(job);
        }
        match self.workers.get_mut(&worker) {
            // There will be room when the worker has answered something.
            Some(worker) if !worker.queue.is_empty() => worker.full = true,
            // There never will be.
            _ => {
                self.pending.retain(|&pending| pending != job);
                self.jobs.remove(&job);
                actions.push(Action::Lose {
                    job,
                    worker: None,
                    cause: Cause::TooLarge,
                });
            }
        }
    }

    fn retire(&mut self, id: WorkerId, actions: &mut Vec<Action>) {
        if let Some(worker) = self.workers.get_mut(&id)
            && !worker.retiring
        {
            worker.retiring = true;
            let count = worker.queue.len();
            if count > 0 && worker.condemned.is_none() {
                actions.push(Action::Revoke { worker: id, count });
            }
        }
    }

    fn overdue(&mut self, id: WorkerId, job: JobId, actions: &mut Vec<Action>) {
        // One that is being ended takes the job along, whether it was in time or not.
        if self.is_condemned(id) || !self.take_from(id, job) {
            return;
        }
        let again = self.may_run_again(job);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ghosts.push(Ghost { job, again });
        }
        actions.push(Action::Interrupt { worker: id, job });
        if !again {
            self.jobs.remove(&job);
            actions.push(Action::Lose {
                job,
                worker: Some(id),
                cause: Cause::Overdue,
            });
        }
    }

    fn cancelled(&mut self, job: JobId, sent: bool, behind: usize, actions: &mut Vec<Action>) {
        if self.jobs.remove(&job).is_none() {
            return;
        }
        self.pending.retain(|&pending| pending != job);
        for (&id, worker) in &mut self.workers {
            if let Some(ghost) = worker.ghosts.iter_mut().find(|ghost| ghost.job == job) {
                ghost.again = false;
            }
            if let Some(at) = worker.queue.iter().position(|&queued| queued == job) {
                worker.queue.remove(at);
                worker.take_back(behind, &mut self.pending);
                if sent {
                    worker.ghosts.push(Ghost { job, again: false });
                    actions.push(Action::Interrupt { worker: id, job });
                } else {
                    worker.unsend();
                    worker.full = false;
                }
            }
        }
        actions.push(Action::Cancel { job });
    }

    /// The run of a ghost is over; whether there was one.
    fn lay(&mut self, id: WorkerId, job: JobId, actions: &mut Vec<Action>) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        let Some(at) = worker.ghosts.iter().position(|ghost| ghost.job == job) else {
            return false;
        };
        worker.full = false;
        if worker.ghosts.swap_remove(at).again {
            self.pending.push_back(job);
            actions.push(Action::Discard { job });
        }
        true
    }

    fn answered(
        &mut self,
        worker: WorkerId,
        job: JobId,
        failed: bool,
        run_ns: u64,
        actions: &mut Vec<Action>,
    ) {
        if self.lay(worker, job, actions) {
            self.settle(actions);
            return;
        }
        if !self.take_from(worker, job) {
            return;
        }
        self.failed_starts = 0;
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.full = false;
            worker.run_ns = Some(
                worker
                    .run_ns
                    .map_or(run_ns, |mean| mean - mean / 8 + run_ns / 8),
            );
        }
        if failed && self.may_run_again(job) {
            self.pending.push_back(job);
            actions.push(Action::Discard { job });
        } else {
            self.jobs.remove(&job);
            actions.push(Action::Deliver { job });
        }
        self.settle(actions);
    }

    fn gone(&mut self, id: WorkerId, begun: &[JobId], actions: &mut Vec<Action>) {
        let Some(mut worker) = self.workers.remove(&id) else {
            return;
        };
        if !worker.ready && worker.condemned.is_none() {
            self.failed_starts += 1;
        }
        for &job in begun {
            let Some(at) = worker.queue.iter().position(|&queued| queued == job) else {
                continue;
            };
            worker.queue.remove(at);
            let cause = worker.condemned.unwrap_or(Cause::Died);
            if cause == Cause::Died && self.may_run_again(job) {
                self.pending.push_back(job);
            } else {
                self.jobs.remove(&job);
                actions.push(Action::Lose {
                    job,
                    worker: Some(id),
                    cause,
                });
            }
        }
        let ghosts = worker.ghosts.iter().filter(|ghost| ghost.again);
        self.pending.extend(ghosts.map(|ghost| ghost.job));
        // Jobs that it had not begun were not touched: they go first.
        while let Some(job) = worker.queue.pop_back() {
            self.pending.push_front(job);
        }
        let most = if self.has_started {
            MOST_FAILED_RESTARTS
        } else {
            MOST_FAILED_STARTS
        };
        // All that are starting may end at once, with the zygote say, and that is only one failure.
        if self.failed_starts >= most.saturating_add(self.most_workers.saturating_sub(1)) {
            self.unusable = true;
        }
        self.settle(actions);
    }

    /// After anything that may have freed a worker: send more, even out, leave if all is done.
    fn settle(&mut self, actions: &mut Vec<Action>) {
        self.dispatch(actions);
        self.even_out(actions);
        self.leave(actions);
    }

    /// Workers that are used up, or that nothing is left for, are told to go; the pool closes behind the last one.
    fn leave(&mut self, actions: &mut Vec<Action>) {
        let leaving = self.phase >= Phase::Draining && self.jobs.is_empty();
        for (&id, worker) in &mut self.workers {
            let used_up = (worker.jobs_left == 0 || worker.retiring) && worker.queue.is_empty();
            if (leaving || used_up) && !worker.stopping && worker.condemned.is_none() {
                worker.stop(id, actions);
            }
        }
        if leaving && self.workers.is_empty() && self.phase < Phase::Closed {
            self.phase = Phase::Closed;
            actions.push(Action::Close);
        }
    }

    fn dispatch(&mut self, actions: &mut Vec<Action>) {
        if self.unusable {
            self.give_up(actions);
        }
        if self.phase >= Phase::Terminated {
            self.cancel_pending(actions);
        }
        let width = self.width;
        while !self.pending.is_empty() {
            let best = self
                .workers
                .iter()
                .filter(|(_, worker)| {
                    worker.takes_jobs() && worker.queue.len() < worker.depth(width)
                })
                .min_by_key(|(_, worker)| (worker.queue.len(), !worker.ready))
                .map(|(&id, worker)| (id, worker.queue.is_empty()));
            let id = match best {
                Some((id, idle)) if idle || self.workers.len() >= self.most_workers => id,
                _ if self.workers.len() < self.most_workers => self.spawn(actions),
                _ => return,
            };
            if let (Some(worker), Some(job)) = (self.workers.get_mut(&id), self.pending.pop_front())
            {
                worker.queue.push_back(job);
                if worker.jobs_left != u32::MAX {
                    worker.jobs_left -= 1;
                }
                actions.push(Action::Send { worker: id, job });
            }
        }
    }

    fn spawn(&mut self, actions: &mut Vec<Action>) -> WorkerId {
        let id = self.next_worker;
        self.next_worker += 1;
        let worker = Worker {
            ready: false,
            stopping: false,
            retiring: false,
            full: false,
            condemned: None,
            queue: VecDeque::new(),
            ghosts: Vec::new(),
            jobs_left: self.jobs_per_worker,
            run_ns: None,
        };
        self.workers.insert(id, worker);
        actions.push(Action::Spawn { worker: id });
        id
    }

    /// If nothing is pending and a worker is idle while another has jobs waiting behind those it runs, takes half of
    /// them back.
    fn even_out(&mut self, actions: &mut Vec<Action>) {
        if !self.pending.is_empty() || self.phase >= Phase::Terminated {
            return;
        }
        let idle = self
            .workers
            .values()
            .any(|worker| worker.ready && worker.queue.is_empty() && worker.takes_jobs());
        if !idle && self.workers.len() >= self.most_workers {
            return;
        }
        let width = self.width.now;
        // One that runs can have begun as many as it may run at once; one that has not started, none.
        let waiting = |worker: &Worker| match worker.queue.len() {
            // Who knows when it will start: its jobs are better off where they can begin at once.
            sent if !worker.ready && idle => sent,
            sent if worker.ready && width > 1 => sent.saturating_sub(width),
            sent => sent / 2,
        };
        let busiest = self
            .workers
            .iter()
            .max_by_key(|(_, worker)| waiting(worker));
        if let Some((&id, worker)) = busiest
            && waiting(worker) > 0
            && worker.condemned.is_none()
        {
            actions.push(Action::Revoke {
                worker: id,
                count: waiting(worker),
            });
        }
    }

    fn condemn(&mut self, id: WorkerId, cause: Cause, actions: &mut Vec<Action>) {
        if let Some(worker) = self.workers.get_mut(&id)
            && worker.condemned.is_none()
        {
            worker.condemned = Some(cause);
            actions.push(Action::Kill { worker: id });
        }
    }

    fn condemn_all(&mut self, cause: Cause, actions: &mut Vec<Action>) {
        let workers: Vec<_> = self.workers.keys().copied().collect();
        for worker in workers {
            self.condemn(worker, cause, actions);
        }
    }

    fn give_up(&mut self, actions: &mut Vec<Action>) {
        self.unusable = true;
        for job in self.pending.drain(..) {
            self.jobs.remove(&job);
            actions.push(Action::Lose {
                job,
                worker: None,
                cause: Cause::Unusable,
            });
        }
    }

    fn cancel_pending(&mut self, actions: &mut Vec<Action>) {
        for job in self.pending.drain(..) {
            self.jobs.remove(&job);
            actions.push(Action::Cancel { job });
        }
    }

    /// Uses up one retry, if there is one.
    fn may_run_again(&mut self, job: JobId) -> bool {
        match self.jobs.get_mut(&job) {
            Some(retries) if *retries > 0 && self.phase < Phase::Terminated && !self.unusable => {
                *retries -= 1;
                true
            }
            _ => false,
        }
    }

    fn unsend(&mut self, worker: WorkerId, job: JobId) -> bool {
        let taken = self.take_from(worker, job);
        if taken && let Some(worker) = self.workers.get_mut(&worker) {
            worker.unsend();
        }
        taken
    }

    fn take_from(&mut self, worker: WorkerId, job: JobId) -> bool {
        let Some(worker) = self.workers.get_mut(&worker) else {
            return false;
        };
        // A worker that runs one job at a time answers in order, so this is the front but for withdrawn jobs.
        let Some(at) = worker.queue.iter().position(|&queued| queued == job) else {
            return false;
        };
        worker.queue.remove(at);
        if worker.queue.is_empty() {
            worker.full = false;
        }
        true
    }
}
