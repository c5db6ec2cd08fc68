//! `_rust.TlsProtocol`: what a TLS connection does often, over asyncio's own `SSLProtocol`, which does the rest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyException, PyRuntimeError, PyTypeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMemoryView, PyTuple, PyType};

use super::buffer::{Side, TlsBuffer};
use super::engine::{End, Engine, Output, Room, Written, put_scratch};
use super::wire;
use crate::event_loop::StreamTransport;
use crate::event_loop::protocol::{
    NativeCalls, NativeProtocol, native_calls, register_native_protocol,
};

/// The states of asyncio's `SSLProtocol`, in the order of `prepare_tls`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    Unwrapped,
    Handshake,
    Wrapped,
    Flushing,
    Shutdown,
}

const STATES: [State; 5] = [
    State::Unwrapped,
    State::Handshake,
    State::Wrapped,
    State::Flushing,
    State::Shutdown,
];

/// `SSLProtocolState`'s members.
static MEMBERS: PyOnceLock<[Py<PyAny>; 5]> = PyOnceLock::new();

/// Tells which objects the states are (`SSLProtocolState`'s `UNWRAPPED`, `DO_HANDSHAKE`, `WRAPPED`, `FLUSHING`, `SHUTDOWN`), and
/// the class that our transports call natively. Called once, by `plait._tls`.
#[pyfunction]
pub fn prepare_tls(py: Python<'_>, states: [Py<PyAny>; 5], protocol: Bound<'_, PyType>) {
    let _ = MEMBERS.set(py, states);
    register_native_protocol::<TlsProtocol>(&protocol);
}

