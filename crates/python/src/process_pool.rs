//! The process pool and a worker's end of it: bytes, buffers and futures in, engine calls out.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{IntoRawFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plait_engine::ledger::meter::Cost;
use plait_engine::ledger::{Ledger as EngineLedger, Model, Place};
use plait_engine::process_pool::state::Cause;
use plait_engine::process_pool::{
    Bytes, Call, Deliver, Function as EngineFunction, Handle, Helper, Job, Launch,
    Listener as EngineListener, Note, Origin, Outcome, Payload, ProcessEnd,
    ProcessPool as EnginePool, Refused, Settings, Worker as EngineWorker, protocol::Status,
};
use plait_engine::shared_memory::Segment;
use plait_engine::sys::clock::monotonic_ns;
use plait_engine::sys::doorbell::Doorbell;
use plait_engine::sys::heap;
use plait_engine::sys::mapping::Mapping;
use plait_engine::sys::process;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyType};

use crate::future::{Future, Help};
use crate::ledger::{Ledger, Names, name_of};
use crate::map_items::MapItems;
use crate::plain;
use crate::plain_calls::PlainCalls;
use crate::shared_memory::{Contiguous, adopt, list_of_buffers, to_python};
use crate::waiting::Wake;

/// A timeout that nobody lives to see: three thousand years.
const FOR_EVER: f64 = 1e11;
/// Other threads run while more bytes than this are copied.
const WORTH_DETACHING: usize = 1 << 20;
/// How often a thread that waits for a pool to close looks for signals such as Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(40);

/// What is wanted back with a job's outcome.
pub(crate) struct Handed {
    future: Py<Future>,
    /// The job's name, or the function to take it from.
    name: Py<PyAny>,
    timeout: Option<Duration>,
}

impl Handle for Handed {
    fn try_start(&self) -> bool {
        self.future.get().try_start()
    }
}

/// Resolves futures on the collector's thread.
pub(crate) struct Resolver {
    exception_of: Option<Py<PyAny>>,
    ledger: Option<EngineLedger>,
}

/// What the collector delivers to.
struct Sink {
    resolver: Arc<Resolver>,
    /// Takes what workers say besides answers (its `tell`), and that there will be no more of it (its `end`).
    notes: Option<Py<PyAny>>,
}

impl Resolver {
    pub(crate) fn value(
        &self,
        py: Python<'_>,
        name: &Py<PyAny>,
        timeout: Option<Duration>,
        outcome: Outcome,
    ) -> PyResult<Result<Py<PyAny>, Py<PyAny>>> {
        let lost = |kind: &str, pid: u32, end: ProcessEnd, text: &str| {
            let (exitcode, signal) = match end {
                ProcessEnd::Exited(status) => (Some(status), None),
                ProcessEnd::Killed(signal) => (None, Some(signal)),
                ProcessEnd::Unknown => (None, None),
            };
            let timeout = timeout.map(|limit| limit.as_secs_f64());
            let arguments = (kind, name, pid, exitcode, signal, timeout, text);
            match &self.exception_of {
                Some(exception_of) => exception_of.call1(py, arguments),
                None => Err(PyRuntimeError::new_err("the pool is closed")),
            }
        };
        match outcome {
            Outcome::Answer {
                status: Status::Nothing,
                ..
            }
            | Outcome::Cancelled => Ok(Ok(py.None())),
            Outcome::Answer {
                status: Status::Value,
                payload,
                buffers,
                place,
            } => self.loads(py, payload, buffers, place).map(Ok),
            Outcome::Answer {
                status: Status::Raised,
                payload,
                buffers,
                ..
            } => {
                let payload = to_python(py, payload, false)?;
                let load = py.import("plait._serialize")?.getattr("loads_exception")?;
                load.call1((payload, list_of_buffers(py, buffers)?, name))
                    .map(|error| Err(error.unbind()))
            }
            Outcome::Answer {
                status: Status::Unpicklable,
                payload,
                ..
            } => {
                let text = match payload {
                    Bytes::Inline(bytes) => bytes,
                    Bytes::Shared(lease) => lease.to_vec(),
                };
                lost(
                    "unpicklable",
                    0,
                    ProcessEnd::Unknown,
                    &String::from_utf8_lossy(&text),
                )
                .map(Err)
            }
            Outcome::Lost {
                cause,
                pid,
                end,
                text,
            } => {
                let kind = match cause {
                    Cause::Died => "died",
                    Cause::Overdue => "overdue",
                    Cause::Unusable => "unusable",
                    Cause::Terminated => "terminated",
                    Cause::TooLarge => "too large",
                };
                lost(kind, pid, end, &text).map(Err)
            }
        }
    }

