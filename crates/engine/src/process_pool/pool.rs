//! A pool's own side: the books, the lanes, and the one thread that collects answers and watches over workers.
#![allow(missing_docs, reason = "each variant's own comment names its fields")]

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use plait_sync::window;

use super::lane::INLINE_MOST;
use super::link::{Function, Job, Link, Payload, Said, Sending};
use super::protocol::Status;
use super::state::{Action, Cause, Event, JobId, Supervisor, WorkerId};
use super::worker::Bytes;
use super::zygote::{Launch, Report, Zygote};
use crate::number_map::NumberMap;
use crate::shared_memory::Arena;
use crate::sys::clock::monotonic_ns;
use crate::sys::doorbell::Doorbell;
use crate::sys::process;

/// The address space that the arguments of all jobs of a pool, or the results of one worker, may take: 64 GiB.
const LARGEST_ARENA: usize = 64 << 30;
/// How often the collector looks again before it sleeps, while jobs are running.
const SPINS: u32 = 64;
/// How often a thread that waits for a quick job looks for its answer before it leaves that to the collector.
const HELP_SPINS: u32 = 256;

/// How long the collector sleeps at most while workers have jobs.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// What the caller wants back with a job's outcome.
pub trait Handle: Send + 'static {
    /// The job is about to be sent: false if it was cancelled. Called once, without any lock of the interpreter.
    fn try_start(&self) -> bool;
}

/// Receives outcomes, on the collector's thread, in batches and never under a lock of the pool.
pub trait Deliver<H>: Send + 'static {
    /// Takes every outcome out of `batch`.
    fn deliver(&mut self, batch: Vec<(H, Outcome)>);
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// The worker's answer.
    Answer {
        status: Status,
        payload: Bytes,
        buffers: Vec<Bytes>,
    },
    /// There is no answer. The process id is 0 if there never was a process.
    Lost {
        cause: Cause,
        pid: u32,
        end: ProcessEnd,
        text: String,
    },
    /// It was cancelled before it was sent.
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

struct Entry<H> {
    handle: H,
    job: Job,
    started: bool,
}

struct State<H> {
    supervisor: Supervisor,
    entries: NumberMap<Entry<H>>,
    next_job: JobId,
    links: NumberMap<Link>,
    /// Shared with the collector while it polls.
    zygote: Option<Arc<Zygote>>,
    /// Ended jobs, until the collector delivers them.
    outbox: Vec<(H, Outcome)>,
    /// How many jobs that have not ended have a timeout.
    timed: usize,
    /// Why workers cannot be used.
    unusable: String,
    /// Gone when the pool is closed.
    plumbing: Option<Arc<Plumbing>>,
    /// How many threads hear workers in the collector's place.
    helpers: usize,
    /// Nothing is left to do but to leave.
    closing: bool,
    /// The collector has left, and all is given back.
    closed: bool,
    // Kept for their capacity.
    actions: Vec<Action>,
    scratch: Vec<u8>,
    frame: Vec<u8>,
}

/// What a pool has of the system as long as it is not closed, besides its lanes and its zygote.
struct Plumbing {
    /// Where the large buffers of arguments lie.
    arguments: Arc<Arena>,
    /// Wakes the collector.
    doorbell: Doorbell,
}

impl Plumbing {
    fn wake_collector(&self) {
        // The counter cannot overflow in a way that matters, and the descriptor is ours: ringing cannot fail.
        let _ = self.doorbell.ring();
    }
}

/// How a worker's process ended, and which it was.
#[derive(Debug, Clone, Copy)]
struct End {
    pid: u32,
    end: ProcessEnd,
}

struct Shared<H> {
    state: Mutex<State<H>>,
    launch: Launch,
    owner: u32,
    next_function: AtomicU64,
    closed: Condvar,
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

/// A pool of worker processes. Dropping it lets running jobs end and then ends the workers.
pub struct ProcessPool<H: Handle> {
    shared: Arc<Shared<H>>,
}

impl<H: Handle> fmt::Debug for ProcessPool<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPool")
            .field("owner", &self.shared.owner)
            .finish_non_exhaustive()
    }
}

