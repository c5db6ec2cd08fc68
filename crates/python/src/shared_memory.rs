//! Bytes between Python's buffers and memory shared with other processes.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plait_engine::process_pool::Bytes;
use plait_engine::shared_memory::{Lease, Segment as EngineSegment, Ticket as EngineTicket};
use plait_engine::sys::mapping::fallback;
use pyo3::exceptions::{PyBufferError, PyLookupError, PyMemoryError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyType};
use pyo3::{PyClass, PyTypeInfo};

/// Memory shared with another process, as a buffer; given back when the last view of it is gone.
#[pyclass(frozen, module = "plait._rust")]
pub struct SharedBuffer {
    lease: Lease,
}

#[pymethods]
impl SharedBuffer {
    fn __len__(&self) -> usize {
        self.lease.len()
    }

    /// On its way to another process it is bytes like any other: a job may return what it was given.
    fn __reduce_ex__(
        slf: Bound<'_, Self>,
        _protocol: i32,
    ) -> PyResult<(Bound<'_, PyType>, (Bound<'_, PyAny>,))> {
        static BUFFER: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let py = slf.py();
        let buffer = BUFFER
            .import(py, "_pickle", "PickleBuffer")?
            .call1((slf,))?;
        Ok((PyByteArray::type_object(py), (buffer,)))
    }

    /// # Safety
    /// Called by the interpreter, with a `view` it has allocated.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let lease = &slf.get().lease;
        // SAFETY: the memory is mapped for as long as the lease lives, and the view holds a reference to `slf`.
        // Writable: the process that holds the lease is the only one that uses the piece.
        unsafe { fill(view, &slf, lease.as_ptr(), lease.len(), false, flags) }
    }
}

/// A value put into memory once. `plait.share.Shared` is its face.
#[pyclass(frozen, module = "plait._rust")]
pub struct Segment {
    inner: Arc<EngineSegment>,
}

#[pymethods]
impl Segment {
    /// Copies a pickle and its buffers into memory of their own. Raises `MemoryError` if there is not so much.
    #[staticmethod]
    fn create(
        py: Python<'_>,
        payload: &[u8],
        buffers: Vec<Bound<'_, PyAny>>,
        writable: bool,
    ) -> PyResult<Self> {
        let views: Vec<Contiguous> = buffers
            .iter()
            .map(Contiguous::get)
            .collect::<PyResult<_>>()?;
        let parts: Vec<&[u8]> = std::iter::once(payload)
            .chain(views.iter().map(Contiguous::bytes))
            .collect();
        let size: usize = parts.iter().map(|part| part.len()).sum();
        let kept = views.iter().filter_map(|view| view.segment(py)).collect();
        match py.detach(|| EngineSegment::create(&parts, writable, kept)) {
            Ok(segment) => Ok(Self {
                inner: Arc::new(segment),
            }),
            Err(error) => Err(PyMemoryError::new_err(format!(
                "no memory to share a value of {size} bytes: {error}"
            ))),
        }
    }

