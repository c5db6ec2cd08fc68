//! `_rust.TlsProtocol` as Python code sees it: asyncio's `SSLProtocol`, whose place these methods and properties take, and tests.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyTypeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMemoryView, PyTuple};

use super::buffer::{Side, TlsBuffer};
use super::engine::{Engine, Room};
use super::library::Library;
use super::protocol::{Carrier, Marks, STATES, State, TlsProtocol, kind_of, members};

/// What was given to be written, in `bytes` that cannot change any more.
fn bytes_of<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return Ok(bytes.clone());
    }
    if !data.is_instance_of::<PyByteArray>() && !data.is_instance_of::<PyMemoryView>() {
        return Err(PyTypeError::new_err(format!(
            "data: expecting a bytes-like instance, got {}",
            data.get_type().name()?
        )));
    }
    Ok(data
        .py()
        .get_type::<PyBytes>()
        .call1((data,))?
        .cast_into()?)
}

#[pymethods]
impl TlsProtocol {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        py: Python<'_>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Self {
        // OpenSSL has to tell of the `SSL` that is made next.
        Library::get(py);
        Self {
            links: Mutex::default(),
            state: AtomicU8::new(State::Unwrapped as u8),
            backlog: Mutex::default(),
            backlog_size: AtomicUsize::new(0),
            reading: Marks::default(),
            writing: Marks::default(),
            app_reading_paused: AtomicBool::new(false),
            app_writing_paused: AtomicBool::new(false),
            ssl_reading_paused: AtomicBool::new(false),
            ssl_writing_paused: AtomicBool::new(false),
        }
    }

    /// Takes over an `ssl.SSLObject` that this thread has just made on two `ssl.MemoryBIO`, with OpenSSL itself if `direct`.
    /// Gives what is now in the place of the two: they themselves if OpenSSL cannot be reached.
    fn _adopt<'py>(
        &self,
        object: Bound<'py, PyAny>,
        incoming: Bound<'py, PyAny>,
        outgoing: Bound<'py, PyAny>,
        direct: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let py = object.py();
        let engine = Arc::new(Engine::new(
            &object,
            incoming.clone(),
            outgoing.clone(),
            direct,
        ));
        let ends = match engine.wire() {
            Some(wire) => (
                Bound::new(py, TlsBuffer::new(wire.clone(), Side::Incoming))?.into_any(),
                Bound::new(py, TlsBuffer::new(wire.clone(), Side::Outgoing))?.into_any(),
            ),
            None => (incoming, outgoing),
        };
        let old = self.links().engine.replace(engine);
        drop(old);
        Ok(ends)
    }

    /// Bytes of ciphertext have come in by a transport that is not ours.
    fn _feed(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let bytes = Room::readable(data)?.to_vec();
        Self::take_in(slf, &bytes)
    }

    fn _do_read(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::read(slf, &[])
    }

    fn _do_write(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::write_backlog(slf)
    }

    /// The application writes.
    fn _write(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::write(slf, bytes_of(data)?)
    }

    /// The same for several, as one piece.
    fn _writelines(slf: &Bound<'_, Self>, list_of_data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let parts = PyList::empty(py);
        for part in list_of_data.try_iter()? {
            parts.append(bytes_of(&part?)?)?;
        }
        let whole = PyBytes::new(py, b"").call_method1("join", (parts,))?;
        Self::write(slf, whole.cast_into()?)
    }

    /// Has `data` written before what the application writes next.
    fn _keep(&self, data: Bound<'_, PyBytes>) {
        self.keep(data);
    }

    /// Lets go of what was written and not encrypted.
    fn _drop_backlog(&self) {
        let backlog = std::mem::take(&mut *self.backlog());
        self.backlog_size.store(0, Ordering::Relaxed);
        drop(backlog);
    }

    fn _process_outgoing(slf: &Bound<'_, Self>) -> PyResult<()> {
        let engine = slf.get().engine()?;
        Self::send(slf, &engine)
    }

    fn _get_write_buffer_size(&self, py: Python<'_>) -> PyResult<usize> {
        let engine = self.engine()?;
        self.write_size(py, &engine)
    }

    fn _get_read_buffer_size(&self, py: Python<'_>) -> PyResult<usize> {
        self.engine()?.incoming(py)
    }

    fn _note_read_limits(&self, low: usize, high: usize) {
        self.reading.set(low, high);
    }

    fn _note_write_limits(&self, low: usize, high: usize) {
        self.writing.set(low, high);
    }

    /// The transport's buffer is full.
    fn pause_writing(&self) {
        self.ssl_writing_paused.store(true, Ordering::Relaxed);
    }

    /// The transport's buffer is empty enough.
    fn resume_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().ssl_writing_paused.store(false, Ordering::Relaxed);
        Self::_process_outgoing(slf)
    }

    #[getter(_state)]
    fn get_state(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(members(py)?[self.state() as usize].clone_ref(py))
    }

    #[setter(_state)]
    fn set_state(&self, state: &Bound<'_, PyAny>) -> PyResult<()> {
        let found = members(state.py())?.iter().position(|one| state.is(one));
        let Some(index) = found else {
            return Err(PyTypeError::new_err(format!(
                "{state} is no state of an SSLProtocol"
            )));
        };
        self.state.store(STATES[index] as u8, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_transport)]
    fn get_transport(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let links = self.links();
        let transport = links.transport.as_ref()?;
        Some(transport.object().clone_ref(py))
    }

    #[setter(_transport)]
    fn set_transport(&self, transport: Option<Bound<'_, PyAny>>) {
        let transport = transport.map(|transport| match transport.cast_into() {
            Ok(stream) => Carrier::Stream(stream.unbind()),
            Err(error) => Carrier::Other(error.into_inner().unbind()),
        });
        let old = std::mem::replace(&mut self.links().transport, transport);
        drop(old);
    }

    #[getter(_app_protocol)]
    fn get_protocol(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let links = self.links();
        let (protocol, _) = links.protocol.as_ref()?;
        Some(protocol.clone_ref(py))
    }

    #[setter(_app_protocol)]
    fn set_protocol(&self, protocol: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let protocol = match protocol {
            Some(protocol) => {
                let kind = kind_of(&protocol)?;
                Some((protocol.unbind(), kind))
            }
            None => None,
        };
        let old = std::mem::replace(&mut self.links().protocol, protocol);
        drop(old);
        Ok(())
    }

    #[getter(_app_reading_paused)]
    fn is_app_reading_paused(&self) -> bool {
        self.app_reading_paused.load(Ordering::Relaxed)
    }

    #[setter(_app_reading_paused)]
    fn set_app_reading_paused(&self, paused: bool) {
        self.app_reading_paused.store(paused, Ordering::Relaxed);
    }

    #[getter(_app_writing_paused)]
    fn is_app_writing_paused(&self) -> bool {
        self.app_writing_paused.load(Ordering::Relaxed)
    }

    #[setter(_app_writing_paused)]
    fn set_app_writing_paused(&self, paused: bool) {
        self.app_writing_paused.store(paused, Ordering::Relaxed);
    }

    #[getter(_ssl_reading_paused)]
    fn is_ssl_reading_paused(&self) -> bool {
        self.ssl_reading_paused.load(Ordering::Relaxed)
    }

    #[setter(_ssl_reading_paused)]
    fn set_ssl_reading_paused(&self, paused: bool) {
        self.ssl_reading_paused.store(paused, Ordering::Relaxed);
    }

    #[getter(_ssl_writing_paused)]
    fn is_ssl_writing_paused(&self) -> bool {
        self.ssl_writing_paused.load(Ordering::Relaxed)
    }

    #[setter(_ssl_writing_paused)]
    fn set_ssl_writing_paused(&self, paused: bool) {
        self.ssl_writing_paused.store(paused, Ordering::Relaxed);
    }

    /// Whether OpenSSL is called without `ssl.SSLObject` in between.
    #[getter(_direct)]
    fn is_direct(&self) -> bool {
        let links = self.links();
        links
            .engine
            .as_ref()
            .is_some_and(|one| one.wire().is_some())
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let mut result = Ok(());
        if let Ok(links) = self.links.try_lock() {
            if let Some(transport) = &links.transport {
                visit.call(transport.object())?;
            }
            if let Some((protocol, _)) = &links.protocol {
                visit.call(protocol)?;
            }
            if let Some(engine) = &links.engine {
                engine.visit(|object| {
                    if result.is_ok() {
                        result = visit.call(object);
                    }
                });
            }
        }
        result
    }

    fn __clear__(&self) {
        self.forget();
    }
}