impl<H: Handle> ProcessPool<H> {
    /// A pool of up to `workers` processes, none of which is started before there is a job, and each of which is
    /// replaced after `jobs_per_worker` of them.
    pub fn new(
        workers: usize,
        jobs_per_worker: Option<u32>,
        launch: Launch,
        sink: impl Deliver<H>,
    ) -> io::Result<Self> {
        let plumbing = Arc::new(Plumbing {
            arguments: Arc::new(Arena::create("plait-arguments", LARGEST_ARENA)?),
            doorbell: Doorbell::new()?,
        });
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                supervisor: Supervisor::new(workers, jobs_per_worker),
                entries: NumberMap::default(),
                next_job: 0,
                links: NumberMap::default(),
                zygote: None,
                outbox: Vec::new(),
                timed: 0,
                unusable: String::new(),
                plumbing: Some(Arc::clone(&plumbing)),
                helpers: 0,
                closing: false,
                closed: false,
                actions: Vec::new(),
                scratch: Vec::new(),
                frame: Vec::new(),
            }),
            launch,
            owner: process::id(),
            next_function: AtomicU64::new(0),
            closed: Condvar::new(),
        });
        let collected = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("plait-collector".into())
            .spawn(move || collected.collect(plumbing, sink))?;
        Ok(Self { shared })
    }

    /// Bytes for a job: in shared memory if they are large. `None` if there is no room for them.
    pub fn payload(&self, bytes: &[u8], inline_room: &mut usize) -> Option<Payload> {
        if bytes.len() <= *inline_room {
            *inline_room -= bytes.len();
            return Some(Payload::Inline(bytes.to_vec()));
        }
        // After a fork the books are a copy, but the memory is not: nothing may be written to it.
        if self.forked().is_some() {
            return None;
        }
        // A closed pool has no such memory, and takes no jobs.
        let plumbing = self.shared.lock().plumbing.clone()?;
        plumbing
            .arguments
            .store(bytes)
            .map(Arc::new)
            .map(Payload::Shared)
    }

    /// How many bytes of a job's payloads may travel in its frame.
    pub const INLINE_ROOM: usize = INLINE_MOST;

    /// A function that jobs can name; `None` if there is no room for its definition. Workers keep it in `slot`, in the
    /// place of what was there; without a slot, its definition goes along with every job.
    pub fn function(&self, slot: Option<u64>, definition: &[u8]) -> Option<Arc<Function>> {
        let generation = self.shared.next_function.fetch_add(1, Ordering::Relaxed);
        let definition = self.payload(definition, &mut (INLINE_MOST / 2))?;
        Some(Arc::new(Function {
            slot,
            generation,
            definition,
        }))
    }

    /// Queues a job. Its outcome is delivered with `handle`; if it is refused, the handle comes back.
    pub fn submit(&self, handle: H, job: Job) -> Result<(), (H, Refused)> {
        let shared = &self.shared;
        if let Some(refused) = self.forked() {
            return Err((handle, refused));
        }
        let mut state = shared.lock();
        if !state.supervisor.is_open() {
            let refused = if state.supervisor.is_unusable() {
                Refused::Unusable(state.unusable.clone())
            } else {
                Refused::ShutDown
            };
            return Err((handle, refused));
        }
        let (id, retries) = (state.next_job, job.retries);
        state.next_job += 1;
        state.timed += usize::from(job.timeout.is_some());
        let timed = job.timeout.is_some();
        state.entries.insert(
            id,
            Entry {
                handle,
                job,
                started: false,
            },
        );
        shared.drive(&mut state, Event::Submitted { job: id, retries });
        // The collector has to know of a new deadline, and of jobs that ended here.
        if timed || !state.outbox.is_empty() {
            state.wake_collector();
        }
        Ok(())
    }

    /// Why nothing can be submitted here, if this process is a fork of the pool's.
    pub fn forked(&self) -> Option<Refused> {
        let owner = self.shared.owner;
        (process::id() != owner).then_some(Refused::Forked { owner })
    }

    /// No more jobs. With `cancel`, those that were not sent are cancelled.
    pub fn shut_down(&self, cancel: bool) {
        self.signal(Event::ShutDown { cancel });
    }

    /// Ends every worker now, whatever it is doing. Running jobs are lost, the others cancelled.
    pub fn terminate(&self) {
        self.signal(Event::Terminate);
    }

    fn signal(&self, event: Event) {
        if process::id() == self.shared.owner {
            let mut state = self.shared.lock();
            self.shared.drive(&mut state, event);
            state.wake_collector();
        }
    }

    /// Waits until every job has ended and everything is given back; false if that takes longer than `limit`.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        if process::id() != self.shared.owner {
            return true;
        }
        let state = self.shared.lock();
        let (state, _) = self
            .shared
            .closed
            .wait_timeout_while(state, limit, |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.closed
    }

    /// For threads that wait for jobs.
    pub fn helper(&self) -> Helper<H> {
        Helper {
            shared: Arc::downgrade(&self.shared),
        }
    }

    /// What the pool is doing at the moment.
    pub fn statistics(&self) -> Statistics {
        if self.forked().is_some() {
            // The mutex may have been held by a thread that the fork left behind.
            return Statistics::default();
        }
        let state = self.shared.lock();
        let mut workers: Vec<_> = state
            .links
            .iter()
            .map(|(&id, link)| (id, link.pid()))
            .collect();
        workers.sort_unstable();
        Statistics {
            jobs: state.supervisor.jobs(),
            pending: state.supervisor.pending(),
            workers: workers.into_iter().map(|(_, pid)| pid).collect(),
            blocks: state
                .plumbing
                .as_ref()
                .map_or(0, |plumbing| plumbing.arguments.in_use()),
        }
    }
}

