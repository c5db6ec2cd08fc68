//! A pool of processes without Python: this program is its zygote and its workers, too, and one of them is killed or
//! stopped exactly at each step of the protocol. Needs the feature `fault-hooks`; the table of what is lost when stands
//! in `src/process_pool/README.md`.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use plait_engine::process_pool::fault::{STEPS, Step};
use plait_engine::process_pool::protocol::Status;
use plait_engine::process_pool::state::Cause;
use plait_engine::process_pool::{
    Bytes, Call, Deliver, Handle, Job, Launch, Origin, Outcome, Payload, ProcessEnd, ProcessPool,
    Settings, Worker,
};
use plait_engine::sys::channel::Channel;
use plait_engine::sys::doorbell::Doorbell;
use plait_engine::sys::mapping::Mapping;
use plait_engine::sys::process;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const PLAN: &str = "PLAIT_FAULT_PLAN";
const KILL: u32 = 1;
const STOP: u32 = 2;
/// Longer than anything here takes: a test that comes to this hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// Too large for a frame.
const LARGE: usize = 100_000;
/// Jobs that are submitted at once.
const ROUND: u64 = 24;

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let first = arguments.first().and_then(|first| first.to_str());
    match first.unwrap_or("") {
        "as-zygote" => zygote(&arguments[1..]),
        "as-worker" => worker(&arguments[1..]),
        "as-pool" => pool_that_may_be_killed(Path::new(&arguments[1])),
        filter => match std::env::var_os(PLAN) {
            Some(plan) => tests(Path::new(&plan), filter),
            None => again_with_a_plan(filter),
        },
    }
}

/// Runs this program once more in an environment that names a plan: hooks look there when the first step is reached.
fn again_with_a_plan(filter: &str) {
    let folder = std::env::temp_dir().join(format!("plait-faults-{}", process::id()));
    fs::create_dir(&folder).unwrap();
    let plan = folder.join("plan");
    fs::write(&plan, [0; 4096]).unwrap();
    let status = this_program(&[filter]).env(PLAN, plan).status().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    assert!(status.success(), "{status}");
}

fn this_program(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments);
    command
}

/// Runs the tests whose names contain `filter`.
fn tests(plan: &Path, filter: &str) {
    let scene = Scene::new(plan);
    // The first step that this process comes to has it map the plan.
    scene.arm(Step::Opened, 0, 0);
    Pool::new(&scene, None, 0).work(1).close();
    let mut count = 0;
    let mut test = |name: String, body: &dyn Fn()| {
        if name.contains(filter) {
            println!("{name}");
            body();
            count += 1;
        }
    };
    for &(name, step) in STEPS.iter().filter(|(_, step)| *step < Step::Spawning) {
        for (retries, at) in [(0, 1), (0, 2), (0, 9), (1, 1), (1, 5)] {
            test(
                format!("worker killed at {name}, time {at}, {retries} retries"),
                &|| worker_killed(&scene, step, at, retries),
            );
        }
        test(format!("worker stopped at {name}, then let go"), &|| {
            worker_stopped(&scene, step, Then::Continue);
        });
        test(
            format!("worker stopped at {name}, pool terminated"),
            &|| worker_stopped(&scene, step, Then::Terminate),
        );
        test(format!("worker stopped at {name}, zygote killed"), &|| {
            worker_stopped(&scene, step, Then::KillZygote);
        });
    }
    for &(name, step) in STEPS.iter().filter(|(_, step)| *step >= Step::Spawning) {
        for at in [1, 2] {
            test(
                format!("pool's process killed at {name}, time {at}"),
                &|| {
                    pool_killed(&scene, step, at);
                },
            );
            test(
                format!("pool's process stopped at {name}, time {at}, zygote killed"),
                &|| pool_stopped(&scene, step, at),
            );
        }
    }
    let mut scene = scene;
    scene.width = 4;
    let mut test = |name: String, body: &dyn Fn()| {
        if name.contains(filter) {
            println!("{name}");
            body();
            count += 1;
        }
    };
    for &(name, step) in STEPS.iter().filter(|(_, step)| *step < Step::Spawning) {
        for (retries, at) in [(0, 3), (0, 10), (1, 6)] {
            test(
                format!("wide worker killed at {name}, time {at}, {retries} retries"),
                &|| wide_worker_killed(&scene, step, at, retries),
            );
        }
    }
    let mut lost = 0;
    for seed in 1..=60 {
        scene.width = 1 + 3 * (seed as usize % 2);
        scene.rubbish = 1_000 * seed;
        if "rubbish".contains(filter) {
            println!("rubbish over lanes, seed {seed}, width {}", scene.width);
            lost += rubbish_over_lanes(&scene);
            count += 1;
        }
    }
    assert!(
        lost > 0 || !"rubbish".contains(filter),
        "it does no harm at all"
    );
    println!("{count} faults: each cost what it may cost, and left nothing");
}

