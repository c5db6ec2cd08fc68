//! Calling and raising with what the safe API cannot say: contexts, implicit exception chaining. The only raw FFI.
#![allow(unsafe_code)]

use pyo3::exceptions::PyBaseException;
use pyo3::ffi;
use pyo3::prelude::*;

/// The error that `raise exception` makes: chained to the exception that is being handled, if any.
pub fn raise(exception: Bound<'_, PyAny>) -> PyErr {
    if !exception.is_instance_of::<PyBaseException>() {
        return PyErr::from_value(exception);
    }
    // SAFETY: attached (there is a Bound), both are live objects, and the value is an instance of the type.
    unsafe { ffi::PyErr_SetObject(exception.get_type().as_ptr(), exception.as_ptr()) };
    PyErr::fetch(exception.py())
}