/// Lets a thread that waits for a job hear workers itself: two wake-ups less than through the collector.
pub struct Helper<H: Handle> {
    shared: Weak<Shared<H>>,
}

impl<H: Handle> Helper<H> {
    /// Hears workers for a moment, if jobs have been short lately, until `done`, or until there is the outcome that
    /// is `wanted`, which is then the caller's to deliver. Every other outcome is left to the collector: its callbacks
    /// could need a lock that the waiting thread holds.
    pub fn help(
        &self,
        done: impl Fn() -> bool,
        wanted: impl Fn(&H) -> bool,
    ) -> Option<(H, Outcome)> {
        let shared = self.shared.upgrade()?;
        if process::id() != shared.owner {
            return None;
        }
        let mut state = shared.lock();
        if !state.supervisor.is_quick() {
            return None;
        }
        // While somebody helps, workers need not wake the collector.
        state.helpers += 1;
        state.links.values().for_each(Link::withdraw_sleep);
        drop(state);
        let mut found = None;
        for _ in 0..HELP_SPINS {
            if done() {
                break;
            }
            if let Ok(mut state) = shared.state.try_lock() {
                shared.hear_workers(&mut state);
                if let Some(at) = state.outbox.iter().position(|(handle, _)| wanted(handle)) {
                    found = Some(state.outbox.swap_remove(at));
                    break;
                }
            }
            (0..8).for_each(|_| std::hint::spin_loop());
        }
        let mut state = shared.lock();
        state.helpers -= 1;
        if state.helpers == 0 {
            state.links.values().for_each(Link::announce_sleep);
        }
        if !state.outbox.is_empty() || state.links.values().any(Link::has_reply) {
            state.wake_collector();
        }
        found
    }
}

impl<H: Handle> fmt::Debug for Helper<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Helper")
    }
}

impl<H: Handle> Drop for ProcessPool<H> {
    fn drop(&mut self) {
        self.shut_down(false);
    }
}

impl<H: Handle> Shared<H> {
    fn lock(&self) -> MutexGuard<'_, State<H>> {
        // A panic under the lock would be a defect of the engine; the books are then still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds `event` to the supervisor, carries out what it says, and feeds it what comes of that.
    fn drive(&self, state: &mut State<H>, event: Event) {
        self.drive_with(state, event, None, None);
    }

