//! The supervisor driven through random lives and deaths of a simulated pool, event by event as the real one does it.
#![allow(missing_docs)]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use plait_engine::process_pool::Settings;
use plait_engine::process_pool::state::{Action, Cause, Event, JobId, Supervisor, WorkerId};
use proptest::prelude::*;

/// So many calls fit into a simulated window.
const ROOM: usize = 5;

/// One thing that happens. The numbers choose a worker or a job among those it could happen to.
#[derive(Debug, Clone, Copy)]
enum Step {
    Submit {
        retries: u32,
        huge: bool,
    },
    CancelFuture(usize),
    /// A worker goes one step further: ready, claim, begin, answer, leave.
    Advance {
        worker: usize,
        /// Which of the things that it does at once.
        which: usize,
        failed: bool,
        run_ns: u64,
    },
    /// The collector hears one reply.
    Hear(usize),
    /// A worker's process ends wherever it is.
    Die(usize),
    Overdue(usize, usize),
    /// A job that was sent, if there is one, is cancelled.
    Cancel(usize),
    /// A worker has not heeded an interrupt.
    Unheeded(usize, bool),
    Idle(usize),
    Retire(usize),
    Width(usize),
    Corrupt(usize),
    ShutDown {
        cancel: bool,
    },
    Unusable,
    Terminate,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pick = 0..16_usize;
    let run_ns = prop_oneof![Just(1_000_u64), Just(100_000), Just(50_000_000)];
    let step = prop_oneof![
        20 => (0..3_u32, 0..30_u8).prop_map(|(retries, dice)| Step::Submit { retries, huge: dice == 0 }),
        2 => pick.clone().prop_map(Step::CancelFuture),
        40 => (pick.clone(), pick.clone(), 0..4_u8, run_ns).prop_map(|(worker, which, dice, run_ns)| {
            Step::Advance { worker, which, failed: dice == 0, run_ns }
        }),
        20 => pick.clone().prop_map(Step::Hear),
        3 => pick.clone().prop_map(Step::Die),
        3 => (pick.clone(), pick.clone()).prop_map(|(worker, which)| Step::Overdue(worker, which)),
        3 => pick.clone().prop_map(Step::Cancel),
        2 => (pick.clone(), any::<bool>()).prop_map(|(worker, last)| Step::Unheeded(worker, last)),
        1 => pick.clone().prop_map(Step::Idle),
        1 => pick.clone().prop_map(Step::Retire),
        1 => (1..5_usize).prop_map(Step::Width),
        1 => pick.prop_map(Step::Corrupt),
    ];
    let end = prop_oneof![
        3 => Just(None),
        2 => any::<bool>().prop_map(|cancel| Some(Step::ShutDown { cancel })),
        1 => Just(Some(Step::Terminate)),
        1 => Just(Some(Step::Unusable)),
    ];
    let body = prop::collection::vec(step.clone(), 0..250);
    (body, end, prop::collection::vec(step, 0..60)).prop_map(|(mut body, end, after)| {
        body.extend(end);
        body.extend(after);
        body
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    Call(JobId),
    Stop,
}

/// A worker's process and its lane.
#[derive(Debug, Default)]
struct Process {
    ready: bool,
    killed: bool,
    told_to_stop: bool,
    window: VecDeque<Frame>,
    /// Claimed, in order, and begun if the flag is set.
    claimed: Vec<(Frame, bool)>,
    /// Interrupted. Every third of them does not heed that.
    ghosts: HashSet<JobId>,
    replies: VecDeque<Reply>,
}

#[derive(Debug, Clone, Copy)]
enum Reply {
    Ready,
    Answer {
        job: JobId,
        failed: bool,
        run_ns: u64,
    },
}

impl Process {
    fn begun(&self) -> impl Iterator<Item = JobId> {
        self.claimed.iter().filter_map(|&claimed| match claimed {
            (Frame::Call(job), true) => Some(job),
            _ => None,
        })
    }

    fn holds(&self, job: JobId) -> bool {
        self.window.contains(&Frame::Call(job))
            || self
                .claimed
                .iter()
                .any(|&(frame, _)| frame == Frame::Call(job))
            || self.replies.iter().any(
                |reply| matches!(reply, Reply::Answer { job: answered, .. } if *answered == job),
            )
    }
}

#[derive(Debug, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "what has happened to it, in any combination"
)]
struct Job {
    retries: u32,
    huge: bool,
    cancelled: bool,
    started: bool,
    begun: u32,
    /// How often a run of it ended without being its end: by a failure, or with its worker.
    failed_runs: u32,
    ended: bool,
}

