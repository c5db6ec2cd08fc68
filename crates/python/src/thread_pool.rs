//! `_rust.ThreadPool` and `_rust.ThreadPoolCore`: the engine's thread pool with Python calls as its jobs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plait_engine::ledger::{Ending, Model};
use plait_engine::sys::clock::monotonic_ns;
use plait_engine::thread_pool::{
    Deadlines, Next, Retired, SATURATED_FOR, Saturation, Submitted, ThreadPool as Engine, Worker,
};
use plait_engine::width::Controller;
use plait_sync::parker::{Parker, Unparker};
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use crate::callback::Callback;
use crate::future::Future;
use crate::gil::time_to_return;
use crate::ledger::{Ledger, Names};
use crate::thread_account::{Account, Accounts, Start};
use crate::waiting::{Wake, await_free_interpreter};

/// How long a worker goes from job to job, in nanoseconds, before it runs a little Python code. Between two steps of such code the
/// interpreter changes hands if somebody waits for it, stops for the garbage collector and so on; jobs that are C
/// functions never get there. (Letting go of the interpreter is no substitute: whoever has just let go of it takes
/// it again before those who waited have woken up.)
const PAUSE_INTERVAL: u64 = 100_000;
/// How often the regulator of an adaptive pool looks at it: while there is work, and while there is none.
const LOOKS_EVERY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// Whoever waits so long for the interpreter, on average, waits for threads that compute: those keep it for 5 ms.
const CONTENDED: Duration = Duration::from_millis(1);

/// One call and the future of its outcome.
struct Job {
    future: Py<Future>,
    callback: Callback,
    /// None for a job without options, as nearly all are.
    extras: Option<Box<Extras>>,
    /// When it was queued, on the monotonic clock.
    since_ns: u64,
}

impl Job {
    /// When it was submitted, which may be long before it was queued, as for another attempt.
    fn submitted_ns(&self) -> u64 {
        let extras = self.extras.as_ref();
        extras
            .and_then(|extras| extras.submitted_ns)
            .unwrap_or(self.since_ns)
    }

    /// For how many seconds it has been in the queue.
    fn waited(&self) -> f64 {
        Duration::from_nanos(monotonic_ns().saturating_sub(self.since_ns)).as_secs_f64()
    }
}

/// What `JobOptions` asks for.
#[derive(Clone)]
struct Extras {
    /// Seconds, as the user gave them.
    timeout: Option<f64>,
    /// How many there are left, and how many there were.
    retries: u32,
    asked: u32,
    name: String,
    /// An earlier attempt timed out: the future is running already.
    started: bool,
    /// When the job was submitted, if that was before it was queued.
    submitted_ns: Option<u64>,
}

/// What to do when the time of a running job is over.
struct Overdue {
    future: Py<Future>,
    /// The call to make again, if there are retries left.
    again: Option<Callback>,
    extras: Box<Extras>,
    submitted_ns: u64,
    began_ns: u64,
}

/// What the pool, its workers and its timer share. It outlives the pool while there are jobs.
struct Shared {
    engine: Engine<Job>,
    /// What a call returns is run to completion if it is a coroutine.
    runs_coroutines: bool,
    carries_context: bool,
    /// Only one thread at a time can run Python code.
    one_interpreter: bool,
    /// For how long a worker waits for a job before it leaves; None for ever.
    idle_timeout: Option<Duration>,
    /// An initializer failed: the pool takes no more jobs.
    broken: AtomicBool,
    deadlines: Mutex<Deadlines<Overdue>>,
    /// Wakes the timer, once there is one.
    timer: Mutex<Option<Unparker>>,
    has_timer: AtomicBool,
    /// Wakes the regulator, once there is one.
    regulator: Mutex<Option<Unparker>>,
    /// None if how many workers there may be does not change.
    has_regulator: Option<AtomicBool>,
    /// None if nobody wants to know what jobs cost.
    accounts: Option<Accounts>,
}

