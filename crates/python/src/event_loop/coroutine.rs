//! `_rust.LoopCoroutine`: what a method of ours returns where asyncio has an `async def`.
//!
//! Nothing happens before somebody awaits it or makes a task of it; what is ready then is the result without a turn, and
//! otherwise a [`Waiter`] goes to the task. What it does is a value of a type with [`Steps`]; to drop that is to give it up.
//!
//! For the thread of its loop, but it may be looked at and dropped by any. Its mutex is held for a few loads and stores,
//! under which no Python code runs and nothing of Python's is dropped.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use super::waiter::{Waiter, stop};

/// What a step of a coroutine has come to.
pub enum Step<'py> {
    /// It is over, with this value.
    Done(Bound<'py, PyAny>),
    /// It goes on when this is done.
    Wait(Bound<'py, Waiter>),
}

/// What a [`Coroutine`] does. Dropped when it is over, and when it is given up before: then it takes back what it asked for.
pub trait Steps: Send + Sync {
    /// The beginning: somebody awaits it.
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>>;

    /// Goes on after a wait, which came to `outcome`: the waiter's value, or what is raised at the `await` (a cancellation,
    /// above all, or what `throw` was given). By default the outcome of the wait is that of the coroutine.
    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        let _ = py;
        outcome.map(Step::Done)
    }

    /// Shows the objects that it holds to the collector. Must not block.
    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let _ = visit;
        Ok(())
    }
}

enum CoroutineState {
    Fresh(Box<dyn Steps>),
    Waiting(Box<dyn Steps>, Py<Waiter>),
    Running,
    Over,
}

/// A coroutine in Rust: `collections.abc.Coroutine`, to be awaited once or made a task of, on its own loop.
#[pyclass(frozen, weakref, module = "plait._rust", name = "LoopCoroutine")]
pub struct Coroutine {
    /// As `__qualname__` tells it.
    name: &'static str,
    state: Mutex<CoroutineState>,
}

impl Coroutine {
    /// One that has not begun. `name` is the method's qualified name.
    pub fn new<'py>(
        py: Python<'py>,
        name: &'static str,
        steps: impl Steps + 'static,
    ) -> PyResult<Bound<'py, Self>> {
        let state = Mutex::new(CoroutineState::Fresh(Box::new(steps)));
        Bound::new(py, Self { name, state })
    }

    fn state(&self) -> MutexGuard<'_, CoroutineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: CoroutineState) {
        let old = std::mem::replace(&mut *self.state(), state);
        drop(old);
    }

    /// Runs to the next wait, or to the end. `thrown`: what to raise where it waits.
    fn go_on(&self, py: Python<'_>, thrown: Option<PyErr>) -> PyResult<Option<Py<PyAny>>> {
        let state = std::mem::replace(&mut *self.state(), CoroutineState::Running);
        let (steps, step) = match state {
            CoroutineState::Fresh(mut steps) => {
                let step = match thrown {
                    Some(error) => Err(error),
                    None => steps.start(py),
                };
                (steps, step)
            }
            CoroutineState::Waiting(mut steps, waiter) => {
                let waiter = waiter.into_bound(py);
                if thrown.is_none() && !waiter.get().is_done() {
                    (steps, Ok(Step::Wait(waiter)))
                } else {
                    let outcome = thrown.map_or_else(|| Waiter::outcome(&waiter), Err);
                    let step = steps.resume(py, outcome);
                    (steps, step)
                }
            }
            CoroutineState::Running => {
                return Err(PyValueError::new_err("coroutine already executing"));
            }
            CoroutineState::Over => {
                self.set(CoroutineState::Over);
                return Err(PyRuntimeError::new_err(
                    "cannot reuse already awaited coroutine",
                ));
            }
        };
        match step {
            Ok(Step::Wait(waiter)) => {
                waiter.get().expect_task();
                let yielded = waiter.clone().into_any().unbind();
                self.set(CoroutineState::Waiting(steps, waiter.unbind()));
                Ok(Some(yielded))
            }
            Ok(Step::Done(value)) => {
                self.set(CoroutineState::Over);
                drop(steps);
                stop(value)
            }
            Err(error) => {
                self.set(CoroutineState::Over);
                drop(steps);
                Err(error)
            }
        }
    }
}

/// The exception that `throw` is asked for, in each of the ways that generators know.
pub(crate) fn thrown<'py>(
    kind: Bound<'py, PyAny>,
    value: Option<Bound<'py, PyAny>>,
    traceback: Option<Bound<'py, PyAny>>,
) -> PyResult<PyErr> {
    let py = kind.py();
    let exception = match (kind.cast::<PyType>(), value) {
        (Err(_), None) => kind,
        (Err(_), Some(_)) => {
            return Err(PyTypeError::new_err(
                "instance exception may not have a separate value",
            ));
        }
        (Ok(class), None) => class.call0()?,
        (Ok(class), Some(value)) if value.is_instance(class)? => value,
        (Ok(class), Some(value)) => match value.cast_into::<PyTuple>() {
            Ok(args) => class.call1(args)?,
            Err(error) => class.call1((error.into_inner(),))?,
        },
    };
    if let Some(traceback) = traceback {
        exception.setattr(intern!(py, "__traceback__"), traceback)?;
    }
    // What is no exception becomes a TypeError that says so.
    Ok(PyErr::from_value(exception))
}

#[pymethods]
impl Coroutine {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.go_on(py, None)
    }

    /// Goes on to the next wait, which it returns; what is sent is ignored. Raises `StopIteration` with the result.
    fn send(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let _ = value;
        self.go_on(py, None)?
            .ok_or_else(|| PyStopIteration::new_err(()))
    }

    /// Raises an exception where it waits.
    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw<'py>(
        &self,
        py: Python<'py>,
        kind: Bound<'py, PyAny>,
        value: Option<Bound<'py, PyAny>>,
        traceback: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let error = thrown(kind, value, traceback)?;
        self.go_on(py, Some(error))?
            .ok_or_else(|| PyStopIteration::new_err(()))
    }

    /// Gives it up: what it waits for is not waited for any more.
    fn close(&self) -> PyResult<()> {
        let old = {
            let mut state = self.state();
            if matches!(*state, CoroutineState::Running) {
                return Err(PyValueError::new_err("coroutine already executing"));
            }
            std::mem::replace(&mut *state, CoroutineState::Over)
        };
        drop(old);
        Ok(())
    }

    #[getter]
    fn __name__(&self) -> &'static str {
        self.name
            .rsplit_once('.')
            .map_or(self.name, |(_, name)| name)
    }

    #[getter]
    fn __qualname__(&self) -> &'static str {
        self.name
    }

    fn __repr__(&self) -> String {
        format!("<coroutine {}>", self.name)
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        match &*state {
            CoroutineState::Fresh(steps) => steps.traverse(&visit),
            CoroutineState::Waiting(steps, waiter) => {
                visit.call(waiter)?;
                steps.traverse(&visit)
            }
            CoroutineState::Running | CoroutineState::Over => Ok(()),
        }
    }

    fn __clear__(&self) {
        self.set(CoroutineState::Over);
    }
}