/// The files through which the processes of a test and the test itself see each other.
struct Scene {
    plan: File,
    log: PathBuf,
    /// How many jobs a worker runs at once.
    width: usize,
    /// If it is not 0: workers write rubbish over their lanes now and then.
    rubbish: u64,
}

impl Scene {
    fn new(plan: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(plan);
        Self {
            plan: file.unwrap(),
            log: plan.with_file_name("log"),
            width: 1,
            rubbish: 0,
        }
    }

    /// Forgets what has happened, and has `action` happen when `step` is reached for the `at`-th time.
    fn arm(&self, step: Step, at: u32, action: u32) {
        fs::write(&self.log, []).unwrap();
        self.plan.write_all_at(&[0; 4096], 0).unwrap();
        let words = [0, at, 0, action, 0].map(u32::to_le_bytes).concat();
        self.plan.write_all_at(&words, 32 * step as u64).unwrap();
    }

    /// The process to which it happened; 0 if it did not yet.
    fn struck(&self, step: Step) -> u32 {
        let mut word = [0; 4];
        self.plan
            .read_exact_at(&mut word, 32 * step as u64 + 16)
            .unwrap();
        u32::from_le_bytes(word)
    }

    /// How often each job's function was run.
    fn runs(&self) -> BTreeMap<u64, u32> {
        let mut runs = BTreeMap::new();
        for (number, _) in self.marks() {
            *runs.entry(number).or_default() += 1;
        }
        runs
    }

    /// Which job was run by which worker, in order.
    fn marks(&self) -> Vec<(u64, u64)> {
        let log = fs::read(&self.log).unwrap();
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        log.chunks_exact(16)
            .map(|line| (number(&line[..8]), number(&line[8..])))
            .collect()
    }

    fn launch(&self) -> Launch {
        let program = std::env::current_exe().unwrap();
        Launch {
            command: vec![
                program.into(),
                "as-zygote".into(),
                self.log.as_os_str().into(),
                self.width.to_string().into(),
                self.rubbish.to_string().into(),
            ],
            configuration: b"configuration".to_vec(),
        }
    }
}

// ---- The processes of a pool -----------------------------------------------------------------------------------

