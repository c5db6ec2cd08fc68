//! The bytes behind Python objects, lent to a system call.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::slice;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

unsafe extern "C" {
    fn _PyBytes_Resize(bytes: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> i32;
}

/// A buffer that an object lends us; given back when this goes. It must not move: the object may point into it.
struct Loan(MaybeUninit<ffi::Py_buffer>);

impl Loan {
    /// Borrows, into a place that stays.
    fn begin(&mut self, object: &Bound<'_, PyAny>, flags: i32) -> PyResult<(*mut u8, usize)> {
        // SAFETY: attached, a live object, and room for the answer.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), self.0.as_mut_ptr(), flags) } != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: written by the call that succeeded.
        let view = unsafe { self.0.assume_init_ref() };
        Ok((view.buf.cast(), usize::try_from(view.len).unwrap_or(0)))
    }

    /// Gives back what was borrowed.
    ///
    /// # Safety
    /// `begin` has succeeded, and this is the first `end` since.
    unsafe fn end(&mut self, _: Python<'_>) {
        // SAFETY: attached; as promised.
        unsafe { ffi::PyBuffer_Release(self.0.as_mut_ptr()) };
    }
}

/// Shows the bytes of an object to `look`. An error if it has none, or not in a row. `look` runs no Python code that could
/// change them.
pub fn with_bytes<R>(object: &Bound<'_, PyAny>, look: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    let mut loan = Loan(MaybeUninit::uninit());
    let (start, length) = loan.begin(object, ffi::PyBUF_SIMPLE)?;
    let bytes = if length == 0 {
        &[]
    } else {
        // SAFETY: the object lends so many bytes in a row, until they are given back.
        unsafe { slice::from_raw_parts(start, length) }
    };
    let result = look(bytes);
    // SAFETY: it began, above.
    unsafe { loan.end(object.py()) };
    Ok(result)
}

/// The same with bytes that are to be written to. An error if they must not be.
pub fn with_room<R>(object: &Bound<'_, PyAny>, fill: impl FnOnce(&mut [u8]) -> R) -> PyResult<R> {
    let mut loan = Loan(MaybeUninit::uninit());
    let (start, length) = loan.begin(object, ffi::PyBUF_WRITABLE)?;
    let bytes = if length == 0 {
        &mut []
    } else {
        // SAFETY: the object lends so many bytes in a row for writing, until they are given back.
        unsafe { slice::from_raw_parts_mut(start, length) }
    };
    let result = fill(bytes);
    // SAFETY: it began, above.
    unsafe { loan.end(object.py()) };
    Ok(result)
}

/// New `bytes` that `fill` writes straight into: `room` of them at most, cut to as many as it says it has written.
pub fn filled_bytes(
    py: Python<'_>,
    room: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<usize>,
) -> PyResult<io::Result<Bound<'_, PyBytes>>> {
    let size = ffi::Py_ssize_t::try_from(room).unwrap_or(ffi::Py_ssize_t::MAX);
    // SAFETY: attached; without a source the bytes are left as they are; a new reference, or null with an error set.
    let bytes = unsafe {
        Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))
    }?;
    // SAFETY: a bytes object of this size that nobody else knows.
    let space = unsafe {
        let start = ffi::PyBytes_AsString(bytes.as_ptr()).cast::<MaybeUninit<u8>>();
        slice::from_raw_parts_mut(start, room)
    };
    let written = match fill(space) {
        Ok(written) => written.min(room),
        Err(error) => return Ok(Err(error)),
    };
    let mut bytes = bytes.into_ptr();
    let size = ffi::Py_ssize_t::try_from(written).unwrap_or(0);
    // SAFETY: the one reference to a bytes object; it is replaced, or released and null with an error set.
    unsafe {
        if _PyBytes_Resize(&raw mut bytes, size) != 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(Ok(Bound::from_owned_ptr(py, bytes).cast_into_unchecked()))
    }
}
