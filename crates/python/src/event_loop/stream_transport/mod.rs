//! `_rust.StreamTransport`: the transport of a connected TCP or Unix socket. `README.md` beside this file has who owns what, and
//! what follows what.

mod close;
mod methods;
mod read;
mod write;

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use plait_engine::event_loop::{Readiness, Token, Watch};
use plait_engine::sys::socket;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

use super::context::{copy_current, within};
use super::item::Source;
use super::os_error::os_error;
use super::protocol::{NativeCalls, native_calls};
use super::socket_number::SocketNumber;
use super::{EventLoop, ends_the_loop};
use write::Queue;

/// The transport of a connected stream socket. For its loop's thread.
#[pyclass(frozen, subclass, weakref, module = "plait._rust")]
pub struct StreamTransport {
    event_loop: Py<EventLoop>,
    /// The owner of the descriptor.
    socket: Py<PyAny>,
    number: SocketNumber,
    extra: Py<PyDict>,
    /// What the protocol is called in.
    context: Py<PyAny>,
    flags: Flags,
    /// How much room there is to be for the next bytes; 0 for the loop's buffer.
    room: AtomicUsize,
    state: Mutex<State>,
}

/// No Python code runs under its lock.
struct State {
    protocol: Option<Py<PyAny>>,
    how: How,
    queue: Queue,
    low: usize,
    high: usize,
    token: Option<Token>,
    watched: Watch,
    server: Option<Py<PyAny>>,
    /// Who waits for `connection_made`; later who waits until everything is written, for the sake of `sendfile`.
    waiter: Option<Py<PyAny>>,
    /// Why the connection is lost, for `connection_lost`.
    reason: Option<PyErr>,
    /// Writes since it is.
    lost_writes: u32,
}

/// How a protocol is called.
#[derive(Clone, Copy)]
enum How {
    Plain,
    Buffered,
    Native(&'static NativeCalls),
}

/// What is to be known at every step, without a lock. Only the loop's thread changes it.
struct Flags(AtomicU32);

/// `close` was called, or the connection is lost: nothing is read any more.
const CLOSING: u32 = 1;
/// `connection_lost` was called, or is about to be.
const LOST: u32 = 1 << 1;
/// That is over, and the socket is closed.
const CLOSED: u32 = 1 << 2;
/// `pause_reading` was called.
const PAUSED: u32 = 1 << 3;
/// The peer sends no more.
const ENDED: u32 = 1 << 4;
/// `write_eof` was called.
const EOF: u32 = 1 << 5;
/// Something waits to be written.
const QUEUED: u32 = 1 << 6;
/// `pause_writing` was called.
const PROTOCOL_PAUSED: u32 = 1 << 7;
/// Another read is scheduled.
const READ_SCHEDULED: u32 = 1 << 8;
/// There may be more to read, and no edge will tell.
const MORE: u32 = 1 << 9;
/// There was more than data: read until there is nothing.
const DRAIN: u32 = 1 << 10;
/// The descriptor is watched for edges.
const EDGES: u32 = 1 << 11;
/// Somebody waits for an empty queue; nobody may write.
const SENDING_FILE: u32 = 1 << 12;

impl Flags {
    /// Whether any of these is set.
    fn has(&self, flags: u32) -> bool {
        self.0.load(Ordering::Relaxed) & flags != 0
    }

    fn set(&self, flags: u32) {
        self.0.fetch_or(flags, Ordering::Relaxed);
    }

