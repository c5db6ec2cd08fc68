//! Tasks and futures of a loop: asyncio's own, made without a Python frame in between.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule};

use super::EventLoop;

/// A module that others may patch, so its names are looked up anew each time.
fn module<'py>(
    py: Python<'py>,
    known: &'static PyOnceLock<Py<PyModule>>,
    name: &'static str,
) -> PyResult<&'py Bound<'py, PyModule>> {
    let module = known.get_or_try_init(py, || py.import(name).map(Bound::unbind))?;
    Ok(module.bind(py))
}

/// `create_task`. Where there is more to do than to make the task, the inherited method does it.
pub(super) fn create_task<'py>(
    event_loop: &Bound<'py, EventLoop>,
    coroutine: Bound<'py, PyAny>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    static TASKS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    static BASE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let (py, this) = (event_loop.py(), event_loop.get());
    this.check_closed()?;
    let is_plain = !this.is_debug() && event_loop.getattr(intern!(py, "_task_factory"))?.is_none();
    if !is_plain {
        let base = BASE.import(py, "asyncio", "BaseEventLoop")?;
        let create_task = base.getattr(intern!(py, "create_task"))?;
        return create_task.call((event_loop, coroutine), options);
    }
    let task = module(py, &TASKS, "asyncio.tasks")?.getattr(intern!(py, "Task"))?;
    let options = match options {
        Some(options) => options.clone(),
        None => PyDict::new(py),
    };
    options.set_item(intern!(py, "loop"), event_loop)?;
    task.call((coroutine,), Some(&options))
}

/// `create_future`.
pub(super) fn create_future<'py>(
    event_loop: &Bound<'py, EventLoop>,
) -> PyResult<Bound<'py, PyAny>> {
    static FUTURES: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let py = event_loop.py();
    let future = module(py, &FUTURES, "asyncio.futures")?.getattr(intern!(py, "Future"))?;
    let options = PyDict::new(py);
    options.set_item(intern!(py, "loop"), event_loop)?;
    future.call((), Some(&options))
}