    /// A value. What took longer than that of the plainest ones is noted in the ledger.
    fn loads(
        &self,
        py: Python<'_>,
        payload: Bytes,
        buffers: Vec<Bytes>,
        place: Option<Place>,
    ) -> PyResult<Py<PyAny>> {
        if let Bytes::Inline(pickle) = &payload
            && let Some(value) = plain::read(py, pickle)
        {
            return Ok(value.unbind());
        }
        let Some((ledger, place)) = self.ledger.as_ref().zip(place) else {
            return loads(py, payload, buffers);
        };
        let began_ns = monotonic_ns();
        let value = loads(py, payload, buffers);
        let took_ns = monotonic_ns().saturating_sub(began_ns);
        ledger.amend(place, |record| record.result_ns += took_ns);
        value
    }

    fn resolve(&self, py: Python<'_>, handed: Handed, outcome: Outcome) -> Wake {
        let future = handed.future.bind(py);
        if matches!(outcome, Outcome::Cancelled) {
            // Cancelled by its owner before it was sent, or by the pool that is being shut down.
            Future::give_up(future);
            return Wake::default();
        }
        let outcome = match self.value(py, &handed.name, handed.timeout, outcome) {
            Ok(outcome) => outcome,
            // Unpickling runs the user's code, which may raise: that is the job's outcome then.
            Err(error) => Err(error.into_value(py).into_any()),
        };
        Future::resolve_later(future, outcome)
    }
}

fn loads(py: Python<'_>, payload: Bytes, buffers: Vec<Bytes>) -> PyResult<Py<PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if let Bytes::Inline(pickle) = &payload
        && let Some(value) = plain::read(py, pickle)
    {
        return Ok(value.unbind());
    }
    let loads = LOADS.import(py, "pickle", "loads")?;
    let payload = to_python(py, payload, false)?;
    if buffers.is_empty() {
        return loads.call1((payload,)).map(Bound::unbind);
    }
    let options = PyDict::new(py);
    options.set_item(intern!(py, "buffers"), list_of_buffers(py, buffers)?)?;
    loads.call((payload,), Some(&options)).map(Bound::unbind)
}

impl Deliver<Handed> for Sink {
    fn deliver(&mut self, batch: Vec<(Handed, Outcome)>) {
        let mut batch = Some(batch);
        let woken = Python::try_attach(|py| {
            let mut wake = Wake::default();
            for (handed, outcome) in batch.take().into_iter().flatten() {
                wake.merge(self.resolver.resolve(py, handed, outcome));
            }
            wake
        });
        match woken {
            Some(mut wake) => wake.now(),
            // The interpreter is going away, and nobody may touch its objects any more.
            None => std::mem::forget(batch),
        }
    }

    fn tell(&mut self, notes: Vec<Note>) {
        // Without an interpreter there is nobody to tell.
        Python::try_attach(|py| {
            let told = notes
                .into_iter()
                .map(|note| Ok((note.kind, to_python(py, note.payload, false)?)))
                .collect::<PyResult<Vec<_>>>()
                .and_then(|list| match &self.notes {
                    Some(notes) => notes
                        .call_method1(py, intern!(py, "tell"), (list,))
                        .map(drop),
                    None => Ok(()),
                });
            if let Err(error) = told {
                error.write_unraisable(py, None);
            }
        });
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let mut notes = self.notes.take();
        // As in a resolver's end.
        Python::try_attach(|py| {
            let ended = notes
                .take()
                .map(|notes| notes.call_method0(py, intern!(py, "end")));
            if let Some(Err(error)) = ended {
                error.write_unraisable(py, None);
            }
        });
        std::mem::forget(notes);
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let exception_of = self.exception_of.take();
        // Dropped on the collector's thread, which is not attached; without an interpreter it can only be left.
        if Python::try_attach(|_| ()).is_some() {
            Python::attach(|_| drop(exception_of));
        } else {
            std::mem::forget(exception_of);
        }
    }
}