fn members(py: Python<'_>) -> PyResult<&'static [Py<PyAny>; 5]> {
    MEMBERS
        .get(py)
        .ok_or_else(|| PyRuntimeError::new_err("plait._tls has not been imported"))
}

/// How the application's protocol takes data.
#[derive(Clone, Copy)]
enum Kind {
    Bytes,
    Buffer,
    Native(&'static NativeCalls),
}

/// What carries the ciphertext.
enum Carrier {
    Stream(Py<StreamTransport>),
    Other(Py<PyAny>),
}

impl Carrier {
    fn object(&self) -> &Py<PyAny> {
        match self {
            Self::Stream(transport) => transport.as_any(),
            Self::Other(transport) => transport,
        }
    }
}

/// The objects that a connection connects.
#[derive(Default)]
struct Links {
    engine: Option<Arc<Engine>>,
    transport: Option<Carrier>,
    /// The application's protocol.
    protocol: Option<(Py<PyAny>, Kind)>,
}

/// Where a buffer is full, and where it is empty enough again.
#[derive(Default)]
struct Marks {
    low: AtomicUsize,
    high: AtomicUsize,
}

impl Marks {
    fn set(&self, low: usize, high: usize) {
        self.low.store(low, Ordering::Relaxed);
        self.high.store(high, Ordering::Relaxed);
    }

    /// Whether a side that is `paused` or not has to change.
    fn call_for_change(&self, size: usize, paused: bool) -> bool {
        if paused {
            size <= self.low.load(Ordering::Relaxed)
        } else {
            size >= self.high.load(Ordering::Relaxed)
        }
    }
}

/// The hot part of a TLS connection. All methods are for the loop's own thread.
#[pyclass(frozen, subclass, weakref, module = "plait._rust")]
pub struct TlsProtocol {
    links: Mutex<Links>,
    state: AtomicU8,
    /// What was written and cannot be encrypted yet.
    backlog: Mutex<VecDeque<Py<PyBytes>>>,
    backlog_size: AtomicUsize,
    reading: Marks,
    writing: Marks,
    app_reading_paused: AtomicBool,
    app_writing_paused: AtomicBool,
    ssl_reading_paused: AtomicBool,
    ssl_writing_paused: AtomicBool,
}

impl TlsProtocol {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backlog(&self) -> MutexGuard<'_, VecDeque<Py<PyBytes>>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn engine(&self) -> PyResult<Arc<Engine>> {
        let engine = self.links().engine.clone();
        engine.ok_or_else(|| PyRuntimeError::new_err("the TLS connection has no SSLObject"))
    }

    fn state(&self) -> State {
        STATES[usize::from(self.state.load(Ordering::Relaxed)) % STATES.len()]
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyAny>, Kind)> {
        let links = self.links();
        let (protocol, kind) = links.protocol.as_ref()?;
        Some((protocol.bind(py).clone(), *kind))
    }

    /// Bytes of ciphertext have come in.
    pub fn take_in(slf: &Bound<'_, Self>, bytes: &[u8]) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let next = match this.state() {
            State::Wrapped => return Self::read(slf, bytes),
            State::Handshake => intern!(py, "_do_handshake"),
            State::Flushing => intern!(py, "_do_flush"),
            State::Shutdown => intern!(py, "_do_shutdown"),
            State::Unwrapped => return Ok(()),
        };
        this.engine()?.lend(py, bytes, || ())?;
        slf.call_method0(next).map(drop)
    }

    /// Decrypts and delivers what has come in: `bytes`, after what was there.
    fn read(slf: &Bound<'_, Self>, bytes: &[u8]) -> PyResult<()> {
        if !matches!(slf.get().state(), State::Wrapped | State::Flushing) {
            return Ok(());
        }
        let result = Self::try_to_read(slf, bytes);
        Self::or_fatal(slf, result)
    }

    fn try_to_read(slf: &Bound<'_, Self>, bytes: &[u8]) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let engine = this.engine()?;
        if this.app_reading_paused.load(Ordering::Relaxed) {
            engine.lend(py, bytes, || ())?;
        } else {
            match this.protocol(py) {
                Some((protocol, Kind::Bytes)) => Self::deliver(slf, &engine, &protocol, bytes)?,
                Some((protocol, Kind::Native(calls))) => {
                    Self::hand_over(slf, &engine, &protocol, calls, bytes)?;
                }
                Some((protocol, Kind::Buffer)) => Self::fill(slf, &engine, &protocol, bytes)?,
                None => {}
            }
            if this.backlog_size.load(Ordering::Relaxed) != 0 {
                Self::write_backlog(slf)?;
            } else {
                Self::send(slf, &engine)?;
            }
        }
        Self::control_reading(slf, &engine)
    }

    fn deliver(
        slf: &Bound<'_, Self>,
        engine: &Engine,
        protocol: &Bound<'_, PyAny>,
        mut bytes: &[u8],
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        loop {
            let read = engine.lend(py, std::mem::take(&mut bytes), || engine.read(py))?;
            if let Some(data) = read.data {
                protocol.call_method1(intern!(py, "data_received"), (data,))?;
            }
            match read.end? {
                End::Closed => return Self::end_of_data(slf),
                End::Full if !this.app_reading_paused.load(Ordering::Relaxed) => {}
                End::Full | End::Starved => return Ok(()),
            }
        }
    }

    /// As `deliver`, to a protocol in Rust, which looks at the bytes where they are.
    fn hand_over(
        slf: &Bound<'_, Self>,
        engine: &Engine,
        protocol: &Bound<'_, PyAny>,
        calls: &NativeCalls,
        mut bytes: &[u8],
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        loop {
            let bytes = std::mem::take(&mut bytes);
            let (scratch, read) = engine.lend(py, bytes, || engine.read_scratch(py))?;
            let taken = match &scratch[..read.data] {
                [] => Ok(()),
                data => (calls.data_received)(protocol, data),
            };
            put_scratch(scratch);
            taken?;
            match read.end? {
                End::Closed => return Self::end_of_data(slf),
                End::Full if !this.app_reading_paused.load(Ordering::Relaxed) => {}
                End::Full | End::Starved => return Ok(()),
            }
        }
    }

    fn fill(
        slf: &Bound<'_, Self>,
        engine: &Engine,
        protocol: &Bound<'_, PyAny>,
        bytes: &[u8],
    ) -> PyResult<()> {
        let py = slf.py();
        let waiting = engine.incoming(py)? + bytes.len();
        let buffer = protocol.call_method1(intern!(py, "get_buffer"), (waiting,))?;
        let room = Room::new(&buffer)?;
        if room.length() == 0 {
            return Err(PyRuntimeError::new_err(
                "get_buffer() returned an empty buffer",
            ));
        }
        let read = engine.lend(py, bytes, || engine.read_into(py, &room))?;
        drop(room);
        if matches!(read.end, Ok(End::Full)) {
            let again = slf.getattr(intern!(py, "_do_read"))?;
            slf.getattr(intern!(py, "_loop"))?
                .call_method1(intern!(py, "call_soon"), (again,))?;
        }
        if read.data > 0 {
            protocol.call_method1(intern!(py, "buffer_updated"), (read.data,))?;
        }
        match read.end? {
            End::Closed => Self::end_of_data(slf),
            End::Full | End::Starved => Ok(()),
        }
    }

    /// The peer sends no more.
    fn end_of_data(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        slf.call_method0(intern!(py, "_call_eof_received"))?;
        slf.call_method0(intern!(py, "_start_shutdown")).map(drop)
    }

    /// An error ends the connection; what is no `Exception` goes on.
    fn or_fatal(slf: &Bound<'_, Self>, result: PyResult<()>) -> PyResult<()> {
        let py = slf.py();
        match result {
            Err(error) if error.is_instance_of::<PyException>(py) => {
                let arguments = (error.into_value(py), "Fatal error on SSL protocol");
                slf.call_method1(intern!(py, "_fatal_error"), arguments)
                    .map(drop)
            }
            result => result,
        }
    }

    fn write(slf: &Bound<'_, Self>, data: Bound<'_, PyBytes>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if data.as_bytes().is_empty() {
            return Ok(());
        }
        match this.state() {
            State::Wrapped => {
                let result = Self::try_to_write(slf, data);
                Self::or_fatal(slf, result)
            }
            State::Handshake => {
                this.keep(data);
                Ok(())
            }
            State::Unwrapped | State::Flushing | State::Shutdown => slf
                .call_method1(intern!(py, "_write_appdata"), ((data,),))
                .map(drop),
        }
    }

    fn try_to_write(slf: &Bound<'_, Self>, data: Bound<'_, PyBytes>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let engine = this.engine()?;
        if this.backlog_size.load(Ordering::Relaxed) == 0 {
            match engine.write(py, &data)? {
                Written::All => {}
                Written::Only(count) => this.keep(rest(&data, count)),
            }
            Self::send(slf, &engine)
        } else {
            this.keep(data);
            Self::write_backlog(slf)
        }
    }

    fn keep(&self, data: Bound<'_, PyBytes>) {
        self.backlog_size
            .fetch_add(data.as_bytes().len(), Ordering::Relaxed);
        self.backlog().push_back(data.unbind());
    }

    /// Encrypts what was kept, as far as that goes now, and sends it.
    fn write_backlog(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let engine = this.engine()?;
        loop {
            let Some(data) = this.backlog().pop_front() else {
                break;
            };
            let data = data.into_bound(py);
            let (count, left) = match engine.write(py, &data)? {
                Written::All => (data.as_bytes().len(), None),
                Written::Only(count) => (count, Some(rest(&data, count))),
            };
            this.backlog_size.fetch_sub(count, Ordering::Relaxed);
            if let Some(left) = left {
                this.backlog().push_front(left.unbind());
                break;
            }
        }
        Self::send(slf, &engine)
    }

    /// Gives the transport what has been encrypted.
    fn send(slf: &Bound<'_, Self>, engine: &Engine) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if !this.ssl_writing_paused.load(Ordering::Relaxed) {
            match engine.take_outgoing(py)? {
                Output::Native(buffer) => {
                    if !buffer.is_empty() {
                        let result = this.pass_on(py, &buffer, None);
                        wire::recycle(buffer);
                        result?;
                    }
                }
                Output::Python(bytes) => {
                    if !bytes.as_bytes().is_empty() {
                        this.pass_on(py, bytes.as_bytes(), Some(&bytes))?;
                    }
                }
            }
        }
        let paused = this.app_writing_paused.load(Ordering::Relaxed);
        let size = this.write_size(py, engine)?;
        if this.writing.call_for_change(size, paused) {
            slf.call_method0(intern!(py, "_control_app_writing"))?;
        }
        Ok(())
    }

    /// Has ciphertext sent; `whole` is the object that the bytes are those of, if there is one.
    fn pass_on(
        &self,
        py: Python<'_>,
        bytes: &[u8],
        whole: Option<&Bound<'_, PyBytes>>,
    ) -> PyResult<()> {
        let other = {
            let links = self.links();
            match &links.transport {
                Some(Carrier::Stream(transport)) => {
                    let transport = transport.bind(py).clone();
                    drop(links);
                    return StreamTransport::write_bytes(&transport, bytes, whole);
                }
                Some(Carrier::Other(transport)) => transport.bind(py).clone(),
                None => return Ok(()),
            }
        };
        let bytes = whole.map_or_else(|| PyBytes::new(py, bytes), Bound::clone);
        other.call_method1(intern!(py, "write"), (bytes,)).map(drop)
    }

    fn write_size(&self, py: Python<'_>, engine: &Engine) -> PyResult<usize> {
        Ok(engine.outgoing(py)? + self.backlog_size.load(Ordering::Relaxed))
    }

    fn control_reading(slf: &Bound<'_, Self>, engine: &Engine) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let paused = this.ssl_reading_paused.load(Ordering::Relaxed);
        if this.reading.call_for_change(engine.incoming(py)?, paused) {
            slf.call_method0(intern!(py, "_control_ssl_reading"))?;
        }
        Ok(())
    }

    fn forget(&self) {
        let links = std::mem::take(&mut *self.links());
        let backlog = std::mem::take(&mut *self.backlog());
        self.backlog_size.store(0, Ordering::Relaxed);
        drop((links, backlog));
    }
}

