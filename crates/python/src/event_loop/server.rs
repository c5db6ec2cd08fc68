//! Accepting connections: for each a transport and a protocol, without a task.

use pyo3::exceptions::{
    PyBlockingIOError, PyConnectionAbortedError, PyInterruptedError, PyOSError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::context::{copy_current, within};
use super::{EventLoop, ends_the_loop, stream_transport};

/// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`: there is no room for another connection now.
const EXHAUSTED: [i32; 4] = [24, 23, 105, 12];

/// What `create_server` was asked for.
pub struct Serving<'py> {
    pub protocol_factory: Bound<'py, PyAny>,
    pub socket: Bound<'py, PyAny>,
    pub ssl_context: Option<Bound<'py, PyAny>>,
    pub server: Option<Bound<'py, PyAny>>,
    pub backlog: usize,
    pub handshake_timeout: Option<Bound<'py, PyAny>>,
    pub shutdown_timeout: Option<Bound<'py, PyAny>>,
}

/// Accepts what has come, but no more than the backlog in one turn.
pub fn accept_all(event_loop: &Bound<'_, EventLoop>, serving: &Serving<'_>) -> PyResult<()> {
    let py = event_loop.py();
    for _ in 0..=serving.backlog {
        match accept(&serving.socket) {
            Ok((connection, address)) => serve(event_loop, serving, &connection, address)?,
            Err(error) if error.is_instance_of::<PyConnectionAbortedError>(py) => {}
            Err(error)
                if error.is_instance_of::<PyBlockingIOError>(py)
                    || error.is_instance_of::<PyInterruptedError>(py) =>
            {
                return Ok(());
            }
            Err(error) if is_exhausted(py, &error) => return rest(event_loop, serving, error),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn accept<'py>(socket: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let py = socket.py();
    let accepted = socket.call_method0(intern!(py, "accept"))?;
    let (connection, address): (Bound<'py, PyAny>, Bound<'py, PyAny>) = accepted.extract()?;
    connection.call_method1(intern!(py, "setblocking"), (false,))?;
    Ok((connection, address))
}

fn is_exhausted(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyOSError>(py)
        && error
            .value(py)
            .getattr(intern!(py, "errno"))
            .and_then(|number| number.extract())
            .is_ok_and(|number: i32| EXHAUSTED.contains(&number))
}

/// Tells of it, and accepts nothing for a while: the listening socket would be ready all the time.
fn rest(event_loop: &Bound<'_, EventLoop>, serving: &Serving<'_>, error: PyErr) -> PyResult<()> {
    static FACE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = event_loop.py();
    let socket = &serving.socket;
    let face = FACE.import(py, "asyncio.trsock", "TransportSocket")?;
    let context = PyDict::new(py);
    context.set_item("message", "socket.accept() out of system resource")?;
    context.set_item("exception", error.into_value(py))?;
    context.set_item("socket", face.call1((socket,))?)?;
    event_loop.call_method1(intern!(py, "call_exception_handler"), (context,))?;
    event_loop.call_method1(intern!(py, "_remove_reader"), (socket,))?;
    let arguments = (
        &serving.protocol_factory,
        socket,
        &serving.ssl_context,
        &serving.server,
        serving.backlog,
        &serving.handshake_timeout,
        &serving.shutdown_timeout,
    );
    event_loop
        .call_method1(intern!(py, "_serve_again_later"), arguments)
        .map(drop)
}

fn serve<'py>(
    event_loop: &Bound<'py, EventLoop>,
    serving: &Serving<'py>,
    connection: &Bound<'py, PyAny>,
    address: Bound<'py, PyAny>,
) -> PyResult<()> {
    let py = event_loop.py();
    let extra = PyDict::new(py);
    extra.set_item(intern!(py, "peername"), address)?;
    if serving.ssl_context.is_some() {
        let arguments = (
            &serving.protocol_factory,
            connection,
            extra,
            &serving.ssl_context,
            &serving.server,
            &serving.handshake_timeout,
            &serving.shutdown_timeout,
        );
        let accepted = event_loop.call_method1(intern!(py, "_accept_connection2"), arguments)?;
        let task = event_loop.call_method1(intern!(py, "create_task"), (accepted,));
        return task.map(drop);
    }
    let mut protocol = None;
    // A context for each connection, as the task would have that asyncio makes here.
    let made = within(&copy_current(py)?, || {
        let made = protocol.insert(serving.protocol_factory.call0()?);
        let server = serving.server.clone();
        stream_transport::make(
            event_loop,
            connection,
            made,
            None,
            Some(extra.into_any()),
            server,
        )
    });
    let Err(error) = made else {
        return Ok(());
    };
    if ends_the_loop(py, &error) {
        return Err(error);
    }
    connection.call_method0(intern!(py, "close"))?;
    if event_loop.get().is_debug() {
        let message = "Error on transport creation for incoming connection";
        let context = PyDict::new(py);
        context.set_item("message", message)?;
        context.set_item("exception", error.into_value(py))?;
        if let Some(protocol) = protocol {
            context.set_item("protocol", protocol)?;
        }
        event_loop.call_method1(intern!(py, "call_exception_handler"), (context,))?;
    }
    Ok(())
}
