//! `_rust.LoopWaiter`: how a task waits for something that Rust completes, without an `asyncio.Future`.
//!
//! A [`Waiter`] is what a task sees when it has to wait: it is *future-like* in asyncio's sense (`asyncio.isfuture`), so a task
//! takes it, asks it to be told (`add_done_callback`), and is woken through its loop's ready queue when whoever made the
//! waiter completes it. Whoever waits in Rust keeps it, completes it once, and is told by [`Waiter::is_done`] that the task was
//! cancelled meanwhile: as with asyncio's futures, nothing else happens at that moment; the task learns of it when it is resumed.
//!
//! For the thread of its loop, but it may be looked at and dropped by any. Its mutex is held for a few loads and stores,
//! under which no Python code runs and nothing of Python's is dropped.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::exceptions::PyStopIteration;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyType};

use super::EventLoop;
use super::item::CallFn;
use crate::callback;

/// What has become of a wait.
enum Outcome {
    Pending,
    Value(Py<PyAny>),
    /// An exception.
    Error(Py<PyAny>),
    /// With the message of whoever cancelled it.
    Cancelled(Option<Py<PyAny>>),
}

struct Callback {
    function: Py<PyAny>,
    context: Py<PyAny>,
}

struct WaiterState {
    outcome: Outcome,
    /// A task that is handed this looks here, to tell `await` from `yield`.
    blocking: bool,
    /// The task that waits: there is hardly ever more than one.
    first: Option<Callback>,
    others: Vec<Callback>,
    /// The loop has been asked to make the calls.
    asked: bool,
}

/// Something that a task waits for and that Rust completes; future-like, so that tasks, `asyncio.wait` and the like take it.
///
/// It belongs to one event loop and is used in the thread of that loop. Awaiting it gives its value, raises its exception, or
/// `asyncio.CancelledError`.
#[pyclass(frozen, weakref, module = "plait._rust", name = "LoopWaiter")]
pub struct Waiter {
    event_loop: Py<PyAny>,
    state: Mutex<WaiterState>,
}

fn asyncio_exception<'py>(py: Python<'py>, name: &'static str) -> PyResult<Bound<'py, PyType>> {
    static CANCELLED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static INVALID: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let known = match name {
        "CancelledError" => &CANCELLED,
        _ => &INVALID,
    };
    known.import(py, "asyncio.exceptions", name).cloned()
}

fn wrong_state(py: Python<'_>, message: &'static str) -> PyErr {
    match asyncio_exception(py, "InvalidStateError") {
        Ok(kind) => PyErr::from_type(kind, (message,)),
        Err(error) => error,
    }
}

/// A new `asyncio.CancelledError`.
pub fn cancelled_error(py: Python<'_>, message: Option<&Bound<'_, PyAny>>) -> PyErr {
    match (asyncio_exception(py, "CancelledError"), message) {
        (Ok(kind), Some(message)) => PyErr::from_type(kind, (message.clone().unbind(),)),
        (Ok(kind), None) => PyErr::from_type(kind, ()),
        (Err(error), _) => error,
    }
}

/// The end of an iteration, with the value of what was awaited; nothing needs to be said of None.
pub(super) fn stop(value: Bound<'_, PyAny>) -> PyResult<Option<Py<PyAny>>> {
    if value.is_none() {
        Ok(None)
    } else {
        Err(PyStopIteration::new_err((value.unbind(),)))
    }
}