struct Simulation {
    supervisor: Supervisor,
    most: usize,
    /// How many jobs a worker may run at once, ever and at the moment.
    most_width: usize,
    width: usize,
    jobs_per_worker: Option<u32>,
    jobs: BTreeMap<JobId, Job>,
    processes: BTreeMap<WorkerId, Process>,
    sent_to: HashMap<WorkerId, u32>,
    closed: u32,
    open: bool,
    terminated: bool,
}

type Checked = Result<(), TestCaseError>;

impl Simulation {
    fn new(most: usize, jobs_per_worker: Option<u32>, width: usize) -> Self {
        let settings = Settings {
            workers: most,
            width,
            jobs_per_worker,
            ..Settings::of(most)
        };
        Self {
            supervisor: Supervisor::new(&settings),
            most,
            most_width: width,
            width,
            jobs_per_worker,
            jobs: BTreeMap::new(),
            processes: BTreeMap::new(),
            sent_to: HashMap::new(),
            closed: 0,
            open: true,
            terminated: false,
        }
    }

    /// As `Shared::drive` of the pool.
    fn drive(&mut self, event: Event) -> Checked {
        let mut events = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            let submitted = matches!(event, Event::Submitted { .. });
            prop_assert!(self.closed == 0 || !submitted);
            self.supervisor.supervise(event.clone(), &mut actions);
            let mut delivered = 0;
            for action in actions.drain(..) {
                self.act(&event, action, &mut events, &mut delivered)?;
            }
        }
        prop_assert!(self.supervisor.workers() <= self.most);
        let unended = self.jobs.values().filter(|job| !job.ended).count();
        prop_assert_eq!(self.supervisor.jobs(), unended);
        Ok(())
    }

    fn act(
        &mut self,
        event: &Event,
        action: Action,
        events: &mut VecDeque<Event>,
        delivered: &mut u32,
    ) -> Checked {
        prop_assert_eq!(self.closed, 0, "{:?} after Close", action);
        match action {
            Action::Spawn { worker } => {
                prop_assert!(!self.terminated);
                prop_assert!(
                    self.sent_to.insert(worker, 0).is_none(),
                    "a worker's number was used twice"
                );
                self.processes.insert(worker, Process::default());
                prop_assert!(self.processes.len() <= self.most);
            }
            Action::Send { worker, job } => {
                for (id, process) in &self.processes {
                    prop_assert!(!process.holds(job), "{job} is at {id} and sent to {worker}");
                }
                let entry = self.jobs.get_mut(&job).unwrap();
                prop_assert!(!entry.ended);
                if !entry.started && entry.cancelled {
                    events.push_back(Event::Withdrawn { worker, job });
                    return Ok(());
                }
                entry.started = true;
                let process = self.processes.get_mut(&worker).unwrap();
                prop_assert!(!process.told_to_stop && !process.killed);
                prop_assert!(process.ghosts.is_empty());
                if entry.huge || process.window.len() >= ROOM {
                    events.push_back(Event::NoRoom { worker, job });
                } else {
                    process.window.push_back(Frame::Call(job));
                    let unanswered = process.window.len() + process.claimed.len();
                    prop_assert!(self.most_width == 1 || unanswered <= self.width);
                    *self.sent_to.get_mut(&worker).unwrap() += 1;
                }
            }
            Action::Revoke { worker, count } => {
                let process = self.processes.get_mut(&worker).unwrap();
                let count = count.min(process.window.len());
                let kept = process.window.len() - count;
                let back = process.window.split_off(kept);
                prop_assert!(!back.contains(&Frame::Stop), "a Stop was taken back");
                *self.sent_to.get_mut(&worker).unwrap() -= u32::try_from(count).unwrap();
                events.push_back(Event::Revoked { worker, count });
            }
            Action::Stop { worker } => {
                let process = self.processes.get_mut(&worker).unwrap();
                prop_assert!(!process.told_to_stop);
                process.told_to_stop = true;
                process.window.push_back(Frame::Stop);
            }
            Action::Interrupt { worker, job } => {
                let process = self.processes.get_mut(&worker).unwrap();
                prop_assert!(process.holds(job) && !process.window.contains(&Frame::Call(job)));
                prop_assert!(process.ghosts.insert(job), "{job} is interrupted twice");
            }
            Action::Kill { worker } => self.processes.get_mut(&worker).unwrap().killed = true,
            Action::Deliver { job } | Action::Discard { job } => {
                let answered =
                    matches!(event, Event::Answered { job: answered, .. } if *answered == job);
                prop_assert!(answered, "there is no answer of {job} at hand");
                *delivered += 1;
                prop_assert_eq!(*delivered, 1);
                if matches!(action, Action::Deliver { .. }) {
                    self.end(job)?;
                } else {
                    self.jobs.get_mut(&job).unwrap().failed_runs += 1;
                }
            }
            Action::Lose { job, worker, cause } => {
                match cause {
                    Cause::Died | Cause::Overdue | Cause::Terminated => {
                        prop_assert!(worker.is_some());
                    }
                    Cause::TooLarge => prop_assert!(self.jobs[&job].huge),
                    Cause::Unusable => prop_assert!(self.supervisor.is_unusable()),
                }
                self.end(job)?;
            }
            Action::Cancel { job } => self.end(job)?,
            Action::Close => {
                self.closed += 1;
                prop_assert!(self.processes.is_empty());
                prop_assert!(self.jobs.values().all(|job| job.ended));
            }
        }
        Ok(())
    }

    fn end(&mut self, job: JobId) -> Checked {
        for (id, process) in &self.processes {
            prop_assert!(
                !process.holds(job) || process.ghosts.contains(&job),
                "{job} has ended and is at {id}"
            );
        }
        let entry = self.jobs.get_mut(&job).unwrap();
        prop_assert!(!entry.ended, "{job} ends twice");
        entry.ended = true;
        Ok(())
    }

    fn nth<T: Copy>(all: impl Iterator<Item = T>, nth: usize) -> Option<T> {
        let all: Vec<_> = all.collect();
        (!all.is_empty()).then(|| all[nth % all.len()])
    }

    fn process(&self, nth: usize) -> Option<WorkerId> {
        Self::nth(self.processes.keys().copied(), nth)
    }

    fn step(&mut self, step: Step) -> Checked {
        match step {
            Step::Submit { retries, huge } => {
                if self.supervisor.is_open() {
                    let job = self.jobs.len() as JobId;
                    self.jobs.insert(
                        job,
                        Job {
                            retries,
                            huge,
                            ..Job::default()
                        },
                    );
                    self.drive(Event::Submitted { job, retries })?;
                }
            }
            Step::CancelFuture(nth) => {
                if let Some(job) = Self::nth(self.jobs.keys().copied(), nth) {
                    self.jobs.get_mut(&job).unwrap().cancelled = true;
                }
            }
            Step::Advance {
                worker,
                which,
                failed,
                run_ns,
            } => {
                if let Some(worker) = self.process(worker) {
                    self.advance(worker, which, failed, run_ns)?;
                }
            }
            Step::Hear(nth) => {
                let talkers = self
                    .processes
                    .iter()
                    .filter(|(_, process)| !process.replies.is_empty());
                if let Some(worker) = Self::nth(talkers.map(|(&id, _)| id), nth) {
                    self.hear(worker)?;
                }
            }
            Step::Die(nth) => {
                if let Some(worker) = self.process(nth) {
                    self.bury(worker)?;
                }
            }
            Step::Overdue(nth, which) => {
                if let Some(worker) = self.process(nth) {
                    self.overdue(worker, which)?;
                }
            }
            Step::Cancel(nth) => {
                let sent = self
                    .jobs
                    .iter()
                    .filter(|(_, job)| job.started && !job.ended);
                if let Some(job) = Self::nth(sent.map(|(&job, _)| job), nth) {
                    self.cancel(job)?;
                }
            }
            Step::Unheeded(nth, last) => {
                if let Some(worker) = self.process(nth)
                    && !self.processes[&worker].ghosts.is_empty()
                {
                    self.drive(Event::Unheeded { worker, last })?;
                }
            }
            Step::Idle(nth) => {
                if let Some(worker) = self.process(nth) {
                    self.drive(Event::Idle { worker })?;
                }
            }
            Step::Retire(nth) => {
                if let Some(worker) = self.process(nth) {
                    self.drive(Event::Retire { worker })?;
                }
            }
            Step::Width(width) => {
                self.width = width.min(self.most_width);
                self.drive(Event::Width { width })?;
            }
            Step::Corrupt(nth) => {
                if let Some(worker) = self.process(nth) {
                    self.drive(Event::Corrupt { worker })?;
                }
            }
            Step::ShutDown { cancel } => {
                self.open = false;
                self.drive(Event::ShutDown { cancel })?;
            }
            Step::Unusable => self.drive(Event::Unusable)?,
            Step::Terminate => {
                self.terminated = true;
                self.drive(Event::Terminate)?;
            }
        }
        Ok(())
    }

    /// One step of a worker's process, or of one of the jobs it runs; a killed one ends.
    fn advance(&mut self, worker: WorkerId, which: usize, failed: bool, run_ns: u64) -> Checked {
        let process = self.processes.get_mut(&worker).unwrap();
        if process.killed {
            return self.bury(worker);
        }
        if !process.ready {
            process.ready = true;
            process.replies.push_back(Reply::Ready);
            return Ok(());
        }
        let runs = process.claimed.len();
        if runs < self.most_width && which % (runs + 1) == runs {
            let frame = process.window.pop_front();
            process.claimed.extend(frame.map(|frame| (frame, false)));
            return Ok(());
        }
        let at = which % runs;
        match process.claimed[at] {
            // It leaves when everything else is done.
            (Frame::Stop, _) if runs > 1 => {}
            (Frame::Stop, _) => return self.bury(worker),
            (Frame::Call(job), false) => {
                process.claimed[at].1 = true;
                if process.ghosts.contains(&job) {
                    return Ok(());
                }
                let entry = self.jobs.get_mut(&job).unwrap();
                entry.begun += 1;
                prop_assert_eq!(
                    entry.begun,
                    1 + entry.failed_runs,
                    "{} runs again without a reason",
                    job
                );
                prop_assert!(entry.begun <= 1 + entry.retries);
                prop_assert!(!entry.ended);
            }
            (Frame::Call(job), true) if process.ghosts.contains(&job) && job % 3 == 0 => {}
            (Frame::Call(job), true) => {
                process.claimed.remove(at);
                process.replies.push_back(Reply::Answer {
                    job,
                    failed,
                    run_ns,
                });
            }
        }
        Ok(())
    }

    fn hear(&mut self, worker: WorkerId) -> Checked {
        let Some(reply) = self
            .processes
            .get_mut(&worker)
            .and_then(|process| process.replies.pop_front())
        else {
            return Ok(());
        };
        match reply {
            Reply::Ready => self.drive(Event::Ready { worker }),
            Reply::Answer {
                job,
                failed,
                run_ns,
            } => {
                let process = self.processes.get_mut(&worker).unwrap();
                process.ghosts.remove(&job);
                self.drive(Event::Answered {
                    worker,
                    job,
                    failed,
                    run_ns,
                })
            }
        }
    }

    /// As `Shared::bury`: last words first.
    fn bury(&mut self, worker: WorkerId) -> Checked {
        while !self.processes[&worker].replies.is_empty() {
            self.hear(worker)?;
        }
        let process = self.processes.remove(&worker).unwrap();
        let begun: Vec<_> = process.begun().collect();
        for job in &begun {
            self.jobs.get_mut(job).unwrap().failed_runs += 1;
        }
        if let Some(limit) = self.jobs_per_worker {
            prop_assert!(self.sent_to[&worker] <= limit);
        }
        self.drive(Event::Gone { worker, begun })
    }

    /// As `Shared::overdue`.
    fn overdue(&mut self, worker: WorkerId, which: usize) -> Checked {
        let process = &self.processes[&worker];
        let begun = process.begun().filter(|job| !process.ghosts.contains(job));
        let Some(job) = Self::nth(begun, which) else {
            return Ok(());
        };
        let process = self.processes.get_mut(&worker).unwrap();
        let count = process.window.len();
        prop_assert!(!process.window.contains(&Frame::Stop));
        process.window.clear();
        *self.sent_to.get_mut(&worker).unwrap() -= u32::try_from(count).unwrap();
        self.drive(Event::Overdue { worker, job })?;
        self.drive(Event::Revoked { worker, count })
    }

    /// As `Shared::cancel`.
    fn cancel(&mut self, job: JobId) -> Checked {
        if let Some(worker) = self.supervisor.holder(job) {
            while !self.processes[&worker].replies.is_empty() {
                self.hear(worker)?;
            }
        }
        if self.jobs[&job].ended {
            return Ok(());
        }
        let Some(worker) = self.supervisor.holder(job) else {
            let (sent, behind) = (false, 0);
            return self.drive(Event::Cancelled { job, sent, behind });
        };
        let process = self.processes.get_mut(&worker).unwrap();
        let at = process
            .window
            .iter()
            .position(|&frame| frame == Frame::Call(job));
        let back = at.map_or(VecDeque::new(), |at| process.window.split_off(at));
        prop_assert!(!back.contains(&Frame::Stop), "a Stop was taken back");
        *self.sent_to.get_mut(&worker).unwrap() -= u32::try_from(back.len()).unwrap();
        let sent = self.processes[&worker].holds(job);
        prop_assert_eq!(sent, back.is_empty());
        let behind = back.len().saturating_sub(1);
        self.drive(Event::Cancelled { job, sent, behind })
    }

    /// Lets every worker do all it has to do.
    fn run_dry(&mut self) -> Checked {
        for turn in 0..20_000 {
            let mut busy = false;
            for worker in self.processes.keys().copied().collect::<Vec<_>>() {
                while self
                    .processes
                    .get(&worker)
                    .is_some_and(|process| !process.replies.is_empty())
                {
                    self.hear(worker)?;
                    busy = true;
                }
                let works = |process: &Process| {
                    let heedless = |&(frame, begun): &(Frame, bool)| match frame {
                        Frame::Call(job) => begun && job % 3 == 0 && process.ghosts.contains(&job),
                        Frame::Stop => process.claimed.len() > 1,
                    };
                    process.killed
                        || !process.ready
                        || !process.claimed.iter().all(heedless)
                        || (!process.window.is_empty() && process.claimed.len() < self.most_width)
                };
                if self.processes.get(&worker).is_some_and(works) {
                    self.advance(worker, turn, false, 1_000)?;
                    busy = true;
                }
            }
            let haunted = self
                .processes
                .iter()
                .find(|(_, process)| !process.ghosts.is_empty());
            match haunted {
                Some((&worker, _)) if !busy => {
                    // What runs there besides has ended by now.
                    self.drive(Event::Unheeded {
                        worker,
                        last: false,
                    })?;
                }
                _ if busy => {}
                _ => return Ok(()),
            }
        }
        Err(TestCaseError::fail("the pool never comes to rest"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_job_ends_once_and_the_pool_closes(
        steps in steps(),
        most in 1..4_usize,
        jobs_per_worker in prop_oneof![Just(None), (1..4_u32).prop_map(Some)],
        width in prop_oneof![2 => Just(1_usize), 1 => 2..4_usize],
    ) {
        let mut pool = Simulation::new(most, jobs_per_worker, width);
        for step in steps {
            pool.step(step)?;
        }
        pool.run_dry()?;
        prop_assert_eq!(pool.supervisor.pending(), 0, "progress was lost");
        prop_assert!(pool.jobs.values().all(|job| job.ended));
        if pool.open && !pool.terminated {
            prop_assert_eq!(pool.closed, 0);
            pool.step(Step::ShutDown { cancel: false })?;
            pool.run_dry()?;
        }
        prop_assert_eq!(pool.closed, 1);
        // Whatever comes late changes nothing.
        pool.step(Step::ShutDown { cancel: true })?;
        pool.step(Step::Terminate)?;
        prop_assert_eq!(pool.closed, 1);
    }
}

/// The actions that `events` lead to, all of them.
fn actions_of(supervisor: &mut Supervisor, events: &[Event]) -> Vec<Action> {
    let mut actions = Vec::new();
    for event in events {
        supervisor.supervise(event.clone(), &mut actions);
    }
    actions
}

#[test]
fn three_workers_in_a_row_that_never_were_ready_make_the_pool_unusable() {
    let mut supervisor = Supervisor::new(&Settings::of(1));
    let mut actions = actions_of(&mut supervisor, &[Event::Submitted { job: 0, retries: 0 }]);
    for worker in 0..3 {
        assert!(actions.contains(&Action::Spawn { worker }));
        assert!(!supervisor.is_unusable());
        actions = actions_of(
            &mut supervisor,
            &[Event::Gone {
                worker,
                begun: Vec::new(),
            }],
        );
    }
    assert!(supervisor.is_unusable() && !supervisor.is_open());
    assert_eq!(
        actions,
        [Action::Lose {
            job: 0,
            worker: None,
            cause: Cause::Unusable
        }]
    );
    assert_eq!(
        actions_of(&mut supervisor, &[Event::ShutDown { cancel: false }]),
        [Action::Close]
    );
}

#[test]
fn a_short_job_behind_a_long_one_is_taken_back_for_an_idle_worker() {
    let mut supervisor = Supervisor::new(&Settings::of(2));
    let submitted = |job| Event::Submitted { job, retries: 0 };
    let ready = |worker| Event::Ready { worker };
    let actions = actions_of(
        &mut supervisor,
        &[submitted(0), submitted(1), submitted(2), ready(0), ready(1)],
    );
    let sent: HashSet<_> = actions
        .iter()
        .filter_map(|action| match *action {
            Action::Send { worker, job } => Some((worker, job)),
            _ => None,
        })
        .collect();
    assert_eq!(sent, HashSet::from([(0, 0), (1, 1), (0, 2)]));
    let answered = Event::Answered {
        worker: 1,
        job: 1,
        failed: false,
        run_ns: 1_000,
    };
    let actions = actions_of(&mut supervisor, &[answered]);
    assert_eq!(
        actions,
        [
            Action::Deliver { job: 1 },
            Action::Revoke {
                worker: 0,
                count: 1
            }
        ]
    );
    let actions = actions_of(
        &mut supervisor,
        &[Event::Revoked {
            worker: 0,
            count: 1,
        }],
    );
    assert_eq!(actions, [Action::Send { worker: 1, job: 2 }]);
}

#[test]
fn a_job_does_not_wait_for_a_worker_that_is_still_starting() {
    let mut supervisor = Supervisor::new(&Settings::of(2));
    let submitted = |job| Event::Submitted { job, retries: 0 };
    let ready = Event::Ready { worker: 0 };
    actions_of(&mut supervisor, &[submitted(0), submitted(1), ready]);
    let answered = Event::Answered {
        worker: 0,
        job: 0,
        failed: false,
        run_ns: 1_000,
    };
    let actions = actions_of(&mut supervisor, &[answered]);
    let revoke = Action::Revoke {
        worker: 1,
        count: 1,
    };
    assert_eq!(actions, [Action::Deliver { job: 0 }, revoke]);
    let revoked = Event::Revoked {
        worker: 1,
        count: 1,
    };
    let actions = actions_of(&mut supervisor, &[revoked]);
    assert_eq!(actions, [Action::Send { worker: 0, job: 1 }]);
}