/// Lets a thread in `result()` hear workers itself.
pub(crate) struct PoolHelper {
    pool: Helper<Handed>,
    pub(crate) resolver: Arc<Resolver>,
    /// A `Listener`.
    listener: Py<PyAny>,
    /// Whether a job that runs can be cancelled: the standard's executor cannot.
    cancels_running: bool,
}

impl Help for PoolHelper {
    fn cancel(&self, future: &Bound<'_, Future>, job: u64) -> bool {
        if !self.cancels_running {
            return false;
        }
        let handed = future.py().detach(|| self.pool.cancel(job));
        let cancelled = handed.is_some();
        if cancelled {
            Future::give_up(future);
        }
        cancelled
    }

    fn listener(&self) -> Option<&Py<PyAny>> {
        Some(&self.listener)
    }

    fn help(&self, future: &Bound<'_, Future>) {
        let (py, this) = (future.py(), future.get());
        let address = std::ptr::from_ref(this).addr();
        let found = py.detach(|| {
            self.pool.help(
                || this.is_done(),
                |handed| {
                    let candidate = handed.future.get();
                    std::ptr::from_ref(candidate).addr() == address && candidate.is_plain()
                },
            )
        });
        if let Some((handed, outcome)) = found {
            self.resolver.resolve(py, handed, outcome).now();
        }
    }
}

/// Lets an event loop hear the workers of a pool itself. `plait._awaiting` is the loop's side.
#[pyclass(frozen, module = "plait._rust")]
pub struct Listener {
    pool: EngineListener<Handed>,
    resolver: Arc<Resolver>,
    /// The addresses of the futures that the loop waits for.
    awaited: Mutex<HashSet<usize>>,
    /// How many there were so far.
    expected: AtomicU64,
}

impl Listener {
    fn awaited(&self) -> MutexGuard<'_, HashSet<usize>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Listener {
    /// From now on the caller hears workers: the descriptor to poll, which is the caller's to close; `None` if another
    /// loop does, or the pool is closed.
    fn begin(&self, py: Python<'_>) -> Option<RawFd> {
        py.detach(|| self.pool.begin()).map(IntoRawFd::into_raw_fd)
    }

    /// Resolves the futures that the loop waits for and whose jobs have ended.
    fn hear(&self, py: Python<'_>) {
        let heard = py.detach(|| {
            self.pool.hear(|handed| {
                let address = std::ptr::from_ref(handed.future.get()).addr();
                self.awaited().contains(&address)
            })
        });
        let mut wake = Wake::default();
        for (handed, outcome) in heard {
            wake.merge(self.resolver.resolve(py, handed, outcome));
        }
        wake.now();
    }

    /// The pool's own thread hears workers again.
    fn end(&self, py: Python<'_>) {
        py.detach(|| self.pool.end());
    }

    /// The loop waits for `future`, which it keeps alive until `forget`.
    fn expect(&self, future: &Bound<'_, Future>) {
        let address = std::ptr::from_ref(future.get()).addr();
        self.awaited().insert(address);
        self.expected.fetch_add(1, Ordering::Relaxed);
    }

    /// The loop does not wait for `future` any more.
    fn forget(&self, future: &Bound<'_, Future>) {
        let address = std::ptr::from_ref(future.get()).addr();
        self.awaited().remove(&address);
    }

    /// Whether the loop waits for anything.
    fn awaits(&self) -> bool {
        !self.awaited().is_empty()
    }

    /// How many futures the loop has waited for so far.
    #[getter]
    fn expected(&self) -> u64 {
        self.expected.load(Ordering::Relaxed)
    }
}

/// A function as a pool sends it.
#[pyclass(frozen, module = "plait._rust")]
pub struct Function {
    inner: Arc<EngineFunction>,
}