/// As `_zygote.py`, but that it starts workers by `exec`.
fn zygote(arguments: &[OsString]) {
    let link = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let link = Channel::from(link);
    let mut children: Vec<(u64, Child, OwnedFd)> = Vec::new();
    loop {
        let ended = {
            let mut fds = vec![PollFd::new(&link, PollFlags::IN)];
            fds.extend(
                children
                    .iter()
                    .map(|(_, _, pidfd)| PollFd::new(pidfd, PollFlags::IN)),
            );
            poll(&mut fds, None).unwrap();
            fds[1..].iter().position(|fd| !fd.revents().is_empty())
        };
        if let Some(at) = ended {
            let (worker, mut child, _) = children.remove(at);
            let status = child.wait().unwrap().into_raw();
            let parts = [
                &worker.to_le_bytes()[..],
                &child.id().to_le_bytes(),
                &status.to_le_bytes(),
            ];
            let _ = link.send(&[b"-", &parts.concat()[..]].concat(), &[]);
            continue;
        }
        let message = match link.try_receive() {
            Ok(Some(message)) => message,
            Ok(None) => continue,
            Err(_) => break,
        };
        if message.bytes[0] != b'S' {
            continue;
        }
        let worker = &message.bytes[1..9];
        let worker_number = u64::from_le_bytes(worker.try_into().unwrap());
        // Taking over a descriptor by its number would be unsafe; the standard streams have names.
        let [lane, memory, doorbell] = <[OwnedFd; 3]>::try_from(message.fds).unwrap();
        let mut command = this_program(&["as-worker", &process::id().to_string()]);
        command.args(arguments).arg(worker_number.to_string());
        command.stdin(doorbell).stdout(lane).stderr(memory);
        let child = command.spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let text = [b"+", worker, &child.id().to_le_bytes()].concat();
        let _ = link.send(&text, &[pidfd.as_fd()]);
        children.push((worker_number, child, pidfd));
    }
    for (_, child, _) in &mut children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Answers each call with its number, and with a large buffer if the call is one that asks for that.
fn worker(arguments: &[OsString]) {
    let log = PathBuf::from(&arguments[1]);
    let complaints = complaints(&log);
    // Its standard error is memory of the pool.
    std::panic::set_hook(Box::new(move |panic| {
        let _ = fs::write(&complaints, panic.to_string());
    }));
    let parent = arguments[0].to_str().unwrap().parse().unwrap();
    if !process::die_with_parent(parent).unwrap() {
        return;
    }
    let mut log = OpenOptions::new().append(true).open(log).unwrap();
    let lane = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    let memory = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    let doorbell = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let (lane, memory) = (Mapping::open(lane).unwrap(), Mapping::open(memory).unwrap());
    let worker = Worker::new(lane, memory, Doorbell::from_fd(doorbell)).unwrap();
    worker.ready().unwrap();
    let number = |at: usize| arguments[at].to_str().unwrap().parse().unwrap();
    let (width, seed, me): (u64, u64, u64) = (number(2), number(3), number(4));
    let mut rubbish = (seed != 0).then(|| Rubbish {
        chance: Chance(seed + me),
        lane: Mapping::open(std::io::stdout().as_fd().try_clone_to_owned().unwrap()).unwrap(),
    });
    let mut begun = Vec::new();
    let mut told = false;
    while !told {
        // A wide one takes what there is, and answers in another order.
        while begun.len() < width as usize && !told {
            match worker.take() {
                Ok(Some(Call::Stop)) => told = true,
                Ok(Some(Call::Run {
                    job,
                    arguments,
                    buffers,
                    ..
                })) => begun.push((job, arguments, buffers)),
                Ok(None) => break,
                // It has spoilt its lane.
                Err(_) if rubbish.is_some() => return,
                Err(error) => panic!("{error}"),
            }
        }
        if begun.is_empty() && !told && worker.wait(None).is_err() {
            assert!(rubbish.is_some());
            return;
        }
        while let Some((job, arguments, buffers)) = begun.pop() {
            let Ok(number) = bytes(arguments).try_into().map(u64::from_le_bytes) else {
                return;
            };
            for buffer in &buffers {
                let right =
                    matches!(buffer, Bytes::Shared(lease) if lease.to_vec() == pattern(number));
                assert!(right || rubbish.is_some());
            }
            note(&mut log, number, me);
            if rubbish.as_mut().is_some_and(Rubbish::write_now_and_then) {
                note(&mut log, SCRIBBLED, me);
            }
            let large = pattern(number);
            let large = [&large[..]];
            let results = if number % 4 >= 2 { &large[..] } else { &[] };
            let answered = worker.answer(job, Status::Value, &number.to_le_bytes(), results);
            if answered.is_err() {
                assert!(rubbish.is_some());
                return;
            }
            // A job's views of its arguments may live longer than the job.
            drop(buffers);
        }
    }
}

/// Instead of the number of a job: the worker has spoilt its lane.
const SCRIBBLED: u64 = u64::MAX;

/// By one write, so that it is there whole or not at all.
fn note(log: &mut File, number: u64, worker: u64) {
    let line = [number.to_le_bytes(), worker.to_le_bytes()].concat();
    log.write_all(&line).unwrap();
}

/// Numbers that look random and are the same in every run (Steele and others' `SplitMix64`).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// A worker's job that writes over the lane.
struct Rubbish {
    chance: Chance,
    lane: Mapping,
}

impl Rubbish {
    /// Control, rings and window: all before the results' arena.
    const END: usize = 1 << 20;

    fn write_now_and_then(&mut self) -> bool {
        let Self { chance, lane } = self;
        if chance.below(8) != 0 {
            return false;
        }
        for _ in 0..=chance.below(3) {
            let at = [
                chance.below(3_000),
                chance.below(8_192),
                chance.below(Self::END),
            ][chance.below(3)];
            let length = [1, 8, 64, 5_000][chance.below(4)].min(Self::END - at);
            let bytes = match chance.below(4) {
                0 => vec![0; length],
                1 => vec![255; length],
                _ => (0..length).map(|_| chance.next() as u8).collect(),
            };
            assert!(lane.copy_in(at, &bytes));
        }
        true
    }
}

/// Where a worker says why it panicked.
fn complaints(log: &Path) -> PathBuf {
    log.with_file_name("complaints")
}

fn bytes(bytes: Bytes) -> Vec<u8> {
    match bytes {
        Bytes::Inline(bytes) => bytes,
        Bytes::Shared(lease) => lease.to_vec(),
    }
}

/// What a large argument or result of a job consists of.
fn pattern(number: u64) -> Vec<u8> {
    vec![number as u8 ^ 0x5a; LARGE]
}

// ---- The pool's side -------------------------------------------------------------------------------------------

struct Number(u64);

impl Handle for Number {
    fn try_start(&self) -> bool {
        true
    }
}

struct Sink(Sender<(u64, Outcome)>);

impl Deliver<Number> for Sink {
    fn deliver(&mut self, batch: Vec<(Number, Outcome)>) {
        for (Number(number), outcome) in batch {
            // A test that has failed does not listen any more.
            let _ = self.0.send((number, outcome));
        }
    }
}

/// A pool of two workers and what has become of its jobs.
struct Pool {
    processes: ProcessPool<Number>,
    outcomes: Receiver<(u64, Outcome)>,
    retries: u32,
    next: u64,
    answered: u64,
    lost: BTreeMap<u64, (Cause, u32, ProcessEnd)>,
    cancelled: u64,
    /// Jobs that were given something else than their results.
    wrong: Vec<u64>,
}

impl Pool {
    fn new(scene: &Scene, jobs_per_worker: Option<u32>, retries: u32) -> Self {
        let (sender, outcomes) = channel();
        let settings = Settings {
            jobs_per_worker,
            width: scene.width,
            ..Settings::of(2)
        };
        Self {
            processes: ProcessPool::new(settings, scene.launch(), Sink(sender)).unwrap(),
            outcomes,
            retries,
            next: 0,
            answered: 0,
            lost: BTreeMap::new(),
            cancelled: 0,
            wrong: Vec::new(),
        }
    }

    /// Submits so many jobs: with and without large arguments and results.
    fn submit(&mut self, count: u64) {
        let function = self.processes.function(Some(0), b"echo").unwrap();
        for number in self.next..self.next + count {
            let mut room = ProcessPool::<Number>::INLINE_ROOM / 2;
            let arguments = Payload::Inline(number.to_le_bytes().to_vec());
            let buffers = if number % 2 == 1 {
                vec![self.processes.payload(&pattern(number), &mut room).unwrap()]
            } else {
                Vec::new()
            };
            let job = Job {
                function: function.clone(),
                arguments,
                buffers,
                timeout: None,
                retries: self.retries,
                kept: Vec::new(),
                origin: Origin::default(),
            };
            assert!(
                self.processes.submit(Number(number), job).is_ok(),
                "refused"
            );
        }
        self.next += count;
    }

    /// How many jobs have not ended, as far as was listened to.
    fn left(&self) -> u64 {
        self.next - self.answered - self.cancelled - self.lost.len() as u64
    }

    /// Listens for outcomes for so long, or until every job has one.
    fn listen(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.left() > 0 {
            let Ok((number, outcome)) = self
                .outcomes
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            else {
                return;
            };
            assert!(number < self.next && !self.lost.contains_key(&number));
            match outcome {
                Outcome::Answer {
                    status,
                    payload,
                    buffers,
                    ..
                } => {
                    let large = buffers.len() == usize::from(number % 4 >= 2)
                        && buffers
                            .into_iter()
                            .all(|buffer| bytes(buffer) == pattern(number));
                    if !large || status != Status::Value || bytes(payload) != number.to_le_bytes() {
                        self.wrong.push(number);
                    }
                    self.answered += 1;
                }
                Outcome::Lost {
                    cause, pid, end, ..
                } => {
                    self.lost.insert(number, (cause, pid, end));
                }
                Outcome::Cancelled => self.cancelled += 1,
            }
        }
    }

    fn listen_to_the_end(&mut self) {
        self.listen(LIMIT);
        assert_eq!(
            self.left(),
            0,
            "jobs hang: {:?}",
            self.processes.statistics()
        );
        let extra = self.outcomes.recv_timeout(Duration::ZERO);
        assert!(extra.is_err(), "a job ended twice: {extra:?}");
    }

    fn work(mut self, rounds: u32) -> Self {
        for _ in 0..rounds {
            self.submit(ROUND);
            self.listen_to_the_end();
        }
        self
    }

    /// Submits jobs until the fault has happened, and waits for them.
    fn work_until_struck(&mut self, scene: &Scene, step: Step) {
        let begun = Instant::now();
        while scene.struck(step) == 0 {
            self.submit(ROUND);
            self.listen_to_the_end();
            // A worker that has no work falls asleep, which is a step like others.
            let quiet = Instant::now();
            while scene.struck(step) == 0 && quiet.elapsed() < Duration::from_millis(5) {
                thread::sleep(Duration::from_micros(200));
            }
            assert!(begun.elapsed() < LIMIT, "{step:?} is never reached");
        }
    }

    /// Closes the pool: nothing of it may be left.
    fn close(self) -> BTreeMap<u64, (Cause, u32, ProcessEnd)> {
        assert_eq!(self.wrong, [], "wrong results");
        eventually("arguments in use", || {
            self.processes.statistics().blocks == 0
        });
        self.processes.shut_down(false);
        assert!(self.processes.wait_closed(LIMIT), "it does not close");
        self.lost
    }
}

/// Looks again and again.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "for ever: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// What there is of a pool: descriptors, threads and mappings of this process, zygotes and workers of this scene.
fn holdings(scene: &Scene) -> [usize; 4] {
    let count = |path: &str| fs::read_dir(path).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    [
        count("/proc/self/fd"),
        count("/proc/self/task"),
        maps.matches("memfd:plait").count(),
        family(scene),
    ]
}

/// How many zygotes and workers there are that were given the scene's log, orphans among them.
fn family(scene: &Scene) -> usize {
    let log = scene.log.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|command| command.contains(log))
        .count()
}

