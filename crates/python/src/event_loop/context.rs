//! Contexts (`contextvars.Context`), entered without a Python frame.
#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;

/// A copy of the current context.
pub fn copy_current(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    // SAFETY: attached; a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }
}

/// Runs `body` in a context, as `context.run` does: an error if it is entered already, or is none.
pub fn within<R>(context: &Bound<'_, PyAny>, body: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    let py = context.py();
    // SAFETY: attached, and the argument is a live object; what is no context is an error.
    if unsafe { ffi::PyContext_Enter(context.as_ptr()) } != 0 {
        return Err(PyErr::fetch(py));
    }
    let result = body();
    // SAFETY: attached, in the thread that entered this context; no error is set, `result` holds it.
    if unsafe { ffi::PyContext_Exit(context.as_ptr()) } != 0 {
        let error = PyErr::fetch(py);
        result?;
        return Err(error);
    }
    result
}