/// A pool of worker processes. `plait.process_pool.ProcessPool` is its face.
#[pyclass(frozen, module = "plait._rust")]
pub struct ProcessPool {
    pub(crate) inner: EnginePool<Handed>,
    pub(crate) helper: Arc<PoolHelper>,
    future_type: Py<PyType>,
    pub(crate) ledger: Option<EngineLedger>,
    names: Mutex<Names>,
}

fn no_room() -> PyErr {
    PyMemoryError::new_err("no room in the memory shared with worker processes")
}

fn to_duration(what: &str, seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let convert = |seconds: f64| {
        Duration::try_from_secs_f64(seconds).map_err(|_| {
            PyValueError::new_err(format!(
                "{what} must be a number of seconds >= 0, not {seconds}"
            ))
        })
    };
    seconds
        // So long is for ever, and NaN is refused below.
        .filter(|seconds| seconds.is_nan() || *seconds < FOR_EVER)
        .map(convert)
        .transpose()
}

impl ProcessPool {
    /// A call's pickle and buffers, where workers find them, and the segments whose tickets are among them.
    pub(crate) fn payloads(
        &self,
        py: Python<'_>,
        payload: &[u8],
        buffers: &[Bound<'_, PyAny>],
    ) -> PyResult<Payloads> {
        let mut room = EnginePool::<Handed>::INLINE_ROOM / 2;
        let mut kept = Vec::new();
        let arguments = self
            .inner
            .payload(payload, &mut room)
            .ok_or_else(|| self.no_room(py))?;
        let buffers: PyResult<Vec<Payload>> = buffers
            .iter()
            .map(|buffer| {
                let buffer = Contiguous::get(buffer)?;
                kept.extend(buffer.segment(py));
                let bytes = buffer.bytes();
                let payload = if bytes.len() < WORTH_DETACHING {
                    self.inner.payload(bytes, &mut room)
                } else {
                    py.detach(|| self.inner.payload(bytes, &mut room))
                };
                payload.ok_or_else(|| self.no_room(py))
            })
            .collect();
        Ok(Payloads {
            arguments,
            buffers: buffers?,
            kept,
        })
    }

    /// The number of a job's name in the ledger; `name` is the name, or the function to take it from.
    pub(crate) fn name(&self, name: &Bound<'_, PyAny>) -> u32 {
        let Some(ledger) = &self.ledger else {
            return 0;
        };
        let name = match name.cast::<PyString>() {
            Ok(text) => Some(text.clone()),
            Err(_) => name_of(name),
        };
        // Not earlier: no Python code runs under this lock.
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let text = name.as_ref().and_then(|name| name.to_str().ok());
        text.map_or(0, |text| names.number(ledger, text))
    }

    /// Why there is no place for a payload.
    fn no_room(&self, py: Python<'_>) -> PyErr {
        match self.inner.forked() {
            Some(refused) => refusal(py, refused),
            None => no_room(),
        }
    }
}

#[pymethods]
impl ProcessPool {
    #[new]
    #[allow(
        clippy::too_many_arguments,
        reason = "they are what Python's constructor takes"
    )]
    fn new(
        py: Python<'_>,
        workers: usize,
        jobs_per_worker: Option<u32>,
        width: Option<usize>,
        cancel_grace: Option<f64>,
        idle_timeout: Option<f64>,
        cancels_running: bool,
        command: Vec<OsString>,
        configuration: Vec<u8>,
        future_type: Py<PyType>,
        exception_of: Py<PyAny>,
        notes: Py<PyAny>,
        ledger: Option<PyRef<'_, Ledger>>,
        model: &str,
    ) -> PyResult<Self> {
        let ledger = ledger.map(|ledger| ledger.inner.clone());
        let model = Model::of(model)
            .ok_or_else(|| PyValueError::new_err(format!("there is no model {model:?}")))?;
        let launch = Launch {
            command,
            configuration,
        };
        let resolver = Arc::new(Resolver {
            exception_of: Some(exception_of),
            ledger: ledger.clone(),
        });
        let sink = Sink {
            resolver: Arc::clone(&resolver),
            notes: Some(notes),
        };
        let settings = Settings {
            workers,
            width: width.unwrap_or(MOST_WIDTH),
            adapts_width: width.is_none(),
            jobs_per_worker,
            cancel_grace: to_duration("cancel_grace", cancel_grace)?,
            idle_timeout: to_duration("idle_timeout", idle_timeout)?,
            ledger: ledger.clone().map(|ledger| (ledger, model)),
        };
        let inner = EnginePool::new(settings, launch, sink)?;
        let listener = Listener {
            pool: inner.listener(),
            resolver: Arc::clone(&resolver),
            awaited: Mutex::default(),
            expected: AtomicU64::new(0),
        };
        let helper = Arc::new(PoolHelper {
            pool: inner.helper(),
            resolver,
            listener: Py::new(py, listener)?.into_any(),
            cancels_running,
        });
        Ok(Self {
            inner,
            helper,
            future_type,
            ledger,
            names: Mutex::default(),
        })
    }

    /// A function that jobs can name, kept by workers in `slot`, or sent along with each job.
    fn function(&self, py: Python<'_>, slot: Option<u64>, definition: &[u8]) -> PyResult<Function> {
        self.inner
            .function(slot, definition)
            .map(|inner| Function { inner })
            .ok_or_else(|| self.no_room(py))
    }

    /// Queues a job; its future.
    #[allow(
        clippy::too_many_arguments,
        reason = "one call instead of seven is what makes it fast"
    )]
    fn submit<'py>(
        &self,
        py: Python<'py>,
        function: &Bound<'py, Function>,
        payload: &[u8],
        buffers: Vec<Bound<'py, PyAny>>,
        name: Py<PyAny>,
        timeout: Option<f64>,
        retries: u32,
        since_ns: u64,
        pickled_ns: u64,
    ) -> PyResult<Bound<'py, Future>> {
        let timeout = to_duration("timeout", timeout)?;
        let Payloads {
            arguments,
            buffers,
            kept,
        } = self.payloads(py, payload, &buffers)?;
        let job = Job {
            function: Arc::clone(&function.get().inner),
            arguments,
            buffers,
            timeout,
            retries,
            kept,
            origin: Origin {
                name: self.name(name.bind(py)),
                submitted_ns: since_ns,
                pickled_ns,
            },
        };
        let future = Future::create(py, self.future_type.bind(py))?;
        let handed = Handed {
            future: future.clone().unbind(),
            name,
            timeout,
        };
        let job = self
            .inner
            .submit(handed, job)
            .map_err(|(_, refused)| refusal(py, refused))?;
        future
            .get()
            .set_helper(Arc::clone(&self.helper) as Arc<dyn Help>, job);
        Ok(future)
    }

    /// A way for the items of a map. `pickle` gives the pickle and the buffers of a tuple of arguments; `refuse` the
    /// exception for arguments that it raised one for.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is one thing that is known of the map"
    )]
    fn map_items(
        slf: &Bound<'_, Self>,
        function: &Bound<'_, Function>,
        name: Py<PyAny>,
        timeout: Option<f64>,
        retries: u32,
        ordered: bool,
        pickle: Py<PyAny>,
        refuse: Py<PyAny>,
    ) -> PyResult<MapItems> {
        let function = Arc::clone(&function.get().inner);
        let timeout = to_duration("timeout", timeout)?;
        Ok(MapItems::new(
            slf, function, name, timeout, retries, ordered, pickle, refuse,
        ))
    }

    /// Zygotes that are started from now on are handed this.
    fn configure(&self, configuration: Vec<u8>) {
        self.inner.configure(configuration);
    }

    /// Has workers forked by process `pid`, a zygote that this process has forked, whose link is the descriptor `link`.
    fn adopt_zygote(&self, link: RawFd, pid: u32) -> PyResult<()> {
        Ok(self.inner.adopt_zygote(adopt(link), pid)?)
    }

    /// No more jobs; with `cancel`, those that were not sent are cancelled.
    fn shut_down(&self, py: Python<'_>, cancel: bool) {
        py.detach(|| self.inner.shut_down(cancel));
    }

    /// No more jobs, and every one that has not ended is cancelled; those that run are interrupted.
    fn cancel_all(&self, py: Python<'_>) {
        py.detach(|| self.inner.cancel_all());
    }

    /// Ends every worker now.
    fn terminate(&self, py: Python<'_>) {
        py.detach(|| self.inner.terminate());
    }

    /// Waits until every job has ended and everything is given back; false if that takes longer than `timeout` seconds.
    /// Ctrl-C interrupts.
    #[pyo3(signature = (timeout = None))]
    fn wait_closed(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let timeout = to_duration("timeout", timeout)?;
        let began = Instant::now();
        loop {
            let left = timeout.map_or(SIGNAL_INTERVAL, |limit| {
                limit.saturating_sub(began.elapsed())
            });
            if py.detach(|| self.inner.wait_closed(left.min(SIGNAL_INTERVAL))) {
                return Ok(true);
            }
            py.check_signals()?;
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// What the pool is doing at the moment.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = py.detach(|| self.inner.statistics());
        let dict = PyDict::new(py);
        dict.set_item("jobs", statistics.jobs)?;
        dict.set_item("pending", statistics.pending)?;
        dict.set_item("workers", statistics.workers)?;
        dict.set_item("blocks", statistics.blocks)?;
        dict.set_item("width", statistics.width)?;
        dict.set_item(
            "waited",
            Duration::from_nanos(statistics.waited_ns).as_secs_f64(),
        )?;
        Ok(dict)
    }
}

