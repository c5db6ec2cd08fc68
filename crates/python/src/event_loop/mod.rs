//! `_rust.EventLoop`: the hot paths of an asyncio event loop. `plait.event_loop.EventLoop` puts asyncio's own behind them.

mod handle;

pub use handle::prepare_handles;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use plait_engine::event_loop::{EventLoop as EngineLoop, Side, Wait};
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PySystemExit, PyTypeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyList, PyTuple};

/// So many handles are kept to be used again.
const MOST_SPARES: usize = 64;

/// What an event loop does often. All methods but `call_soon_threadsafe` are for the loop's own thread.
#[pyclass(frozen, subclass, weakref, module = "plait._rust")]
pub struct EventLoop {
    core: EngineLoop<Py<PyAny>>,
    /// Handles that have run and that nobody knows any more, to be used again.
    spares: Mutex<Vec<Py<PyAny>>>,
    stopping: AtomicBool,
    closed: AtomicBool,
    debug: AtomicBool,
}

impl EventLoop {
    pub(crate) fn is_debug(&self) -> bool {
        self.debug.load(Ordering::Relaxed)
    }

    /// A timer of this loop was cancelled.
    pub(crate) fn note_cancelled(&self, py: Python<'_>) {
        let swept = self
            .core
            .note_cancelled(|item| handle::is_cancelled(item.bind(py)));
        for item in &swept {
            handle::unschedule(item.bind(py));
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
            self.core.add(handle.unbind());
        }
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
        handle::new(slf, callback, args, context, when)
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
        match handle::run(handle) {
            Err(error)
                if !error.is_instance_of::<PySystemExit>(py)
                    && !error.is_instance_of::<PyKeyboardInterrupt>(py) =>
            {
                let arguments = (handle, error.into_value(py));
                slf.call_method1(intern!(py, "_report"), arguments)
                    .map(drop)
            }
            result => result,
        }
    }

    /// One turn.
    fn turn(slf: &Bound<'_, Self>, items: &mut VecDeque<Py<PyAny>>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let core = &this.core;
        let wait = core.prepare(this.stopping.load(Ordering::Relaxed));
        let waited = match &wait {
            Wait::Not => Ok(()),
            Wait::Look => core.wait(&wait),
            Wait::Sleep(_) => {
                let waited = py.detach(|| core.wait(&wait));
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
                |item| item.clone_ref(py),
                |item| handle::is_cancelled(item.bind(py)),
            );
            drop(dropped);
        }
        core.begin_turn(items);
        while let Some(item) = items.pop_front() {
            let item = item.into_bound(py);
            if let Err(error) = Self::run_handle(slf, &item) {
                core.put_back(items);
                return Err(error);
            }
            this.retire(item);
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
        let handle = Self::handle(slf, callback, args, None, None, "")?;
        let fd = descriptor(fd)?;
        let old = slf.get().core.watch(fd, side, handle.clone().unbind())?;
        if let Some(old) = old {
            old.call_method0(slf.py(), intern!(slf.py(), "cancel"))?;
        }
        Ok(handle)
    }

    fn unwatch(&self, py: Python<'_>, fd: &Bound<'_, PyAny>, side: Side) -> PyResult<bool> {
        if self.closed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.core.unwatch(descriptor(fd)?, side) {
            Some(handle) => {
                handle.call_method0(py, intern!(py, "cancel"))?;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

/// A descriptor's number: an integer, or an object with a `fileno()`.
fn descriptor(file: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    if let Ok(fd) = file.extract() {
        return Ok(fd);
    }
    file.call_method0(intern!(file.py(), "fileno"))?.extract()
}

#[pymethods]
impl EventLoop {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, pyo3::types::PyDict>>,
    ) -> PyResult<Self> {
        Ok(Self {
            core: EngineLoop::new()?,
            spares: Mutex::default(),
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            debug: AtomicBool::new(false),
        })
    }

    /// Seconds on the clock that timers go by.
    #[allow(clippy::unused_self, reason = "asyncio asks the loop for the time")]
    fn time(&self) -> f64 {
        EngineLoop::<Py<PyAny>>::now()
    }

    #[pyo3(signature = (callback, *args, context=None))]
    fn call_soon<'py>(
        slf: &Bound<'py, Self>,
        callback: Bound<'py, PyAny>,
        args: Bound<'py, PyTuple>,
        context: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let handle = Self::handle(slf, callback, args, context, None, "call_soon")?;
        slf.get().core.add(handle.clone().unbind());
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
        slf.get().core.add_remote(handle.clone().unbind());
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
        slf.get().core.add_timer(when, handle.clone().unbind());
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
        slf.get().core.add_timer(seconds, handle.clone().unbind());
        Ok(handle)
    }

    /// Ends `run_forever` after the turn that is running.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Turns until `stop`.
    fn _run_until_stopped(slf: &Bound<'_, Self>) -> PyResult<()> {
        let mut items = VecDeque::new();
        // However short this run is, it sees what has come in since the last.
        slf.get().core.look_next();
        loop {
            Self::turn(slf, &mut items)?;
            if slf.get().stopping.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
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
                result = items.append(item.bind(py));
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
                result = visit.call(item);
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
