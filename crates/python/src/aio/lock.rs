//! `_rust.AsyncLock`: the hot half of `plait.asyncio.Lock`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple, PyType};

use super::line::{Home, Line};
use super::{inherits, ready, standard_context};
use crate::event_loop::coroutine::{Coroutine, Step, Steps};
use crate::event_loop::waiter::Waiter;

/// See `README.md`.
#[pyclass(frozen, subclass, weakref, module = "plait._rust", name = "AsyncLock")]
pub struct Lock {
    locked: AtomicBool,
    line: Py<Line>,
    home: Home,
    /// Its class has no `acquire` and `release` of its own.
    is_plain: bool,
}

impl Lock {
    /// Takes it, if it is free and nobody is in line.
    fn try_acquire(&self, py: Python<'_>) -> PyResult<bool> {
        if self.locked.load(Relaxed) {
            return Ok(false);
        }
        let line = self.line.get();
        let free = line.is_empty() || line.all_cancelled(py)?;
        if free {
            self.locked.store(true, Relaxed);
        }
        Ok(free)
    }

    fn release_one(&self, py: Python<'_>) -> PyResult<()> {
        if !self.locked.load(Relaxed) {
            return Err(PyRuntimeError::new_err("Lock is not acquired."));
        }
        self.locked.store(false, Relaxed);
        self.line.get().wake_first(py)
    }

    fn acquiring<'py>(slf: &Bound<'py, Self>, enters: bool) -> PyResult<Bound<'py, PyAny>> {
        let steps = Acquire {
            lock: slf.clone().unbind(),
            waiter: None,
            enters,
        };
        let name = if enters {
            "Lock.__aenter__"
        } else {
            "Lock.acquire"
        };
        Ok(Coroutine::new(slf.py(), name, steps)?.into_any())
    }
}

#[pymethods]
impl Lock {
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
            locked: AtomicBool::new(false),
            line: Py::new(py, Line::default())?,
            home: Home::default(),
            is_plain: inherits(cls, &py.get_type::<Self>(), &["acquire", "release"])?,
        })
    }

    /// Whether somebody has it.
    fn locked(&self) -> bool {
        self.locked.load(Relaxed)
    }

    /// Waits until it is free, and takes it; gives True.
    fn acquire<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::acquiring(slf, false)
    }

    /// Frees it; the first in line takes it next. Raises `RuntimeError` if nobody has it.
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

    #[getter(_locked)]
    fn is_locked(&self) -> bool {
        self.locked.load(Relaxed)
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

/// Waiting for a lock.
struct Acquire {
    lock: Py<Lock>,
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

    /// Leaves the line without the lock. If it is free, whoever is first now may have been passed over.
    fn give_up(&mut self, py: Python<'_>) -> PyResult<()> {
        let Some(waiter) = self.waiter.take() else {
            return Ok(());
        };
        let lock = self.lock.get();
        let line = lock.line.get();
        line.leave(&waiter);
        if lock.locked.load(Relaxed) {
            Ok(())
        } else {
            line.wake_first(py)
        }
    }
}

impl Steps for Acquire {
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        let lock = self.lock.bind(py);
        let this = lock.get();
        if this.try_acquire(py)? {
            return Ok(self.taken(py));
        }
        let waiter = this.home.waiter(lock)?;
        this.line.get().join(&waiter);
        self.waiter = Some(waiter.clone().unbind());
        Ok(Step::Wait(waiter))
    }

    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        if let Err(error) = outcome {
            self.give_up(py)?;
            return Err(error);
        }
        let lock = self.lock.get();
        if let Some(waiter) = self.waiter.take() {
            lock.line.get().leave(&waiter);
        }
        lock.locked.store(true, Relaxed);
        Ok(self.taken(py))
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.lock)?;
        visit.call(&self.waiter)
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if self.waiter.is_some() {
            Python::attach(|py| {
                if let Err(error) = self.give_up(py) {
                    error.write_unraisable(py, Some(self.lock.bind(py)));
                }
            });
        }
    }
}
