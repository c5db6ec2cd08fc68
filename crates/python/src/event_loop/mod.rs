//! `_rust.EventLoop`: the hot paths of an asyncio event loop. `plait.event_loop.EventLoop` puts asyncio's own behind them.

mod bytes;
pub mod context;
pub(crate) mod coroutine;
mod handle;
pub mod item;
pub mod os_error;
mod owners;
pub mod protocol;
mod running;
mod server;
mod sock;
mod sock_calls;
pub mod socket_number;
mod stall_watch;
pub mod stream_transport;
mod streams;
mod tasks;
mod tls;
pub(crate) mod waiter;

pub use coroutine::Coroutine as LoopCoroutine;
pub use handle::prepare_handles;
pub use sock::SocketCalls;
pub use stall_watch::{end_stall_watch, forget_stall_watch};
pub use stream_transport::{StreamTransport, prepare_stream_transport};
pub use streams::{StreamReader, StreamReaderProtocol, StreamWriter, prepare_streams};
pub use tls::{TlsBuffer, TlsProtocol, prepare_tls};
pub use waiter::Waiter as LoopWaiter;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use plait_engine::event_loop::{
    EventLoop as EngineLoop, Pulse, Side, StallWatch, Token, Wait, Watch,
};
use pyo3::exceptions::{
    PyKeyboardInterrupt, PyRuntimeError, PySystemExit, PyTypeError, PyValueError,
};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pyclass_init::PyClassInitializer;
use pyo3::types::{PyDict, PyFloat, PyList, PyTuple};

use item::{CallFn, Item, Source};
use os_error::os_error;
use owners::descriptor;

/// So many handles are kept to be used again.
const MOST_SPARES: usize = 64;
/// So much is received by one call at most, as with asyncio's transports.
const MOST_RECEIVED: usize = 256 * 1024;

/// In a forked child: the loops that were made before are the parent's. To be called by `os.register_at_fork`.
#[pyfunction]
pub fn leave_event_loops() {
    plait_engine::event_loop::note_fork();
}
/// Nobody waits longer for a stall, in seconds: a year.
const LONGEST_PATIENCE: f64 = 365.0 * 24.0 * 3600.0;

/// What an event loop does often. All methods but `call_soon_threadsafe` are for the loop's own thread.
#[pyclass(frozen, subclass, weakref, extends = SocketCalls, module = "plait._rust")]
pub struct EventLoop {
    /// In a place of its own: Python's allocator does not align as its inbox wants to be.
    core: Box<EngineLoop<Item>>,
    /// Handles that have run and that nobody knows any more, to be used again.
    spares: Mutex<Vec<Py<PyAny>>>,
    running: running::Running,
    /// What transports receive into, while none does.
    buffer: Mutex<Option<Box<[u8]>>>,
    stopping: AtomicBool,
    closed: AtomicBool,
    debug: AtomicBool,
    pulse: Arc<Pulse>,
    /// Who looks at the pulse, once the loop has run.
    watch: OnceLock<Option<Arc<StallWatch>>>,
}

impl EventLoop {
    pub(crate) fn is_debug(&self) -> bool {
        self.debug.load(Ordering::Relaxed)
    }