impl NativeProtocol for TlsProtocol {
    fn data_received(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<()> {
        Self::take_in(slf, data)
    }

    fn eof_received(slf: &Bound<'_, Self>) -> PyResult<bool> {
        slf.call_method0(intern!(slf.py(), "eof_received"))?
            .is_truthy()
    }
}

/// What is left of `data` after its first `count` bytes.
fn rest<'py>(data: &Bound<'py, PyBytes>, count: usize) -> Bound<'py, PyBytes> {
    if count == 0 {
        data.clone()
    } else {
        PyBytes::new(data.py(), &data.as_bytes()[count..])
    }
}

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
        super::library::Library::get(py);
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

/// As asyncio's `SSLProtocol` looks at a protocol.
fn kind_of(protocol: &Bound<'_, PyAny>) -> PyResult<Kind> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = protocol.py();
    if let Some(calls) = native_calls(protocol) {
        return Ok(Kind::Native(calls));
    }
    let class = CLASS.get_or_try_init(py, || {
        let protocols = py.import("asyncio.protocols")?;
        Ok::<_, PyErr>(protocols.getattr("BufferedProtocol")?.unbind())
    })?;
    let buffered =
        protocol.hasattr(intern!(py, "get_buffer"))? && protocol.is_instance(class.bind(py))?;
    Ok(if buffered { Kind::Buffer } else { Kind::Bytes })
}
