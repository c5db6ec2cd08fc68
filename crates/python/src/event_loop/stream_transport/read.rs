//! What comes in: one receive per readiness, handed to the protocol.

use std::io;
use std::sync::atomic::Ordering;

use plait_engine::sys::socket;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::super::bytes::{filled_bytes, with_room};
use super::super::os_error::os_error;
use super::super::{EventLoop, MOST_RECEIVED, ends_the_loop};
use super::{
    CLOSING, DRAIN, EDGES, ENDED, How, LOST, MORE, PAUSED, READ_SCHEDULED, StreamTransport,
};
use crate::event_loop::context::within;

/// From this many bytes on a copy costs more than to make room for too many.
const MANY: usize = 16 * 1024;

/// How a receive has ended.
enum Got {
    /// So many bytes, and whether that was all there was room for.
    Bytes(usize, bool),
    Nothing,
    End,
    Failed(PyErr),
}

fn got(py: Python<'_>, received: io::Result<usize>, room: usize) -> Got {
    match received {
        Ok(0) => Got::End,
        Ok(count) => Got::Bytes(count, count == room),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Got::Nothing,
            _ => Got::Failed(os_error(py, error)),
        },
    }
}

impl StreamTransport {
    /// Receives once, and has the rest received in the next turn if there may be more and no edge will tell.
    pub(super) fn read(slf: &Bound<'_, Self>, event_loop: &Bound<'_, EventLoop>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if !this.may_read() {
            this.flags.set(MORE);
            return Self::sync(slf);
        }
        let Some((protocol, how)) = this.protocol(py) else {
            return Ok(());
        };
        let number = this.number(py)?;
        let (got, delivered) = match how {
            How::Buffered => {
                let room = match room(&protocol) {
                    Ok(room) => room,
                    Err(error) => {
                        let message = "Fatal error: protocol.get_buffer() call failed.";
                        return Self::fail(slf, error, message);
                    }
                };
                let received = with_room(&room, |room| (socket::receive(number, room), room.len()));
                let got = match received {
                    Ok((received, room)) => got(py, received, room),
                    Err(error) => Got::Failed(error),
                };
                let delivered = match got {
                    Got::Bytes(count, _) => protocol
                        .call_method1(intern!(py, "buffer_updated"), (count,))
                        .map(drop),
                    _ => Ok(()),
                };
                (got, delivered)
            }
            How::Plain => {
                let (got, data) = this.receive(py, event_loop, number)?;
                let delivered = match data {
                    Some(data) => protocol
                        .call_method1(intern!(py, "data_received"), (data,))
                        .map(drop),
                    None => Ok(()),
                };
                (got, delivered)
            }
            How::Native(calls) => {
                let mut buffer = event_loop.get().take_buffer();
                let got = got(py, socket::receive(number, &mut buffer), buffer.len());
                let delivered = match got {
                    Got::Bytes(count, _) => (calls.data_received)(&protocol, &buffer[..count]),
                    _ => Ok(()),
                };
                event_loop.get().give_buffer(buffer);
                (got, delivered)
            }
        };
        if let Err(error) = delivered {
            let message = match how {
                How::Buffered => "Fatal error: protocol.buffer_updated() call failed.",
                _ => "Fatal error: protocol.data_received() call failed.",
            };
            return Self::fail(slf, error, message);
        }
        match got {
            Got::Bytes(_, full) => {
                if this.flags.has(EDGES) && (full || this.flags.has(DRAIN)) {
                    Self::read_soon(slf);
                }
                Ok(())
            }
            Got::Nothing => {
                this.flags.unset(DRAIN);
                Ok(())
            }
            Got::End => Self::end(slf, &protocol, how),
            Got::Failed(error) => Self::fail(slf, error, "Fatal read error on socket transport"),
        }
    }

