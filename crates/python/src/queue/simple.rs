//! `_rust.SimpleQueue`.

use plait_sync::queue::{Order, Put};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::core::{Core, Outcome, QueueWaiter, Truth, exception, seconds};
use crate::loop_bell::LoopBell;

/// The base of `plait.queue.SimpleQueue`.
#[pyclass(frozen, subclass, weakref, module = "plait._rust")]
pub struct SimpleQueue {
    core: Core,
}

#[pymethods]
impl SimpleQueue {
    #[new]
    fn new() -> Self {
        Self {
            core: Core::new(Order::Fifo),
        }
    }

    #[pyo3(signature = (item, block = None, timeout = None), text_signature = "($self, item, block=True, timeout=None)")]
    #[allow(unused_variables, reason = "it never blocks")]
    fn put(
        &self,
        item: Py<PyAny>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.put_nowait(item)
    }

    fn put_nowait(&self, item: Py<PyAny>) -> PyResult<()> {
        match self.core.ends().put(item, None) {
            Put::Done => Ok(()),
            Put::ShutDown(_) => Err(exception("ShutDown")),
            Put::Full(_) | Put::Waiting(..) | Put::Elsewhere(_) => Err(exception("Full")),
        }
    }

    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn get(
        &self,
        py: Python<'_>,
        block: Truth,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let timeout = if block.0 { seconds(timeout)? } else { None };
        match self.core.get(py, block.0, timeout)? {
            Outcome::Done(item) => Ok(item),
            Outcome::Elsewhere(_) => Err(exception("Empty")),
        }
    }

    fn get_nowait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get(py, Truth(false), None)
    }

    fn qsize(&self) -> usize {
        self.core.ends().len()
    }

    fn empty(&self) -> bool {
        self.core.ends().is_empty()
    }

    #[pyo3(signature = (immediate = Truth(false)), text_signature = "($self, immediate=False)")]
    fn shutdown(&self, immediate: Truth) {
        let dropped = self.core.ends().shut_down(immediate.0);
        drop(dropped);
    }

    #[getter]
    fn is_shutdown(&self) -> bool {
        self.core.ends().is_shut()
    }

    /// An item that is there, or `nothing()`.
    fn _take(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.core.take(py)
    }

    #[pyo3(signature = (bell, future, place))]
    fn _enter_get<'py>(
        &self,
        bell: &Bound<'py, LoopBell>,
        future: &Bound<'py, PyAny>,
        place: Option<&Bound<'py, QueueWaiter>>,
    ) -> PyResult<Option<(bool, Py<PyAny>)>> {
        let place = place.map(Bound::get);
        self.core.enter_get(bell, future, place)
    }

    fn _leave_get(&self, place: &QueueWaiter) -> PyResult<()> {
        self.core.ends().leave_get(&*place.in_line()?);
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.core.traverse(&visit)
    }

    fn __clear__(&self) {
        drop(self.core.ends().clear());
    }
}
