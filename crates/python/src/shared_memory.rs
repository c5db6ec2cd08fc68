//! Bytes between Python's buffers and memory shared with other processes.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use plait_engine::process_pool::Bytes;
use plait_engine::shared_memory::Lease;
use pyo3::PyTypeInfo;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyType};

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
        let length = isize::try_from(lease.len()).unwrap_or(isize::MAX);
        // SAFETY: the memory is mapped for as long as the lease lives, and the view holds a reference to `slf`.
        // Writable: the process that holds the lease is the only one that uses the piece.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), lease.as_ptr().cast(), length, 0, flags)
        };
        if status == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
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

/// Takes over a descriptor that the zygote has received for its worker.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: `plait._zygote`, the only caller, received it in a message, hands it over once and forgets it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
