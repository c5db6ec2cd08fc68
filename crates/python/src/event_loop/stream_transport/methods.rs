//! The transport as Python code sees it.

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::{
    CLOSED, CLOSING, EOF, LOST, PAUSED, PROTOCOL_PAUSED, QUEUED, SENDING_FILE, StreamTransport,
    new_transport,
};
use crate::event_loop::EventLoop;

#[pymethods]
impl StreamTransport {
    #[new]
    #[pyo3(signature = (event_loop, socket, protocol, extra=None, server=None))]
    fn new(
        event_loop: &Bound<'_, EventLoop>,
        socket: &Bound<'_, PyAny>,
        protocol: &Bound<'_, PyAny>,
        extra: Option<Bound<'_, PyDict>>,
        server: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        new_transport(event_loop, socket, protocol, extra, server)
    }

    fn write(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::write_object(slf, data)
    }

    fn writelines(slf: &Bound<'_, Self>, list_of_data: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::write_all(slf, list_of_data)
    }

    fn write_eof(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::end_writing(slf)
    }

    #[allow(clippy::unused_self, reason = "a method of transports")]
    fn can_write_eof(&self) -> bool {
        true
    }

    #[pyo3(name = "close")]
    fn py_close(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::close(slf)
    }

    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::force_close(slf, None)
    }

    fn _force_close(slf: &Bound<'_, Self>, exc: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        Self::force_close(slf, exc.map(PyErr::from_value))
    }

    #[pyo3(signature = (exc, message="Fatal error on transport"))]
    fn _fatal_error(slf: &Bound<'_, Self>, exc: Bound<'_, PyAny>, message: &str) -> PyResult<()> {
        Self::fatal_error(slf, PyErr::from_value(exc), message)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.flags.has(CLOSING)
    }

    fn is_reading(&self) -> bool {
        !self.flags.has(CLOSING | PAUSED)
    }

    fn pause_reading(&self) {
        if !self.flags.has(CLOSING) {
            self.flags.set(PAUSED);
        }
    }

    fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::resume(slf)
    }

    fn set_protocol(&self, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        self.put_protocol(protocol)
    }

    fn get_protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol(py).map(|found| found.0)
    }

    #[pyo3(signature = (high=None, low=None))]
    fn set_write_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<i64>,
        low: Option<i64>,
    ) -> PyResult<()> {
        Self::set_limits(slf, high, low)
    }

    fn get_write_buffer_limits(&self) -> (usize, usize) {
        let state = self.state();
        (state.low, state.high)
    }

    fn get_write_buffer_size(&self) -> usize {
        self.state().queue.1
    }

    #[pyo3(signature = (name, default=None))]
    fn get_extra_info<'py>(
        &self,
        name: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let extra = self.all_extra(name.py())?;
        Ok(extra.get_item(name)?.or(default))
    }

    #[getter]
    fn _extra<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyDict>> {
        self.all_extra(py)
    }

    #[getter]
    fn _loop<'py>(&self, py: Python<'py>) -> Option<&Bound<'py, EventLoop>> {
        (!self.flags.has(CLOSED)).then(|| self.event_loop.bind(py))
    }

    #[getter]
    fn _sock<'py>(&self, py: Python<'py>) -> Option<&Bound<'py, PyAny>> {
        (!self.flags.has(CLOSED)).then(|| self.socket.bind(py))
    }

    #[getter]
    fn _sock_fd(&self, py: Python<'_>) -> PyResult<i32> {
        self.number(py)
    }

    #[getter]
    fn _protocol_paused(&self) -> bool {
        self.flags.has(PROTOCOL_PAUSED)
    }

    #[getter]
    fn _conn_lost(&self) -> bool {
        self.flags.has(LOST)
    }

    /// A future that is completed when everything is written; until it is reset nobody may write.
    fn _make_empty_waiter<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if self.flags.has(SENDING_FILE) {
            return Err(PyRuntimeError::new_err("Empty waiter is already set"));
        }
        let waiter = self
            .event_loop
            .bind(py)
            .call_method0(intern!(py, "create_future"))?;
        self.flags.set(SENDING_FILE);
        if self.flags.has(QUEUED) {
            self.state().waiter = Some(waiter.clone().unbind());
        } else {
            waiter.call_method1(intern!(py, "set_result"), (py.None(),))?;
        }
        Ok(waiter)
    }

    fn _reset_empty_waiter(&self) {
        self.flags.unset(SENDING_FILE);
        let waiter = self.state().waiter.take();
        drop(waiter);
    }

    /// Has the loop watch what is to be watched, right now: nothing, if reading is paused and nothing waits.
    fn _sync(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::sync(slf)
    }

    /// Nobody knows the transport any more: closes the socket. Whether it was open.
    fn _abandon(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let was_open = !slf.get().flags.has(CLOSED);
        Self::shut(slf)?;
        Ok(was_open)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let (py, this) = (slf.py(), slf.get());
        let mut words = vec![slf.get_type().name()?.to_string()];
        if this.flags.has(CLOSED) {
            words.push("closed".into());
        } else if this.flags.has(CLOSING) {
            words.push("closing".into());
        }
        words.push(format!("fd={}", this.number(py)?));
        if !this.flags.has(CLOSED) {
            let polled = |is| if is { "polling" } else { "idle" };
            let (watched, size) = {
                let state = this.state();
                (state.token.map(|_| state.watched), state.queue.1)
            };
            let reads = watched.is_some_and(|watched| watched.read) && this.may_read();
            let writes = watched.is_some_and(|watched| watched.write);
            words.push(format!("read={}", polled(reads)));
            words.push(format!("write=<{}, bufsize={size}>", polled(writes)));
        }
        if this.flags.has(EOF) && !this.flags.has(LOST) {
            words.push("eof".into());
        }
        Ok(format!("<{}>", words.join(" ")))
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.visit(&visit)
    }

    fn __clear__(&self) {
        self.forget();
    }
}

impl StreamTransport {
    /// What `get_extra_info` knows, with the socket's face, which is only made when somebody asks.
    fn all_extra<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyDict>> {
        static FACE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let extra = self.extra.bind(py);
        let name = intern!(py, "socket");
        if !extra.contains(name)? {
            let face = FACE.import(py, "asyncio.trsock", "TransportSocket")?;
            extra.set_item(name, face.call1((self.socket.bind(py),))?)?;
        }
        Ok(extra)
    }
}