    /// The same for an event that comes with a job's answer, or with the end of a worker's process.
    fn drive_with(
        &self,
        state: &mut State<H>,
        event: Event,
        mut answer: Option<Outcome>,
        end: Option<End>,
    ) {
        let mut events = VecDeque::from([event]);
        let mut actions = std::mem::take(&mut state.actions);
        while let Some(event) = events.pop_front() {
            state.supervisor.supervise(event, &mut actions);
            for action in actions.drain(..) {
                self.act(state, action, &mut answer, end, &mut events);
            }
        }
        state.actions = actions;
    }

    fn act(
        &self,
        state: &mut State<H>,
        action: Action,
        answer: &mut Option<Outcome>,
        end: Option<End>,
        events: &mut VecDeque<Event>,
    ) {
        match action {
            Action::Spawn { worker } => {
                if let Err(error) = self.spawn(state, worker) {
                    state.unusable = format!("a worker process could not be started: {error}");
                    state.links.remove(&worker);
                    events.push_back(Event::Gone {
                        worker,
                        begun: None,
                    });
                }
            }
            Action::Send { worker, job } => {
                let Some(entry) = state.entries.get_mut(&job) else {
                    return;
                };
                if !entry.started && !entry.handle.try_start() {
                    events.push_back(Event::Withdrawn { worker, job });
                    return;
                }
                entry.started = true;
                // A worker whose link is missing is about to be reported gone, which puts the job back.
                if let Some(link) = state.links.get_mut(&worker) {
                    match link.send(job, &entry.job, &mut state.scratch) {
                        Sending::Sent => {}
                        Sending::NoRoom => events.push_back(Event::NoRoom { worker, job }),
                        Sending::Corrupt => events.push_back(Event::Corrupt { worker }),
                    }
                }
            }
            Action::Revoke { worker, count } => {
                let Some(link) = state.links.get_mut(&worker) else {
                    return;
                };
                events.push_back(match link.revoke(count) {
                    Ok(count) => Event::Revoked { worker, count },
                    Err(_) => Event::Corrupt { worker },
                });
            }
            Action::Stop { worker } => {
                if let Some(link) = state.links.get_mut(&worker)
                    && !link.stop(&mut state.scratch)
                {
                    link.kill();
                }
            }
            Action::Kill { worker } => {
                if let Some(link) = state.links.get_mut(&worker) {
                    link.kill();
                }
            }
            Action::Deliver { job } => {
                state.finish(job, answer.take().unwrap_or(Outcome::Cancelled));
            }
            Action::Discard { .. } => drop(answer.take()),
            Action::Lose { job, cause, .. } => {
                let End { pid, end } = end.unwrap_or(End {
                    pid: 0,
                    end: ProcessEnd::Unknown,
                });
                let text = if cause == Cause::Unusable {
                    state.unusable.clone()
                } else {
                    String::new()
                };
                state.finish(
                    job,
                    Outcome::Lost {
                        cause,
                        pid,
                        end,
                        text,
                    },
                );
            }
            Action::Cancel { job } => state.finish(job, Outcome::Cancelled),
            Action::Close => {
                state.closing = true;
                state.wake_collector();
            }
        }
    }

    fn spawn(&self, state: &mut State<H>, worker: WorkerId) -> io::Result<()> {
        let zygote = match state.zygote.take() {
            Some(zygote) => zygote,
            None => Arc::new(Zygote::start(&self.launch)?),
        };
        let zygote = state.zygote.insert(zygote);
        let Some(plumbing) = &state.plumbing else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let link = Link::new(LARGEST_ARENA)?;
        let arguments = plumbing.arguments.mapping().as_fd();
        zygote.spawn(worker, link.memory(), arguments, plumbing.doorbell.as_fd())?;
        state.links.insert(worker, link);
        // The collector may be asleep, and has not announced that on the new lane, or does not know the zygote.
        state.wake_collector();
        Ok(())
    }