/// What a call is sent with.
pub(crate) struct Payloads {
    pub(crate) arguments: Payload,
    pub(crate) buffers: Vec<Payload>,
    pub(crate) kept: Vec<Arc<Segment>>,
}

pub(crate) fn refusal(py: Python<'_>, refused: Refused) -> PyErr {
    match refused {
        Refused::ShutDown => PyRuntimeError::new_err("cannot schedule new futures after shutdown"),
        Refused::Unusable(text) => {
            let message = format!("no worker of the pool can be used: {text}");
            let broken = py
                .import("concurrent.futures.process")
                .and_then(|module| module.getattr("BrokenProcessPool"))
                .and_then(|class| class.call1((message,)));
            broken.map_or_else(|error| error, PyErr::from_value)
        }
        Refused::Forked { owner } => PyRuntimeError::new_err(format!(
            "this pool belongs to process {owner}, of which this one is a fork; make a new pool here"
        )),
    }
}

/// How many jobs a worker can run at once at most.
pub const MOST_WIDTH: usize = EnginePool::<Handed>::MOST_WIDTH;

/// A worker's end of its lane. One thread of the worker takes calls; any may answer them, meanwhile, in any order.
#[pyclass(frozen, module = "plait._rust")]
pub struct Worker {
    inner: EngineWorker,
    /// The call that was taken and not handed out.
    call: Mutex<Option<Call>>,
    plain: PlainCalls,
}

