//! `_rust.StreamReaderProtocol`: hands what a transport has received to a stream's reader.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple, PyWeakrefMethods, PyWeakrefReference};

use super::{StreamReader, plain_reader};
use crate::event_loop::protocol::NativeProtocol;

/// What asyncio's `StreamReaderProtocol` does often. For the thread of its event loop.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct StreamReaderProtocol {
    /// A weak reference to the reader.
    reader: Mutex<Option<Py<PyWeakrefReference>>>,
    /// The transport has as much to write as it takes.
    paused: AtomicBool,
    connection_lost: AtomicBool,
    over_ssl: AtomicBool,
}

impl StreamReaderProtocol {
    /// Whether somebody who has written may go on at once.
    pub(super) fn takes_more(&self) -> bool {
        !self.paused.load(Ordering::Relaxed) && !self.connection_lost.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Py<PyWeakrefReference>>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let known = self.lock();
        known.as_ref()?.bind(py).upgrade()
    }
}

impl NativeProtocol for StreamReaderProtocol {
    fn data_received(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<()> {
        let py = slf.py();
        let Some(reader) = slf.get().reader(py) else {
            return Ok(());
        };
        match plain_reader(&reader) {
            Some(reader) => StreamReader::feed_copy(reader, data),
            None => reader
                .call_method1(intern!(py, "feed_data"), (PyBytes::new(py, data),))
                .map(drop),
        }
    }

    fn eof_received(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let py = slf.py();
        if let Some(reader) = slf.get().reader(py) {
            reader.call_method0(intern!(py, "feed_eof"))?;
        }
        // Over TLS a connection cannot stay open half-way.
        Ok(!slf.get().over_ssl.load(Ordering::Relaxed))
    }
}

#[pymethods]
impl StreamReaderProtocol {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            reader: Mutex::new(None),
            paused: AtomicBool::new(false),
            connection_lost: AtomicBool::new(false),
            over_ssl: AtomicBool::new(false),
        }
    }

    /// Bytes have come.
    #[pyo3(name = "data_received")]
    fn receive(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let Some(reader) = slf.get().reader(py) else {
            return Ok(());
        };
        match plain_reader(&reader) {
            Some(reader) => StreamReader::feed_data(reader, data),
            None => reader
                .call_method1(intern!(py, "feed_data"), (data,))
                .map(drop),
        }
    }

    /// The peer sends no more; whether the transport is to stay open.
    #[pyo3(name = "eof_received")]
    fn receive_eof(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::eof_received(slf)
    }

    #[getter(_stream_reader_wr)]
    fn weak_reader(&self, py: Python<'_>) -> Option<Py<PyWeakrefReference>> {
        self.lock().as_ref().map(|it| it.clone_ref(py))
    }

    #[setter(_stream_reader_wr)]
    fn set_weak_reader(&self, reader: Option<Py<PyWeakrefReference>>) {
        let old = std::mem::replace(&mut *self.lock(), reader);
        drop(old);
    }

    #[getter(_paused)]
    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    #[setter(_paused)]
    fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    #[getter(_connection_lost)]
    fn is_connection_lost(&self) -> bool {
        self.connection_lost.load(Ordering::Relaxed)
    }

    #[setter(_connection_lost)]
    fn set_connection_lost(&self, lost: bool) {
        self.connection_lost.store(lost, Ordering::Relaxed);
    }

    #[getter(_over_ssl)]
    fn is_over_ssl(&self) -> bool {
        self.over_ssl.load(Ordering::Relaxed)
    }

    #[setter(_over_ssl)]
    fn set_over_ssl(&self, over_ssl: bool) {
        self.over_ssl.store(over_ssl, Ordering::Relaxed);
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.reader.try_lock() {
            Ok(reader) => visit.call(&*reader),
            Err(TryLockError::Poisoned(reader)) => visit.call(&*reader.into_inner()),
            Err(TryLockError::WouldBlock) => Ok(()),
        }
    }

    fn __clear__(&self) {
        let old = self.lock().take();
        drop(old);
    }
}