    /// The collector: hears workers and the zygote, keeps deadlines, delivers outcomes, until the pool is closed.
    fn collect(&self, plumbing: Arc<Plumbing>, mut sink: impl Deliver<H>) {
        loop {
            let mut state = self.lock();
            self.hear_zygote(&mut state);
            self.hear_workers(&mut state);
            let next_deadline = self.keep_deadlines(&mut state);
            let outcomes = std::mem::take(&mut state.outbox);
            if !outcomes.is_empty() {
                drop(state);
                sink.deliver(outcomes);
                continue;
            }
            if state.closing {
                break;
            }
            drop(state);
            self.sleep(&plumbing.doorbell, next_deadline);
        }
        let (zygote, shared) = {
            let mut state = self.lock();
            (state.zygote.take(), state.plumbing.take())
        };
        drop((plumbing, shared));
        if let Some(zygote) = zygote.and_then(Arc::into_inner) {
            zygote.close();
        }
        drop(sink);
        self.lock().closed = true;
        self.closed.notify_all();
    }

    /// Looks once more for a moment, then sleeps until a worker, the zygote or a caller has something to say, or a
    /// deadline comes.
    fn sleep(&self, doorbell: &Doorbell, deadline: Option<Duration>) {
        for _ in 0..SPINS {
            // A caller holding the lock is submitting, and will be heard of through its job.
            if let Ok(state) = self.state.try_lock()
                && (!state.outbox.is_empty() || state.links.values().any(Link::has_reply))
            {
                return;
            }
            (0..32).for_each(|_| std::hint::spin_loop());
        }
        let state = self.lock();
        // A helper hears workers now, and announces in our place when it stops.
        let heard = state.helpers > 0;
        if !heard {
            state.links.values().for_each(Link::announce_sleep);
        }
        let ready = !state.outbox.is_empty()
            || state.closing
            || (!heard && state.links.values().any(Link::has_reply));
        let zygote = state.zygote.clone();
        // A worker that spoilt its own lane may have spoilt its bell, too: its answer is found without it.
        let deadline = if state.links.values().any(Link::is_busy) {
            Some(deadline.map_or(LONGEST_SLEEP, |deadline| deadline.min(LONGEST_SLEEP)))
        } else {
            deadline
        };
        drop(state);
        if !ready {
            // Polling two descriptors of our own fails only for lack of kernel memory; then we look again at once.
            let _ = doorbell.wait(zygote.as_deref().map(AsFd::as_fd), deadline);
        }
        drop(zygote);
        self.lock().links.values().for_each(Link::withdraw_sleep);
    }

    fn hear_workers(&self, state: &mut State<H>) {
        let workers: Vec<_> = state
            .links
            .iter()
            .filter(|(_, link)| link.has_reply())
            .map(|(&id, _)| id)
            .collect();
        for worker in workers {
            self.hear_worker(state, worker);
        }
    }

    /// Hears all that one worker has said so far, up to a bound: others want to be heard, too.
    fn hear_worker(&self, state: &mut State<H>, worker: WorkerId) {
        for _ in 0..window::SLOTS {
            let State { links, frame, .. } = state;
            let Some(link) = links.get_mut(&worker) else {
                return;
            };
            match link.hear(frame) {
                Ok(None) => return,
                Ok(Some(Said::Ready)) => self.drive(state, Event::Ready { worker }),
                Ok(Some(Said::Unusable(text))) => {
                    state.unusable = text;
                    self.drive(state, Event::Unusable);
                }
                Ok(Some(Said::Answer {
                    job,
                    status,
                    run_ns,
                    payload,
                    buffers,
                })) => {
                    let failed = matches!(status, Status::Raised | Status::Unpicklable);
                    let outcome = Outcome::Answer {
                        status,
                        payload,
                        buffers,
                    };
                    self.drive_with(
                        state,
                        Event::Answered {
                            worker,
                            job,
                            failed,
                            run_ns,
                        },
                        Some(outcome),
                        None,
                    );
                }
                Err(_) => {
                    self.drive(state, Event::Corrupt { worker });
                    return;
                }
            }
        }
    }

