//! `_rust.TlsBuffer`: what asyncio's `SSLProtocol` finds in the place of its two `ssl.MemoryBIO`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::engine::Room;
use super::wire::{self, Wire};

/// Which direction of the wire.
#[derive(Clone, Copy)]
pub enum Side {
    Incoming,
    Outgoing,
}

/// One direction of a connection's ciphertext.
#[pyclass(frozen, module = "plait._rust")]
pub struct TlsBuffer {
    wire: Arc<Wire>,
    side: Side,
}

impl TlsBuffer {
    pub fn new(wire: Arc<Wire>, side: Side) -> Self {
        Self { wire, side }
    }
}

#[pymethods]
impl TlsBuffer {
    /// How many bytes wait.
    #[getter]
    fn pending(&self) -> usize {
        match self.side {
            Side::Incoming => self.wire.incoming(),
            Side::Outgoing => self.wire.outgoing(),
        }
    }

    /// Takes all that waits.
    fn read<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let bytes = match self.side {
            Side::Incoming => self.wire.take_incoming(),
            Side::Outgoing => self.wire.take_outgoing(),
        };
        let result = PyBytes::new(py, &bytes);
        if matches!(self.side, Side::Outgoing) {
            wire::recycle(bytes);
        }
        result
    }

    /// Adds bytes, and says how many.
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let bytes = Room::readable(data)?.to_vec();
        match self.side {
            Side::Incoming => self.wire.feed(&bytes),
            Side::Outgoing => self.wire.put(&bytes),
        }
        Ok(bytes.len())
    }
}
