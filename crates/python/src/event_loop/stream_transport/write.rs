//! What goes out: tried at once; the rest waits in a queue and goes out with vectored writes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use plait_engine::sys::socket;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView};

use super::super::bytes::with_bytes;
use super::super::os_error::os_error;
use super::{CLOSING, EOF, LOST, PROTOCOL_PAUSED, QUEUED, SENDING_FILE, StreamTransport};

/// asyncio's limits: above `HIGH` bytes that wait the protocol is paused, at `LOW` it goes on.
pub(super) const HIGH: usize = 64 * 1024;
pub(super) const LOW: usize = HIGH / 4;
/// So many pieces are sent by one call.
const MOST_SLICES: usize = 64;
/// The first write on a lost connection that is told of, as with asyncio's.
const TOLD_WRITE: u32 = 5;

/// What waits to be written, and how many bytes that are.
pub(super) struct Queue(pub(super) VecDeque<Piece>, pub(super) usize);

/// Bytes that wait, from a place on.
pub(super) enum Piece {
    /// Nobody can change these: they are kept, not copied.
    Bytes(Py<PyBytes>, usize),
    Copy(Vec<u8>, usize),
}

impl Piece {
    fn rest<'a>(&'a self, py: Python<'a>) -> &'a [u8] {
        match self {
            Self::Bytes(bytes, start) => &bytes.as_bytes(py)[*start..],
            Self::Copy(bytes, start) => &bytes[*start..],
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(_, start) | Self::Copy(_, start) => *start += count,
        }
    }
}

impl Queue {
    fn push(&mut self, piece: Piece, length: usize) {
        self.1 += length;
        self.0.push_back(piece);
    }

    /// These many bytes have gone.
    fn forget(&mut self, py: Python<'_>, mut count: usize) {
        self.1 -= count;
        while count > 0 {
            let Some(first) = self.0.front_mut() else {
                return;
            };
            let length = first.rest(py).len();
            if count < length {
                first.advance(count);
                return;
            }
            count -= length;
            self.0.pop_front();
        }
    }

    /// Sends as much as there is room for, in one call; tells whether there was room for all of that.
    fn send(&mut self, py: Python<'_>, number: i32) -> io::Result<bool> {
        let mut slices = [IoSlice::new(&[]); MOST_SLICES];
        let mut asked = 0;
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.0) {
            *slice = IoSlice::new(piece.rest(py));
            asked += slice.len();
            count += 1;
        }
        let sent = socket::send_vectored(number, &slices[..count])?;
        self.forget(py, sent);
        Ok(sent == asked)
    }
}

/// How an attempt to empty the queue has ended.
enum Flushed {
    Empty,
    Full,
    Failed(PyErr),
}

impl StreamTransport {
    /// `write` of whatever Python code may give.
    pub(crate) fn write_object(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(bytes) = data.cast_exact::<PyBytes>() {
            return Self::write_bytes(slf, bytes.as_bytes(), Some(bytes));
        }
        if !(data.is_instance_of::<PyBytes>()
            || data.is_instance_of::<PyByteArray>()
            || data.is_instance_of::<PyMemoryView>())
        {
            return Err(PyTypeError::new_err(format!(
                "data argument must be a bytes, bytearray, or memoryview object, not {}",
                data.get_type().name()?.repr()?
            )));
        }
        with_bytes(data, |bytes| Self::write_bytes(slf, bytes, None))?
    }

    /// Writes: as much as there is room for at once, the rest when there is. `whole` is the object that the bytes are those of,
    /// so that it can be kept; otherwise they are copied.
    pub(crate) fn write_bytes(
        slf: &Bound<'_, Self>,
        bytes: &[u8],
        whole: Option<&Bound<'_, PyBytes>>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.check_writable("write")?;
        if bytes.is_empty() {
            return Ok(());
        }
        if this.flags.has(LOST) {
            return Self::note_lost_write(slf);
        }
        let queued = this.flags.has(QUEUED);
        let mut sent = 0;
        if !queued {
            match socket::send_some(this.number(py)?, bytes) {
                Ok(count) if count == bytes.len() => return Ok(()),
                Ok(count) => sent = count,
                Err(error) if is_for_later(&error) => {}
                Err(error) => {
                    let message = "Fatal write error on socket transport";
                    return Self::fatal_error(slf, os_error(py, error), message);
                }
            }
        }
        let piece = match whole {
            Some(whole) => Piece::Bytes(whole.clone().unbind(), sent),
            None => Piece::Copy(bytes[sent..].to_vec(), 0),
        };
        this.state().queue.push(piece, bytes.len() - sent);
        if !queued {
            this.flags.set(QUEUED);
            Self::sync(slf)?;
        }
        Self::maybe_pause_protocol(slf)
    }

