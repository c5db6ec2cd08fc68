//! `_rust.Lock`: for threads and coroutines.

use std::sync::atomic::{AtomicU64, Ordering};

use plait_sync::semaphore::Semaphore;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;

use super::line::{self, Ready, Waiter, acquire_unit};
use super::patience::Patience;
use super::watched::is_watching;
use crate::callback::thread_ident;
use crate::loop_bell::LoopBell;

/// `threading.Lock`, and ``async with``: a lock that any thread or coroutine may release, whoever acquired it.
///
/// ``acquire(blocking=True, timeout=-1)`` takes a timeout in seconds and returns whether it was acquired; ``release()`` raises
/// `RuntimeError` if it is not locked. Ctrl-C interrupts a wait. Safe to use from any thread and any event loop.
#[pyclass(frozen, weakref, module = "plait")]
pub struct Lock {
    pub(super) unit: Semaphore,
    /// Who acquired it last: a thread's number, or what [`Lock::_set_holder`] was told. For reports only.
    holder: AtomicU64,
}

impl Lock {
    /// Releases it.
    pub(super) fn let_go(&self) -> PyResult<()> {
        self.unit
            .release(1)
            .map_err(|_| PyRuntimeError::new_err("release unlocked lock"))
    }

    /// Acquires it; false if it was not to be had in time.
    pub(super) fn take(slf: &Bound<'_, Self>, patience: Patience) -> PyResult<bool> {
        let this = slf.get();
        let acquired =
            this.unit.try_acquire() || acquire_unit(slf.as_any(), &this.unit, patience, true)?;
        if acquired {
            this.holder.store(thread_ident(), Ordering::Relaxed);
        }
        Ok(acquired)
    }
}

#[pymethods]
impl Lock {
    #[new]
    fn new() -> Self {
        Self {
            unit: Semaphore::default(),
            holder: AtomicU64::new(0),
        }
    }

    #[pyo3(signature = (blocking = None, timeout = None), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire(
        slf: &Bound<'_, Self>,
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        Self::take(slf, Patience::of_lock(blocking, timeout)?)
    }

    #[pyo3(signature = (blocking = None, timeout = None), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire_lock(
        slf: &Bound<'_, Self>,
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        Self::acquire(slf, blocking, timeout)
    }

    fn release(&self) -> PyResult<()> {
        self.let_go()
    }

    fn release_lock(&self) -> PyResult<()> {
        self.let_go()
    }

    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::take(slf, Patience::Forever)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.let_go()
    }

    fn locked(&self) -> bool {
        self.unit.free() == 0
    }

    fn locked_lock(&self) -> bool {
        self.locked()
    }

    fn _at_fork_reinit(&self) {
        self.unit.reset(1, 1);
    }

    /// Acquires it, from a coroutine, and returns True. If the coroutine is cancelled, the lock stays as it was.
    fn acquire_async<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        line::acquire_async(slf.as_any())
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        let acquired = !is_watching() && this.unit.try_acquire();
        if acquired {
            this.holder.store(thread_ident(), Ordering::Relaxed);
        }
        line::enter_async(slf.as_any(), acquired)
    }

    fn __aexit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Py<Ready>> {
        self.let_go()?;
        Ready::none(py)
    }

    fn _join(&self, bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Option<Waiter> {
        line::join_unit(&self.unit, bell, future)
    }

    fn _settle(
        &self,
        waiter: &Waiter,
        bell: &Bound<'_, LoopBell>,
        future: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Waiter>> {
        line::settle_unit(&self.unit, waiter, bell, future)
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<bool> {
        line::leave_unit(&self.unit, waiter)
    }

    /// Who has it: the number of a thread, or what `_set_holder` was told. None if nobody.
    fn _holder(&self) -> Option<u64> {
        self.locked().then(|| self.holder.load(Ordering::Relaxed))
    }

    fn _set_holder(&self, holder: u64) {
        self.holder.store(holder, Ordering::Relaxed);
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let state = if slf.get().locked() {
            "locked"
        } else {
            "unlocked"
        };
        format!(
            "<{state} plait.Lock object at {:#x}>",
            slf.as_ptr() as usize
        )
    }

    #[allow(clippy::unused_self)]
    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("cannot pickle 'plait.Lock' object"))
    }
}