    fn unset(&self, flags: u32) {
        self.0.fetch_and(!flags, Ordering::Relaxed);
    }
}

/// The Python class that transports are made of.
static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// Says which class transports are made of. Called once, by `plait.event_loop`.
#[pyfunction]
pub fn prepare_stream_transport(py: Python<'_>, class: Bound<'_, PyType>) {
    let _ = CLASS.set(py, class.unbind());
}

/// Makes the transport of a connected socket, which is the transport's from now on, and has its protocol told of it in the next
/// turn. `waiter` is a future that is completed after that.
pub fn make<'py>(
    event_loop: &Bound<'py, EventLoop>,
    socket: &Bound<'py, PyAny>,
    protocol: &Bound<'py, PyAny>,
    waiter: Option<Bound<'py, PyAny>>,
    extra: Option<Bound<'py, PyAny>>,
    server: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    let class = CLASS.get(py).map_or_else(
        || py.get_type::<StreamTransport>(),
        |class| class.bind(py).clone(),
    );
    let transport = class.call1((event_loop, socket, protocol, extra, server))?;
    let this = transport.cast::<StreamTransport>()?;
    if let Some(waiter) = waiter {
        this.get().state().waiter = Some(waiter.unbind());
    }
    let begun = StreamTransport::attach(this)
        .and_then(|()| StreamTransport::sync(this))
        .and_then(|()| {
            let begin = transport.clone().unbind();
            event_loop.get().schedule(begin, |transport, _| {
                StreamTransport::begin(transport.cast()?)
            })
        });
    if let Err(error) = begun {
        this.get().unregister();
        StreamTransport::shut(this)?;
        return Err(error);
    }
    Ok(transport)
}

impl StreamTransport {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor's number right now.
    fn number(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.number.read(self.socket.bind(py))
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyAny>, How)> {
        let state = self.state();
        let protocol = state.protocol.as_ref()?.bind(py).clone();
        Some((protocol, state.how))
    }

    fn put_protocol(&self, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        static BUFFERED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let py = protocol.py();
        let how = if let Some(calls) = native_calls(protocol) {
            How::Native(calls)
        } else {
            let buffered = BUFFERED.import(py, "asyncio", "BufferedProtocol")?;
            if protocol.is_instance(buffered)? {
                How::Buffered
            } else {
                How::Plain
            }
        };
        let old = {
            let mut state = self.state();
            state.how = how;
            state.protocol.replace(protocol.clone().unbind())
        };
        drop(old);
        Ok(())
    }

    /// Whether what comes in is to be read.
    fn may_read(&self) -> bool {
        !self.flags.has(CLOSING | PAUSED | ENDED)
    }

    /// Has the loop watch what is to be watched now. A pause is only told when something comes meanwhile.
    fn sync(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let event_loop = this.event_loop.get();
        let wanted = Watch {
            read: this.may_read(),
            write: this.flags.has(QUEUED) && !this.flags.has(LOST),
            edges: this.flags.has(EDGES),
        };
        let (token, watched) = {
            let state = this.state();
            (state.token, state.watched)
        };
        match token {
            _ if !wanted.read && !wanted.write => this.unregister(),
            Some(_) if watched == wanted => {}
            Some(token) => {
                event_loop.check_closed()?;
                event_loop.change(slf.py(), token, wanted)?;
                this.state().watched = wanted;
            }
            None => {
                let number = this.number(slf.py())?;
                let token = event_loop.register(slf, number, wanted)?;
                let mut state = this.state();
                state.token = Some(token);
                state.watched = wanted;
            }
        }
        Ok(())
    }

    fn unregister(&self) {
        let token = self.state().token.take();
        if let Some(token) = token {
            self.event_loop.get().unregister(token);
        }
    }

    /// The protocol is told of its transport.
    fn begin(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let waiter = this.state().waiter.take();
        let told = match this.protocol(py) {
            Some((protocol, _)) => within(this.context.bind(py), || {
                protocol.call_method1(intern!(py, "connection_made"), (slf,))
            }),
            None => Ok(py.None().into_bound(py)),
        };
        if let Err(error) = &told
            && ends_the_loop(py, error)
        {
            return told.map(drop);
        }
        // A protocol that raises here goes on, as asyncio's transports do.
        if let Some(waiter) = waiter {
            let waiter = waiter.bind(py);
            if !waiter.call_method0(intern!(py, "cancelled"))?.is_truthy()? {
                waiter.call_method1(intern!(py, "set_result"), (py.None(),))?;
            }
        }
        told.map(drop)
    }

    /// Calls one of the protocol's methods that tell it to stop or go on; what it raises is told of, and no more.
    fn tell(slf: &Bound<'_, Self>, method: &str, message: &str) -> PyResult<()> {
        let py = slf.py();
        let Some((protocol, _)) = slf.get().protocol(py) else {
            return Ok(());
        };
        match protocol.call_method0(method) {
            Err(error) if !ends_the_loop(py, &error) => Self::report(slf, message, error),
            result => result.map(drop),
        }
    }

