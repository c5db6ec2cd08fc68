//! `_rust.Steps`: a coroutine that counts what its steps cost. An event loop runs it in the coroutine's place.
//!
//! A coroutine runs in steps, from one `await` that waits to the next; only these are its own, the loop's thread does other
//! things in between. What is yielded, returned, raised and thrown goes through unchanged, and so does what debuggers look at.

use std::sync::atomic::{AtomicU64, Ordering};

use plait_engine::ledger::meter::{Begun, begin_here, end_here};
use plait_engine::sys::clock::monotonic_ns;
use pyo3::exceptions::PyStopIteration;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use crate::callback::{Step, send};

/// See the module's documentation. Like any coroutine, for one thread at a time.
#[pyclass(frozen, weakref, module = "plait._rust")]
pub struct Steps {
    coroutine: Py<PyAny>,
    cpu_ns: AtomicU64,
    children_ns: AtomicU64,
    delayed_ns: AtomicU64,
}

/// Counts a step until it is dropped, however that ends.
struct Counted<'a> {
    steps: &'a Steps,
    begun: Begun,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let cost = end_here(self.begun, monotonic_ns());
        let steps = self.steps;
        steps.cpu_ns.fetch_add(cost.cpu_ns, Ordering::Relaxed);
        steps
            .children_ns
            .fetch_add(cost.children_ns, Ordering::Relaxed);
        steps
            .delayed_ns
            .fetch_add(cost.delayed_ns, Ordering::Relaxed);
    }
}

impl Steps {
    fn count(&self) -> Counted<'_> {
        Counted {
            steps: self,
            begun: begin_here(monotonic_ns(), false),
        }
    }

    fn send_on<'py>(&self, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let counted = self.count();
        let step = send(self.coroutine.bind(value.py()), value);
        drop(counted);
        match step? {
            Step::Yielded(value) => Ok(value),
            // In a tuple: a tuple itself would be taken for the exception's arguments.
            Step::Returned(value) => Err(PyStopIteration::new_err((value.unbind(),))),
        }
    }
}

#[pymethods]
impl Steps {
    #[new]
    fn new(coroutine: Py<PyAny>) -> Self {
        Self {
            coroutine,
            cpu_ns: AtomicU64::new(0),
            children_ns: AtomicU64::new(0),
            delayed_ns: AtomicU64::new(0),
        }
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.send_on(py.None().bind(py))
    }

    fn send<'py>(&self, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.send_on(value)
    }

    #[pyo3(signature = (*args))]
    fn throw<'py>(&self, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        let _counted = self.count();
        self.coroutine.bind(args.py()).call_method1("throw", args)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.coroutine.bind(py).call_method0("close").map(drop)
    }

    /// What its steps have cost so far, in nanoseconds: CPU, CPU of child processes, ready without a CPU.
    fn cost(&self) -> (u64, u64, u64) {
        (
            self.cpu_ns.load(Ordering::Relaxed),
            self.children_ns.load(Ordering::Relaxed),
            self.delayed_ns.load(Ordering::Relaxed),
        )
    }

    /// Whatever else is asked of it is asked of the coroutine: `cr_frame` and its like, `__qualname__`.
    fn __getattr__<'py>(&self, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        self.coroutine.bind(name.py()).getattr(name)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.coroutine.bind(py).repr()?.to_string())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.coroutine)
    }
}
