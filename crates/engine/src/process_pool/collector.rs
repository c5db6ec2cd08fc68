//! The collector: the one thread of a pool that hears workers and the zygote, keeps deadlines and delivers outcomes.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use plait_sync::window;

use super::account::Answer;
use super::books::{End, Plumbing, Shared, State, nanoseconds};
use super::fault::{Step, reached};
use super::link::{Link, Look, SHORTEST_LOOK_NS, Said};
use super::outcome::{Deliver, Handle, Note, Outcome, ProcessEnd};
use super::protocol::Status;
use super::state::{Event, JobId, WorkerId};
use super::worker::Bytes;
use super::zygote::Report;
use crate::sys::clock::monotonic_ns;

/// How often the collector looks again before it sleeps, while jobs are running.
const SPINS: u32 = 64;
/// How long the collector sleeps at most while there are workers.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// The same while an event loop hears workers in its place: the loop may be held up.
const LONGEST_TRUST: Duration = Duration::from_millis(10);
/// How often the collector looks at what each worker is doing: as often as it wakes anyway.
const ROUND: Duration = LONGEST_SLEEP;
/// The same at most, if workers are to leave after less than that.
const SHORTEST_ROUND: Duration = Duration::from_millis(10);
/// How long the zygote may say nothing about a worker that has ended, or that is to be ended.
const LONGEST_SILENCE: Duration = Duration::from_secs(1);
/// So often a job may let its time to end pass while its worker runs others besides; then they are lost with it.
const MOST_PATIENCE: u32 = 10;

