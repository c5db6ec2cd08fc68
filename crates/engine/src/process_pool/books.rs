//! A pool's books behind their lock: the supervisor's decisions carried out on links, zygote and futures.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plait_sync::parker::Unparker;

use super::account::{Account, Answer, Attempts};
use super::fault::{Step, reached};
use super::link::{Job, Link, Sending};
use super::outcome::{Handle, Note, Outcome, ProcessEnd, Settings};
use super::state::{Action, Cause, Event, JobId, Supervisor, WorkerId};
use super::stream::{Owner, Stream};
use super::zygote::{Launch, Zygote};
use crate::number_map::NumberMap;
use crate::shared_memory::{Arena, Segment};
use crate::sys::clock::monotonic_ns;
use crate::sys::doorbell::Doorbell;
use crate::sys::process;
use crate::width::Controller;

/// The address space that the arguments of all jobs of a pool, or the results of one worker, may take: 64 GiB.
const LARGEST_ARENA: usize = 64 << 30;

/// A job that has not ended.
pub(super) struct Entry<H> {
    pub(super) owner: Owner<H>,
    pub(super) job: Job,
    pub(super) started: bool,
    pub(super) queued_ns: u64,
    pub(super) attempts: Attempts,
}

pub(super) struct State<H> {
    pub(super) supervisor: Supervisor,
    pub(super) entries: NumberMap<Entry<H>>,
    pub(super) next_job: JobId,
    pub(super) links: NumberMap<Link>,
    /// How to start a zygote.
    pub(super) launch: Launch,
    /// Shared with the collector while it polls.
    pub(super) zygote: Option<Arc<Zygote>>,
    /// Workers that the collector has yet to ask the zygote for.
    pub(super) unborn: Vec<WorkerId>,
    /// Ended jobs, until the collector delivers them.
    pub(super) outbox: Vec<(H, Outcome)>,
    /// Maps that may have items to queue.
    pub(super) streams: Vec<Arc<Stream>>,
    /// Kept for jobs that have ended; to be dropped once the lock is free, as that may take a while.
    pub(super) garbage: Vec<Arc<Segment>>,
    /// Threads to be woken once the lock is free.
    pub(super) sleepers: Vec<Unparker>,
    pub(super) notes: Notes,
    /// How many jobs that have not ended have a timeout.
    pub(super) timed: usize,
    /// When the collector looks at deadlines again, on the monotonic clock.
    pub(super) looks_ns: u64,
    /// When it looks at what every worker is doing.
    pub(super) round_ns: u64,
    /// Why workers cannot be used.
    pub(super) unusable: String,
    /// What the worker that is being buried wrote while it crashed.
    pub(super) crash: String,
    /// Gone when the pool is closed.
    pub(super) plumbing: Option<Arc<Plumbing>>,
    /// Finds the best width, if it is to be found.
    pub(super) controller: Option<Controller>,
    /// How many jobs were answered since it was asked last.
    pub(super) answered: u64,
    /// How many threads hear workers in the collector's place.
    pub(super) helpers: usize,
    /// Whether an event loop does, woken by the doorbell.
    pub(super) listening: bool,
    /// Nothing is left to do but to leave.
    pub(super) closing: bool,
    /// The collector has left, and all is given back.
    pub(super) closed: bool,
    // Kept for their capacity.
    pub(super) actions: Vec<Action>,
    pub(super) scratch: Vec<u8>,
    pub(super) frame: Vec<u8>,
    /// None if nobody wants to know what jobs cost.
    pub(super) account: Option<Account>,
}

/// What workers have said before the outcomes that were not delivered yet.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Until the collector tells.
    pub(super) waiting: Vec<Note>,
    /// The collector is telling: answers that come after must wait.
    pub(super) telling: bool,
    /// What ended meanwhile of maps' items, until it has told.
    pub(super) held: Vec<(Arc<Stream>, u64, Outcome)>,
    /// Whether it was told that workers are replaced for the memory they use.
    pub(super) retired: bool,
}

/// What a pool has of the system as long as it is not closed, besides its lanes and its zygote.
pub(super) struct Plumbing {
    /// Where the large buffers of arguments lie.
    pub(super) arguments: Arc<Arena>,
    /// What workers ring.
    pub(super) doorbell: Doorbell,
    /// What callers ring to wake the collector.
    pub(super) alarm: Doorbell,
}