/// As in `future.rs`, nothing can panic half-way while one of these locks is held, and no Python code runs.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Wakes the timer and the regulator, if there are any.
    fn wake_keepers(&self) {
        for keeper in [&self.timer, &self.regulator] {
            let keeper = lock(keeper).clone();
            if let Some(keeper) = keeper {
                keeper.unpark();
            }
        }
    }

    fn close(&self) {
        self.engine.close();
        self.wake_keepers();
    }

    /// Runs one job to its outcome. Who has to be woken then is left to the caller: soon, but if possible when
    /// the interpreter is free, since they will want it.
    ///
    /// `start` says how this thread came to it.
    fn run<'py>(
        &self,
        py: Python<'py>,
        job: Job,
        run_coroutine: &Bound<'py, PyAny>,
        account: Option<&mut Account>,
        start: Start,
    ) -> Wake {
        let submitted_ns = job.submitted_ns();
        let Job {
            future,
            callback,
            extras,
            ..
        } = job;
        let future = future.into_bound(py);
        let run_coroutine = self.runs_coroutines.then_some(run_coroutine);
        if !extras.as_ref().is_some_and(|extras| extras.started) && !future.get().try_start() {
            self.note_unrun(py, &callback, extras.as_deref(), submitted_ns);
            Future::notify_cancelled(&future);
            return Wake::default();
        }
        let mut account = self.accounts.as_ref().zip(account);
        let name = extras.as_ref().map(|extras| extras.name.as_str());
        let running = account
            .as_mut()
            .map(|(_, account)| account.begin(name, callback.function().bind(py), start));
        let (outcome, retries) = match extras {
            None => (Some(callback.call(py, run_coroutine)), 0),
            Some(extras) => {
                let began_ns = running
                    .as_ref()
                    .map_or(0, crate::thread_account::Running::began_ns);
                let times = (submitted_ns, began_ns);
                self.run_with_options(py, &future, &callback, extras, run_coroutine, times)
            }
        };
        let cost = account
            .as_mut()
            .zip(running.as_ref())
            .map(|((accounts, account), running)| account.ran(accounts, running));
        // The destructors of the arguments may take long: before anybody is told, since the telling is put off.
        drop(callback);
        let Some(outcome) = outcome else {
            return Wake::default();
        };
        if let (Some((accounts, account)), Some(running), Some(cost)) = (account, running, cost) {
            let ending = match &outcome {
                Ok(_) => Ending::Returned,
                Err(_) => Ending::Raised,
            };
            account.write(accounts, &running, ending, submitted_ns, retries, cost);
        }
        Future::resolve_later(&future, split(py, outcome))
    }

    /// A job has ended without having begun.
    fn note_unrun(
        &self,
        py: Python<'_>,
        callback: &Callback,
        extras: Option<&Extras>,
        submitted_ns: u64,
    ) {
        if let Some(accounts) = &self.accounts {
            let name = |ledger: &plait_engine::ledger::Ledger| match extras {
                Some(extras) => ledger.name(&extras.name),
                None => Names::default().of(ledger, callback.function().bind(py)),
            };
            accounts.ended_beside(Ending::Cancelled, submitted_ns, name, |_| ());
        }
    }

    /// A job that began is over for its owner, though not for its thread, if that still runs it.
    fn note_timed_out(&self, extras: &Extras, submitted_ns: u64, began_ns: u64) {
        if let Some(accounts) = &self.accounts {
            let name = |ledger: &plait_engine::ledger::Ledger| ledger.name(&extras.name);
            accounts.ended_beside(Ending::TimedOut, submitted_ns, name, |record| {
                record.started_ns = began_ns;
                record.retries = extras.asked - extras.retries;
            });
        }
    }

    /// Makes the call until it succeeds or there are no retries left: its outcome, or None if the timer has taken over, and
    /// how often it was repeated. `times` are when the job was submitted, and when it began.
    #[allow(
        clippy::type_complexity,
        reason = "an outcome that may be missing, and a number"
    )]
    fn run_with_options<'py>(
        &self,
        py: Python<'py>,
        future: &Bound<'py, Future>,
        callback: &Callback,
        mut extras: Box<Extras>,
        run_coroutine: Option<&Bound<'py, PyAny>>,
        times: (u64, u64),
    ) -> (Option<PyResult<Bound<'py, PyAny>>>, u32) {
        extras.started = true;
        loop {
            let repeated = extras.asked - extras.retries;
            let ticket = match self.set_deadline(py, future, callback, &extras, times) {
                Ok(ticket) => ticket,
                Err(error) => return (Some(Err(error)), repeated),
            };
            let outcome = if extras.retries == 0 {
                callback.call(py, run_coroutine)
            } else {
                // Each attempt begins with the context as it was, and may overlap with one that timed out.
                callback
                    .copy(py)
                    .and_then(|attempt| attempt.call(py, run_coroutine))
            };
            if let Some(ticket) = ticket {
                let overdue = lock(&self.deadlines).take(ticket);
                if overdue.is_none() {
                    return (None, repeated);
                }
            }
            match outcome {
                Err(error) if extras.retries > 0 && is_retriable(py, &error) => extras.retries -= 1,
                outcome => return (Some(outcome), repeated),
            }
        }
    }

    fn set_deadline(
        &self,
        py: Python<'_>,
        future: &Bound<'_, Future>,
        callback: &Callback,
        extras: &Extras,
        (submitted_ns, began_ns): (u64, u64),
    ) -> PyResult<Option<plait_engine::thread_pool::Ticket>> {
        let limit = extras
            .timeout
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let Some(deadline) = limit.and_then(|limit| Instant::now().checked_add(limit)) else {
            return Ok(None);
        };
        let again = if extras.retries > 0 {
            Some(callback.copy(py)?)
        } else {
            None
        };
        let overdue = Overdue {
            future: future.clone().unbind(),
            again,
            extras: Box::new(extras.clone()),
            submitted_ns,
            began_ns,
        };
        let (ticket, early) = lock(&self.deadlines).insert(deadline, overdue);
        if early {
            self.wake_keepers();
        }
        Ok(Some(ticket))
    }

    /// The time of a running job is over.
    fn expire(&self, py: Python<'_>, overdue: Overdue) -> Submitted {
        let Overdue {
            future,
            again,
            mut extras,
            submitted_ns,
            began_ns,
        } = overdue;
        if let Some(callback) = again {
            extras.retries -= 1;
            extras.submitted_ns = Some(submitted_ns);
            return self.engine.submit_again(Job {
                future,
                callback,
                extras: Some(extras),
                since_ns: monotonic_ns(),
            });
        }
        if !future.get().is_done() {
            self.note_timed_out(&extras, submitted_ns, began_ns);
        }
        Future::resolve(future.bind(py), Err(timed_out(py, &extras)));
        Submitted::Queued
    }

    /// Gives jobs that nobody will run the outcome `error`.
    fn fail(&self, py: Python<'_>, jobs: VecDeque<Job>, error: &PyErr) {
        for job in jobs {
            self.note_unrun(py, &job.callback, job.extras.as_deref(), job.submitted_ns());
            let future = job.future.bind(py);
            if future.get().try_start() || job.extras.as_ref().is_some_and(|extras| extras.started)
            {
                Future::resolve(future, Err(error.clone_ref(py).into_value(py).into_any()));
            } else {
                Future::notify_cancelled(future);
            }
        }
    }
}