impl<H: Handle> Shared<H> {
    /// The collector: hears workers and the zygote, keeps deadlines, delivers outcomes, until the pool is closed.
    pub(super) fn collect(&self, plumbing: Arc<Plumbing>, mut sink: impl Deliver<H>) {
        loop {
            let mut state = self.lock();
            self.hear_zygote(&mut state);
            self.bear(&mut state);
            self.hear_workers(&mut state);
            self.adapt_width(&mut state);
            let next_deadline = self.keep_deadlines(&mut state);
            let next_round = self.make_round(&mut state);
            let next_deadline = next_deadline.into_iter().chain(next_round).min();
            let notes = std::mem::take(&mut state.notes.waiting);
            let outcomes = std::mem::take(&mut state.outbox);
            let held = std::mem::take(&mut state.notes.held);
            let told = !notes.is_empty();
            if told {
                state.notes.telling = true;
                drop(state);
                sink.tell(notes);
                state = self.lock();
                state.notes.telling = false;
            }
            for (stream, number, outcome) in held {
                state.sleepers.extend(stream.put(number, outcome));
            }
            let sleepers = std::mem::take(&mut state.sleepers);
            let garbage = std::mem::take(&mut state.garbage);
            if told || !outcomes.is_empty() || !sleepers.is_empty() || !garbage.is_empty() {
                drop(state);
                for sleeper in sleepers {
                    sleeper.unpark();
                }
                if !outcomes.is_empty() {
                    reached(Step::Delivering);
                    sink.deliver(outcomes);
                }
                drop(garbage);
                continue;
            }
            if state.closing {
                break;
            }
            drop(state);
            self.sleep(&plumbing, next_deadline);
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
    fn sleep(&self, plumbing: &Plumbing, deadline: Option<Duration>) {
        let listening = self.lock().listening;
        let spins = if listening { 0 } else { SPINS };
        for _ in 0..spins {
            // A caller holding the lock is submitting, and will be heard of through its job.
            if let Ok(state) = self.state.try_lock()
                && (state.has_news() || state.links.values().any(Link::has_reply))
            {
                return;
            }
            (0..32).for_each(|_| std::hint::spin_loop());
        }
        let state = self.lock();
        // A helper hears workers now, and announces in our place when it stops; an event loop looks after the announcement.
        let listening = state.listening;
        let heard = state.helpers > 0;
        if !heard {
            state.links.values().for_each(Link::announce_sleep);
        }
        let ready = state.has_news()
            || state.closing
            || (!heard && !listening && state.links.values().any(Link::has_reply));
        let zygote = state.zygote.clone();
        // A worker that spoilt its own lane may have spoilt its bell, too: its answer is found without it.
        let longest = if listening {
            LONGEST_TRUST
        } else {
            LONGEST_SLEEP
        };
        let deadline = if state.links.is_empty() {
            deadline
        } else {
            Some(deadline.map_or(longest, |deadline| deadline.min(longest)))
        };
        drop(state);
        if !ready {
            // Polling descriptors of our own fails only for lack of kernel memory; then we look again at once.
            let mut others: Vec<_> = zygote.as_deref().map(AsFd::as_fd).into_iter().collect();
            let _ = if listening {
                plumbing.alarm.wait(&others, deadline)
            } else {
                others.push(plumbing.alarm.as_fd());
                plumbing.doorbell.wait(&others, deadline)
            };
            plumbing.alarm.silence();
        }
        drop(zygote);
        let state = self.lock();
        if !state.listening {
            state.links.values().for_each(Link::withdraw_sleep);
        }
    }

    pub(super) fn hear_workers(&self, state: &mut State<H>) {
        let workers: Vec<_> = state
            .links
            .iter()
            .filter(|(_, link)| link.has_reply())
            .map(|(&id, _)| id)
            .collect();
        for worker in workers {
            self.hear_worker(state, worker);
        }
        self.pull_streams(state);
    }

    /// Hears all that one worker has said so far, up to a bound: others want to be heard, too.
    pub(super) fn hear_worker(&self, state: &mut State<H>, worker: WorkerId) {
        let mut heard_ns = 0;
        for _ in 0..window::SLOTS {
            let State { links, frame, .. } = state;
            let Some(link) = links.get_mut(&worker) else {
                return;
            };
            match link.hear(frame) {
                Ok(None) => return,
                Ok(Some(Said::Note(note))) => state.notes.waiting.push(note),
                Ok(Some(Said::Retire { resident_bytes })) => {
                    self.drive(state, Event::Retire { worker });
                    if !state.notes.retired {
                        state.notes.retired = true;
                        let payload = Bytes::Inline(resident_bytes.to_string().into_bytes());
                        let kind = Note::RETIRED;
                        state.notes.waiting.push(Note { kind, payload });
                    }
                }
                Ok(Some(Said::Ready)) => self.drive(state, Event::Ready { worker }),
                Ok(Some(Said::Unusable(text))) => {
                    state.unusable = text;
                    self.drive(state, Event::Unusable);
                }
                Ok(Some(Said::Answer {
                    job,
                    status,
                    run_ns,
                    spent,
                    payload,
                    buffers,
                })) => {
                    // Several are heard at a time, by one look at the clock, unless one ended after that.
                    let ended_ns = spent.began_ns.saturating_add(run_ns);
                    if ended_ns > heard_ns && state.account.is_some() {
                        heard_ns = monotonic_ns();
                    }
                    let answer = Answer {
                        heard_ns,
                        worker: link.number,
                        occupied_ns: run_ns,
                        spent,
                    };
                    let failed = matches!(status, Status::Raised | Status::Unpicklable);
                    state.answered += 1;
                    let outcome = Outcome::Answer {
                        status,
                        payload,
                        buffers,
                        place: None,
                    };
                    self.drive_with(
                        state,
                        Event::Answered {
                            worker,
                            job,
                            failed,
                            run_ns,
                        },
                        Some((outcome, answer)),
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

    /// Gives workers more or fewer jobs at once, as throughput tells.
    fn adapt_width(&self, state: &mut State<H>) {
        let Some(controller) = &mut state.controller else {
            return;
        };
        let answered = std::mem::take(&mut state.answered);
        let saturated = state.supervisor.pending() > 0;
        if let Some(width) = controller.observe(answered, saturated, false, monotonic_ns()) {
            self.drive(state, Event::Width { width });
        }
    }

    fn hear_zygote(&self, state: &mut State<H>) {
        while let Some(zygote) = &state.zygote {
            match zygote.report() {
                Ok(None) => return,
                Ok(Some(Report::Started { worker, pid, pidfd })) => {
                    if let Some(link) = state.links.get_mut(&worker) {
                        let account = state.account.as_ref();
                        link.number = account.map_or(0, |account| account.worker_came(pid));
                        link.started(pid, pidfd);
                        reached(Step::Started);
                    }
                }
                Ok(Some(Report::Exited {
                    worker,
                    pid,
                    status,
                    crash,
                })) => {
                    state.crash = crash;
                    self.bury(state, worker, pid, status.into());
                    state.crash.clear();
                }
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
                    let asked_for = |worker: &&WorkerId| !state.unborn.contains(worker);
                    let workers: Vec<_> = state.links.keys().filter(asked_for).copied().collect();
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
        state.note_begun(worker, None);
        let Some(link) = state.links.remove(&worker) else {
            return;
        };
        if let Some(account) = &state.account {
            account.worker_left(link.number);
        }
        let begun = link.begun();
        for job in &begun {
            if let Some(entry) = state.entries.get_mut(job) {
                entry.attempts.lost(link.number);
            }
        }
        reached(Step::Buried);
        if !state.supervisor.is_ready(worker)
            && !state.supervisor.is_unusable()
            && end != ProcessEnd::Unknown
        {
            state.unusable = format!("its workers end before they have started, the last {end}");
        }
        self.drive_with(
            state,
            Event::Gone { worker, begun },
            None,
            Some(End { pid, end }),
        );
    }

    /// Interrupts jobs that have used up their time, and ends workers that did not heed that; how long until there may be
    /// something to do again.
    fn keep_deadlines(&self, state: &mut State<H>) -> Option<Duration> {
        state.looks_ns = u64::MAX;
        let now = monotonic_ns();
        if state.timed > 0 {
            let overdue = overdue_jobs(state, now);
            for (worker, job) in overdue {
                self.overdue(state, worker, job);
            }
        }
        let mut unheeded = Vec::new();
        for (&worker, link) in &mut state.links {
            if link.ghosts() > 0 {
                let (next, count) = link.haunt(now, self.grace_ns);
                state.looks_ns = state.looks_ns.min(next);
                unheeded.extend(count.map(|count| (worker, count)));
            }
        }
        for (worker, count) in unheeded {
            let last = count >= MOST_PATIENCE;
            self.drive(state, Event::Unheeded { worker, last });
        }
        (state.looks_ns < u64::MAX)
            .then(|| Duration::from_nanos(state.looks_ns.saturating_sub(now)))
    }

    /// Looks every now and then at what each worker is doing: sends away those that have been idle for long, and buries
    /// those whose end the zygote does not report, because it was stopped, say.
    fn make_round(&self, state: &mut State<H>) -> Option<Duration> {
        let now = monotonic_ns();
        let interval = ROUND.min((self.idle_timeout / 2).max(SHORTEST_ROUND));
        if now < state.round_ns {
            // The collector wakes that often anyway, unless idle workers leave sooner.
            return (interval < ROUND).then(|| Duration::from_nanos(state.round_ns - now));
        }
        state.round_ns = now.saturating_add(nanoseconds(interval));
        let (mut idle, mut ended, mut stuck) = (Vec::new(), Vec::new(), false);
        for (&worker, link) in &mut state.links {
            let look = if link.has_ended() {
                Look::Ended
            } else if link.is_condemned_unborn() {
                Look::Unborn
            } else if state.supervisor.is_idle(worker) {
                Look::Idle
            } else {
                Look::Busy
            };
            let lasted = link.look(look, now);
            match look {
                Look::Idle if lasted >= self.idle_timeout => idle.push(worker),
                Look::Ended if lasted >= LONGEST_SILENCE => ended.push((worker, link.pid())),
                Look::Unborn => stuck |= lasted >= LONGEST_SILENCE,
                _ => {}
            }
        }
        for worker in idle {
            self.drive(state, Event::Idle { worker });
        }
        for (worker, pid) in ended {
            self.bury(state, worker, pid, ProcessEnd::Unknown);
        }
        if let Some(zygote) = state.zygote.as_ref().filter(|_| stuck) {
            // Its end is heard of, and then its workers are buried.
            zygote.kill();
        }
        (interval < ROUND).then_some(interval)
    }

    fn overdue(&self, state: &mut State<H>, worker: WorkerId, job: JobId) {
        let Some(link) = state.links.get_mut(&worker) else {
            return;
        };
        // First nothing else can begin there; then the job still runs, or it was answered in time.
        let Ok(count) = link.revoke(usize::MAX) else {
            self.drive(state, Event::Corrupt { worker });
            return;
        };
        if link.is_running(job) {
            state.note_begun(worker, Some(job));
            if let Some(entry) = state.entries.get_mut(&job) {
                entry.attempts.lost(0);
            }
            self.drive(state, Event::Overdue { worker, job });
        }
        self.drive(state, Event::Revoked { worker, count });
    }
}

/// The jobs that have used up their time. Notes when the next one may have.
fn overdue_jobs<H>(state: &mut State<H>, now: u64) -> Vec<(WorkerId, JobId)> {
    let mut overdue = Vec::new();
    for (&worker, link) in &state.links {
        for job in state.supervisor.queue(worker) {
            let Some(limit) = state.entries.get(&job).and_then(|entry| entry.job.timeout) else {
                continue;
            };
            let limit = nanoseconds(limit);
            let began = link.running().find(|&(running, _)| running == job);
            let due = match began {
                Some((_, began)) => began.min(now).saturating_add(limit),
                // One that has not begun cannot be overdue before a whole limit from now.
                None => now.saturating_add(limit.max(SHORTEST_LOOK_NS)),
            };
            if due <= now {
                overdue.push((worker, job));
            } else {
                state.looks_ns = state.looks_ns.min(due);
            }
        }
    }
    overdue
}
