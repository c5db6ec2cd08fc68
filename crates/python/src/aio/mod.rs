//! What is hot of asyncio's primitives. `README.md` beside this file says who waits and who wakes whom.

mod event;
mod line;
mod lock;
mod queue;
mod semaphore;

pub use event::Event;
pub use line::Line;
pub use lock::Lock;
pub use queue::Queue;
pub use semaphore::Semaphore;

use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use crate::event_loop::coroutine::thrown;

/// A coroutine that is over with None as soon as it is awaited. There is one, for everybody.
#[pyclass(frozen, module = "plait._rust", name = "ReadyCoroutine")]
pub struct Ready;

#[pymethods]
impl Ready {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[allow(clippy::unused_self, reason = "a method of Python's")]
    fn __next__(&self) -> Option<Py<PyAny>> {
        None
    }

    #[allow(clippy::unused_self, reason = "a method of Python's")]
    fn send(&self, value: &Bound<'_, PyAny>) -> PyErr {
        let _ = value;
        PyStopIteration::new_err(())
    }

    /// Raises what it is given, as it is over or has not begun.
    #[allow(clippy::unused_self, reason = "a method of Python's")]
    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw<'py>(
        &self,
        kind: Bound<'py, PyAny>,
        value: Option<Bound<'py, PyAny>>,
        traceback: Option<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        Err(thrown(kind, value, traceback)?)
    }

    #[allow(clippy::unused_self, reason = "a method of Python's")]
    fn close(&self) {}
}

/// That one.
fn ready(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static READY: PyOnceLock<Py<Ready>> = PyOnceLock::new();
    let ready = READY.get_or_try_init(py, || Py::new(py, Ready))?;
    Ok(ready.bind(py).clone().into_any())
}

/// Whether a class has these methods from the class here, and not its own.
fn inherits(class: &Bound<'_, PyType>, base: &Bound<'_, PyType>, names: &[&str]) -> PyResult<bool> {
    for name in names {
        if !class.getattr(*name)?.is(base.getattr(*name)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The standard `__aenter__` or `__aexit__` of a lock, for one whose class has its own `acquire` or `release`.
fn standard_context<'py>(
    lock: &Bound<'py, PyAny>,
    method: &str,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    static MIXIN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = lock.py();
    let mixin = MIXIN.import(py, "asyncio.locks", "_ContextManagerMixin")?;
    let mut all = vec![lock.clone()];
    all.extend(args.iter());
    mixin.getattr(method)?.call1(PyTuple::new(py, all)?)
}
