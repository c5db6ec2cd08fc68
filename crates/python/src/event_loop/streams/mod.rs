//! asyncio's streams: what a reader, its protocol and a writer do often. `plait.asyncio.streams` puts asyncio's own behind them.

mod protocol;
mod reader;
mod state;
mod writer;

pub use protocol::StreamReaderProtocol;
pub use reader::StreamReader;
pub use writer::StreamWriter;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use super::protocol::register_native_protocol;

/// What is known of Python's side.
struct Classes {
    /// The classes that programs use, to which a shortcut applies; a class derived from them may override what it leaves out.
    reader: Py<PyType>,
    protocol: Py<PyType>,
    /// asyncio's exceptions.
    limit_overrun: Py<PyType>,
    incomplete_read: Py<PyType>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

/// Tells of the two classes. Called once, by `plait.asyncio.streams`.
#[pyfunction]
pub fn prepare_streams(
    py: Python<'_>,
    reader: Bound<'_, PyType>,
    protocol: Bound<'_, PyType>,
) -> PyResult<()> {
    register_native_protocol::<StreamReaderProtocol>(&protocol);
    let exceptions = py.import("asyncio.exceptions")?;
    let exception = |name: &str| -> PyResult<Py<PyType>> {
        Ok(exceptions.getattr(name)?.cast_into::<PyType>()?.unbind())
    };
    let classes = Classes {
        reader: reader.unbind(),
        protocol: protocol.unbind(),
        limit_overrun: exception("LimitOverrunError")?,
        incomplete_read: exception("IncompleteReadError")?,
    };
    let _ = CLASSES.set(py, classes);
    Ok(())
}

fn classes(py: Python<'_>) -> PyResult<&'static Classes> {
    CLASSES
        .get(py)
        .ok_or_else(|| PyRuntimeError::new_err("plait.asyncio.streams has not been imported"))
}

/// The reader that this is, if nothing of it can be overridden.
fn plain_reader<'a, 'py>(object: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, StreamReader>> {
    let class = &CLASSES.get(object.py())?.reader;
    if object.get_type().is(class) {
        object.cast().ok()
    } else {
        None
    }
}

/// The protocol that this is, if nothing of it can be overridden.
fn plain_protocol<'a, 'py>(
    object: &'a Bound<'py, PyAny>,
) -> Option<&'a Bound<'py, StreamReaderProtocol>> {
    let class = &CLASSES.get(object.py())?.protocol;
    if object.get_type().is(class) {
        object.cast().ok()
    } else {
        None
    }
}
