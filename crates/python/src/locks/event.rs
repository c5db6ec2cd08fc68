//! `_rust.Event`.

use plait_sync::event;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::line::{Place, Waiter, future_wake};
use super::patience::Patience;
use crate::loop_bell::LoopBell;
use crate::waiting;

/// A flag to wait for.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct Event {
    core: event::Event,
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            core: event::Event::new(),
        }
    }

    fn is_set(&self) -> bool {
        self.core.is_set()
    }

    fn set(&self) {
        self.core.set();
    }

    fn clear(&self) {
        self.core.clear();
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        if self.core.is_set() {
            return Ok(true);
        }
        let patience = Patience::of_wait(timeout)?;
        if matches!(patience, Patience::None) {
            return Ok(self.core.is_set());
        }
        let Some(waiter) = self.core.wait(waiting::thread_wake) else {
            return Ok(true);
        };
        let deadline = patience.deadline();
        let outcome = waiting::sleep_in_line(py, deadline, true, || waiter.is_granted());
        if matches!(outcome, Ok(true)) {
            return Ok(true);
        }
        let set = self.core.leave(&waiter);
        outcome.map(|_| set)
    }

    #[getter]
    fn _flag(&self) -> bool {
        self.core.is_set()
    }

    fn _at_fork_reinit(&self) {
        self.core.forget_waiters();
    }

    fn _join(&self, bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Option<Waiter> {
        let waiter = self.core.wait(|| future_wake(bell, future))?;
        Some(Waiter(Place::Plain(waiter)))
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<bool> {
        Ok(self.core.leave(waiter.plain()?))
    }
}
