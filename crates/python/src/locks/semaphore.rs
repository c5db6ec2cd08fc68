//! `_rust.Semaphore`, of which `BoundedSemaphore` is one, too.

use plait_sync::semaphore;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::line::{self, Ready, Waiter, acquire_unit};
use super::patience::Patience;
use crate::loop_bell::LoopBell;

/// What no number of units exceeds.
const NO_BOUND: u64 = u64::MAX;

/// A counter of free units.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct Semaphore {
    units: semaphore::Semaphore,
}

impl Semaphore {
    fn give(&self, count: u64) -> PyResult<()> {
        self.units
            .release(count)
            .map_err(|_| PyValueError::new_err("Semaphore released too many times"))
    }

    fn wait_for_unit(slf: &Bound<'_, Self>, patience: Patience) -> PyResult<bool> {
        acquire_unit(slf.as_any(), &slf.get().units, patience, true)
    }
}

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            units: semaphore::Semaphore::new(1, NO_BOUND),
        }
    }

    /// By the constructor: how many units are free, and whether there can ever be more of them.
    fn _begin(&self, value: u64, bounded: bool) {
        let bound = if bounded { value } else { NO_BOUND };
        self.units.reset(value, bound);
    }

    #[pyo3(signature = (blocking = None, timeout = None), text_signature = "($self, blocking=True, timeout=None)")]
    fn acquire(
        slf: &Bound<'_, Self>,
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let blocking = blocking.map_or(Ok(true), PyAnyMethods::is_truthy)?;
        if !blocking && timeout.is_some() {
            return Err(PyValueError::new_err(
                "can't specify timeout for non-blocking acquire",
            ));
        }
        if slf.get().units.try_acquire() {
            return Ok(true);
        }
        if !blocking {
            return Ok(false);
        }
        Self::wait_for_unit(slf, Patience::of_wait(timeout)?)
    }

    #[pyo3(signature = (n = 1))]
    fn release(&self, n: i64) -> PyResult<()> {
        match u64::try_from(n) {
            Ok(count) if count > 0 => self.give(count),
            _ => Err(PyValueError::new_err("n must be one or more")),
        }
    }

    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<bool> {
        if slf.get().units.try_acquire() {
            return Ok(true);
        }
        Self::wait_for_unit(slf, Patience::Forever)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.give(1)
    }

    #[getter]
    fn _value(&self) -> u64 {
        self.units.free()
    }

    #[getter]
    fn _initial_value(&self) -> u64 {
        self.units.bound()
    }

    fn _at_fork_reinit(&self) {
        self.units.reset(self.units.free(), self.units.bound());
    }

    /// Takes a unit, from a coroutine, and returns True. If the coroutine is cancelled, it has taken none.
    fn acquire_async<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        line::acquire_async(slf.as_any())
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let acquired = slf.get().units.try_acquire();
        line::enter_async(slf.as_any(), acquired)
    }

    fn __aexit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Py<Ready>> {
        self.give(1)?;
        Ready::none(py)
    }

    fn _join(&self, bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Option<Waiter> {
        line::join_unit(&self.units, bell, future)
    }

    fn _settle(
        &self,
        waiter: &Waiter,
        bell: &Bound<'_, LoopBell>,
        future: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Waiter>> {
        line::settle_unit(&self.units, waiter, bell, future)
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<bool> {
        line::leave_unit(&self.units, waiter)
    }
}