/// Living processes by descent from `root`.
fn descendants(root: u32) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
        if let (Some(state), Some(parent)) = (fields.next(), fields.next())
            && !matches!(state, "Z" | "X")
        {
            parents.insert(pid, parent.parse::<u32>().unwrap_or(0));
        }
    }
    let mut found = vec![root];
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(&pid, _)| pid)
            .collect();
        if more.is_empty() {
            found.remove(0);
            return found;
        }
        found.extend(more);
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    let _ = kill_process(pid, signal);
}

/// Runs `body`, and sees that nothing is left of it.
fn leaving_nothing(scene: &Scene, body: impl FnOnce()) {
    let before = holdings(scene);
    body();
    let complaint = fs::read_to_string(complaints(&scene.log));
    assert!(complaint.is_err(), "a worker panicked: {complaint:?}");
    let begun = Instant::now();
    loop {
        let now = holdings(scene);
        if before.iter().zip(now).all(|(&before, now)| now <= before) {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "left: {before:?} became {now:?}");
        thread::sleep(Duration::from_micros(200));
    }
}

// ---- The tests -------------------------------------------------------------------------------------------------

/// Whether a worker that dies right after this step takes a job with it; `None`: depends on what the step was part of.
fn takes_a_job(step: Step) -> Option<bool> {
    match step {
        Step::Begun | Step::Ran | Step::Written => Some(true),
        // Other things than answers pass through the ring, too.
        Step::Put => None,
        _ => Some(false),
    }
}

