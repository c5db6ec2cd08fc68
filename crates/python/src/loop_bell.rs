//! `_rust.LoopBell`: how a coroutine that waits in line for a lock or queue is woken: through its event loop, which is
//! called once for all that were granted something since it last looked.
//!
//! A coroutine waits on a future of its loop ([`FutureWake`]). Whoever grants it something puts that future into the bell of
//! the loop and, if it is the first one there, rings a descriptor that the loop listens to, as it does to a socket: it calls
//! [`LoopBell::ring`], which completes them all. So a burst of grants costs one system call, in which nobody lets go of the
//! interpreter, and no handle. (`call_soon_threadsafe` of asyncio's loops writes to a socket, and lets go of the interpreter for
//! that: the loop's thread wakes, takes the one item, and goes to sleep before there is a second one.) A loop that cannot listen
//! to descriptors, plait's own, which needs none, and one whose descriptor was closed by somebody, are asked by
//! `call_soon_threadsafe`. In the loop's own thread the future is completed at once.
//!
//! If the loop is closed, the wake says so, and the grant goes to the next in line. A loop that is closed after it was asked and
//! before it rang leaves its coroutines behind: what one of them was granted is passed on when the coroutine is closed, which
//! happens at the latest when it is collected.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use plait_engine::sys::doorbell::Doorbell;
use plait_sync::wait_queue::Wake;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

/// One per event loop. Safe to share between threads: the futures lie under a mutex that no Python code runs under.
#[pyclass(frozen, module = "plait._rust")]
pub struct LoopBell {
    /// Not a strong one: bells are kept by their loops, in a dictionary with weak keys.
    event_loop: Py<PyWeakrefReference>,
    granted: Mutex<Vec<Py<PyAny>>>,
    /// What the loop listens to, if it does.
    doorbell: OnceLock<Doorbell>,
}

impl LoopBell {
    fn granted(&self) -> MutexGuard<'_, Vec<Py<PyAny>>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the loop complete this future; false if the loop is closed or gone.
    fn wake(slf: &Bound<'_, Self>, future: &Py<PyAny>) -> bool {
        static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        let this = slf.get();
        let Some(event_loop) = this.event_loop.bind(py).upgrade() else {
            return false;
        };
        let here = RUNNING
            .import(py, "asyncio.events", "_get_running_loop")
            .and_then(PyAnyMethods::call0)
            .is_ok_and(|running| running.is(&event_loop));
        if here {
            return complete(future.bind(py)).is_ok();
        }
        let first = {
            let mut granted = this.granted();
            granted.push(future.clone_ref(py));
            granted.len() == 1
        };
        let is_open = event_loop
            .call_method0(intern!(py, "is_closed"))
            .and_then(|closed| closed.is_truthy())
            .is_ok_and(|closed| !closed);
        // If it is not the first one, somebody asked the loop already; if it was closed since, it will not ring.
        let asked = is_open && (!first || Self::notify(slf, &event_loop));
        if !asked {
            let left = std::mem::take(&mut *this.granted());
            drop(left);
        }
        asked
    }

    /// Has the loop call `ring`; false if it will not.
    fn notify(slf: &Bound<'_, Self>, event_loop: &Bound<'_, PyAny>) -> bool {
        let py = slf.py();
        if slf
            .get()
            .doorbell
            .get()
            .is_some_and(|bell| bell.ring().is_ok())
        {
            return true;
        }
        slf.getattr(intern!(py, "ring"))
            .and_then(|ring| event_loop.call_method1(intern!(py, "call_soon_threadsafe"), (ring,)))
            .is_ok()
    }
}

fn complete(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
        future.call_method1(intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}

#[pymethods]
impl LoopBell {
    /// The bell of this loop.
    #[new]
    fn new(event_loop: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self {
            event_loop: PyWeakrefReference::new(event_loop)?.unbind(),
            granted: Mutex::new(Vec::new()),
            doorbell: OnceLock::new(),
        })
    }

    /// In the loop: has it listen to a descriptor, by `add_reader`.
    fn listen(slf: &Bound<'_, Self>, event_loop: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let doorbell = Doorbell::new()?;
        let number = doorbell.as_fd().as_raw_fd();
        let ring = slf.getattr(intern!(py, "ring"))?;
        event_loop.call_method1(intern!(py, "add_reader"), (number, ring))?;
        let _ = slf.get().doorbell.set(doorbell);
        Ok(())
    }

    /// In the loop: completes the futures of all that were granted something.
    fn ring(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(doorbell) = self.doorbell.get() {
            // First: whoever is granted something from now on and finds nobody before it rings again.
            doorbell.silence();
        }
        let granted = std::mem::take(&mut *self.granted());
        let mut outcome = Ok(());
        for future in granted {
            outcome = outcome.and(complete(future.bind(py)));
        }
        outcome
    }
}

/// Wakes a coroutine that waits on `future`, of the loop whose bell this is.
pub struct FutureWake {
    bell: Py<LoopBell>,
    future: Py<PyAny>,
}

impl FutureWake {
    /// See the type's documentation.
    pub fn new(bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Self {
        Self {
            bell: bell.clone().unbind(),
            future: future.clone().unbind(),
        }
    }
}

impl Wake for FutureWake {
    fn wake(&self) -> bool {
        Python::attach(|py| LoopBell::wake(self.bell.bind(py), &self.future))
    }
}