pub(crate) fn lost_pool(error: &io::Error) -> PyErr {
    if error.kind() == io::ErrorKind::OutOfMemory {
        return no_room();
    }
    PyRuntimeError::new_err(format!(
        "the pool of this worker cannot be reached: {error}"
    ))
}

impl Worker {
    fn taken(&self) -> MutexGuard<'_, Option<Call>> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Worker {
    /// Takes over the descriptors that the zygote has received.
    #[new]
    fn new(lane: RawFd, arguments: RawFd, doorbell: RawFd) -> PyResult<Self> {
        let lane = Mapping::open(adopt(lane))?;
        let arguments = Mapping::open(adopt(arguments))?;
        let worker = EngineWorker::new(lane, arguments, Doorbell::from_fd(adopt(doorbell)))?;
        WORKS_HERE.store(process::id(), Ordering::Relaxed);
        heap::keep();
        Ok(Self {
            inner: worker,
            call: Mutex::new(None),
            plain: PlainCalls::default(),
        })
    }

    /// From now on the pool is told, once, when this process uses more than `limit` bytes of memory of its own.
    fn limit_memory(&self, limit: u64) {
        self.inner.limit_memory(limit);
    }

    /// From now on nobody wants to know what jobs cost.
    fn forgo_accounts(&self) {
        self.inner.forgo_accounts();
    }