impl Waiter {
    /// One that nobody has completed yet, for tasks of `event_loop`.
    pub fn new<'py>(event_loop: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Self>> {
        Bound::new(event_loop.py(), Self::pending(event_loop.clone().unbind()))
    }

    fn pending(event_loop: Py<PyAny>) -> Self {
        Self {
            event_loop,
            state: Mutex::new(WaiterState {
                outcome: Outcome::Pending,
                blocking: false,
                first: None,
                others: Vec::new(),
                asked: false,
            }),
        }
    }

    /// The same once more, for another wait, if nobody knows it but the caller.
    pub fn again(slf: Bound<'_, Self>) -> Option<Bound<'_, Self>> {
        if callback::is_known_to_others(slf.as_any(), 1) {
            return None;
        }
        let mut state = slf.get().state();
        let outcome = std::mem::replace(&mut state.outcome, Outcome::Pending);
        state.blocking = false;
        let callbacks = (state.first.take(), std::mem::take(&mut state.others));
        state.asked = false;
        drop(state);
        drop((outcome, callbacks));
        Some(slf)
    }

    fn state(&self) -> MutexGuard<'_, WaiterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was completed or cancelled.
    pub fn is_done(&self) -> bool {
        !matches!(self.state().outcome, Outcome::Pending)
    }

    /// Completes it with a value: whoever waits runs in the next turn. False if it was done already (cancelled, say): the value
    /// went nowhere, and is the caller's to give to somebody else.
    pub fn set_value(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        Self::settle(slf, Outcome::Value(value.clone().unbind()))
    }

    /// Completes it with None.
    pub fn wake(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::settle(slf, Outcome::Value(slf.py().None()))
    }

    /// Completes it, and runs whoever waits now: for a callback of the loop.
    pub fn wake_now(
        slf: &Bound<'_, Self>,
        event_loop: &Bound<'_, EventLoop>,
        value: bool,
    ) -> PyResult<()> {
        let value = PyBool::new(slf.py(), value).to_owned().into_any();
        if event_loop.get().is_debug() {
            return Self::set_value(slf, &value).map(drop);
        }
        let mut state = slf.get().state();
        if !matches!(state.outcome, Outcome::Pending) {
            drop(state);
            return Ok(());
        }
        state.outcome = Outcome::Value(value.unbind());
        drop(state);
        Self::make_calls(slf, event_loop)
    }

    /// Completes it with an exception.
    pub fn set_error(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<bool> {
        let error = error.into_value(slf.py());
        Self::settle(slf, Outcome::Error(error.into_any()))
    }

    fn settle(slf: &Bound<'_, Self>, outcome: Outcome) -> PyResult<bool> {
        let mut state = slf.get().state();
        if !matches!(state.outcome, Outcome::Pending) {
            drop(state);
            return Ok(false);
        }
        state.outcome = outcome;
        drop(state);
        Self::ask(slf)?;
        Ok(true)
    }

    /// Has the loop make the calls in the next turn, if there are any.
    fn ask(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let event_loop = slf.get().event_loop.bind(py).cast::<EventLoop>();
        if let Ok(event_loop) = event_loop
            && !event_loop.get().is_debug()
        {
            let mut state = slf.get().state();
            let idle = state.first.is_none() || std::mem::replace(&mut state.asked, true);
            drop(state);
            if idle {
                return Ok(());
            }
            let waiter = slf.clone().into_any().unbind();
            let run: CallFn = |waiter, event_loop| Self::make_calls(waiter.cast()?, event_loop);
            return event_loop.get().schedule(waiter, run);
        }
        for callback in slf.get().take() {
            let context = PyDict::new(py);
            context.set_item(intern!(py, "context"), callback.context)?;
            let call_soon = intern!(py, "call_soon");
            let event_loop = slf.get().event_loop.bind(py);
            event_loop.call_method(call_soon, (callback.function, slf), Some(&context))?;
        }
        Ok(())
    }

    fn take(&self) -> impl Iterator<Item = Callback> + use<> {
        let mut state = self.state();
        state.asked = false;
        let first = state.first.take();
        first.into_iter().chain(std::mem::take(&mut state.others))
    }

    /// In the loop: makes the calls. One that raises does not keep the others from theirs.
    fn make_calls(slf: &Bound<'_, Self>, event_loop: &Bound<'_, EventLoop>) -> PyResult<()> {
        let py = slf.py();
        let mut callbacks = slf.get().take();
        while let Some(Callback { function, context }) = callbacks.next() {
            let called = callback::call_in(context.bind(py), function.bind(py), slf.as_any());
            match called {
                Ok(_) => {}
                Err(error) if super::ends_the_loop(py, &error) => {
                    let rest: Vec<_> = callbacks.collect();
                    if !rest.is_empty() {
                        slf.get().put_back(rest);
                        Self::ask(slf)?;
                    }
                    return Err(error);
                }
                Err(error) => {
                    let arguments = (slf, error.into_value(py));
                    event_loop.call_method1(intern!(py, "_report_native"), arguments)?;
                }
            }
        }
        Ok(())
    }

    /// Callbacks that come before those that were added meanwhile.
    fn put_back(&self, callbacks: Vec<Callback>) {
        let mut state = self.state();
        let added = state.first.take().into_iter();
        let added: Vec<_> = added.chain(std::mem::take(&mut state.others)).collect();
        let mut all = callbacks.into_iter().chain(added);
        state.first = all.next();
        state.others = all.collect();
    }

    /// The value, or the exception to raise.
    pub fn outcome<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let state = slf.get().state();
        let (error, message) = match &state.outcome {
            Outcome::Value(value) => return Ok(value.bind(py).clone()),
            Outcome::Error(error) => (Some(error.clone_ref(py)), None),
            Outcome::Cancelled(message) => {
                (None, message.as_ref().map(|message| message.clone_ref(py)))
            }
            Outcome::Pending => {
                drop(state);
                return Err(wrong_state(py, "Result is not set."));
            }
        };
        drop(state);
        Err(match error {
            Some(error) => PyErr::from_value(error.into_bound(py)),
            None => cancelled_error(py, message.as_ref().map(|message| message.bind(py))),
        })
    }

    /// Says that a task which is given this now waits for it.
    pub(super) fn expect_task(&self) {
        self.state().blocking = true;
    }
}

#[pymethods]
impl Waiter {
    /// One that nobody has completed yet, for tasks of `event_loop`.
    #[new]
    fn py_new(event_loop: Py<PyAny>) -> Self {
        Self::pending(event_loop)
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        if slf.get().is_done() {
            return stop(Self::outcome(slf)?);
        }
        slf.get().expect_task();
        Ok(Some(slf.clone().into_any().unbind()))
    }

