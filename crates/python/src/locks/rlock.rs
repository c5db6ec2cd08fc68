//! `_rust.RLock`: a lock that belongs to a thread.

use plait_sync::rlock;
use pyo3::exceptions::{PyDeprecationWarning, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::line::acquire_unit;
use super::patience::Patience;
use crate::callback::thread_ident;

/// `threading.RLock`: a lock that the thread that has it may acquire again.
///
/// It belongs to a thread, so coroutines, which share one, cannot use it: take a `Lock` there.
#[pyclass(frozen, subclass, weakref, module = "plait.threading")]
pub struct RLock {
    core: rlock::RLock,
}

impl RLock {
    pub(super) fn take(slf: &Bound<'_, Self>, patience: Patience) -> PyResult<bool> {
        let core = &slf.get().core;
        let caller = thread_ident();
        if core.try_acquire(caller) {
            return Ok(true);
        }
        let acquired = acquire_unit(slf.as_any(), core.unit(), patience, true)?;
        if acquired {
            core.own(caller, 1);
        }
        Ok(acquired)
    }

    pub(super) fn let_go(&self) -> PyResult<()> {
        self.core.release(thread_ident()).map_err(|_| not_owned())
    }

    pub(super) fn let_go_of_all(&self) -> PyResult<u64> {
        self.core
            .release_all(thread_ident())
            .map_err(|_| not_owned())
    }

    /// Not interruptible: whoever waited for a condition has to have its lock again.
    pub(super) fn take_again(slf: &Bound<'_, Self>, depth: u64) -> PyResult<()> {
        let core = &slf.get().core;
        acquire_unit(slf.as_any(), core.unit(), Patience::Forever, false)?;
        core.own(thread_ident(), depth);
        Ok(())
    }

    pub(super) fn is_owned(&self) -> bool {
        self.core.is_owned_by(thread_ident())
    }
}

fn not_owned() -> PyErr {
    PyRuntimeError::new_err("cannot release un-acquired lock")
}

#[pymethods]
impl RLock {
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let py = args.py();
        let nothing = args.is_empty() && kwargs.is_none_or(PyDictMethods::is_empty);
        if !nothing && py.version_info() >= (3, 13) {
            let message = c"Passing arguments to RLock is deprecated and will be removed in 3.15";
            PyErr::warn(py, &py.get_type::<PyDeprecationWarning>(), message, 1)?;
        }
        Ok(Self {
            core: rlock::RLock::new(),
        })
    }

    #[pyo3(signature = (blocking = None, timeout = None), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire(
        slf: &Bound<'_, Self>,
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        Self::take(slf, Patience::of_lock(blocking, timeout)?)
    }

    fn release(&self) -> PyResult<()> {
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
        self.core.owner().is_some()
    }

    fn _is_owned(&self) -> bool {
        self.is_owned()
    }

    fn _recursion_count(&self) -> u64 {
        if self.is_owned() {
            self.core.depth()
        } else {
            0
        }
    }

    fn _release_save(&self) -> PyResult<(u64, u64)> {
        Ok((self.let_go_of_all()?, thread_ident()))
    }

    fn _acquire_restore(slf: &Bound<'_, Self>, state: (u64, u64)) -> PyResult<()> {
        Self::take_again(slf, state.0)
    }

    fn _at_fork_reinit(&self) {
        self.core.reset();
    }

    /// The number of the thread that has it; None if nobody.
    fn _holder(&self) -> Option<u64> {
        self.core.owner()
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let core = &slf.get().core;
        let (owner, depth) = (core.owner(), core.depth());
        let state = if owner.is_some() {
            "locked"
        } else {
            "unlocked"
        };
        let kind = slf.get_type().fully_qualified_name()?;
        let (owner, at) = (owner.unwrap_or(0), slf.as_ptr() as usize);
        Ok(format!(
            "<{state} {kind} object owner={owner} count={depth} at {at:#x}>"
        ))
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<()> {
        let kind = slf.get_type().fully_qualified_name()?;
        Err(PyTypeError::new_err(format!(
            "cannot pickle '{kind}' object"
        )))
    }
}