fn worker_killed(scene: &Scene, step: Step, at: u32, retries: u32) {
    scene.arm(step, at, KILL);
    leaving_nothing(scene, || {
        // Steps of a worker's start and end are reached again and again if workers are replaced.
        let replaced = matches!(step, Step::Opened | Step::Ready | Step::Told).then_some(8);
        let mut pool = Pool::new(scene, replaced, retries);
        pool.work_until_struck(scene, step);
        pool.submit(ROUND);
        pool.listen_to_the_end();
        let all = pool.next;
        let lost = pool.close();
        let pid = scene.struck(step);
        for end in lost.values() {
            assert_eq!(*end, (Cause::Died, pid, ProcessEnd::Killed(9)));
        }
        let runs = scene.runs();
        let again = runs.values().filter(|&&runs| runs == 2).count();
        assert!(runs.values().all(|&runs| runs <= 2));
        let cost = lost.len() + again + usize::from(step == Step::Begun && retries > 0);
        match takes_a_job(step) {
            Some(takes) => assert_eq!(cost, usize::from(takes), "lost {lost:?}, run {runs:?}"),
            None => assert!(cost <= 1, "lost {lost:?}, run {runs:?}"),
        }
        if retries > 0 {
            assert!(lost.is_empty(), "{lost:?}");
        } else {
            assert_eq!(again, 0, "run twice: {runs:?}");
        }
        let ran = all as usize
            - lost
                .keys()
                .filter(|number| !runs.contains_key(number))
                .count();
        assert_eq!(runs.len(), ran, "a job that never ran has an answer");
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Continue,
    Terminate,
    KillZygote,
}

/// The only child of this process.
fn zygote_of_the_pool() -> u32 {
    let me = process::id();
    let task = fs::read_to_string(format!("/proc/{me}/task/{me}/children"));
    let children: Vec<u32> = descendants(me)
        .into_iter()
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(1));
            parent == Some(&me.to_string())
        })
        .collect();
    assert_eq!(children.len(), 1, "{children:?} {task:?}");
    children[0]
}

