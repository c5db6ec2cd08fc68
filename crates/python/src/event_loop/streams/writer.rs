//! `_rust.StreamWriter`: writing to a transport, and whether there is room for more.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::{plain_protocol, plain_reader};
use crate::event_loop::stream_transport::StreamTransport;

/// Whom a writer knows.
#[derive(Default)]
struct Parts {
    transport: Option<Py<PyAny>>,
    protocol: Option<Py<PyAny>>,
    reader: Option<Py<PyAny>>,
}

impl Parts {
    /// Neither reader nor protocol has a reason to wait, or to raise. No Python code runs.
    fn have_room(&self, py: Python<'_>) -> bool {
        let reader = self.reader.as_ref().map(|reader| reader.bind(py));
        let protocol = self.protocol.as_ref().map(|protocol| protocol.bind(py));
        reader.is_none_or(|reader| {
            plain_reader(reader).is_some_and(|reader| !reader.get().has_exception())
        }) && protocol.is_some_and(|protocol| {
            plain_protocol(protocol).is_some_and(|protocol| protocol.get().takes_more())
        })
    }
}

/// What asyncio's `StreamWriter` does often. For the thread of its event loop.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct StreamWriter {
    parts: Mutex<Parts>,
}

impl StreamWriter {
    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, part: impl FnOnce(&mut Parts) -> &mut Option<Py<PyAny>>, new: Option<Py<PyAny>>) {
        let old = std::mem::replace(part(&mut self.lock()), new);
        drop(old);
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        part: impl FnOnce(&Parts) -> &Option<Py<PyAny>>,
    ) -> Option<Bound<'py, PyAny>> {
        let parts = self.lock();
        part(&parts).as_ref().map(|it| it.bind(py).clone())
    }

    fn transport<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get(py, |parts| &parts.transport).ok_or_else(|| {
            PyRuntimeError::new_err("this StreamWriter has no transport: __init__() was not called")
        })
    }
}

#[pymethods]
impl StreamWriter {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            parts: Mutex::default(),
        }
    }

    /// Writes bytes, or buffers what cannot be written at once.
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = data.py();
        let transport = self.transport(py)?;
        match transport.cast::<StreamTransport>() {
            Ok(transport) => StreamTransport::write_object(transport, data),
            Err(_) => transport
                .call_method1(intern!(py, "write"), (data,))
                .map(drop),
        }
    }

    /// Whether `drain` has nothing to wait for and nothing to raise. False where only asyncio's own can tell.
    fn _is_drained(&self, py: Python<'_>) -> PyResult<bool> {
        let parts = self.lock();
        if !parts.have_room(py) {
            return Ok(false);
        }
        let Some(transport) = &parts.transport else {
            return Ok(false);
        };
        let transport = transport.bind(py);
        if let Ok(transport) = transport.cast::<StreamTransport>() {
            return Ok(!transport.get().is_closing());
        }
        let transport = transport.clone();
        drop(parts);
        let closing = transport.call_method0(intern!(py, "is_closing"))?;
        Ok(!closing.is_truthy()?)
    }

    #[getter(_transport)]
    fn transport_object(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.get(py, |parts| &parts.transport).map(Bound::unbind)
    }

    #[setter(_transport)]
    fn set_transport(&self, transport: Option<Py<PyAny>>) {
        self.put(|parts| &mut parts.transport, transport);
    }

    #[getter(_protocol)]
    fn protocol_object(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.get(py, |parts| &parts.protocol).map(Bound::unbind)
    }

    #[setter(_protocol)]
    fn set_protocol(&self, protocol: Option<Py<PyAny>>) {
        self.put(|parts| &mut parts.protocol, protocol);
    }

    #[getter(_reader)]
    fn reader_object(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.get(py, |parts| &parts.reader).map(Bound::unbind)
    }

    #[setter(_reader)]
    fn set_reader(&self, reader: Option<Py<PyAny>>) {
        self.put(|parts| &mut parts.reader, reader);
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let parts = match self.parts.try_lock() {
            Ok(parts) => parts,
            Err(TryLockError::Poisoned(parts)) => parts.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        visit.call(&parts.transport)?;
        visit.call(&parts.protocol)?;
        visit.call(&parts.reader)
    }

    fn __clear__(&self) {
        let parts = std::mem::take(&mut *self.lock());
        drop(parts);
    }
}