fn split(py: Python<'_>, outcome: PyResult<Bound<'_, PyAny>>) -> Result<Py<PyAny>, Py<PyAny>> {
    outcome
        .map(Bound::unbind)
        .map_err(|error| error.into_value(py).into_any())
}

/// The exception of a job whose time is over.
fn timed_out(py: Python<'_>, extras: &Extras) -> Py<PyAny> {
    static TASK_TIMEOUT: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    TASK_TIMEOUT
        .import(py, "plait.errors", "TaskTimeout")
        .and_then(|kind| kind.call1((&extras.name, extras.timeout)))
        .map_or_else(|error| error.into_value(py).into_any(), Bound::unbind)
}

/// Whether another attempt may do better: not if the job was cancelled or wants to end the program.
fn is_retriable(py: Python<'_>, error: &PyErr) -> bool {
    static CANCELLED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    error.is_instance_of::<PyException>(py)
        && CANCELLED
            .import(py, "concurrent.futures", "CancelledError")
            .is_ok_and(|cancelled| !error.is_instance(py, cancelled))
}

/// The options of a job that is to call `function`; None if there are none to see to.
fn read_options(
    options: &Bound<'_, PyAny>,
    function: &Bound<'_, PyAny>,
) -> PyResult<Option<Box<Extras>>> {
    static DEFAULT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static JOB_NAME: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = options.py();
    if options.is(DEFAULT.import(py, "plait._job", "DEFAULT_OPTIONS")?) {
        return Ok(None);
    }
    let timeout: Option<f64> = options.getattr(intern!(py, "timeout"))?.extract()?;
    let retries: i64 = options.getattr(intern!(py, "retries"))?.extract()?;
    if timeout.is_some_and(|seconds| seconds.is_nan() || seconds < 0.0) {
        let timeout = timeout.unwrap_or_default();
        return Err(PyValueError::new_err(format!(
            "timeout must be a number of seconds >= 0, not {timeout}"
        )));
    }
    let retries = u32::try_from(retries).map_err(|_| {
        PyValueError::new_err(format!(
            "retries must be between 0 and {}, not {retries}",
            u32::MAX
        ))
    })?;
    let since_ns: u64 = options.getattr(intern!(py, "since_ns"))?.extract()?;
    let has_name = !options.getattr(intern!(py, "name"))?.is_none();
    if timeout.is_none() && retries == 0 && since_ns == 0 && !has_name {
        return Ok(None);
    }
    let name = JOB_NAME
        .import(py, "plait._job", "job_name")?
        .call1((function, options))?
        .extract()?;
    Ok(Some(Box::new(Extras {
        timeout,
        retries,
        asked: retries,
        name,
        started: false,
        submitted_ns: (since_ns > 0).then_some(since_ns),
    })))
}