/// A worker that stops delays the jobs that it has begun or could still begin, and no others.
fn worker_stopped(scene: &Scene, step: Step, then: Then) {
    scene.arm(step, 2, STOP);
    leaving_nothing(scene, || {
        let replaced = matches!(step, Step::Opened | Step::Ready | Step::Told).then_some(8);
        let mut pool = Pool::new(scene, replaced, 0);
        let begun = Instant::now();
        while scene.struck(step) == 0 {
            pool.submit(ROUND);
            pool.listen(Duration::from_millis(20));
            assert!(begun.elapsed() < LIMIT, "{step:?} is never reached");
        }
        pool.submit(ROUND);
        // What the stopped worker has claimed waits for it; everything else is done by the other one. A job that it
        // was sent and has not claimed may wait, too, as long as the other has work of its own.
        let stopped = scene.struck(step);
        let begun = Instant::now();
        loop {
            pool.listen(Duration::from_millis(20));
            if pool.left() <= 1 {
                break;
            }
            assert!(
                begun.elapsed() < LIMIT,
                "{} jobs wait for a stopped worker",
                pool.left()
            );
        }
        match then {
            Then::Continue => {
                signal(stopped, Signal::CONT);
                pool.listen_to_the_end();
                pool.submit(ROUND);
                pool.listen_to_the_end();
                let all = pool.next;
                assert_eq!(pool.close(), BTreeMap::new());
                let runs = scene.runs();
                assert!(runs.len() as u64 == all && runs.values().all(|&runs| runs == 1));
            }
            Then::Terminate => {
                pool.submit(ROUND);
                pool.processes.terminate();
                pool.listen_to_the_end();
                // Two were running at most.
                assert!(pool.lost.len() <= 2, "{:?}", pool.lost);
                assert!(pool.lost.values().all(|lost| lost.0 == Cause::Terminated));
                pool.close();
            }
            Then::KillZygote => {
                signal(zygote_of_the_pool(), Signal::KILL);
                pool.listen_to_the_end();
                pool.submit(ROUND);
                pool.listen_to_the_end();
                let lost = pool.close();
                assert!(lost.len() <= 2, "{lost:?}");
                assert!(lost.values().all(|lost| lost.0 == Cause::Died));
                assert!(scene.runs().values().all(|&runs| runs == 1));
            }
        }
    });
}