    /// Hands an error to the loop's exception handler.
    fn report(slf: &Bound<'_, Self>, message: &str, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        let context = PyDict::new(py);
        context.set_item("message", message)?;
        context.set_item("exception", error.into_value(py))?;
        context.set_item("transport", slf)?;
        context.set_item("protocol", slf.get().protocol(py).map(|found| found.0))?;
        let event_loop = slf.get().event_loop.bind(py);
        event_loop
            .call_method1(intern!(py, "call_exception_handler"), (context,))
            .map(drop)
    }
}

impl Source for StreamTransport {
    fn ready(
        slf: &Bound<'_, Self>,
        event_loop: &Bound<'_, EventLoop>,
        readiness: Readiness,
    ) -> PyResult<()> {
        let this = slf.get();
        if this.flags.has(LOST) {
            return Ok(());
        }
        within(this.context.bind(slf.py()), || {
            if readiness.more {
                this.flags.set(DRAIN);
            }
            let read = if readiness.read || readiness.more {
                Self::read(slf, event_loop)
            } else {
                Ok(())
            };
            if readiness.write && this.flags.has(QUEUED) && !this.flags.has(LOST) {
                read.and(Self::flush(slf))
            } else {
                read
            }
        })
    }
}

/// The interpreter's collector: what the transport leads to.
impl StreamTransport {
    fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.socket)?;
        visit.call(&self.extra)?;
        visit.call(&self.context)?;
        let Ok(state) = self.state.try_lock() else {
            return Ok(());
        };
        visit.call(&state.protocol)?;
        visit.call(&state.server)?;
        visit.call(&state.waiter)
    }

    fn forget(&self) {
        let gone = {
            let mut state = self.state();
            (
                state.protocol.take(),
                state.server.take(),
                state.waiter.take(),
                state.reason.take(),
            )
        };
        drop(gone);
    }
}

/// What a transport is made of.
fn new_transport(
    event_loop: &Bound<'_, EventLoop>,
    connection: &Bound<'_, PyAny>,
    protocol: &Bound<'_, PyAny>,
    extra: Option<Bound<'_, PyDict>>,
    server: Option<Bound<'_, PyAny>>,
) -> PyResult<StreamTransport> {
    let py = event_loop.py();
    let extra = extra.unwrap_or_else(|| PyDict::new(py));
    let optional = |name, method| -> PyResult<()> {
        match connection.call_method0(method) {
            Ok(value) => extra.set_item(name, value),
            Err(error) if error.is_instance_of::<pyo3::exceptions::PyOSError>(py) => {
                extra.set_item(name, py.None())
            }
            Err(error) => Err(error),
        }
    };
    optional(intern!(py, "sockname"), intern!(py, "getsockname"))?;
    if !extra.contains(intern!(py, "peername"))? {
        optional(intern!(py, "peername"), intern!(py, "getpeername"))?;
    }
    let reader = SocketNumber::of(connection)?;
    let number = reader.read(connection)?;
    let edges = socket::is_tcp(number).map_err(|error| os_error(py, error))?;
    if edges {
        socket::set_nodelay(number).map_err(|error| os_error(py, error))?;
    }
    let transport = StreamTransport {
        event_loop: event_loop.clone().unbind(),
        socket: connection.clone().unbind(),
        number: reader,
        extra: extra.unbind(),
        context: copy_current(py)?.unbind(),
        flags: Flags(AtomicU32::new(if edges { EDGES } else { 0 })),
        room: AtomicUsize::new(0),
        state: Mutex::new(State {
            protocol: None,
            how: How::Plain,
            queue: Queue(VecDeque::new(), 0),
            low: write::LOW,
            high: write::HIGH,
            token: None,
            watched: Watch {
                read: false,
                write: false,
                edges,
            },
            server: server.map(Bound::unbind),
            waiter: None,
            reason: None,
            lost_writes: 0,
        }),
    };
    transport.put_protocol(protocol)?;
    Ok(transport)
}
