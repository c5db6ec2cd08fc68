//! `_rust.TlsProtocol`: what a TLS connection does often, over asyncio's own `SSLProtocol`, which does the rest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyType};

use super::engine::{End, Engine, Output, Room, Written, put_scratch};
use super::wire;
use crate::event_loop::StreamTransport;
use crate::event_loop::protocol::{
    NativeCalls, NativeProtocol, native_calls, register_native_protocol,
};

/// The states of asyncio's `SSLProtocol`, in the order of `prepare_tls`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Unwrapped,
    Handshake,
    Wrapped,
    Flushing,
    Shutdown,
}

pub(super) const STATES: [State; 5] = [
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

pub(super) fn members(py: Python<'_>) -> PyResult<&'static [Py<PyAny>; 5]> {
    MEMBERS
        .get(py)
        .ok_or_else(|| PyRuntimeError::new_err("plait._tls has not been imported"))
}

/// How the application's protocol takes data.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Bytes,
    Buffer,
    Native(&'static NativeCalls),
}

/// What carries the ciphertext.
pub(super) enum Carrier {
    Stream(Py<StreamTransport>),
    Other(Py<PyAny>),
}

impl Carrier {
    pub(super) fn object(&self) -> &Py<PyAny> {
        match self {
            Self::Stream(transport) => transport.as_any(),
            Self::Other(transport) => transport,
        }
    }
}

/// The objects that a connection connects.
#[derive(Default)]
pub(super) struct Links {
    pub(super) engine: Option<Arc<Engine>>,
    pub(super) transport: Option<Carrier>,
    /// The application's protocol.
    pub(super) protocol: Option<(Py<PyAny>, Kind)>,
}

/// Where a buffer is full, and where it is empty enough again.
#[derive(Default)]
pub(super) struct Marks {
    low: AtomicUsize,
    high: AtomicUsize,
}

impl Marks {
    pub(super) fn set(&self, low: usize, high: usize) {
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
    pub(super) links: Mutex<Links>,
    pub(super) state: AtomicU8,
    /// What was written and cannot be encrypted yet.
    pub(super) backlog: Mutex<VecDeque<Py<PyBytes>>>,
    pub(super) backlog_size: AtomicUsize,
    pub(super) reading: Marks,
    pub(super) writing: Marks,
    pub(super) app_reading_paused: AtomicBool,
    pub(super) app_writing_paused: AtomicBool,
    pub(super) ssl_reading_paused: AtomicBool,
    pub(super) ssl_writing_paused: AtomicBool,
}

impl TlsProtocol {
    pub(super) fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn backlog(&self) -> MutexGuard<'_, VecDeque<Py<PyBytes>>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn engine(&self) -> PyResult<Arc<Engine>> {
        let engine = self.links().engine.clone();
        engine.ok_or_else(|| PyRuntimeError::new_err("the TLS connection has no SSLObject"))
    }

    pub(super) fn state(&self) -> State {
        STATES[usize::from(self.state.load(Ordering::Relaxed)) % STATES.len()]
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyAny>, Kind)> {
        let links = self.links();
        let (protocol, kind) = links.protocol.as_ref()?;
        Some((protocol.bind(py).clone(), *kind))
    }

    /// Bytes of ciphertext have come in.
    pub(super) fn take_in(slf: &Bound<'_, Self>, bytes: &[u8]) -> PyResult<()> {
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
    pub(super) fn read(slf: &Bound<'_, Self>, bytes: &[u8]) -> PyResult<()> {
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

    pub(super) fn write(slf: &Bound<'_, Self>, data: Bound<'_, PyBytes>) -> PyResult<()> {
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

    pub(super) fn keep(&self, data: Bound<'_, PyBytes>) {
        self.backlog_size
            .fetch_add(data.as_bytes().len(), Ordering::Relaxed);
        self.backlog().push_back(data.unbind());
    }

    /// Encrypts what was kept, as far as that goes now, and sends it.
    pub(super) fn write_backlog(slf: &Bound<'_, Self>) -> PyResult<()> {
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
    pub(super) fn send(slf: &Bound<'_, Self>, engine: &Engine) -> PyResult<()> {
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

    pub(super) fn write_size(&self, py: Python<'_>, engine: &Engine) -> PyResult<usize> {
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

    pub(super) fn forget(&self) {
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

/// As asyncio's `SSLProtocol` looks at a protocol.
pub(super) fn kind_of(protocol: &Bound<'_, PyAny>) -> PyResult<Kind> {
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