    fn hear_zygote(&self, state: &mut State<H>) {
        while let Some(zygote) = &state.zygote {
            match zygote.report() {
                Ok(None) => return,
                Ok(Some(Report::Started { worker, pid, pidfd })) => {
                    if let Some(link) = state.links.get_mut(&worker) {
                        link.started(pid, pidfd);
                    }
                }
                Ok(Some(Report::Exited {
                    worker,
                    pid,
                    status,
                })) => self.bury(state, worker, pid, status.into()),
                Ok(Some(Report::Failed { worker, errno })) => {
                    let error = io::Error::from_raw_os_error(errno);
                    state.unusable = format!("a worker process could not be forked: {error}");
                    self.bury(state, worker, 0, ProcessEnd::Unknown);
                }
                Err(_) => {
                    // The zygote is gone, and the kernel ends its workers; the next one that is needed starts another.
                    if let Some(zygote) = state.zygote.take().and_then(Arc::into_inner) {
                        zygote.close();
                    }
                    if state.unusable.is_empty() {
                        state.unusable =
                            "the process that starts workers ended before it had started one"
                                .into();
                    }
                    let workers: Vec<_> = state.links.keys().copied().collect();
                    for worker in workers {
                        if let Some(link) = state.links.get_mut(&worker) {
                            link.kill();
                            // What it may still begin must not begin elsewhere, too.
                            link.wait_end();
                            let pid = link.pid();
                            self.bury(state, worker, pid, ProcessEnd::Unknown);
                        }
                    }
                }
            }
        }
    }

    /// A worker's process has ended: hears its last words, then gives its jobs to others.
    fn bury(&self, state: &mut State<H>, worker: WorkerId, pid: u32, end: ProcessEnd) {
        // This comes to an end: nothing is added, and what makes no sense is the last that is heard.
        while state.links.get(&worker).is_some_and(Link::has_reply) {
            self.hear_worker(state, worker);
        }
        let Some(link) = state.links.remove(&worker) else {
            return;
        };
        let begun = link.begun();
        self.drive_with(
            state,
            Event::Gone { worker, begun },
            None,
            Some(End { pid, end }),
        );
    }

    /// Ends workers whose job has used up its time; how long until the next one may have.
    fn keep_deadlines(&self, state: &mut State<H>) -> Option<Duration> {
        if state.timed == 0 {
            return None;
        }
        let now = monotonic_ns();
        let mut next: Option<u64> = None;
        let mut overdue = Vec::new();
        for (&worker, link) in &state.links {
            let Some(job) = state.supervisor.front(worker) else {
                continue;
            };
            let Some(limit) = state.entries.get(&job).and_then(|entry| entry.job.timeout) else {
                continue;
            };
            let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            // One that has not begun cannot be overdue before a whole limit from now.
            let began = link
                .running()
                .filter(|&(running, _)| running == job)
                .map_or(now, |(_, began)| began.min(now));
            let left = began.saturating_add(limit).saturating_sub(now);
            if left == 0 {
                overdue.push((worker, job));
            } else {
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        for (worker, job) in overdue {
            self.overdue(state, worker, job);
        }
        next.map(Duration::from_nanos)
    }

    fn overdue(&self, state: &mut State<H>, worker: WorkerId, job: JobId) {
        let Some(link) = state.links.get_mut(&worker) else {
            return;
        };
        // First nothing else can begin there; then the job is still the one that runs, or it was answered in time.
        let Ok(count) = link.revoke(usize::MAX) else {
            self.drive(state, Event::Corrupt { worker });
            return;
        };
        if link.running().is_some_and(|(running, _)| running == job) {
            self.drive(state, Event::Overdue { worker, job });
        }
        self.drive(state, Event::Revoked { worker, count });
    }
}

impl<H> State<H> {
    fn wake_collector(&self) {
        if let Some(plumbing) = &self.plumbing {
            plumbing.wake_collector();
        }
    }

    fn finish(&mut self, job: JobId, outcome: Outcome) {
        if let Some(entry) = self.entries.remove(&job) {
            self.timed -= usize::from(entry.job.timeout.is_some());
            self.outbox.push((entry.handle, outcome));
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