/// The process that the tests of the pool's own end start: works until it is ended, or for ten rounds.
fn pool_that_may_be_killed(plan: &Path) {
    let scene = Scene::new(plan);
    let pool = Pool::new(&scene, Some(8), 0).work(10);
    let all = pool.next;
    let lost = pool.close();
    // With the zygote, which a test may kill, go both workers.
    assert!(lost.len() <= 2, "{lost:?}");
    let runs = scene.runs();
    assert!(runs.values().all(|&runs| runs == 1), "run twice: {runs:?}");
    assert!(runs.len() + lost.len() >= all as usize);
}

fn start_pool(scene: &Scene) -> Child {
    let plan = scene.log.with_file_name("plan");
    this_program(&["as-pool", plan.to_str().unwrap()])
        .spawn()
        .unwrap()
}

fn pool_killed(scene: &Scene, step: Step, at: u32) {
    scene.arm(step, at, KILL);
    leaving_nothing(scene, || {
        let mut child = start_pool(scene);
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{step:?} is never reached");
    });
}

/// The zygote and with it all workers die while the pool stands still in the middle of something.
fn pool_stopped(scene: &Scene, step: Step, at: u32) {
    scene.arm(step, at, STOP);
    leaving_nothing(scene, || {
        let mut child = start_pool(scene);
        eventually("the pool's process does not stop", || {
            scene.struck(step) != 0
        });
        for pid in descendants(child.id()) {
            signal(pid, Signal::KILL);
        }
        signal(child.id(), Signal::CONT);
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
    });
}

/// The death of a worker that runs several jobs costs those that it has begun, and no others.
fn wide_worker_killed(scene: &Scene, step: Step, at: u32, retries: u32) {
    scene.arm(step, at, KILL);
    leaving_nothing(scene, || {
        let replaced = matches!(step, Step::Opened | Step::Ready | Step::Told).then_some(8);
        let mut pool = Pool::new(scene, replaced, retries);
        pool.work_until_struck(scene, step);
        pool.submit(ROUND);
        pool.listen_to_the_end();
        let all = pool.next;
        let lost = pool.close();
        let pid = scene.struck(step);
        for end in lost.values() {
            assert_eq!(*end, (Cause::Died, pid, ProcessEnd::Killed(9)));
        }
        let runs = scene.runs();
        assert!(runs.values().all(|&runs| runs <= 1 + retries), "{runs:?}");
        let again = runs.values().filter(|&&runs| runs > 1).count();
        assert!(lost.len() + again <= scene.width, "lost {lost:?}, {runs:?}");
        assert!(retries == 0 || lost.is_empty(), "{lost:?}");
        assert!(retries > 0 || takes_a_job(step) != Some(true) || !lost.is_empty());
        assert!((0..all).all(|number| runs.contains_key(&number) || lost.contains_key(&number)));
    });
}

/// Workers that spoil their own lanes fail their own jobs: nobody hangs, and no other worker's job is run twice or has a
/// wrong result.
fn rubbish_over_lanes(scene: &Scene) -> usize {
    scene.arm(Step::Opened, 0, 0);
    let mut lost = 0;
    leaving_nothing(scene, || {
        let mut pool = Pool::new(scene, None, 0);
        for _ in 0..6 {
            pool.submit(ROUND);
            pool.listen_to_the_end();
        }
        assert!(pool.lost.values().all(|lost| lost.0 == Cause::Died));
        let marks = scene.marks();
        let spoilt: BTreeSet<u64> = marks
            .iter()
            .filter(|(number, _)| *number == SCRIBBLED)
            .map(|&(_, worker)| worker)
            .collect();
        let mut honest = BTreeSet::new();
        for (number, _) in marks.iter().filter(|(_, worker)| !spoilt.contains(worker)) {
            assert!(honest.insert(*number), "job {number} was run twice");
            assert!(
                !pool.wrong.contains(number),
                "a wrong result of job {number}"
            );
        }
        pool.wrong.clear();
        lost = pool.close().len();
    });
    lost
}