    /// The jobs that run here and that the pool has asked to end.
    fn interrupted(&self) -> Vec<u64> {
        self.inner.interrupted()
    }

    /// Tells the pool that this worker takes jobs.
    fn ready(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.ready())
            .map_err(|error| lost_pool(&error))
    }

    /// Tells the pool that no worker can be used, and why.
    fn unusable(&self, py: Python<'_>, text: &str) -> PyResult<()> {
        py.detach(|| self.inner.unusable(text.as_bytes()))
            .map_err(|error| lost_pool(&error))
    }

    /// Says something besides answers; any thread may. Raises `MemoryError` if there is no room for so much.
    fn note(&self, py: Python<'_>, kind: u8, payload: &[u8]) -> PyResult<()> {
        py.detach(|| self.inner.note(kind, payload))
            .map_err(|error| lost_pool(&error))
    }

    /// Waits for a call and begins it: the job's number, or `None` if the worker is to leave.
    fn take(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        loop {
            match self.inner.take().map_err(|error| lost_pool(&error))? {
                Some(Call::Stop) => return Ok(None),
                Some(call @ Call::Run { job, .. }) => {
                    *self.taken() = Some(call);
                    return Ok(Some(job));
                }
                None => {
                    let limit = look_after(py)?;
                    py.detach(|| self.inner.wait(limit))
                        .map_err(|error| lost_pool(&error))?;
                    py.check_signals()?;
                }
            }
        }
    }

    /// As [`Self::take`], but runs plain calls itself, and answers them: gives the first that is none. `server` is told
    /// which function runs, and does what cannot be done here.
    fn take_plain(slf: &Bound<'_, Self>, server: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
        let (py, this) = (slf.py(), slf.get());
        let function = intern!(py, "function");
        let mut running: Option<u64> = None;
        let mut pickle = Vec::new();
        let mut count = 0_u8;
        loop {
            match this.inner.take().map_err(|error| lost_pool(&error))? {
                Some(Call::Stop) => return Ok(None),
                Some(call) => {
                    let Some(plain) = this.plain.find(py, &call) else {
                        let Call::Run { job, .. } = call else {
                            return Ok(None);
                        };
                        *this.taken() = Some(call);
                        return Ok(Some(job));
                    };
                    if running != Some(plain.slot) {
                        server.setattr(function, &plain.function)?;
                        running = Some(plain.slot);
                    }
                    this.plain.run(&this.inner, server, plain, &mut pickle)?;
                    // A function written in C looks at neither signals nor other threads.
                    count = count.wrapping_add(1);
                    if count == 0 {
                        py.detach(|| ());
                        py.check_signals()?;
                    }
                }
                None => {
                    if running.take().is_some() {
                        server.setattr(function, py.None())?;
                    }
                    let limit = look_after(py)?;
                    py.detach(|| this.inner.wait(limit))
                        .map_err(|error| lost_pool(&error))?;
                    py.check_signals()?;
                }
            }
        }
    }

    /// From now on plain calls of what is in `slot` are run by [`Self::take_plain`].
    #[pyo3(signature = (slot, function))]
    fn learn(&self, slot: u64, function: Option<Py<PyAny>>) {
        self.plain.learn(slot, function);
    }

    /// Whether a function runs that [`Self::take_plain`] has called.
    fn calling(&self) -> bool {
        self.plain.calling.load(Ordering::Relaxed)
    }

    /// In a fork that a job has made: answers go through the server, which knows what to do.
    fn leave(&self) {
        self.plain.left.store(true, Ordering::Relaxed);
    }

    /// The parts of the call that was taken, unless its job has been interrupted since it was begun: function number, its definition if it is new, arguments, buffers.
    #[allow(clippy::type_complexity, reason = "it is a tuple in Python")]
    fn call<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(
        u64,
        Option<Bound<'py, PyAny>>,
        Bound<'py, PyAny>,
        Bound<'py, PyList>,
    )> {
        let call = self.taken().take();
        let Some(Call::Run {
            job,
            slot,
            definition,
            arguments,
            buffers,
        }) = call
        else {
            return Err(PyRuntimeError::new_err("no call was taken"));
        };
        let definition = definition
            .map(|bytes| to_python(py, bytes, false))
            .transpose()?;
        let parts = (
            slot,
            definition,
            to_python(py, arguments, false)?,
            list_of_buffers(py, buffers)?,
        );
        // A signal that came before the caller was able to heed it was about this.
        if self.inner.is_interrupted(job) {
            let cancelled = py.import("plait._interrupt")?.getattr("TaskCancelled")?;
            return Err(PyErr::from_value(cancelled.call0()?));
        }
        Ok(parts)
    }

    /// Calls a job's function; what that costs goes with its answer.
    fn invoke<'py>(
        &self,
        job: u64,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let begun = self.inner.calls(job);
        let outcome = function.call(args, kwargs);
        self.inner.returned(job, begun);
        outcome
    }

    /// A job's coroutine, which `invoke` gave, has ended: its steps, as `Steps.cost` gives them, go with the answer.
    fn add_steps(&self, job: u64, cost: (u64, u64, u64)) {
        let (cpu_ns, children_ns, delayed_ns) = cost;
        let cost = Cost {
            run_ns: 0,
            cpu_ns,
            children_ns,
            gil_ns: 0,
            delayed_ns,
        };
        self.inner.add_cost(job, monotonic_ns(), &cost);
    }

    /// Publishes the answer of a job. Raises `MemoryError` if there is no room for it in shared memory.
    fn answer(
        &self,
        py: Python<'_>,
        job: u64,
        status: u8,
        payload: &[u8],
        buffers: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let status = match status {
            0 => Status::Value,
            1 => Status::Nothing,
            2 => Status::Raised,
            _ => Status::Unpicklable,
        };
        if buffers.is_empty() {
            return self
                .inner
                .answer(job, status, payload, &[])
                .map_err(|error| lost_pool(&error));
        }
        let views: Vec<Contiguous> = buffers
            .iter()
            .map(Contiguous::get)
            .collect::<PyResult<_>>()?;
        let own = |view: &Contiguous| {
            view.segment(py)
                .is_some_and(|segment| segment.ticket().origin == process::id())
        };
        if views.iter().any(own) {
            return Err(PyTypeError::new_err(
                "a worker cannot return a value that it has shared itself, as nobody would hold it once the worker leaves; \
                 return the value, and share it where the pool is",
            ));
        }
        let pieces: Vec<&[u8]> = views.iter().map(Contiguous::bytes).collect();
        py.detach(|| self.inner.answer(job, status, payload, &pieces))
            .map_err(|error| lost_pool(&error))
    }
}