    /// A timer of this loop was cancelled.
    pub(crate) fn note_cancelled(&self, py: Python<'_>) {
        let swept = self.core.note_cancelled(|item| item.is_cancelled(py));
        for item in &swept {
            handle::unschedule(item.object().bind(py));
        }
        drop(swept);
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Py<PyAny>>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle to be used again, if there is one.
    fn spare(&self) -> Option<Py<PyAny>> {
        self.spares().pop()
    }

    /// A handle has run.
    fn retire(&self, handle: Bound<'_, PyAny>) {
        if self.spares().len() < MOST_SPARES && handle::recycle(&handle) {
            self.spares().push(handle.unbind());
        }
    }

    fn add(&self, handle: Bound<'_, PyAny>) {
        if !handle::is_cancelled(&handle) {
            self.core.add(Item::Handle(handle.unbind()));
        }
    }

    /// For Rust code: `run` on this object in the next turn, as `call_soon` would.
    pub(crate) fn schedule(&self, object: Py<PyAny>, run: CallFn) -> PyResult<()> {
        self.check_closed()?;
        self.core.add(Item::Call(object, run));
        Ok(())
    }

    /// The same from any thread, attached or not. A loop that is closed already drops it.
    #[allow(dead_code, reason = "what runs in other threads uses it")]
    pub(crate) fn schedule_remote(&self, object: Py<PyAny>, run: CallFn) {
        if !self.closed.load(Ordering::Relaxed) {
            self.core.add_remote(Item::Call(object, run));
        }
    }

    /// For Rust code: tells this source on every edge of its descriptor from now on. The loop holds it until it is
    /// unregistered, which its owner does before the descriptor is closed.
    pub(crate) fn register<S: Source>(
        &self,
        source: &Bound<'_, S>,
        fd: RawFd,
        watch: Watch,
    ) -> PyResult<Token> {
        self.check_closed()?;
        let py = source.py();
        let registered = self.core.register(fd, watch, Item::source(source));
        let (token, dropped) = registered.map_err(|error| os_error(py, error))?;
        for item in dropped {
            if let Item::Handle(handle) = item {
                handle.call_method0(py, intern!(py, "cancel"))?;
            }
        }
        Ok(token)
    }

    /// Tells it of something else.
    pub(crate) fn change(&self, py: Python<'_>, token: Token, watch: Watch) -> PyResult<()> {
        let changed = self.core.change(token, watch);
        changed.map_err(|error| os_error(py, error))
    }

    /// Shows a buffer of `MOST_RECEIVED` bytes to `fill`, which runs no Python code.
    pub(crate) fn with_buffer<R>(&self, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut kept = self.kept_buffer();
        fill(kept.get_or_insert_with(new_buffer))
    }

    /// A buffer of `MOST_RECEIVED` bytes to receive into; to be given back.
    pub(crate) fn take_buffer(&self) -> Box<[u8]> {
        let kept = self.kept_buffer().take();
        kept.unwrap_or_else(new_buffer)
    }

    pub(crate) fn give_buffer(&self, buffer: Box<[u8]>) {
        *self.kept_buffer() = Some(buffer);
    }

    fn kept_buffer(&self) -> MutexGuard<'_, Option<Box<[u8]>>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of it. Nothing happens if it is not registered any more.
    pub(crate) fn unregister(&self, token: Token) {
        drop(self.core.unregister(token));
    }

    fn clear(&self) {
        let spares = std::mem::take(&mut *self.spares());
        drop((self.core.clear(), spares));
    }

    fn check_closed(&self) -> PyResult<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(PyRuntimeError::new_err("Event loop is closed"));
        }
        Ok(())
    }

    /// A handle for a call; in debug mode asyncio's own, with the place where it was asked for.
    fn handle<'py>(
        slf: &Bound<'py, Self>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
        when: Option<Bound<'py, PyAny>>,
        method: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.get().check_closed()?;
        if slf.get().is_debug() {
            let arguments = (method, callback, args, context, when);
            return slf.call_method1(intern!(slf.py(), "_debug_handle"), arguments);
        }
        let threadsafe = method == "call_soon_threadsafe";
        handle::new(slf, callback, args, context, when, threadsafe)
    }

    /// Runs one item; `Err` for what is to end the loop.
    fn run_item(slf: &Bound<'_, Self>, item: Item) -> PyResult<()> {
        let py = slf.py();
        let began = slf.get().is_debug().then(|| slf.get().time());
        let (object, result) = match item {
            Item::Handle(handle) => {
                let handle = handle.into_bound(py);
                Self::run_handle(slf, &handle)?;
                if slf.get().pulse.is_stalled() {
                    Self::end_stall(slf, &handle)?;
                }
                slf.get().retire(handle);
                return Ok(());
            }
            Item::Source(object, ready, readiness) => {
                let result = ready(object.bind(py), slf, readiness);
                (object, result)
            }
            Item::Call(object, run) => {
                let result = run(object.bind(py), slf);
                (object, result)
            }
        };
        if let Err(error) = result {
            if ends_the_loop(py, &error) {
                return Err(error);
            }
            let arguments = (&object, error.into_value(py));
            slf.call_method1(intern!(py, "_report_native"), arguments)?;
        }
        if slf.get().pulse.is_stalled() {
            Self::end_stall(slf, object.bind(py))?;
        }
        if let Some(began) = began {
            slf.call_method1(
                intern!(py, "_note_slow"),
                (object, slf.get().time() - began),
            )?;
        }
        Ok(())
    }

    /// An item that has held the loop up has ended.
    #[cold]
    fn end_stall(slf: &Bound<'_, Self>, item: &Bound<'_, PyAny>) -> PyResult<()> {
        let took = slf.get().pulse.end_stall().as_secs_f64();
        slf.call_method1(intern!(slf.py(), "_note_stall"), (item, took))
            .map(drop)
    }

    /// The loop is awake: the watch may be asleep.
    fn woke(&self) {
        if let Some(Some(watch)) = self.watch.get() {
            watch.loop_woke();
        }
    }

    /// Runs one handle; `Err` for what is to end the loop.
    fn run_handle(slf: &Bound<'_, Self>, handle: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        if slf.get().is_debug() {
            return if handle::is_cancelled(handle) {
                Ok(())
            } else {
                slf.call_method1(intern!(py, "_debug_run"), (handle,))
                    .map(drop)
            };
        }
        match handle::run(slf.get(), handle) {
            Err(error) if !ends_the_loop(py, &error) => {
                let arguments = (handle, error.into_value(py));
                slf.call_method1(intern!(py, "_report"), arguments)
                    .map(drop)
            }
            result => result,
        }
    }

    /// One turn.
    fn turn(slf: &Bound<'_, Self>, items: &mut VecDeque<Item>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let core = &this.core;
        let wait = core.prepare(this.stopping.load(Ordering::Relaxed));
        let waited = match &wait {
            Wait::Not => Ok(()),
            Wait::Look => core.wait(&wait),
            Wait::Sleep(_) => {
                this.pulse.begin_sleep();
                let waited = py.detach(|| core.wait(&wait));
                this.pulse.end_sleep();
                this.woke();
                py.check_signals()?;
                waited
            }
        };
        match waited {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        if !matches!(wait, Wait::Not) {
            let dropped = core.gather(
                |item, readiness| item.found(py, readiness),
                |item| item.is_cancelled(py),
            );
            drop(dropped);
        }
        core.begin_turn(items);
        this.pulse.begin_turn();
        while let Some(item) = items.pop_front() {
            this.pulse.begin_item();
            if let Err(error) = Self::run_item(slf, item) {
                core.put_back(items);
                return Err(error);
            }
        }
        Ok(())
    }

    fn watch<'py>(
        slf: &Bound<'py, Self>,
        fd: &Bound<'py, PyAny>,
        side: Side,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let number = descriptor(fd)?;
        if number < 0 {
            let message = format!("Invalid file descriptor: {number} ({})", fd.repr()?);
            return Err(PyValueError::new_err(message));
        }
        let handle = Self::handle(slf, callback, args, None, None, "")?;
        let item = Item::Handle(handle.clone().unbind());
        let old = slf.get().core.watch(number, side, item)?;
        if let Some(old) = old {
            old.object()
                .call_method0(slf.py(), intern!(slf.py(), "cancel"))?;
        }
        Ok(handle)
    }

    fn unwatch(&self, py: Python<'_>, fd: &Bound<'_, PyAny>, side: Side) -> PyResult<bool> {
        if self.closed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.core.unwatch(descriptor(fd)?, side) {
            Some(item) => {
                item.object().call_method0(py, intern!(py, "cancel"))?;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

fn new_buffer() -> Box<[u8]> {
    vec![0; MOST_RECEIVED].into_boxed_slice()
}

/// Whether an error is not one of the callback's, but the program's end.
fn ends_the_loop(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py)
}

#[pymethods]
impl EventLoop {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let sockets = PyClassInitializer::from(SocketCalls::default());
        Ok(sockets.add_subclass(Self {
            core: Box::new(EngineLoop::new()?),
            spares: Mutex::default(),
            running: running::Running::default(),
            buffer: Mutex::default(),
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            debug: AtomicBool::new(false),
            pulse: Arc::default(),
            watch: OnceLock::new(),
        }))
    }

    /// Seconds on the clock that timers go by.
    #[allow(clippy::unused_self, reason = "asyncio asks the loop for the time")]
    fn time(&self) -> f64 {
        EngineLoop::<Item>::now()
    }

    #[pyo3(signature = (callback, *args, context=None))]
    fn call_soon<'py>(
        slf: &Bound<'py, Self>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let handle = Self::handle(slf, callback, args, context, None, "call_soon")?;
        slf.get().core.add(Item::Handle(handle.clone().unbind()));
        Ok(handle)
    }

    #[pyo3(signature = (callback, *args, context=None))]
    fn call_soon_threadsafe<'py>(
        slf: &Bound<'py, Self>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let handle = Self::handle(slf, callback, args, context, None, "call_soon_threadsafe")?;
        slf.get()
            .core
            .add_remote(Item::Handle(handle.clone().unbind()));
        Ok(handle)
    }

    #[pyo3(signature = (delay, callback, *args, context=None))]
    fn call_later<'py>(
        slf: &Bound<'py, Self>,
        delay: Option<f64>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Some(delay) = delay else {
            return Err(PyTypeError::new_err("delay must not be None"));
        };
        let when = slf.get().time() + delay;
        let exact = PyFloat::new(slf.py(), when).into_any();
        let handle = Self::handle(slf, callback, args, context, Some(exact), "call_later")?;
        slf.get()
            .core
            .add_timer(when, Item::Handle(handle.clone().unbind()));
        Ok(handle)
    }

    #[pyo3(signature = (when, callback, *args, context=None))]
    fn call_at<'py>(
        slf: &Bound<'py, Self>,
        when: Bound<'py, PyAny>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if when.is_none() {
            return Err(PyTypeError::new_err("when cannot be None"));
        }
        let seconds = when.extract()?;
        let handle = Self::handle(slf, callback, args, context, Some(when), "call_at")?;
        slf.get()
            .core
            .add_timer(seconds, Item::Handle(handle.clone().unbind()));
        Ok(handle)
    }

    /// Makes a task of a coroutine; it begins in the next turn.
    #[pyo3(signature = (coro, **kwargs))]
    fn create_task<'py>(
        slf: &Bound<'py, Self>,
        coro: Bound<'py, PyAny>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        tasks::create_task(slf, coro, kwargs)
    }

    /// A future of this loop.
    fn create_future<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        tasks::create_future(slf)
    }

    /// Whether the loop is in debug mode. Every task and future asks.
    fn get_debug(&self) -> bool {
        self.is_debug()
    }

    /// Seconds that a callback may take before it is told of as a stall; None if none is.
    #[getter]
    fn stall_after(&self) -> Option<f64> {
        let patience = Duration::from_nanos(self.pulse.patience());
        (!patience.is_zero()).then_some(patience.as_secs_f64())
    }

    #[setter]
    fn set_stall_after(&self, seconds: Option<f64>) -> PyResult<()> {
        let patience = match seconds {
            None => Duration::ZERO,
            Some(seconds) if seconds > 0.0 => {
                Duration::from_secs_f64(seconds.clamp(1e-9, LONGEST_PATIENCE))
            }
            Some(seconds) => {
                return Err(PyValueError::new_err(format!(
                    "stall_after must be a number of seconds above 0, or None, not {seconds}"
                )));
            }
        };
        let nanoseconds = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        self.pulse.set_patience(nanoseconds);
        Ok(())
    }

    /// The number by which the watch knows this loop.
    fn _pulse_number(&self) -> usize {
        stall_watch::number(&self.pulse)
    }

    /// Turns, callbacks, seconds that the loop ran, seconds of these that it slept, stalls, callbacks that are ready, timers.
    fn _tally(&self) -> (u64, u64, f64, f64, u64, usize, usize) {
        let tally = self.pulse.tally();
        let (ready, timers) = self.core.counts();
        let seconds = |nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64();
        let (ran, slept) = (seconds(tally.ran_ns), seconds(tally.slept_ns));
        (
            tally.turns,
            tally.items,
            ran,
            slept,
            tally.stalls,
            ready,
            timers,
        )
    }

    /// Ends `run_forever` after the turn that is running.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Turns until `stop`.
    fn _run_until_stopped(slf: &Bound<'_, Self>) -> PyResult<()> {
        let mut items = VecDeque::new();
        // However short this run is, it sees what has come in since the last.
        let this = slf.get();
        this.core.look_next();
        this.watch.get_or_init(|| stall_watch::watch(&this.pulse));
        this.pulse.begin_run();
        this.woke();
        let ended = loop {
            let turned = Self::turn(slf, &mut items);
            if turned.is_err() || this.stopping.load(Ordering::Relaxed) {
                break turned;
            }
        };
        this.pulse.end_run();
        ended
    }

    /// One turn.
    fn _run_once(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::turn(slf, &mut VecDeque::new())
    }

    /// A handle that somebody else has made, for the next turn.
    fn _add_callback(&self, handle: Bound<'_, PyAny>) {
        self.add(handle);
    }

    /// The same from a signal handler.
    fn _add_callback_signalsafe(&self, handle: Bound<'_, PyAny>) {
        self.add(handle);
        self.core.wake();
    }

    fn _timer_handle_cancelled(&self, py: Python<'_>, _handle: &Bound<'_, PyAny>) {
        self.note_cancelled(py);
    }

    /// Has the loop make a turn.
    fn _write_to_self(&self) {
        self.core.wake();
    }

    #[pyo3(signature = (fd, callback, *args))]
    fn _add_reader<'py>(
        slf: &Bound<'py, Self>,
        fd: &Bound<'py, PyAny>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::watch(slf, fd, Side::Read, callback, args)
    }

    #[pyo3(signature = (fd, callback, *args))]
    fn _add_writer<'py>(
        slf: &Bound<'py, Self>,
        fd: &Bound<'py, PyAny>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::watch(slf, fd, Side::Write, callback, args)
    }

    fn _remove_reader(&self, py: Python<'_>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.unwatch(py, fd, Side::Read)
    }

    fn _remove_writer(&self, py: Python<'_>, fd: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.unwatch(py, fd, Side::Write)
    }

    #[pyo3(signature = (sock, protocol, waiter=None, *, extra=None, server=None))]
    fn _make_socket_transport<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        waiter: Option<Bound<'py, PyAny>>,
        extra: Option<Bound<'py, PyAny>>,
        server: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::_ensure_fd_no_transport(slf, sock)?;
        stream_transport::make(slf, sock, protocol, waiter, extra, server)
    }

    /// Refuses a descriptor that a transport owns.
    fn _ensure_fd_no_transport(slf: &Bound<'_, Self>, fd: &Bound<'_, PyAny>) -> PyResult<()> {
        owners::ensure_none(slf, fd)
    }

    #[allow(clippy::too_many_arguments, reason = "asyncio's own")]
    #[pyo3(signature = (
        protocol_factory, sock, sslcontext=None, server=None, backlog=100,
        ssl_handshake_timeout=None, ssl_shutdown_timeout=None
    ))]
    fn _accept_connection<'py>(
        slf: &Bound<'py, Self>,
        protocol_factory: Bound<'py, PyAny>,
        sock: Bound<'py, PyAny>,
        sslcontext: Option<Bound<'py, PyAny>>,
        server: Option<Bound<'py, PyAny>>,
        backlog: usize,
        ssl_handshake_timeout: Option<Bound<'py, PyAny>>,
        ssl_shutdown_timeout: Option<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let serving = server::Serving {
            protocol_factory,
            socket: sock,
            ssl_context: sslcontext,
            server,
            backlog,
            handshake_timeout: ssl_handshake_timeout,
            shutdown_timeout: ssl_shutdown_timeout,
        };
        server::accept_all(slf, &serving)
    }

    /// Lets go of every handle.
    fn _drop_all(&self) {
        self.clear();
    }

    /// What is ready, for whoever looks.
    fn _snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let items = PyList::empty(py);
        let mut result = Ok(());
        self.core.visit_ready(|item| {
            if result.is_ok() {
                result = items.append(item.object().bind(py));
            }
        });
        result.map(|()| items)
    }

    #[getter(_stopping)]
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    #[setter(_stopping)]
    fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, Ordering::Relaxed);
    }

    #[getter(_closed)]
    fn is_closed_already(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    #[setter(_closed)]
    fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    #[getter(_debug)]
    fn get_debug_flag(&self) -> bool {
        self.is_debug()
    }

    #[setter(_debug)]
    fn set_debug_flag(&self, debug: &Bound<'_, PyAny>) -> PyResult<()> {
        self.debug.store(debug.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let mut result = Ok(());
        self.core.visit(|item| {
            if result.is_ok() {
                result = visit.call(item.object());
            }
        });
        if let Ok(spares) = self.spares.try_lock() {
            for spare in &*spares {
                visit.call(spare)?;
            }
        }
        result
    }

    fn __clear__(&self) {
        self.clear();
    }
}