    /// `writelines`.
    pub(super) fn write_all(slf: &Bound<'_, Self>, list: &Bound<'_, PyAny>) -> PyResult<()> {
        let this = slf.get();
        this.check_writable("writelines")?;
        let mut pieces = Vec::new();
        for data in list.try_iter()? {
            let data = data?;
            let (piece, length) = match data.cast_exact::<PyBytes>() {
                Ok(bytes) => (
                    Piece::Bytes(bytes.clone().unbind(), 0),
                    bytes.as_bytes().len(),
                ),
                Err(_) => with_bytes(&data, |bytes| (Piece::Copy(bytes.to_vec(), 0), bytes.len()))?,
            };
            if length > 0 {
                pieces.push((piece, length));
            }
        }
        if pieces.is_empty() {
            return Ok(());
        }
        if this.flags.has(LOST) {
            return Self::note_lost_write(slf);
        }
        {
            let mut state = this.state();
            for (piece, length) in pieces {
                state.queue.push(piece, length);
            }
        }
        let queued = this.flags.has(QUEUED);
        this.flags.set(QUEUED);
        if !queued {
            Self::flush(slf)?;
            if !this.flags.has(QUEUED) {
                return Ok(());
            }
            Self::sync(slf)?;
        }
        Self::maybe_pause_protocol(slf)
    }

    fn check_writable(&self, method: &str) -> PyResult<()> {
        if self.flags.has(EOF) {
            let message = format!("Cannot call {method}() after write_eof()");
            return Err(PyRuntimeError::new_err(message));
        }
        if self.flags.has(SENDING_FILE) {
            let message = format!("unable to {method}; sendfile is in progress");
            return Err(PyRuntimeError::new_err(message));
        }
        Ok(())
    }

    fn note_lost_write(slf: &Bound<'_, Self>) -> PyResult<()> {
        let count = {
            let mut state = slf.get().state();
            state.lost_writes = state.lost_writes.saturating_add(1);
            state.lost_writes
        };
        if count >= TOLD_WRITE {
            let logger = slf.py().import("asyncio.log")?.getattr("logger")?;
            logger.call_method1("warning", ("socket.send() raised exception.",))?;
        }
        Ok(())
    }

    /// There may be room again: writes what waits.
    pub(super) fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let number = this.number(py)?;
        let flushed = loop {
            let mut state = this.state();
            match state.queue.send(py, number) {
                Ok(_) if state.queue.0.is_empty() => break Flushed::Empty,
                Ok(true) => {}
                Ok(false) => break Flushed::Full,
                Err(error) if is_for_later(&error) => break Flushed::Full,
                Err(error) => break Flushed::Failed(os_error(py, error)),
            }
        };
        match flushed {
            Flushed::Empty => this.flags.unset(QUEUED),
            Flushed::Full => {}
            Flushed::Failed(error) => {
                let waiter = this.state().waiter.take();
                let reason = error.clone_ref(py);
                Self::fatal_error(slf, error, "Fatal write error on socket transport")?;
                if let Some(waiter) = waiter {
                    waiter.call_method1(py, intern!(py, "set_exception"), (reason,))?;
                }
                return Ok(());
            }
        }
        Self::maybe_resume_protocol(slf)?;
        if this.flags.has(QUEUED) || this.flags.has(LOST) {
            return Ok(());
        }
        Self::sync(slf)?;
        let waiter = this.state().waiter.take();
        if let Some(waiter) = waiter {
            waiter.call_method1(py, intern!(py, "set_result"), (py.None(),))?;
        }
        if this.flags.has(CLOSING) {
            this.flags.set(LOST);
            return Self::lost(slf);
        }
        if this.flags.has(EOF) {
            socket::end_sending(this.number(py)?).map_err(|error| os_error(py, error))?;
        }
        Ok(())
    }

    pub(super) fn end_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.flags.has(CLOSING | EOF) {
            return Ok(());
        }
        this.flags.set(EOF);
        if !this.flags.has(QUEUED) {
            socket::end_sending(this.number(py)?).map_err(|error| os_error(py, error))?;
        }
        Ok(())
    }

    pub(super) fn set_limits(
        slf: &Bound<'_, Self>,
        high: Option<i64>,
        low: Option<i64>,
    ) -> PyResult<()> {
        let high = match (high, low) {
            (Some(high), _) => high,
            (None, Some(low)) => low.saturating_mul(4),
            (None, None) => i64::try_from(HIGH).unwrap_or(i64::MAX),
        };
        let low = low.unwrap_or(high / 4);
        let limits = usize::try_from(high).ok().zip(usize::try_from(low).ok());
        let Some((high_water, low_water)) = limits.filter(|(high, low)| high >= low) else {
            return Err(PyValueError::new_err(format!(
                "high ({high}) must be >= low ({low}) must be >= 0"
            )));
        };
        {
            let mut state = slf.get().state();
            (state.high, state.low) = (high_water, low_water);
        }
        Self::maybe_pause_protocol(slf)
    }

    fn maybe_pause_protocol(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let is_much = {
            let state = this.state();
            state.queue.1 > state.high
        };
        if !is_much || this.flags.has(PROTOCOL_PAUSED) {
            return Ok(());
        }
        this.flags.set(PROTOCOL_PAUSED);
        Self::tell(slf, "pause_writing", "protocol.pause_writing() failed")
    }

    fn maybe_resume_protocol(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let is_little = {
            let state = this.state();
            state.queue.1 <= state.low
        };
        if !is_little || !this.flags.has(PROTOCOL_PAUSED) {
            return Ok(());
        }
        this.flags.unset(PROTOCOL_PAUSED);
        Self::tell(slf, "resume_writing", "protocol.resume_writing() failed")
    }
}

/// Whether a write is to be tried again when there is room.
fn is_for_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
