//! `_rust.WaiterLine`: who waits for a primitive, first come first; and the event loop that a primitive belongs to.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::event_loop::waiter::Waiter;

/// Waiters, and futures that inherited Python code has put here. What a primitive shows as `_waiters`: of a deque it has
/// what the standard classes use.
#[pyclass(frozen, sequence, module = "plait._rust", name = "WaiterLine")]
#[derive(Default)]
pub struct Line(Mutex<VecDeque<Py<PyAny>>>);

impl Line {
    fn waiters(&self) -> MutexGuard<'_, VecDeque<Py<PyAny>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.waiters().is_empty()
    }

    /// A waiter stands behind the others.
    pub fn join(&self, waiter: &Bound<'_, Waiter>) {
        self.waiters().push_back(waiter.clone().into_any().unbind());
    }

    /// A waiter leaves; false if it was not here any more.
    pub fn leave(&self, waiter: &Py<Waiter>) -> bool {
        let mut waiters = self.waiters();
        // Most are served in order.
        let place = waiters.iter().position(|other| other.is(waiter));
        let left = place.and_then(|place| waiters.remove(place));
        drop(waiters);
        left.is_some()
    }

    /// The waiter at this place.
    fn at<'py>(&self, py: Python<'py>, place: usize) -> Option<Bound<'py, PyAny>> {
        let waiters = self.waiters();
        waiters.get(place).map(|waiter| waiter.bind(py).clone())
    }

    /// Whether all who are here have been cancelled.
    pub fn all_cancelled(&self, py: Python<'_>) -> PyResult<bool> {
        let mut place = 0;
        while let Some(waiter) = self.at(py, place) {
            let cancelled = match waiter.cast::<Waiter>() {
                Ok(waiter) => waiter.get().cancelled(),
                Err(_) => waiter.call_method0(intern!(py, "cancelled"))?.is_truthy()?,
            };
            if !cancelled {
                return Ok(false);
            }
            place += 1;
        }
        Ok(true)
    }

    /// Wakes the first, unless it has been already; nobody else.
    pub fn wake_first(&self, py: Python<'_>) -> PyResult<()> {
        match self.at(py, 0) {
            Some(waiter) => wake(&waiter).map(drop),
            None => Ok(()),
        }
    }

    /// Wakes the first who was not woken or cancelled yet; false if there is none. `before` happens first.
    pub fn wake_next(&self, py: Python<'_>, before: impl FnOnce()) -> PyResult<bool> {
        let mut place = 0;
        while let Some(waiter) = self.at(py, place) {
            if !is_done(&waiter)? {
                before();
                return wake(&waiter);
            }
            place += 1;
        }
        Ok(false)
    }

    /// Wakes everybody who is here now.
    pub fn wake_all(&self, py: Python<'_>) -> PyResult<()> {
        let waiters: Vec<_> = {
            let waiters = self.waiters();
            waiters.iter().map(|waiter| waiter.clone_ref(py)).collect()
        };
        for waiter in waiters {
            wake(waiter.bind(py))?;
        }
        Ok(())
    }

    /// Takes waiters out until there is one to be woken, and wakes it.
    pub fn take_next(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let Some(waiter) = self.waiters().pop_front() else {
                return Ok(());
            };
            if wake(waiter.bind(py))? {
                return Ok(());
            }
        }
    }

    /// Takes everybody out and wakes them.
    pub fn take_all(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let Some(waiter) = self.waiters().pop_front() else {
                return Ok(());
            };
            wake(waiter.bind(py))?;
        }
    }
}

fn is_done(waiter: &Bound<'_, PyAny>) -> PyResult<bool> {
    match waiter.cast::<Waiter>() {
        Ok(waiter) => Ok(waiter.get().is_done()),
        Err(_) => waiter
            .call_method0(intern!(waiter.py(), "done"))?
            .is_truthy(),
    }
}

/// Completes one; false if it was done.
fn wake(waiter: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = waiter.py();
    if let Ok(waiter) = waiter.cast::<Waiter>() {
        return Waiter::wake(waiter);
    }
    if is_done(waiter)? {
        return Ok(false);
    }
    waiter.call_method1(intern!(py, "set_result"), (py.None(),))?;
    Ok(true)
}

#[pymethods]
impl Line {
    fn __len__(&self) -> usize {
        self.waiters().len()
    }

    fn __getitem__(&self, py: Python<'_>, place: usize) -> PyResult<Py<PyAny>> {
        self.at(py, place)
            .map(Bound::unbind)
            .ok_or_else(|| PyIndexError::new_err("no so many wait"))
    }

    fn append(&self, waiter: Py<PyAny>) {
        self.waiters().push_back(waiter);
    }

    fn popleft(&self) -> PyResult<Py<PyAny>> {
        self.waiters()
            .pop_front()
            .ok_or_else(|| PyIndexError::new_err("nobody waits"))
    }

    fn remove(&self, waiter: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut waiters = self.waiters();
        let place = waiters.iter().position(|other| other.is(waiter));
        let left = place.and_then(|place| waiters.remove(place));
        drop(waiters);
        left.map(drop)
            .ok_or_else(|| PyValueError::new_err("this one does not wait"))
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(waiters) = self.0.try_lock() {
            for waiter in &*waiters {
                visit.call(waiter)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let old = std::mem::take(&mut *self.waiters());
        drop(old);
    }
}

/// The event loop that a primitive belongs to: that in which somebody first had to wait for it.
#[derive(Default)]
pub struct Home(Mutex<Option<Py<PyAny>>>);

impl Home {
    fn known(&self) -> MutexGuard<'_, Option<Py<PyAny>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something to wait for in the running loop, for `owner`. An error if that belongs to another one.
    pub fn waiter<'py>(&self, owner: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Waiter>> {
        static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = owner.py();
        let running = RUNNING
            .import(py, "asyncio.events", "get_running_loop")?
            .call0()?;
        let is_home = match &mut *self.known() {
            Some(known) => known.is(&running),
            unknown @ None => {
                *unknown = Some(running.clone().unbind());
                true
            }
        };
        if !is_home {
            let message = format!("{} is bound to a different event loop", owner.repr()?);
            return Err(PyRuntimeError::new_err(message));
        }
        Waiter::new(&running)
    }

    /// The loop, or None.
    pub fn get(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let known = self.known();
        known.as_ref().map(|event_loop| event_loop.clone_ref(py))
    }

    /// Another one.
    pub fn set(&self, event_loop: Option<Py<PyAny>>) {
        let old = std::mem::replace(&mut *self.known(), event_loop);
        drop(old);
    }

    /// Shows it to the collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.0.try_lock() {
            Ok(known) => visit.call(&*known),
            Err(_) => Ok(()),
        }
    }
}
