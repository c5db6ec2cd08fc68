//! `_rust.Condition`, over one of plait's locks or any other.

use std::sync::OnceLock;

use plait_sync::condition;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::line::{Place, Waiter, future_wake};
use super::lock::Lock;
use super::patience::Patience;
use super::rlock::RLock;
use crate::loop_bell::LoopBell;
use crate::waiting;

/// The lock of a condition, by what it can be asked for.
enum Guard {
    RLock(Py<RLock>),
    Lock(Py<Lock>),
    Other(Py<PyAny>),
}

impl Guard {
    fn of(lock: &Bound<'_, PyAny>) -> Self {
        // Not of a class that derives from these: that may do something else.
        if let Ok(lock) = lock.cast_exact::<RLock>() {
            return Self::RLock(lock.clone().unbind());
        }
        if let Ok(lock) = lock.cast_exact::<Lock>() {
            return Self::Lock(lock.clone().unbind());
        }
        Self::Other(lock.clone().unbind())
    }
}

/// What a waiter for a condition remembers of the lock that it let go of.
enum Saved {
    Depth(u64),
    Nothing,
    Other(Py<PyAny>),
}

/// A condition variable.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct Condition {
    line: condition::Condition,
    guard: OnceLock<Guard>,
}

impl Condition {
    fn guard(&self) -> PyResult<&Guard> {
        self.guard
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("Condition.__init__() was not called"))
    }

    fn is_owned(&self, py: Python<'_>) -> PyResult<bool> {
        match self.guard()? {
            Guard::RLock(lock) => Ok(lock.get().is_owned()),
            Guard::Lock(lock) => Ok(lock.get().unit.free() == 0),
            Guard::Other(lock) => {
                let lock = lock.bind(py);
                if let Some(is_owned) = lock.getattr_opt(intern!(py, "_is_owned"))? {
                    return is_owned.call0()?.is_truthy();
                }
                // As the standard class: nobody can take a lock that is held.
                if lock
                    .call_method1(intern!(py, "acquire"), (false,))?
                    .is_truthy()?
                {
                    lock.call_method0(intern!(py, "release"))?;
                    return Ok(false);
                }
                Ok(true)
            }
        }
    }

    fn let_go(&self, py: Python<'_>) -> PyResult<Saved> {
        match self.guard()? {
            Guard::RLock(lock) => lock.get().let_go_of_all().map(Saved::Depth),
            Guard::Lock(lock) => lock.get().let_go().map(|()| Saved::Nothing),
            Guard::Other(lock) => {
                let lock = lock.bind(py);
                match lock.getattr_opt(intern!(py, "_release_save"))? {
                    Some(release) => Ok(Saved::Other(release.call0()?.unbind())),
                    None => lock
                        .call_method0(intern!(py, "release"))
                        .map(|_| Saved::Nothing),
                }
            }
        }
    }

    fn take_again(&self, py: Python<'_>, saved: Saved) -> PyResult<()> {
        match (self.guard()?, saved) {
            (Guard::RLock(lock), Saved::Depth(depth)) => RLock::take_again(lock.bind(py), depth),
            (Guard::Lock(lock), _) => Lock::take(lock.bind(py), Patience::Forever).map(drop),
            (Guard::Other(lock), Saved::Other(state)) => lock
                .call_method1(py, intern!(py, "_acquire_restore"), (state,))
                .map(drop),
            (Guard::Other(lock), _) => lock.call_method0(py, intern!(py, "acquire")).map(drop),
            (Guard::RLock(lock), _) => RLock::take_again(lock.bind(py), 1),
        }
    }

    fn notify_some(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        if !self.is_owned(py)? {
            return Err(PyRuntimeError::new_err("cannot notify on un-acquired lock"));
        }
        self.line.notify(count);
        Ok(())
    }

    fn lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self.guard()? {
            Guard::RLock(lock) => lock.bind(py).as_any().clone(),
            Guard::Lock(lock) => lock.bind(py).as_any().clone(),
            Guard::Other(lock) => lock.bind(py).clone(),
        })
    }
}

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            line: condition::Condition::new(),
            guard: OnceLock::new(),
        }
    }

    /// By the constructor: the lock. The first one stays.
    fn _begin(&self, lock: &Bound<'_, PyAny>) {
        let _ = self.guard.set(Guard::of(lock));
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock(py)
    }

    /// The lock's own method, as in the standard class.
    #[getter]
    fn acquire<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock(py)?.getattr(intern!(py, "acquire"))
    }

    /// The lock's own method, as in the standard class.
    #[getter]
    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock(py)?.getattr(intern!(py, "release"))
    }

    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let entered = match self.guard()? {
            Guard::RLock(lock) => RLock::take(lock.bind(py), Patience::Forever)?,
            Guard::Lock(lock) => Lock::take(lock.bind(py), Patience::Forever)?,
            Guard::Other(lock) => return lock.bind(py).call_method0(intern!(py, "__enter__")),
        };
        Ok(entered.into_pyobject(py)?.to_owned().into_any())
    }

    fn __exit__<'py>(
        &self,
        py: Python<'py>,
        r#type: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        traceback: &Bound<'py, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        match self.guard()? {
            Guard::RLock(lock) => lock.get().let_go()?,
            Guard::Lock(lock) => lock.get().let_go()?,
            Guard::Other(lock) => {
                return lock.call_method1(py, intern!(py, "__exit__"), (r#type, value, traceback));
            }
        }
        Ok(py.None())
    }

    fn _is_owned(&self, py: Python<'_>) -> PyResult<bool> {
        self.is_owned(py)
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        if !self.is_owned(py)? {
            return Err(PyRuntimeError::new_err("cannot wait on un-acquired lock"));
        }
        let patience = Patience::of_wait(timeout)?;
        let waiter = self.line.wait(waiting::thread_wake());
        let saved = match self.let_go(py) {
            Ok(saved) => saved,
            Err(error) => {
                self.line.leave(&waiter);
                return Err(error);
            }
        };
        let deadline = patience.deadline();
        let mut outcome = waiting::sleep_in_line(py, deadline, true, || waiter.is_granted());
        if !matches!(outcome, Ok(true)) && self.line.leave(&waiter) {
            match &mut outcome {
                Ok(notified) => *notified = true,
                // Somebody else may make use of it.
                Err(_) => self.line.notify(1),
            }
        }
        let again = self.take_again(py, saved);
        outcome.and_then(|notified| again.map(|()| notified))
    }

    #[pyo3(signature = (n = 1))]
    fn notify(&self, py: Python<'_>, n: i64) -> PyResult<()> {
        self.notify_some(py, usize::try_from(n).unwrap_or(0))
    }

    fn notify_all(&self, py: Python<'_>) -> PyResult<()> {
        self.notify_some(py, usize::MAX)
    }

    fn _waiting(&self) -> usize {
        self.line.waiting()
    }

    fn _at_fork_reinit(&self, py: Python<'_>) -> PyResult<()> {
        self.lock(py)?
            .call_method0(intern!(py, "_at_fork_reinit"))?;
        self.line.forget_waiters();
        Ok(())
    }

    fn _join(&self, bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Waiter {
        Waiter(Place::Plain(self.line.wait(future_wake(bell, future))))
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<bool> {
        Ok(self.line.leave(waiter.plain()?))
    }

    /// Notifies one instead of one that was notified and gave up.
    fn _pass_on(&self) {
        self.line.notify(1);
    }
}