impl Plumbing {
    pub(super) fn new() -> io::Result<Self> {
        let arguments = Arc::new(Arena::create("plait-arguments", LARGEST_ARENA)?);
        Ok(Self {
            arguments,
            doorbell: Doorbell::new()?,
            alarm: Doorbell::new()?,
        })
    }

    pub(super) fn wake_collector(&self) {
        // The counter cannot overflow in a way that matters, and the descriptor is ours: ringing cannot fail.
        let _ = self.alarm.ring();
    }
}

/// How a worker's process ended, and which it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) pid: u32,
    pub(super) end: ProcessEnd,
}

pub(super) struct Shared<H> {
    pub(super) state: Mutex<State<H>>,
    /// How many jobs a worker may run at once at most.
    pub(super) width: usize,
    /// How long an interrupted job may take to end.
    pub(super) grace_ns: u64,
    /// How long a worker without work is kept.
    pub(super) idle_timeout: Duration,
    pub(super) owner: u32,
    pub(super) next_function: AtomicU64,
    pub(super) closed: Condvar,
}

impl<H: Handle> Shared<H> {
    pub(super) fn new(settings: &Settings, launch: Launch, plumbing: Arc<Plumbing>) -> Self {
        let mut supervisor = Supervisor::new(settings);
        let controller = settings.adapts_width.then(|| {
            let controller = Controller::new(settings.workers, settings.width, monotonic_ns());
            let width = controller.get();
            supervisor.supervise(Event::Width { width }, &mut Vec::new());
            controller
        });
        let state = State {
            supervisor,
            controller,
            answered: 0,
            entries: NumberMap::default(),
            next_job: 0,
            links: NumberMap::default(),
            launch,
            zygote: None,
            unborn: Vec::new(),
            outbox: Vec::new(),
            streams: Vec::new(),
            sleepers: Vec::new(),
            garbage: Vec::new(),
            notes: Notes::default(),
            timed: 0,
            looks_ns: 0,
            round_ns: 0,
            unusable: String::new(),
            crash: String::new(),
            plumbing: Some(plumbing),
            helpers: 0,
            listening: false,
            closing: false,
            closed: false,
            actions: Vec::new(),
            scratch: Vec::new(),
            frame: Vec::new(),
            account: settings
                .ledger
                .as_ref()
                .and_then(|(ledger, model)| Account::new(ledger, *model)),
        };
        Self {
            state: Mutex::new(state),
            width: settings.width,
            grace_ns: settings.cancel_grace.map_or(u64::MAX, nanoseconds),
            idle_timeout: settings.idle_timeout.unwrap_or(Duration::MAX),
            owner: process::id(),
            next_function: AtomicU64::new(0),
            closed: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<H>> {
        // A panic under the lock would be a defect of the engine; the books are then still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a job.
    pub(super) fn enter(&self, state: &mut State<H>, owner: Owner<H>, job: Job) -> JobId {
        let (id, retries) = (state.next_job, job.retries);
        state.next_job += 1;
        state.timed += usize::from(job.timeout.is_some());
        let entry = Entry {
            owner,
            job,
            started: false,
            queued_ns: monotonic_ns(),
            attempts: Attempts::of(retries),
        };
        state.entries.insert(id, entry);
        self.drive(state, Event::Submitted { job: id, retries });
        id
    }

    /// Queues what maps have in their backlogs.
    pub(super) fn pull_streams(&self, state: &mut State<H>) {
        for at in 0..state.streams.len() {
            let stream = Arc::clone(&state.streams[at]);
            self.pull(state, &stream);
        }
    }

    pub(super) fn pull(&self, state: &mut State<H>, stream: &Arc<Stream>) {
        for (number, job) in stream.take_backlog() {
            let stream = Arc::clone(stream);
            self.enter(state, Owner::Item { stream, number }, job);
        }
        if state.supervisor.pending() > 0 {
            stream.set_patient();
        }
    }

    /// Feeds `event` to the supervisor, carries out what it says, and feeds it what comes of that.
    pub(super) fn drive(&self, state: &mut State<H>, event: Event) {
        self.drive_with(state, event, None, None);
    }

    /// The same for an event that comes with a job's answer, or with the end of a worker's process.
    pub(super) fn drive_with(
        &self,
        state: &mut State<H>,
        event: Event,
        mut answer: Option<(Outcome, Answer)>,
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
        answer: &mut Option<(Outcome, Answer)>,
        end: Option<End>,
        events: &mut VecDeque<Event>,
    ) {
        match action {
            Action::Spawn { worker } => {
                if let Err(error) = self.spawn(state, worker) {
                    state.unusable = format!("a worker process could not be started: {error}");
                    state.links.remove(&worker);
                    let begun = Vec::new();
                    events.push_back(Event::Gone { worker, begun });
                }
            }
            Action::Send { worker, job } => {
                let Some(entry) = state.entries.get_mut(&job) else {
                    return;
                };
                if !entry.started && !entry.owner.try_start() {
                    events.push_back(Event::Withdrawn { worker, job });
                    return;
                }
                entry.started = true;
                if entry.job.retries > 0 {
                    entry.attempts.left = state.supervisor.retries_left(job);
                }
                if let Some(limit) = entry.job.timeout {
                    // It can begin from now on, and the collector may have gone to sleep for longer.
                    let due_ns = monotonic_ns().saturating_add(nanoseconds(limit));
                    if due_ns < state.looks_ns {
                        state.looks_ns = due_ns;
                        wake_collector(state.plumbing.as_ref());
                    }
                }
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
            Action::Interrupt { worker, job } => {
                if let Some(link) = state.links.get_mut(&worker) {
                    let until_ns = monotonic_ns().saturating_add(self.grace_ns);
                    link.interrupt(job, until_ns);
                    state.looks_ns = 0;
                    state.wake_collector();
                }
            }
            Action::Kill { worker } => {
                if let Some(link) = state.links.get_mut(&worker) {
                    link.kill();
                }
            }
            Action::Deliver { job } => {
                let (outcome, answer) = answer.take().unzip();
                state.finish(job, outcome.unwrap_or(Outcome::Cancelled), answer.as_ref());
            }
            Action::Discard { job } => state.discard(job, answer.take()),
            Action::Lose { job, cause, .. } => {
                let End { pid, end } = end.unwrap_or(End {
                    pid: 0,
                    end: ProcessEnd::Unknown,
                });
                let text = if cause == Cause::Unusable {
                    state.unusable.clone()
                } else {
                    state.crash.clone()
                };
                state.finish(
                    job,
                    Outcome::Lost {
                        cause,
                        pid,
                        end,
                        text,
                    },
                    None,
                );
            }
            Action::Cancel { job } => state.finish(job, Outcome::Cancelled, None),
            Action::Close => {
                state.closing = true;
                state.wake_collector();
            }
        }
    }

    /// Cancels a job, also one that runs; its owner is the caller's to tell. `None` if it has ended.
    pub(super) fn cancel(&self, state: &mut State<H>, job: JobId) -> Option<Owner<H>> {
        if let Some(worker) = state.supervisor.holder(job) {
            // What has been answered is not cancelled.
            self.hear_worker(state, worker);
            self.pull_streams(state);
        }
        if let Some(worker) = state.supervisor.holder(job) {
            state.note_begun(worker, Some(job));
        }
        let entry = state.entries.remove(&job)?;
        state.note(&entry, &mut Outcome::Cancelled, None);
        state.timed -= usize::from(entry.job.timeout.is_some());
        state.garbage.extend(entry.job.kept);
        let (mut sent, mut behind) = (false, 0);
        if let Some(worker) = state.supervisor.holder(job)
            && let Some(link) = state.links.get_mut(&worker)
        {
            if let Ok(count) = link.revoke_from(job) {
                sent = link.holds(job);
                // What was sent after it is no less welcome for that.
                behind = count.saturating_sub(usize::from(!sent));
            } else {
                sent = true;
                self.drive(state, Event::Corrupt { worker });
            }
        }
        self.drive(state, Event::Cancelled { job, sent, behind });
        Some(entry.owner)
    }

    /// A lane for a worker. Its process is the collector's to ask for: the zygote's parent-death signal
    /// follows the *thread* that started it, and that must be one that lives as long as the pool.
    fn spawn(&self, state: &mut State<H>, worker: WorkerId) -> io::Result<()> {
        state
            .links
            .insert(worker, Link::new(LARGEST_ARENA, self.width)?);
        state.unborn.push(worker);
        state.wake_collector();
        Ok(())
    }

    /// Asks the zygote, after starting it if need be, for the processes of workers that have none. The collector's.
    pub(super) fn bear(&self, state: &mut State<H>) {
        for worker in std::mem::take(&mut state.unborn) {
            if let Err(error) = ask_for(state, worker) {
                self.not_started(state, worker, &error);
            }
        }
    }

    fn not_started(&self, state: &mut State<H>, worker: WorkerId, error: &io::Error) {
        state.unusable = format!("a worker process could not be started: {error}");
        state.links.remove(&worker);
        let begun = Vec::new();
        self.drive(state, Event::Gone { worker, begun });
    }
}

fn ask_for<H>(state: &mut State<H>, worker: WorkerId) -> io::Result<()> {
    let zygote = match state.zygote.take() {
        Some(zygote) => zygote,
        None => Arc::new(Zygote::start(&state.launch)?),
    };
    let zygote = state.zygote.insert(zygote);
    let Some(plumbing) = &state.plumbing else {
        return Err(io::ErrorKind::NotConnected.into());
    };
    let Some(link) = state.links.get(&worker) else {
        return Ok(());
    };
    let arguments = plumbing.arguments.mapping().as_fd();
    match zygote.spawn(worker, link.memory(), arguments, plumbing.doorbell.as_fd()) {
        // It is gone. The collector is about to hear of that, and then buries this worker with the others.
        Err(error) if zygote_is_gone(&error) => {}
        asked => asked?,
    }
    reached(Step::Spawning);
    Ok(())
}

fn wake_collector(plumbing: Option<&Arc<Plumbing>>) {
    if let Some(plumbing) = plumbing {
        plumbing.wake_collector();
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn zygote_is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl<H> State<H> {
    pub(super) fn wake_collector(&self) {
        wake_collector(self.plumbing.as_ref());
    }

    /// Whether there is something for the collector to do.
    pub(super) fn has_news(&self) -> bool {
        !self.outbox.is_empty()
            || !self.sleepers.is_empty()
            || !self.garbage.is_empty()
            || !self.notes.waiting.is_empty()
    }

    /// Whether workers have said something that comes before the outcomes: those are the collector's then.
    pub(super) fn has_notes(&self) -> bool {
        self.notes.telling || !self.notes.waiting.is_empty()
    }

    /// Which jobs a worker is running, and since when: for when it does not get to say what they cost.
    pub(super) fn note_begun(&mut self, worker: WorkerId, only: Option<JobId>) {
        let State { links, entries, .. } = self;
        let Some(link) = links.get(&worker).filter(|_| self.account.is_some()) else {
            return;
        };
        for (job, began_ns) in link.running() {
            if only.is_none_or(|only| only == job)
                && let Some(entry) = entries.get_mut(&job)
            {
                entry.attempts.began(link.number, began_ns);
            }
        }
    }

    /// An attempt was answered that is not the job's last.
    fn discard(&mut self, job: JobId, answer: Option<(Outcome, Answer)>) {
        if let Some((_, answer)) = answer
            && let Some(entry) = self.entries.get_mut(&job)
        {
            entry.attempts.again(&answer);
        }
    }

    /// A job has ended.
    fn note(&self, entry: &Entry<H>, outcome: &mut Outcome, answer: Option<&Answer>) {
        if let Some(account) = &self.account {
            let Entry {
                job,
                queued_ns,
                attempts,
                ..
            } = entry;
            account.write(job, *queued_ns, attempts, outcome, answer);
        }
    }

    pub(super) fn finish(&mut self, job: JobId, mut outcome: Outcome, answer: Option<&Answer>) {
        if let Some(entry) = self.entries.remove(&job) {
            self.note(&entry, &mut outcome, answer);
            self.timed -= usize::from(entry.job.timeout.is_some());
            self.garbage.extend(entry.job.kept);
            self.give(entry.owner, outcome);
        }
    }

    /// What has become of a job goes to its owner, after what its worker has said before.
    pub(super) fn give(&mut self, owner: Owner<H>, outcome: Outcome) {
        match owner {
            Owner::Handle(handle) => self.outbox.push((handle, outcome)),
            Owner::Item { stream, number } => {
                if self.has_notes() {
                    self.notes.held.push((stream, number, outcome));
                } else {
                    self.sleepers.extend(stream.put(number, outcome));
                }
            }
        }
    }
}
