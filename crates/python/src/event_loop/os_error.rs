//! Errors of the operating system, as Python raises them: with their number.

use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

/// An `OSError` of the class that belongs to the number, with the number and the system's own words.
pub fn os_error(py: Python<'_>, error: io::Error) -> PyErr {
    let Some(number) = error.raw_os_error() else {
        return error.into();
    };
    let words = py
        .import("os")
        .and_then(|os| os.call_method1("strerror", (number,)));
    match words {
        Ok(words) => PyOSError::new_err((number, words.unbind())),
        Err(error) => error,
    }
}