/// How often a worker without work sees to what its jobs left behind.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// What a worker calls before it sleeps.
static HOOK: Mutex<Option<Py<PyAny>>> = Mutex::new(None);

/// Has a worker call `hook` before it sleeps, and again every second for as long as it returns true. False if this process
/// is no worker, and nobody calls it.
#[pyfunction]
pub fn before_idle(hook: Py<PyAny>) -> bool {
    let replaced = HOOK
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .replace(hook);
    drop(replaced);
    WORKS_HERE.load(Ordering::Relaxed) == process::id()
}

/// Calls the hook; how long may be slept after that.
fn look_after(py: Python<'_>) -> PyResult<Option<Duration>> {
    let hook = HOOK
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(|hook| hook.clone_ref(py));
    match hook {
        Some(hook) => Ok(hook.call0(py)?.is_truthy(py)?.then_some(LOOK_AFTER)),
        None => Ok(None),
    }
}

/// The process that has a worker's end of a lane: this one, or one that it is a fork of.
static WORKS_HERE: AtomicU32 = AtomicU32::new(0);

/// Asks the kernel to have this process go on, if it is stopped, when its parent is gone.
#[pyfunction]
pub fn go_on_without_parent() -> PyResult<()> {
    Ok(process::go_on_without_parent()?)
}

/// Asks the kernel to end this process with its parent; false if `parent` is gone already.
#[pyfunction]
pub fn die_with_parent(parent: u32) -> PyResult<bool> {
    Ok(process::die_with_parent(parent)?)
}
