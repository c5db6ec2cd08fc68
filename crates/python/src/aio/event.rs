//! `_rust.AsyncEvent`: the hot half of `plait.asyncio.Event`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};

use super::line::{Home, Line};
use crate::event_loop::coroutine::{Coroutine, Step, Steps};
use crate::event_loop::waiter::Waiter;

/// See `README.md`.
#[pyclass(frozen, subclass, weakref, module = "plait._rust", name = "AsyncEvent")]
pub struct Event {
    is_set: AtomicBool,
    line: Py<Line>,
    home: Home,
}

impl Event {
    /// A coroutine that waits for it, by the name of the method that was called.
    pub(super) fn waiting<'py>(
        slf: &Bound<'py, Self>,
        name: &'static str,
        gives_true: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let steps = Wait {
            event: slf.clone().unbind(),
            waiter: None,
            gives_true,
        };
        Ok(Coroutine::new(slf.py(), name, steps)?.into_any())
    }

    /// Sets it; everybody who waits is woken.
    pub(super) fn raise(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_set.swap(true, Relaxed) {
            return Ok(());
        }
        self.line.get().wake_all(py)
    }

    /// Clears it.
    pub(super) fn lower(&self) {
        self.is_set.store(false, Relaxed);
    }
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        py: Python<'_>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        Ok(Self {
            is_set: AtomicBool::new(false),
            line: Py::new(py, Line::default())?,
            home: Home::default(),
        })
    }

    /// Whether it is set.
    fn is_set(&self) -> bool {
        self.is_set.load(Relaxed)
    }

    /// Sets it, and wakes everybody who waits.
    fn set(&self, py: Python<'_>) -> PyResult<()> {
        self.raise(py)
    }

    /// Clears it: whoever waits from now on does so until it is set again.
    fn clear(&self) {
        self.lower();
    }

    /// Waits until it is set; gives True.
    fn wait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::waiting(slf, "Event.wait", true)
    }

    #[getter(_value)]
    fn value(&self) -> bool {
        self.is_set.load(Relaxed)
    }

    #[getter(_waiters)]
    fn waiters(&self, py: Python<'_>) -> Py<Line> {
        self.line.clone_ref(py)
    }

    #[getter(_loop)]
    fn get_loop(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.home.get(py)
    }

    #[setter(_loop)]
    fn set_loop(&self, event_loop: Option<Py<PyAny>>) {
        self.home.set(event_loop);
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.line)?;
        self.home.traverse(&visit)
    }

    fn __clear__(&self) {
        self.home.set(None);
    }
}

/// Waiting for an event.
struct Wait {
    event: Py<Event>,
    /// While it is in line.
    waiter: Option<Py<Waiter>>,
    /// Or None.
    gives_true: bool,
}

impl Wait {
    fn leave(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            self.event.get().line.get().leave(&waiter);
        }
    }

    fn over<'py>(&self, py: Python<'py>) -> Step<'py> {
        Step::Done(if self.gives_true {
            PyBool::new(py, true).to_owned().into_any()
        } else {
            py.None().into_bound(py)
        })
    }
}

impl Steps for Wait {
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        let event = self.event.bind(py);
        let this = event.get();
        if this.is_set.load(Relaxed) {
            return Ok(self.over(py));
        }
        let waiter = this.home.waiter(event)?;
        this.line.get().join(&waiter);
        self.waiter = Some(waiter.clone().unbind());
        Ok(Step::Wait(waiter))
    }

    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        self.leave();
        outcome.map(|_| self.over(py))
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event)?;
        visit.call(&self.waiter)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.leave();
    }
}