/// Raises the Ctrl-C that came while a thread was started, if one did: the thread runs all the same.
fn raise_interrupt(interrupt: Bound<'_, PyAny>) -> PyResult<()> {
    if interrupt.is_none() {
        Ok(())
    } else {
        Err(PyErr::from_value(interrupt))
    }
}

/// The base of `plait.thread_pool.ThreadPool`. Dropping it lets the workers leave when the queue is empty.
#[pyclass(frozen, subclass, weakref, module = "plait._rust")]
pub struct ThreadPool {
    shared: Arc<Shared>,
    /// Starts threads: `start_worker(core)`, `start_timer(core)`; says why a job is refused: `refuse(broken)`.
    crew: Py<PyAny>,
    future_type: Py<PyType>,
}

#[pymethods]
impl ThreadPool {
    /// Unless `is_plait` it leaves coroutines and contexts alone, as the standard pool does.
    #[new]
    #[allow(
        clippy::too_many_arguments,
        reason = "they are what Python's constructor takes"
    )]
    fn new(
        py: Python<'_>,
        workers: usize,
        crew: Py<PyAny>,
        future_type: Py<PyType>,
        is_plait: bool,
        is_adaptive: bool,
        idle_timeout: Option<f64>,
        ledger: Option<PyRef<'_, Ledger>>,
        model: &str,
    ) -> PyResult<Self> {
        let sys = py.import(intern!(py, "sys"))?;
        let one_interpreter = match sys.getattr_opt(intern!(py, "_is_gil_enabled"))? {
            Some(is_enabled) => is_enabled.call0()?.is_truthy()?,
            None => true,
        };
        let model = Model::of(model)
            .ok_or_else(|| PyValueError::new_err(format!("there is no model {model:?}")))?;
        let accounts = ledger.map(|ledger| Accounts::new(&ledger.inner, model, one_interpreter));
        let engine = Engine::new(workers);
        if is_adaptive {
            // No job waits yet, so there is nobody to be started.
            let _ = engine.set_width(Controller::new(1, workers, 0).get());
        }
        let shared = Arc::new(Shared {
            engine,
            runs_coroutines: is_plait,
            carries_context: is_plait,
            one_interpreter,
            idle_timeout: idle_timeout
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            broken: AtomicBool::new(false),
            deadlines: Mutex::new(Deadlines::new()),
            timer: Mutex::new(None),
            has_timer: AtomicBool::new(false),
            regulator: Mutex::new(None),
            has_regulator: is_adaptive.then(|| AtomicBool::new(false)),
            accounts,
        });
        Ok(Self {
            shared,
            crew,
            future_type,
        })
    }

    #[getter]
    fn workers(&self) -> usize {
        self.shared.engine.limit()
    }

    #[getter]
    fn broken(&self) -> bool {
        self.shared.broken.load(Ordering::Acquire)
    }

    /// How many jobs wait for a worker.
    #[getter]
    fn waiting(&self) -> usize {
        self.shared.engine.waiting()
    }

    /// (workers, running, waiting, present width, limit, seconds that the first job in the queue has waited)
    fn statistics(&self) -> (usize, usize, usize, usize, usize, f64) {
        let engine = &self.shared.engine;
        let known = engine.statistics();
        let longest = engine.look_at_first(Job::waited).unwrap_or(0.0);
        (
            known.workers,
            known.running,
            known.waiting,
            known.width,
            known.limit,
            longest,
        )
    }

    fn submit<'py>(
        &self,
        py: Python<'py>,
        r#fn: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
        options: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, Future>> {
        let extras = read_options(options, &r#fn)?;
        let future = Future::create(py, self.future_type.bind(py))?;
        let is_timed = extras
            .as_ref()
            .is_some_and(|extras| extras.timeout.is_some());
        if is_timed {
            self.start_once(py, &self.shared.has_timer, intern!(py, "start_timer"))?;
        }
        if let Some(started) = &self.shared.has_regulator {
            self.start_once(py, started, intern!(py, "start_regulator"))?;
        }
        let callback = Callback::new(r#fn, args, kwargs, self.shared.carries_context)?;
        let job = Job {
            future: future.clone().unbind(),
            callback,
            extras,
            since_ns: monotonic_ns(),
        };
        match self.shared.engine.submit(job) {
            Ok(Submitted::Queued) => {}
            Ok(Submitted::StartWorker) => {
                let started =
                    self.crew
                        .call_method1(py, intern!(py, "start_worker"), (self.core(),));
                match started {
                    Ok(interrupt) => raise_interrupt(interrupt.into_bound(py))?,
                    Err(error) => {
                        // With other workers at hand the job only waits a little longer; a Ctrl-C must not.
                        let stranded = self.shared.engine.worker_did_not_start();
                        let raise =
                            !stranded.is_empty() || !error.is_instance_of::<PyException>(py);
                        self.shared.fail(py, stranded, &error);
                        if raise {
                            return Err(error);
                        }
                    }
                }
            }
            Err(job) => {
                drop(job);
                self.crew
                    .call_method1(py, intern!(py, "refuse"), (self.broken(),))?;
                return Err(PyRuntimeError::new_err(
                    "cannot schedule new futures after shutdown",
                ));
            }
        }
        Ok(future)
    }

    /// What the pool's threads hold on to instead of the pool.
    fn core(&self) -> ThreadPoolCore {
        ThreadPoolCore {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Cancels the jobs that wait; those that wait for another attempt fail for the reason of the last one.
    fn cancel_waiting(&self, py: Python<'_>) -> PyResult<()> {
        let mut outcome = Ok(());
        for job in self.shared.engine.drain() {
            let future = job.future.bind(py);
            if let Some(extras) = job.extras.as_ref().filter(|extras| extras.started) {
                if !future.get().is_done() {
                    self.shared.note_timed_out(extras, job.submitted_ns(), 0);
                }
                Future::resolve(future, Err(timed_out(py, extras)));
                continue;
            }
            self.shared
                .note_unrun(py, &job.callback, None, job.submitted_ns());
            // A callback may want to end the program: not before the other jobs are seen to.
            outcome = outcome.and(future.call_method0(intern!(py, "cancel")).map(drop));
            Future::notify_cancelled(future);
        }
        outcome
    }

    /// In the child of a fork: no thread of the parent exists here. The jobs that waited are the parent's.
    fn forget_threads(&self) {
        let shared = &self.shared;
        shared.has_timer.store(false, Ordering::Release);
        if let Some(started) = &shared.has_regulator {
            started.store(false, Ordering::Release);
        }
        let jobs = shared.engine.forget_workers();
        let overdue = lock(&shared.deadlines).drain();
        let keepers = (lock(&shared.timer).take(), lock(&shared.regulator).take());
        for job in &jobs {
            job.future.get().abandon();
        }
        for overdue in &overdue {
            overdue.future.get().abandon();
        }
        drop((jobs, overdue, keepers));
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.crew)?;
        visit.call(&self.future_type)
    }
}

impl ThreadPool {
    /// Has a keeper of the pool started by `start`, a method of the crew, unless that has been done.
    fn start_once(
        &self,
        py: Python<'_>,
        done: &AtomicBool,
        start: &Bound<'_, PyString>,
    ) -> PyResult<()> {
        if done.load(Ordering::Acquire) || done.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        match self.crew.call_method1(py, start, (self.core(),)) {
            Ok(interrupt) => raise_interrupt(interrupt.into_bound(py)),
            Err(error) => {
                done.store(false, Ordering::Release);
                Err(error)
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// The part of a pool that its threads hold on to; it outlives the pool while there are jobs.
#[pyclass(frozen, module = "plait._rust")]
pub struct ThreadPoolCore {
    shared: Arc<Shared>,
}

#[pymethods]
impl ThreadPoolCore {
    /// How many workers there are, including those that are being started.
    #[getter]
    fn workers(&self) -> usize {
        self.shared.engine.workers()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.shared.engine.is_closed()
    }

    /// Takes no more jobs; workers leave when none waits.
    fn close(&self) {
        self.shared.close();
    }

    /// A worker's life: takes jobs and runs them until the pool is closed and none waits. `run_coroutine(coroutine)`
    /// runs one to completion in this thread; `pause()` is any Python code; the ledger knows the worker by `name`.
    fn work<'py>(
        &self,
        py: Python<'py>,
        run_coroutine: &Bound<'py, PyAny>,
        pause: &Bound<'py, PyAny>,
        name: &str,
    ) {
        let shared = &*self.shared;
        let accounts = shared.accounts.as_ref();
        let mut account = accounts.and_then(|accounts| accounts.open(name));
        let mut start = Start::Rested;
        let mut worker = Worker::new();
        let mut wake = Wake::default();
        let mut since_ns = monotonic_ns();
        loop {
            match shared.engine.next(&mut worker) {
                Next::Job(job) => {
                    wake.now();
                    wake = shared.run(py, job, run_coroutine, account.as_mut(), start);
                    let now_ns = monotonic_ns();
                    start = Start::AfterAnother(now_ns);
                    if shared.has_regulator.is_some() {
                        shared.engine.job_ended();
                    }
                    if now_ns.saturating_sub(since_ns) >= PAUSE_INTERVAL {
                        wake.now();
                        if let Err(error) = pause.call0() {
                            error.write_unraisable(py, None);
                        }
                        since_ns = monotonic_ns();
                        start = Start::AfterAnother(since_ns);
                    }
                }
                Next::Wait => {
                    let called = py.detach(|| {
                        wake.now();
                        let slept = match shared.idle_timeout {
                            Some(limit) => shared.engine.wait_for(&worker, limit)?,
                            None => shared.engine.wait(&worker),
                        };
                        if slept {
                            start = Start::Rested;
                            return Some(accounts.map(|_| monotonic_ns()));
                        }
                        if shared.one_interpreter {
                            await_free_interpreter();
                        }
                        Some(None)
                    });
                    if let Some((accounts, back_ns)) = accounts.zip(called.flatten()) {
                        accounts.asked(back_ns);
                    }
                    if called.is_none() {
                        start = Start::Rested;
                        match shared.engine.retire(&mut worker) {
                            Retired::Left => break,
                            Retired::Called => drop(py.detach(|| shared.engine.wait(&worker))),
                            Retired::Needed => {}
                        }
                    }
                    if start != Start::Rested {
                        start = Start::Waited;
                    }
                    since_ns = monotonic_ns();
                }
                Next::Leave => break,
            }
        }
        wake.now();
        if shared.engine.workers() == 0 {
            shared.wake_keepers();
        }
    }

    /// The regulator's life: adapts how many workers there are, until the pool is closed and they have left.
    /// `crew.start_worker(core)` starts a thread, `crew.saturated(limit, waiting, seconds, longest)` tells the user.
    fn regulate(&self, py: Python<'_>, crew: &Bound<'_, PyAny>) {
        let shared = &*self.shared;
        let engine = &shared.engine;
        let parker = Parker::new();
        *lock(&shared.regulator) = Some(parker.unparker());
        let began = Instant::now();
        let mut controller = Controller::new(1, engine.limit(), 0);
        let (mut mean_wait, mut is_idle) = (Duration::ZERO, false);
        let mut saturation = Saturation::default();
        while !(engine.is_closed() && engine.workers() == 0) {
            let pause = if is_idle {
                LOOKS_EVERY.1
            } else {
                LOOKS_EVERY.0
            };
            let wait = time_to_return(py, || {
                parker.park_until(Instant::now() + pause);
            });
            mean_wait = mean_wait * 3 / 4 + wait / 4;
            let known = engine.statistics();
            let is_saturated = known.waiting > 0 && known.running >= known.width;
            let is_contended = shared.one_interpreter && mean_wait > CONTENDED;
            let ended = engine.take_ended();
            is_idle = ended == 0 && known.waiting == 0;
            let now = Instant::now();
            let now_ns = now.duration_since(began).as_nanos() as u64;
            if let Some(width) = controller.observe(ended, is_saturated, is_contended, now_ns) {
                for _ in 0..engine.set_width(width) {
                    self.start_worker(py, crew);
                }
            }
            let is_full = is_saturated && known.width >= known.limit;
            if saturation.observe(is_full, now.duration_since(began)) {
                let longest = engine.look_at_first(Job::waited);
                let told = (
                    known.limit,
                    known.waiting,
                    SATURATED_FOR.as_secs_f64(),
                    longest.unwrap_or(0.0),
                );
                if let Err(error) = crew.call_method1(intern!(py, "saturated"), told) {
                    error.write_unraisable(py, None);
                }
            }
        }
    }

    /// The timer's life: sees to the jobs whose time is over, until the pool is closed and its workers have left.
    /// `crew.start_worker(core)` starts a thread.
    fn keep_time(&self, py: Python<'_>, crew: &Bound<'_, PyAny>) {
        let shared = &*self.shared;
        let parker = Parker::new();
        *lock(&shared.timer) = Some(parker.unparker());
        loop {
            let now = Instant::now();
            loop {
                let overdue = lock(&shared.deadlines).expired(now);
                let Some(overdue) = overdue else { break };
                if shared.expire(py, overdue) == Submitted::StartWorker {
                    self.start_worker(py, crew);
                }
            }
            let alarm = lock(&shared.deadlines).set_alarm();
            if alarm.is_none() && shared.engine.is_closed() && shared.engine.workers() == 0 {
                break;
            }
            py.detach(|| match alarm {
                Some(alarm) => drop(parker.park_until(alarm)),
                None => parker.park(),
            });
        }
    }

    /// A worker's initializer failed with `error`'s reason: no job can be run any more. The worker must leave.
    fn break_down(&self, py: Python<'_>, error: Bound<'_, PyAny>) {
        let shared = &*self.shared;
        shared.broken.store(true, Ordering::Release);
        shared.close();
        let mut jobs = shared.engine.worker_did_not_start();
        jobs.extend(shared.engine.drain());
        self.shared.fail(py, jobs, &PyErr::from_value(error));
        if shared.engine.workers() == 0 {
            shared.wake_keepers();
        }
    }
}

impl ThreadPoolCore {
    /// Has a thread started that the engine asked for.
    fn start_worker(&self, py: Python<'_>, crew: &Bound<'_, PyAny>) {
        let core = Self {
            shared: Arc::clone(&self.shared),
        };
        if let Err(error) = crew.call_method1(intern!(py, "start_worker"), (core,)) {
            self.shared
                .fail(py, self.shared.engine.worker_did_not_start(), &error);
        }
    }
}