    /// Maps the segment that a ticket's bytes are for. Raises `LookupError` if its origin has let go of it or is gone, and
    /// `OSError` if it cannot be opened.
    #[staticmethod]
    fn attach(py: Python<'_>, ticket: &[u8]) -> PyResult<Self> {
        let ticket = EngineTicket::from_bytes(ticket)
            .ok_or_else(|| PyValueError::new_err("these bytes are no ticket of a shared value"))?;
        match py.detach(|| EngineSegment::attach(ticket)) {
            Ok(segment) => Ok(Self {
                inner: Arc::new(segment),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(PyLookupError::new_err(format!(
                    "the value shared by process {} is gone: that process has ended, or nothing in it holds a handle any more",
                    ticket.origin
                )))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The pickle, then its buffers: views that keep the segment mapped.
    fn parts(&self) -> Vec<SegmentPart> {
        let part = |at| SegmentPart {
            segment: Arc::clone(&self.inner),
            at,
        };
        (0..self.inner.len()).map(part).collect()
    }

    /// What is pickled in its place.
    fn ticket(&self) -> Ticket {
        Ticket {
            segment: Arc::clone(&self.inner),
            bytes: self.inner.ticket().to_bytes(),
        }
    }

    /// Whether its origin still holds it.
    #[getter]
    fn live(&self) -> bool {
        self.inner.is_live()
    }

    /// The process that made it.
    #[getter]
    fn origin(&self) -> u32 {
        self.inner.ticket().origin
    }

    #[getter]
    fn writable(&self) -> bool {
        self.inner.ticket().writable
    }

    /// How many bytes it takes.
    #[getter]
    fn size(&self) -> usize {
        self.inner.size()
    }
}

/// One part of a segment, as a buffer.
#[pyclass(frozen, module = "plait._rust")]
pub struct SegmentPart {
    segment: Arc<EngineSegment>,
    at: usize,
}

#[pymethods]
impl SegmentPart {
    /// # Safety
    /// Called by the interpreter, with a `view` it has allocated.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let Some((start, length)) = this.segment.part(this.at) else {
            return Err(PyBufferError::new_err("there is no such part"));
        };
        let read_only = !this.segment.ticket().writable;
        // SAFETY: the memory is mapped for as long as the segment lives, and the view holds a reference to `slf`. Where it
        // is mapped read-only, the view says so.
        unsafe { fill(view, &slf, start, length, read_only, flags) }
    }
}

/// What is pickled in the place of a segment, as a buffer of a few bytes. A pool that finds one among a job's buffers
/// keeps its segment until the job has ended.
#[pyclass(frozen, module = "plait._rust")]
pub struct Ticket {
    segment: Arc<EngineSegment>,
    bytes: [u8; EngineTicket::LENGTH],
}

#[pymethods]
impl Ticket {
    /// # Safety
    /// Called by the interpreter, with a `view` it has allocated.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let bytes = &slf.get().bytes;
        let start = bytes.as_ptr().cast_mut();
        // SAFETY: the bytes are part of `slf`, which does not move and to which the view holds a reference; it is read-only.
        unsafe { fill(view, &slf, start, bytes.len(), true, flags) }
    }
}

/// Fills a view of `length` bytes at `start`, which belong to `owner`.
///
/// # Safety
/// The bytes stay where they are for as long as `owner` lives, and may be written to unless `read_only`; `view` was
/// allocated by the interpreter.
unsafe fn fill(
    view: *mut ffi::Py_buffer,
    owner: &Bound<'_, impl PyClass>,
    start: *mut u8,
    length: usize,
    read_only: bool,
    flags: c_int,
) -> PyResult<()> {
    let length = isize::try_from(length).unwrap_or(isize::MAX);
    // SAFETY: the caller's promise.
    let status = unsafe {
        ffi::PyBuffer_FillInfo(
            view,
            owner.as_ptr(),
            start.cast(),
            length,
            c_int::from(read_only),
            flags,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(PyErr::fetch(owner.py()))
    }
}

/// Bytes of a call or an answer, as something `pickle.loads` takes. `writable` where the receiver may change them.
pub(crate) fn to_python(
    py: Python<'_>,
    bytes: Bytes,
    writable: bool,
) -> PyResult<Bound<'_, PyAny>> {
    match bytes {
        Bytes::Inline(bytes) if writable => Ok(PyByteArray::new(py, &bytes).into_any()),
        Bytes::Inline(bytes) => Ok(PyBytes::new(py, &bytes).into_any()),
        Bytes::Shared(lease) => Ok(Bound::new(py, SharedBuffer { lease })?.into_any()),
    }
}

pub(crate) fn list_of_buffers(py: Python<'_>, buffers: Vec<Bytes>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for buffer in buffers {
        list.append(to_python(py, buffer, true)?)?;
    }
    Ok(list)
}

/// An exported contiguous buffer. Not `PyUntypedBuffer`, which refuses arrays of no dimension.
pub(crate) struct Contiguous(Box<ffi::Py_buffer>);

impl Contiguous {
    pub(crate) fn get(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // SAFETY: the object is alive and the view is ours; it stays where it is until it is released.
        let status = unsafe {
            ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *view, ffi::PyBUF_ANY_CONTIGUOUS)
        };
        if status == 0 {
            Ok(Self(view))
        } else {
            Err(PyErr::fetch(object.py()))
        }
    }

    /// The segment that this is a ticket of, if it is one.
    pub(crate) fn segment(&self, py: Python<'_>) -> Option<Arc<EngineSegment>> {
        // SAFETY: an exported view names its exporter, which it keeps alive, or nobody.
        let owner = unsafe { Bound::from_borrowed_ptr_or_opt(py, self.0.obj) }?;
        let ticket = owner.cast::<Ticket>().ok()?;
        Some(Arc::clone(&ticket.get().segment))
    }

    /// Its bytes, in the order of memory.
    pub(crate) fn bytes(&self) -> &[u8] {
        match usize::try_from(self.0.len) {
            Ok(length) if length > 0 => {
                // SAFETY: contiguous and exported for as long as `self` lives. Its owner may write to it meanwhile from
                // another thread, as with any buffer that is copied while others can reach it: the copy is torn then,
                // nothing else.
                unsafe { std::slice::from_raw_parts(self.0.buf.cast(), length) }
            }
            _ => &[],
        }
    }
}

impl Drop for Contiguous {
    fn drop(&mut self) {
        // SAFETY: filled by `get`, on a thread that was attached and is still: a raw view is not `Send`.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.0) }
    }
}

/// The folder of the files that stand in for nameless memory, if the system has none (and some was needed).
#[pyfunction]
pub fn memory_fallback() -> Option<PathBuf> {
    fallback().map(Path::to_path_buf)
}

/// Takes over a descriptor that the zygote has received for its worker.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: `plait._zygote`, the only caller, received it in a message, hands it over once and forgets it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
