//! `_rust.AsyncSemaphore`: the hot half of `plait.asyncio.Semaphore` and `BoundedSemaphore`.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple, PyType};

use super::line::{Home, Line};
use super::{inherits, ready, standard_context};
use crate::event_loop::coroutine::{Coroutine, Step, Steps};
use crate::event_loop::waiter::Waiter;

/// See `README.md`.
#[pyclass(
    frozen,
    subclass,
    weakref,
    module = "plait._rust",
    name = "AsyncSemaphore"
)]
pub struct Semaphore {
    value: AtomicI64,
    /// What the value must not exceed, if `is_bounded`.
    bound: AtomicI64,
    is_bounded: AtomicBool,
    line: Py<Line>,
    home: Home,
    /// Its class has no `acquire` and `release` of its own.
    is_plain: bool,
}

impl Semaphore {
    fn try_acquire(&self, py: Python<'_>) -> PyResult<bool> {
        if self.value.load(Relaxed) == 0 {
            return Ok(false);
        }
        let line = self.line.get();
        let free = line.is_empty() || line.all_cancelled(py)?;
        if free {
            self.value.fetch_sub(1, Relaxed);
        }
        Ok(free)
    }

    /// Gives one to the first who waits; false if nobody does.
    fn wake_next(&self, py: Python<'_>) -> PyResult<bool> {
        self.line.get().wake_next(py, || {
            self.value.fetch_sub(1, Relaxed);
        })
    }

    fn release_one(&self, py: Python<'_>) -> PyResult<()> {
        let value = self.value.load(Relaxed);
        if self.is_bounded.load(Relaxed) && value >= self.bound.load(Relaxed) {
            return Err(PyValueError::new_err(
                "BoundedSemaphore released too many times",
            ));
        }
        self.value.store(value + 1, Relaxed);
        self.wake_next(py).map(drop)
    }

    fn acquiring<'py>(slf: &Bound<'py, Self>, enters: bool) -> PyResult<Bound<'py, PyAny>> {
        let steps = Acquire {
            semaphore: slf.clone().unbind(),
            waiter: None,
            enters,
        };
        let name = if enters {
            "Semaphore.__aenter__"
        } else {
            "Semaphore.acquire"
        };
        Ok(Coroutine::new(slf.py(), name, steps)?.into_any())
    }
}

#[pymethods]
impl Semaphore {
    #[new]
    #[classmethod]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        cls: &Bound<'_, PyType>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let py = cls.py();
        Ok(Self {
            value: AtomicI64::new(1),
            bound: AtomicI64::new(1),
            is_bounded: AtomicBool::new(false),
            line: Py::new(py, Line::default())?,
            home: Home::default(),
            is_plain: inherits(cls, &py.get_type::<Self>(), &["acquire", "release"])?,
        })
    }

    /// Begins with so many permits, and never has more if it is bounded.
    fn _begin(&self, value: i64, is_bounded: bool) {
        self.value.store(value, Relaxed);
        self.bound.store(value, Relaxed);
        self.is_bounded.store(is_bounded, Relaxed);
    }

    /// Whether whoever acquires it now has to wait.
    fn locked(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.value.load(Relaxed) == 0 || !self.line.get().all_cancelled(py)?)
    }

    /// Waits until there is a permit, and takes it; gives True.
    fn acquire<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::acquiring(slf, false)
    }

    /// Gives a permit back. Raises `ValueError` if it is bounded and nobody has one.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.release_one(py)
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        if !this.is_plain {
            return standard_context(slf, "__aenter__", &PyTuple::empty(py));
        }
        if this.try_acquire(py)? {
            return ready(py);
        }
        Self::acquiring(slf, true)
    }

    #[pyo3(signature = (*args))]
    fn __aexit__<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if !slf.get().is_plain {
            return standard_context(slf, "__aexit__", args);
        }
        slf.get().release_one(slf.py())?;
        ready(slf.py())
    }

    #[getter(_value)]
    fn get_value(&self) -> i64 {
        self.value.load(Relaxed)
    }

    #[setter(_value)]
    fn set_value(&self, value: i64) {
        self.value.store(value, Relaxed);
    }

    #[getter(_bound_value)]
    fn bound_value(&self) -> i64 {
        self.bound.load(Relaxed)
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

/// Waiting for a permit.
struct Acquire {
    semaphore: Py<Semaphore>,
    /// While it is in line.
    waiter: Option<Py<Waiter>>,
    /// For `async with`, which gives None.
    enters: bool,
}

impl Acquire {
    fn taken<'py>(&self, py: Python<'py>) -> Step<'py> {
        Step::Done(if self.enters {
            py.None().into_bound(py)
        } else {
            PyBool::new(py, true).to_owned().into_any()
        })
    }

    /// Leaves the line. Whoever had to wait only because of the order gets what there is.
    fn leave(&mut self, py: Python<'_>, has_permit: bool) -> PyResult<()> {
        let Some(waiter) = self.waiter.take() else {
            return Ok(());
        };
        let semaphore = self.semaphore.get();
        semaphore.line.get().leave(&waiter);
        let waiter = waiter.get();
        if !has_permit && waiter.is_done() && !waiter.cancelled() {
            // It was given a permit, and goes without.
            semaphore.value.fetch_add(1, Relaxed);
        }
        while semaphore.value.load(Relaxed) > 0 && semaphore.wake_next(py)? {}
        Ok(())
    }
}

impl Steps for Acquire {
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        let semaphore = self.semaphore.bind(py);
        let this = semaphore.get();
        if this.try_acquire(py)? {
            return Ok(self.taken(py));
        }
        let waiter = this.home.waiter(semaphore)?;
        this.line.get().join(&waiter);
        self.waiter = Some(waiter.clone().unbind());
        Ok(Step::Wait(waiter))
    }

    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        self.leave(py, outcome.is_ok())?;
        outcome.map(|_| self.taken(py))
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.semaphore)?;
        visit.call(&self.waiter)
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if self.waiter.is_some() {
            Python::attach(|py| {
                if let Err(error) = self.leave(py, false) {
                    error.write_unraisable(py, Some(self.semaphore.bind(py)));
                }
            });
        }
    }
}
