//! Encrypting and decrypting for one connection: by OpenSSL itself where it can be reached, else through `ssl.SSLObject`.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::c_int;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyTuple};

use super::library::{Connection, Did, LARGEST_RECORD, Library};
use super::wire::Wire;

/// Messages up to this size are decrypted into a buffer of the thread and copied; larger ones into their `bytes` in place.
const SMALL: usize = 4 * 1024;
/// A thread keeps no larger buffer than this to decrypt into.
const LARGEST_SCRATCH: usize = 512 * 1024;
/// How much `ssl.SSLObject` is asked for at a time.
const CHUNK: usize = 256 * 1024;

unsafe extern "C" {
    /// A function of the interpreter that `PyO3` does not know.
    #[link_name = "_PyBytes_Resize"]
    fn resize_bytes(bytes: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> c_int;
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where a read has ended.
pub enum End {
    /// More has to come in first.
    Starved,
    /// There was no room for more.
    Full,
    /// The peer has said that it sends no more.
    Closed,
}

/// What has been read.
pub struct Read<T> {
    pub data: T,
    /// How it ended; an error is for after the data.
    pub end: PyResult<End>,
}

/// What has become of a write.
pub enum Written {
    /// All of it is encrypted.
    All,
    /// The first so many bytes; the others later, when something has come in.
    Only(usize),
}

/// How a connection's bytes are encrypted.
pub struct Engine {
    /// The `ssl.SSLObject`.
    object: Py<PyAny>,
    mode: Mode,
}

enum Mode {
    Direct {
        /// Locked for each call of OpenSSL, and only if it is free: whoever finds it taken is called from within one.
        connection: Mutex<Connection>,
        wire: Arc<Wire>,
    },
    /// Its two `ssl.MemoryBIO`.
    Object {
        incoming: Py<PyAny>,
        outgoing: Py<PyAny>,
    },
}

/// `ssl.SSLObject`'s own methods, and the errors that mean: not now.
struct Names {
    read: Py<PyAny>,
    write: Py<PyAny>,
    again: Py<PyTuple>,
}

static NAMES: PyOnceLock<Names> = PyOnceLock::new();

fn names(py: Python<'_>) -> PyResult<&'static Names> {
    NAMES.get_or_try_init(py, || {
        let ssl = py.import("ssl")?;
        let object = ssl.getattr("SSLObject")?;
        let again = PyTuple::new(
            py,
            [
                ssl.getattr("SSLWantReadError")?,
                ssl.getattr("SSLSyscallError")?,
            ],
        )?;
        Ok(Names {
            read: object.getattr("read")?.unbind(),
            write: object.getattr("write")?.unbind(),
            again: again.unbind(),
        })
    })
}

/// Whether an error of `ssl` only means that bytes have to come in first.
fn is_again(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    error.value(py).is_instance(names(py)?.again.bind(py))
}

/// Whether nothing but `ssl.SSLObject`'s own methods reads and writes, and nothing of Python's is called meanwhile.
fn is_plain(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = object.py();
    let (class, names) = (object.get_type(), names(py)?);
    let context = object.getattr("context")?;
    let own = object.getattr("__dict__").is_ok_and(|own| {
        own.contains("read").unwrap_or(true) || own.contains("write").unwrap_or(true)
    });
    Ok(!own
        && class.getattr("read")?.is(&names.read)
        && class.getattr("write")?.is(&names.write)
        && context.getattr("_msg_callback")?.is_none()
        && context.getattr("keylog_filename")?.is_none())
}

impl Engine {
    /// For an `ssl.SSLObject` that this thread has just made on two `ssl.MemoryBIO`. If `direct` is false, or OpenSSL cannot be
    /// reached, they stay in use; otherwise they are cut off.
    pub fn new(
        object: &Bound<'_, PyAny>,
        incoming: Bound<'_, PyAny>,
        outgoing: Bound<'_, PyAny>,
        direct: bool,
    ) -> Self {
        let py = object.py();
        if direct
            && is_plain(object).unwrap_or(false)
            && let Some(library) = Library::get(py)
        {
            let wire = Arc::new(Wire::default());
            if let Some(connection) = library.adopt(object, &wire) {
                return Self {
                    object: object.clone().unbind(),
                    mode: Mode::Direct {
                        connection: Mutex::new(connection),
                        wire,
                    },
                };
            }
        }
        Self {
            object: object.clone().unbind(),
            mode: Mode::Object {
                incoming: incoming.unbind(),
                outgoing: outgoing.unbind(),
            },
        }
    }

    fn alone(connection: &Mutex<Connection>) -> Option<MutexGuard<'_, Connection>> {
        match connection.try_lock() {
            Ok(connection) => Some(connection),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// What is between OpenSSL and the socket, if that is ours.
    pub fn wire(&self) -> Option<&Arc<Wire>> {
        match &self.mode {
            Mode::Direct { wire, .. } => Some(wire),
            Mode::Object { .. } => None,
        }
    }

    /// Everything that Python's collector has to know of.
    pub fn visit(&self, mut visit: impl FnMut(&Py<PyAny>)) {
        visit(&self.object);
        match &self.mode {
            Mode::Direct { connection, .. } => {
                if let Some(connection) = Self::alone(connection) {
                    visit(connection.owner());
                }
            }
            Mode::Object { incoming, outgoing } => {
                visit(incoming);
                visit(outgoing);
            }
        }
    }

    /// All that can be decrypted now, as one `bytes`; `None` if that is nothing.
    pub fn read<'py>(&self, py: Python<'py>) -> Read<Option<Bound<'py, PyBytes>>> {
        match &self.mode {
            Mode::Direct { connection, wire } => {
                let most = wire.incoming() + Self::alone(connection).map_or(0, |one| one.held());
                if most <= SMALL {
                    let (scratch, read) = self.read_scratch_direct(py, most);
                    let data = (read.data > 0).then(|| PyBytes::new(py, &scratch[..read.data]));
                    put_scratch(scratch);
                    Read {
                        data,
                        end: read.end,
                    }
                } else {
                    self.read_into_bytes(py, most)
                }
            }
            Mode::Object { incoming, .. } => self.read_object(py, incoming.bind(py)),
        }
    }

    /// The same into a buffer of the thread's, to be given back by [`put_scratch`]; its length has no meaning.
    pub fn read_scratch(&self, py: Python<'_>) -> (Vec<u8>, Read<usize>) {
        match &self.mode {
            Mode::Direct { connection, wire } => {
                let most = wire.incoming() + Self::alone(connection).map_or(0, |one| one.held());
                self.read_scratch_direct(py, most)
            }
            Mode::Object { incoming, .. } => {
                let mut scratch = SCRATCH.take();
                let read = self.read_object(py, incoming.bind(py));
                let data = match &read.data {
                    Some(bytes) => {
                        scratch.clear();
                        scratch.extend_from_slice(bytes.as_bytes());
                        scratch.len()
                    }
                    None => 0,
                };
                (
                    scratch,
                    Read {
                        data,
                        end: read.end,
                    },
                )
            }
        }
    }

    fn read_scratch_direct(&self, py: Python<'_>, most: usize) -> (Vec<u8>, Read<usize>) {
        // Taken out, not borrowed: an error leads through Python.
        let mut scratch = SCRATCH.take();
        let most = most.max(LARGEST_RECORD);
        if scratch.len() < most {
            scratch.resize(most, 0);
        }
        let read = self.read_direct(py, scratch.as_mut_ptr(), scratch.len());
        (scratch, read)
    }

    /// The same into a `bytes` of its own that is cut to size afterwards: `most` is what there can be.
    fn read_into_bytes<'py>(
        &self,
        py: Python<'py>,
        most: usize,
    ) -> Read<Option<Bound<'py, PyBytes>>> {
        let failed = |error| Read {
            data: None,
            end: Err(error),
        };
        let Ok(size) = ffi::Py_ssize_t::try_from(most) else {
            return failed(PyBufferError::new_err("too much has come in"));
        };
        // SAFETY: a new `bytes` whose contents nobody has seen yet, or null with an error set.
        let mut bytes = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) };
        if bytes.is_null() {
            return failed(PyErr::fetch(py));
        }
        // SAFETY: its contents, `most` bytes.
        let start = unsafe { ffi::PyBytes_AsString(bytes) }.cast::<u8>();
        let read = self.read_direct(py, start, most);
        let length = ffi::Py_ssize_t::try_from(read.data).unwrap_or(0);
        if length == 0 {
            // SAFETY: the only reference, given up.
            unsafe { ffi::Py_DECREF(bytes) };
            return Read {
                data: None,
                end: read.end,
            };
        }
        // SAFETY: the only reference to it; not null afterwards if it has worked.
        if length != size && unsafe { resize_bytes(&raw mut bytes, length) } != 0 {
            return failed(PyErr::fetch(py));
        }
        // SAFETY: a new reference to a `bytes`.
        let bytes = unsafe { Bound::from_owned_ptr(py, bytes).cast_into_unchecked() };
        Read {
            data: Some(bytes),
            end: read.end,
        }
    }

    /// Decrypts into memory: as much as there is, or as there is room for.
    pub fn read_into(&self, py: Python<'_>, into: &Room) -> Read<usize> {
        match &self.mode {
            Mode::Direct { .. } => self.read_direct(py, into.start(), into.length()),
            Mode::Object { incoming, .. } => self.read_object_into(py, incoming.bind(py), into),
        }
    }

    fn read_direct(&self, py: Python<'_>, into: *mut u8, room: usize) -> Read<usize> {
        let Mode::Direct { connection, wire } = &self.mode else {
            return Read {
                data: 0,
                end: Ok(End::Starved),
            };
        };
        let mut data = 0;
        let end = loop {
            if data == room {
                break Ok(End::Full);
            }
            let Some(alone) = Self::alone(connection) else {
                break Ok(End::Starved);
            };
            // SAFETY: the rest of the caller's memory, which nobody else writes to.
            let did = unsafe { alone.read(py, wire, into.add(data), room - data) };
            // Another read would only find that out.
            let is_drained = wire.incoming() == 0 && alone.held() == 0;
            drop(alone);
            match did {
                Did::Bytes(count) => {
                    data += count;
                    if is_drained {
                        break Ok(End::Starved);
                    }
                }
                Did::Starved => break Ok(End::Starved),
                // The end, or an error: `ssl.SSLObject` says what it is, in its own words.
                Did::Other => match self.ask_to_read(py, room - data) {
                    Ok(bytes) if bytes.as_bytes().is_empty() => break Ok(End::Closed),
                    Ok(bytes) => {
                        let bytes = bytes.as_bytes();
                        let count = bytes.len().min(room - data);
                        // SAFETY: as above.
                        unsafe {
                            std::ptr::copy_nonoverlapping(bytes.as_ptr(), into.add(data), count);
                        }
                        data += count;
                    }
                    Err(error) => match is_again(py, &error) {
                        Ok(true) => break Ok(End::Starved),
                        Ok(false) | Err(_) => break Err(error),
                    },
                },
            }
        };
        Read { data, end }
    }

    /// `SSLObject.read`
    fn ask_to_read<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyBytes>> {
        let object = self.object.bind(py);
        Ok(object
            .call_method1(intern!(py, "read"), (most,))?
            .cast_into()?)
    }

    fn read_object<'py>(
        &self,
        py: Python<'py>,
        incoming: &Bound<'py, PyAny>,
    ) -> Read<Option<Bound<'py, PyBytes>>> {
        let mut parts: Vec<Bound<'py, PyBytes>> = Vec::new();
        let end = loop {
            match self.ask_to_read(py, CHUNK) {
                Ok(bytes) if bytes.as_bytes().is_empty() => break Ok(End::Closed),
                Ok(bytes) => {
                    parts.push(bytes);
                    match self.is_drained(py, incoming) {
                        Ok(true) => break Ok(End::Starved),
                        Ok(false) => {}
                        Err(error) => break Err(error),
                    }
                }
                Err(error) => match is_again(py, &error) {
                    Ok(true) => break Ok(End::Starved),
                    Ok(false) | Err(_) => break Err(error),
                },
            }
        };
        let data = match parts.len() {
            0 => None,
            1 => parts.pop(),
            _ => {
                let parts: Vec<&[u8]> = parts.iter().map(PyBytesMethods::as_bytes).collect();
                Some(PyBytes::new(py, &parts.concat()))
            }
        };
        Read { data, end }
    }

    fn read_object_into(
        &self,
        py: Python<'_>,
        incoming: &Bound<'_, PyAny>,
        into: &Room,
    ) -> Read<usize> {
        let mut data = 0;
        let end = loop {
            if data == into.length() {
                break Ok(End::Full);
            }
            match self.ask_to_read(py, into.length() - data) {
                Ok(bytes) if bytes.as_bytes().is_empty() => break Ok(End::Closed),
                Ok(bytes) => {
                    data += into.fill(data, bytes.as_bytes());
                    match self.is_drained(py, incoming) {
                        Ok(true) => break Ok(End::Starved),
                        Ok(false) => {}
                        Err(error) => break Err(error),
                    }
                }
                Err(error) => match is_again(py, &error) {
                    Ok(true) => break Ok(End::Starved),
                    Ok(false) | Err(_) => break Err(error),
                },
            }
        };
        Read { data, end }
    }

    /// Whether a read would find nothing (which costs an exception).
    fn is_drained(&self, py: Python<'_>, incoming: &Bound<'_, PyAny>) -> PyResult<bool> {
        let waiting: usize = incoming.getattr(intern!(py, "pending"))?.extract()?;
        if waiting != 0 {
            return Ok(false);
        }
        let object = self.object.bind(py);
        let held: usize = object.call_method0(intern!(py, "pending"))?.extract()?;
        Ok(held == 0)
    }

    /// Encrypts.
    pub fn write(&self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<Written> {
        let all = data.as_bytes();
        let mut done = 0;
        while done < all.len() {
            let rest = &all[done..];
            let did = match &self.mode {
                Mode::Direct { connection, wire } => match Self::alone(connection) {
                    Some(alone) => alone.write(py, wire, rest),
                    None => Did::Starved,
                },
                Mode::Object { .. } => Did::Other,
            };
            match did {
                Did::Bytes(count) => done += count,
                Did::Starved => return Ok(Written::Only(done)),
                Did::Other => {
                    let rest = if done == 0 {
                        data.clone()
                    } else {
                        PyBytes::new(py, rest)
                    };
                    let object = self.object.bind(py);
                    match object.call_method1(intern!(py, "write"), (rest,)) {
                        Ok(count) => done += count.extract::<usize>()?,
                        Err(error) if is_again(py, &error)? => return Ok(Written::Only(done)),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(Written::All)
    }

    /// Bytes that have come in, for the time of `run`; what is not used up is kept.
    pub fn lend<R>(&self, py: Python<'_>, bytes: &[u8], run: impl FnOnce() -> R) -> PyResult<R> {
        match &self.mode {
            Mode::Direct { wire, .. } => Ok(wire.lend(bytes, run)),
            Mode::Object { incoming, .. } => {
                if !bytes.is_empty() {
                    let incoming = incoming.bind(py);
                    incoming.call_method1(intern!(py, "write"), (PyBytes::new(py, bytes),))?;
                }
                Ok(run())
            }
        }
    }

    /// Bytes that have come in and have not been looked at.
    pub fn incoming(&self, py: Python<'_>) -> PyResult<usize> {
        match &self.mode {
            Mode::Direct { wire, .. } => Ok(wire.incoming()),
            Mode::Object { incoming, .. } => {
                incoming.bind(py).getattr(intern!(py, "pending"))?.extract()
            }
        }
    }

    /// Bytes that are to go out.
    pub fn outgoing(&self, py: Python<'_>) -> PyResult<usize> {
        match &self.mode {
            Mode::Direct { wire, .. } => Ok(wire.outgoing()),
            Mode::Object { outgoing, .. } => {
                outgoing.bind(py).getattr(intern!(py, "pending"))?.extract()
            }
        }
    }

    /// Takes everything that is to go out.
    pub fn take_outgoing<'py>(&self, py: Python<'py>) -> PyResult<Output<'py>> {
        Ok(match &self.mode {
            Mode::Direct { wire, .. } => Output::Native(wire.take_outgoing()),
            Mode::Object { outgoing, .. } => {
                let bytes = outgoing.bind(py).call_method0(intern!(py, "read"))?;
                Output::Python(bytes.cast_into()?)
            }
        })
    }
}

/// Gives a buffer back to its thread.
pub fn put_scratch(scratch: Vec<u8>) {
    if scratch.len() <= LARGEST_SCRATCH {
        SCRATCH.set(scratch);
    }
}

/// What is to go out.
pub enum Output<'py> {
    Native(Vec<u8>),
    Python(Bound<'py, PyBytes>),
}

/// A protocol's own buffer, to be read into.
pub struct Room(ffi::Py_buffer);

impl Room {
    /// The memory of an object with a writable buffer.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut view = ffi::Py_buffer::new();
        let flags = ffi::PyBUF_WRITABLE | ffi::PyBUF_SIMPLE;
        // SAFETY: a view to be filled in, given back in `drop`.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut view, flags) } != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(Self(view))
    }

    /// The memory of an object with a buffer.
    pub fn readable(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut view = ffi::Py_buffer::new();
        // SAFETY: a view to be filled in, given back in `drop`.
        let done =
            unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut view, ffi::PyBUF_SIMPLE) };
        if done != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(Self(view))
    }

    /// A copy of what it holds.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length()];
        // SAFETY: so many bytes are there as long as the view is.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.start().cast_const(),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
        bytes
    }

    pub fn length(&self) -> usize {
        usize::try_from(self.0.len).unwrap_or(0)
    }

    fn start(&self) -> *mut u8 {
        self.0.buf.cast()
    }

    fn fill(&self, from: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.length().saturating_sub(from));
        // SAFETY: inside the buffer, which is writable and stays as long as the view.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start().add(from), count) };
        count
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: a view that was filled in; a thread that has one is attached.
        unsafe { ffi::PyBuffer_Release(&raw mut self.0) };
    }
}
