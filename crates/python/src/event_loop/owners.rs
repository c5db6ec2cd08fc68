//! Who owns a descriptor: a transport's is nobody else's to read, write or watch.

use std::os::fd::RawFd;

use pyo3::exceptions::{PyAttributeError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;

use super::EventLoop;

/// A descriptor's number: an integer, or an object with a `fileno()`.
pub fn descriptor(file: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    if let Ok(fd) = file.extract() {
        return Ok(fd);
    }
    file.call_method0(intern!(file.py(), "fileno"))?.extract()
}

/// An error if a transport that is not closing owns this descriptor: one in Rust, or one of asyncio's own.
pub fn ensure_none(event_loop: &Bound<'_, EventLoop>, fd: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = event_loop.py();
    let number = number(fd)?;
    let owner = event_loop
        .get()
        .core
        .owner(number, |item| item.object().clone_ref(py));
    let owner = if let Some(owner) = owner {
        owner.into_bound(py)
    } else {
        let transports = event_loop.getattr(intern!(py, "_transports"))?;
        if transports.len()? == 0 {
            return Ok(());
        }
        transports.call_method1(intern!(py, "get"), (number,))?
    };
    if owner.is_none() || !owner.hasattr(intern!(py, "is_closing"))? {
        return Ok(());
    }
    if owner.call_method0(intern!(py, "is_closing"))?.is_truthy()? {
        return Ok(());
    }
    let message = format!(
        "File descriptor {} is used by transport {}",
        fd.repr()?,
        owner.repr()?
    );
    Err(PyRuntimeError::new_err(message))
}

fn number(fd: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    if let Ok(number) = fd.extract() {
        return Ok(number);
    }
    let py = fd.py();
    let number = fd
        .call_method0(intern!(py, "fileno"))
        .and_then(|number| number.extract());
    number.map_err(|error| {
        if error.is_instance_of::<PyAttributeError>(py)
            || error.is_instance_of::<PyTypeError>(py)
            || error.is_instance_of::<PyValueError>(py)
        {
            let repr = fd.repr().map(|repr| repr.to_string());
            PyValueError::new_err(format!("Invalid file object: {}", repr.unwrap_or_default()))
        } else {
            error
        }
    })
}
