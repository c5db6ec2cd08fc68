//! How a connection ends: `close`, `abort`, an error, and being forgotten.

use plait_engine::event_loop::Watch;
use pyo3::exceptions::{PyConnectionError, PyOSError};
use pyo3::intern;
use pyo3::prelude::*;

use super::super::context::within;
use super::{CLOSED, CLOSING, LOST, QUEUED, StreamTransport};

impl StreamTransport {
    /// Tells the server that accepted it, if there is one.
    pub(super) fn attach(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let server = slf.get().state().server.as_ref().map(|it| it.clone_ref(py));
        match server {
            Some(server) => tell_server(slf, server.bind(py), "_attach"),
            None => Ok(()),
        }
    }

    /// Reads no more; what waits is written first.
    pub(crate) fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        if this.flags.has(CLOSING) {
            return Ok(());
        }
        this.flags.set(CLOSING);
        if this.flags.has(QUEUED) {
            return Self::sync(slf);
        }
        this.flags.set(LOST);
        this.unregister();
        Self::lose_soon(slf)
    }

    /// The connection is over, whatever waits.
    pub(crate) fn force_close(slf: &Bound<'_, Self>, reason: Option<PyErr>) -> PyResult<()> {
        let this = slf.get();
        if this.flags.has(LOST) {
            return Ok(());
        }
        this.flags.set(CLOSING | LOST);
        this.flags.unset(QUEUED);
        let dropped = {
            let mut state = this.state();
            state.reason = reason;
            state.queue.1 = 0;
            std::mem::take(&mut state.queue.0)
        };
        drop(dropped);
        this.unregister();
        Self::lose_soon(slf)
    }

    fn lose_soon(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let event_loop = this.event_loop.get();
        if event_loop.is_debug() {
            this.event_loop
                .bind(py)
                .call_method0(intern!(py, "_check_thread"))?;
        }
        let lost = slf.clone().into_any().unbind();
        event_loop.schedule(lost, |transport, _| {
            let transport = transport.cast::<Self>()?;
            let context = transport.get().context.bind(transport.py());
            within(context, || Self::lost(transport))
        })
    }

    /// An error that the connection does not survive. Those of the operating system are the protocol's only, the others go to the
    /// loop's exception handler, too.
    pub(super) fn fatal_error(slf: &Bound<'_, Self>, error: PyErr, message: &str) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if !error.is_instance_of::<PyOSError>(py) {
            Self::report(slf, message, error.clone_ref(py))?;
        } else if this.event_loop.get().is_debug() {
            let arguments = (slf, message, error.clone_ref(py).into_value(py));
            this.event_loop
                .bind(py)
                .call_method1(intern!(py, "_note_broken"), arguments)?;
        }
        Self::force_close(slf, Some(error))
    }

    /// Tells the protocol, and closes the socket: the one place where that happens to a connection that was not forgotten.
    pub(super) fn lost(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.unregister();
        let (protocol, reason) = {
            let mut state = this.state();
            (
                state.protocol.as_ref().map(|it| it.clone_ref(py)),
                state.reason.take(),
            )
        };
        let reason = reason.map_or_else(|| py.None(), |reason| reason.into_value(py).into_any());
        let told = match protocol {
            Some(protocol) => protocol
                .call_method1(py, intern!(py, "connection_lost"), (reason,))
                .map(drop),
            None => Ok(()),
        };
        let closed = Self::shut(slf);
        let waiter = this.state().waiter.take();
        if let Some(waiter) = waiter {
            let error = PyConnectionError::new_err("Connection is closed by peer");
            waiter.call_method1(py, intern!(py, "set_exception"), (error,))?;
        }
        told.and(closed)
    }

    /// Closes the socket, and lets go of everybody.
    pub(super) fn shut(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.flags.has(CLOSED) {
            return Ok(());
        }
        this.flags.set(CLOSED | CLOSING | LOST);
        let closed = this.socket.call_method0(py, intern!(py, "close"));
        let (protocol, server) = {
            let mut state = this.state();
            state.watched = Watch {
                read: false,
                write: false,
                edges: false,
            };
            (state.protocol.take(), state.server.take())
        };
        drop(protocol);
        if let Some(server) = server {
            tell_server(slf, server.bind(py), "_detach")?;
        }
        closed.map(drop)
    }
}

/// Tells a server that it has one transport more, or less.
fn tell_server(
    transport: &Bound<'_, StreamTransport>,
    server: &Bound<'_, PyAny>,
    method: &str,
) -> PyResult<()> {
    if cfg!(Py_3_13) {
        server.call_method1(method, (transport,)).map(drop)
    } else {
        server.call_method0(method).map(drop)
    }
}