    /// Receives `bytes`: a few by way of the loop's buffer, so that they take no more memory than they need; many, if the last were
    /// many, straight into their place.
    fn receive<'py>(
        &self,
        py: Python<'py>,
        event_loop: &Bound<'_, EventLoop>,
        number: i32,
    ) -> PyResult<(Got, Option<Bound<'py, PyBytes>>)> {
        let room = self.room.load(Ordering::Relaxed);
        if room == 0 {
            return Ok(event_loop.get().with_buffer(|buffer| {
                let got = got(py, socket::receive(number, buffer), buffer.len());
                let data = match got {
                    Got::Bytes(count, _) => {
                        if count >= MANY {
                            self.room.store(room_for(count), Ordering::Relaxed);
                        }
                        Some(PyBytes::new(py, &buffer[..count]))
                    }
                    _ => None,
                };
                (got, data)
            }));
        }
        let received = filled_bytes(py, room, |space| socket::receive_into(number, space))?;
        let (received, data) = match received {
            Ok(data) => (Ok(data.as_bytes().len()), Some(data)),
            Err(error) => (Err(error), None),
        };
        let got = got(py, received, room);
        if let Got::Bytes(count, _) = got {
            let room = if count >= MANY { room_for(count) } else { 0 };
            self.room.store(room, Ordering::Relaxed);
        }
        let data = data.filter(|_| matches!(got, Got::Bytes(..)));
        Ok((got, data))
    }

    /// Another read in the next turn, or when reading goes on.
    pub(super) fn read_soon(slf: &Bound<'_, Self>) {
        let this = slf.get();
        if !this.may_read() {
            this.flags.set(MORE);
            return;
        }
        if this.flags.has(READ_SCHEDULED) {
            return;
        }
        let again = slf.clone().into_any().unbind();
        let scheduled = this
            .event_loop
            .get()
            .schedule(again, |transport, event_loop| {
                let transport = transport.cast::<Self>()?;
                let this = transport.get();
                this.flags.unset(READ_SCHEDULED);
                if this.flags.has(LOST) {
                    return Ok(());
                }
                within(this.context.bind(transport.py()), || {
                    Self::read(transport, event_loop)
                })
            });
        if scheduled.is_ok() {
            this.flags.set(READ_SCHEDULED);
        }
    }

    /// The peer sends no more.
    fn end(slf: &Bound<'_, Self>, protocol: &Bound<'_, PyAny>, how: How) -> PyResult<()> {
        let py = slf.py();
        let stay = match how {
            How::Native(calls) => (calls.eof_received)(protocol),
            _ => protocol
                .call_method0(intern!(py, "eof_received"))
                .and_then(|stay| stay.is_truthy()),
        };
        match stay {
            Ok(true) => {
                slf.get().flags.set(ENDED);
                Self::sync(slf)
            }
            Ok(false) => Self::close(slf),
            Err(error) => {
                let message = "Fatal error: protocol.eof_received() call failed.";
                Self::fail(slf, error, message)
            }
        }
    }

    /// An error ends the connection, but not one that ends the loop.
    pub(super) fn fail(slf: &Bound<'_, Self>, error: PyErr, message: &str) -> PyResult<()> {
        if ends_the_loop(slf.py(), &error) {
            return Err(error);
        }
        Self::fatal_error(slf, error, message)
    }

    pub(super) fn resume(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        if this.flags.has(CLOSING) || !this.flags.has(PAUSED) {
            return Ok(());
        }
        this.event_loop.get().check_closed()?;
        this.flags.unset(PAUSED);
        Self::sync(slf)?;
        if this.flags.has(MORE) {
            this.flags.unset(MORE);
            Self::read_soon(slf);
        }
        Ok(())
    }
}

/// How much room there is to be for the next bytes after so many: more than for the same again, so that a receive that takes all
/// is told from one that is cut short.
fn room_for(count: usize) -> usize {
    (count + 1)
        .next_power_of_two()
        .saturating_mul(2)
        .min(MOST_RECEIVED)
}

/// The buffer that the protocol wants filled.
fn room<'py>(protocol: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let room = protocol.call_method1(intern!(protocol.py(), "get_buffer"), (-1,))?;
    if room.len()? == 0 {
        return Err(PyRuntimeError::new_err(
            "get_buffer() returned an empty buffer",
        ));
    }
    Ok(room)
}