    #[getter(_asyncio_future_blocking)]
    fn is_blocking(&self) -> bool {
        self.state().blocking
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, blocking: bool) {
        self.state().blocking = blocking;
    }

    #[getter(_loop)]
    fn event_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.event_loop.clone_ref(py)
    }

    fn get_loop(&self, py: Python<'_>) -> Py<PyAny> {
        self.event_loop.clone_ref(py)
    }

    fn done(&self) -> bool {
        self.is_done()
    }

    pub(crate) fn cancelled(&self) -> bool {
        matches!(self.state().outcome, Outcome::Cancelled(_))
    }

    fn result<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::outcome(slf)
    }

    fn exception(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let py = slf.py();
        let state = slf.get().state();
        match &state.outcome {
            Outcome::Value(_) => Ok(None),
            Outcome::Error(error) => Ok(Some(error.clone_ref(py))),
            Outcome::Cancelled(_) => {
                drop(state);
                Self::outcome(slf).map(|_| None)
            }
            Outcome::Pending => {
                drop(state);
                Err(wrong_state(py, "Exception is not set."))
            }
        }
    }

    /// Completes it with a value. Raises `asyncio.InvalidStateError` if it is done already.
    fn set_result(slf: &Bound<'_, Self>, result: &Bound<'_, PyAny>) -> PyResult<()> {
        if Self::set_value(slf, result)? {
            return Ok(());
        }
        Err(wrong_state(slf.py(), "invalid state"))
    }

    /// Completes it with an exception. Raises `asyncio.InvalidStateError` if it is done already.
    fn set_exception(slf: &Bound<'_, Self>, exception: Bound<'_, PyAny>) -> PyResult<()> {
        if Self::set_error(slf, PyErr::from_value(exception))? {
            return Ok(());
        }
        Err(wrong_state(slf.py(), "invalid state"))
    }

    /// Cancels the wait; false if it is over already.
    #[pyo3(signature = (msg=None))]
    fn cancel(slf: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        Self::settle(slf, Outcome::Cancelled(msg))
    }

    /// What `asyncio.gather` raises for a wait that was cancelled.
    fn _make_cancelled_error(slf: &Bound<'_, Self>) -> Py<PyAny> {
        let py = slf.py();
        match Self::outcome(slf) {
            Err(error) => error.into_value(py).into_any(),
            Ok(_) => cancelled_error(py, None).into_value(py).into_any(),
        }
    }

    #[getter(_cancel_message)]
    fn cancel_message(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        match &self.state().outcome {
            Outcome::Cancelled(Some(message)) => Some(message.clone_ref(py)),
            _ => None,
        }
    }

    /// Has the loop call `callback` with this when it is done; in the next turn, if it is.
    #[pyo3(signature = (callback, *, context=None))]
    fn add_done_callback(
        slf: &Bound<'_, Self>,
        callback: Bound<'_, PyAny>,
        context: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let context = match context {
            Some(context) => context,
            None => callback::copy_context(slf.py())?.unbind(),
        };
        let callback = Callback {
            function: callback.unbind(),
            context,
        };
        let mut state = slf.get().state();
        if state.first.is_none() {
            state.first = Some(callback);
        } else {
            state.others.push(callback);
        }
        let done = !matches!(state.outcome, Outcome::Pending);
        drop(state);
        if done { Self::ask(slf) } else { Ok(()) }
    }

    /// Forgets all callbacks that equal this one; tells how many there were.
    fn remove_done_callback(slf: &Bound<'_, Self>, callback: &Bound<'_, PyAny>) -> PyResult<usize> {
        let py = slf.py();
        // Comparing may run anything, so it happens outside the mutex.
        let callbacks: Vec<_> = slf.get().take().collect();
        let before = callbacks.len();
        let mut kept = Vec::with_capacity(before);
        let mut dropped = Vec::new();
        let mut result = Ok(());
        for known in callbacks {
            match known.function.bind(py).eq(callback) {
                Ok(true) => dropped.push(known),
                Ok(false) => kept.push(known),
                Err(error) => {
                    kept.push(known);
                    result = Err(error);
                }
            }
        }
        let removed = dropped.len();
        drop(dropped);
        slf.get().put_back(kept);
        if slf.get().is_done() {
            Self::ask(slf)?;
        }
        result.map(|()| removed)
    }

    fn __repr__(&self) -> &'static str {
        match self.state().outcome {
            Outcome::Pending => "<LoopWaiter pending>",
            Outcome::Cancelled(_) => "<LoopWaiter cancelled>",
            Outcome::Value(_) | Outcome::Error(_) => "<LoopWaiter finished>",
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        match &state.outcome {
            Outcome::Value(held) | Outcome::Error(held) | Outcome::Cancelled(Some(held)) => {
                visit.call(held)?;
            }
            Outcome::Pending | Outcome::Cancelled(None) => {}
        }
        for callback in state.first.iter().chain(&state.others) {
            visit.call(&callback.function)?;
            visit.call(&callback.context)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let mut state = self.state();
        let callbacks = (state.first.take(), std::mem::take(&mut state.others));
        drop(state);
        drop(callbacks);
    }
}
