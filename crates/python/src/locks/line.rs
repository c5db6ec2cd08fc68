//! How threads and coroutines stand in line for a lock: what all the locks share.

use std::sync::Arc;

use plait_sync::barrier::Fate;
use plait_sync::semaphore::{Attempt, Semaphore, UnitWaiter};
use plait_sync::wait_queue::{self, Wake};
use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::patience::Patience;
use super::watched::Watched;
use crate::loop_bell::{FutureWake, LoopBell};
use crate::waiting;

/// What wakes a coroutine that waits on `future`.
pub fn future_wake(bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Box<dyn Wake> {
    Box::new(FutureWake::new(bell, future))
}

/// Blocks until there is a unit; false if there was none in time. After an exception of a signal handler the caller has none.
/// `lock` is what the wait is said to be for while waits are watched.
pub fn acquire_unit(
    lock: &Bound<'_, PyAny>,
    semaphore: &Semaphore,
    patience: Patience,
    interruptible: bool,
) -> PyResult<bool> {
    if matches!(patience, Patience::None) {
        return Ok(semaphore.try_acquire());
    }
    let py = lock.py();
    let _watched = Watched::begin(lock);
    let deadline = patience.deadline();
    let mut attempt = semaphore.acquire(waiting::thread_wake);
    loop {
        let waiter = match attempt {
            Attempt::Acquired => return Ok(true),
            Attempt::Waiting(waiter) => waiter,
        };
        match waiting::sleep_in_line(py, deadline, interruptible, || waiter.is_granted()) {
            Ok(true) => attempt = semaphore.settle(waiter, waiting::thread_wake),
            Ok(false) => return Ok(semaphore.leave(&waiter)),
            Err(error) => {
                if semaphore.leave(&waiter) {
                    // It was taken this instant, so there is room for it.
                    let _ = semaphore.release(1);
                }
                return Err(error);
            }
        }
    }
}

/// The place in line of a coroutine.
#[pyclass(frozen, module = "plait._rust")]
pub struct Waiter(pub(super) Place);

/// In whose line it is.
pub enum Place {
    Unit(Arc<UnitWaiter>),
    Plain(Arc<wait_queue::Waiter<()>>),
    Arrived(Arc<wait_queue::Waiter<Fate>>),
}

impl Waiter {
    pub fn unit(&self) -> PyResult<&Arc<UnitWaiter>> {
        match &self.0 {
            Place::Unit(waiter) => Ok(waiter),
            _ => Err(elsewhere()),
        }
    }

    pub fn plain(&self) -> PyResult<&Arc<wait_queue::Waiter<()>>> {
        match &self.0 {
            Place::Plain(waiter) => Ok(waiter),
            _ => Err(elsewhere()),
        }
    }

    pub fn arrived(&self) -> PyResult<&Arc<wait_queue::Waiter<Fate>>> {
        match &self.0 {
            Place::Arrived(waiter) => Ok(waiter),
            _ => Err(elsewhere()),
        }
    }
}

fn elsewhere() -> PyErr {
    PyRuntimeError::new_err(
        "this place in line is another lock's: give it back to the one it is of",
    )
}

/// What is awaited and is there already: `await` of it does not suspend.
#[pyclass(frozen, module = "plait._rust")]
pub struct Ready {
    value: Py<PyAny>,
}

impl Ready {
    /// Of what is awaited for nothing but that.
    pub fn none(py: Python<'_>) -> PyResult<Py<Self>> {
        static NONE: PyOnceLock<Py<Ready>> = PyOnceLock::new();
        NONE.get_or_try_init(py, || Py::new(py, Self { value: py.None() }))
            .map(|ready| ready.clone_ref(py))
    }
}

#[pymethods]
impl Ready {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<()> {
        Err(PyStopIteration::new_err(self.value.clone_ref(py)))
    }
}

/// What a coroutine does that has to wait: `plait._in_line`.
fn in_line(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    MODULE
        .get_or_try_init(py, || py.import("plait._in_line").map(Bound::unbind))
        .map(|module| module.bind(py))
}

/// A coroutine that takes a unit of `lock` and returns True.
pub fn acquire_async<'py>(lock: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    in_line(lock.py())?.call_method1(intern!(lock.py(), "acquire"), (lock,))
}

/// What `__aenter__` returns: there is nothing to wait for if a unit was `acquired`.
pub fn enter_async<'py>(lock: &Bound<'py, PyAny>, acquired: bool) -> PyResult<Bound<'py, PyAny>> {
    let py = lock.py();
    if acquired {
        return Ok(Ready::none(py)?.into_bound(py).into_any());
    }
    in_line(py)?.call_method1(intern!(py, "enter"), (lock,))
}

/// For a coroutine: takes a unit (None), or joins the line for one.
pub fn join_unit(
    units: &Semaphore,
    bell: &Bound<'_, LoopBell>,
    future: &Bound<'_, PyAny>,
) -> Option<Waiter> {
    place(units.acquire(|| future_wake(bell, future)))
}

/// For a coroutine whose future is done: as [`join_unit`].
pub fn settle_unit(
    units: &Semaphore,
    waiter: &Waiter,
    bell: &Bound<'_, LoopBell>,
    future: &Bound<'_, PyAny>,
) -> PyResult<Option<Waiter>> {
    let waiter = Arc::clone(waiter.unit()?);
    Ok(place(units.settle(waiter, || future_wake(bell, future))))
}

/// For a coroutine that gives up: true if it has a unit nevertheless.
pub fn leave_unit(units: &Semaphore, waiter: &Waiter) -> PyResult<bool> {
    Ok(units.leave(waiter.unit()?))
}

fn place(attempt: Attempt) -> Option<Waiter> {
    match attempt {
        Attempt::Acquired => None,
        Attempt::Waiting(waiter) => Some(Waiter(Place::Unit(waiter))),
    }
}
