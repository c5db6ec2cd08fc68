//! `sock_recv`, `sock_sendall` and the others: one system call if it can be done at once, and no handle, future or registration
//! of its own if it has to be waited for.
//!
//! Each is a [`Coroutine`](super::coroutine::Coroutine) that tries, and if that would block waits for its descriptor with a [`Waiter`] and tries again in the
//! very callback that found it ready. So nothing is taken from a socket but by a task that is running: whoever is cancelled
//! while it waits loses nothing.
//!
//! A descriptor is told to epoll at its first wait, for edges, and stays there; those who wait come and go without a system call.
//! That is right as long as the number stands for the same file, so every loop remembers by a weak reference which socket it was:
//! another socket with the same number is told to epoll anew ([`SocketCalls`]). Every wait follows a try that found nothing (or a
//! short read in the same callback, which says the same of TCP), so no edge is missed.
//!
//! Sockets of exactly `socket.socket` are read and written by system calls that never block, whatever their timeout. What is
//! rare, and sockets of other kinds, goes through their methods.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use plait_engine::event_loop::{Readiness, Side};
use plait_engine::sys::socket::{is_tcp, receive, send_some};
use pyo3::exceptions::{PyBlockingIOError, PyInterruptedError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{
    PyBytes, PyMemoryView, PySlice, PyString, PyTuple, PyType, PyWeakrefMethods, PyWeakrefReference,
};

use super::bytes::{with_bytes, with_room};
use super::coroutine::{Step, Steps};
use super::item::{Item, Source};
use super::os_error::os_error;
use super::socket_number::socket_number;
use super::waiter::Waiter;
use super::{EventLoop, MOST_RECEIVED};

/// So often a large send goes on at once, before others have their turn.
const MOST_SENDS: usize = 16;

/// The `sock_*` methods of an event loop, which is under this class; and what it knows of the sockets that were waited for.
#[pyclass(frozen, subclass, module = "plait._rust")]
#[derive(Default)]
pub struct SocketCalls {
    known: Mutex<HashMap<RawFd, Known>>,
    /// The descriptor that the callback which is running has just emptied; -1 if there is none.
    emptied: AtomicI32,
}

struct Known {
    socket: Py<PyWeakrefReference>,
    is_tcp: bool,
}

impl SocketCalls {
    fn known(&self) -> MutexGuard<'_, HashMap<RawFd, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_known(&self, fd: RawFd, socket: &Bound<'_, PyAny>) -> bool {
        let py = socket.py();
        let known = self.known();
        let Some(known) = known.get(&fd) else {
            return false;
        };
        let upgraded = known.socket.bind(py).upgrade();
        upgraded.is_some_and(|known| known.is(socket))
    }

    fn remember(&self, fd: RawFd, socket: &Bound<'_, PyAny>) {
        // One that cannot be referred to is never known.
        let known = PyWeakrefReference::new(socket).ok().map(|socket| Known {
            socket: socket.unbind(),
            is_tcp: is_tcp(fd).unwrap_or(false),
        });
        let mut sockets = self.known();
        let old = match known {
            Some(known) => sockets.insert(fd, known),
            None => sockets.remove(&fd),
        };
        drop(sockets);
        drop(old);
    }

    fn is_tcp(&self, fd: RawFd) -> bool {
        self.known().get(&fd).is_some_and(|known| known.is_tcp)
    }

    fn is_emptied(&self, fd: RawFd) -> bool {
        self.emptied.load(Ordering::Relaxed) == fd
    }

    fn note_emptied(&self, fd: RawFd) {
        self.emptied.store(fd, Ordering::Relaxed);
    }
}

impl Source for Waiter {
    /// Runs the task that waits, here and now. The value says whether there is more to be found out than data.
    fn ready(
        slf: &Bound<'_, Self>,
        event_loop: &Bound<'_, EventLoop>,
        readiness: Readiness,
    ) -> PyResult<()> {
        let sockets = event_loop.as_super().get();
        sockets.note_emptied(-1);
        let ran = Waiter::wake_now(slf, event_loop, readiness.more);
        sockets.note_emptied(-1);
        ran
    }
}

/// A wait that has begun; it ends when this goes.
struct Wait {
    event_loop: Py<EventLoop>,
    fd: RawFd,
    waiter: Py<Waiter>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let waiter = self.waiter.as_ptr();
        let core = &self.event_loop.get().core;
        drop(core.leave(self.fd, |item| item.object().as_ptr() == waiter));
    }
}

/// What the calls have in common: the loop, the socket, and the wait if there is one.
pub struct Socket {
    event_loop: Py<EventLoop>,
    object: Py<PyAny>,
    wait: Option<Wait>,
}

impl Socket {
    /// Before there is a wait.
    pub fn new(event_loop: &Bound<'_, EventLoop>, socket: Bound<'_, PyAny>) -> Self {
        Self {
            event_loop: event_loop.clone().unbind(),
            object: socket.unbind(),
            wait: None,
        }
    }

    fn fd(&self, py: Python<'_>) -> PyResult<RawFd> {
        socket_number(self.object.bind(py))
    }

    fn sockets<'a>(&'a self, py: Python<'a>) -> &'a SocketCalls {
        self.event_loop.bind(py).as_super().get()
    }

    /// What asyncio asks of a socket before it begins.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let socket = self.object.bind(py);
        if !is_plain(socket)? {
            static CHECK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            CHECK
                .import(py, "asyncio.base_events", "_check_ssl_socket")?
                .call1((socket,))?;
        }
        if self.event_loop.get().is_debug() {
            let timeout = socket.call_method0(intern!(py, "gettimeout"))?;
            if timeout.is_none() || !timeout.eq(0)? {
                return Err(PyValueError::new_err("the socket must be non-blocking"));
            }
        }
        Ok(())
    }

    /// Waits until the descriptor is ready. `found_nothing`: a try has just found that it is not.
    fn wait<'py>(
        &mut self,
        py: Python<'py>,
        side: Side,
        found_nothing: bool,
    ) -> PyResult<Step<'py>> {
        let event_loop = self.event_loop.bind(py);
        let socket = self.object.bind(py);
        let fd = self.fd(py)?;
        let core = &event_loop.get().core;
        let is_known = core.is_only_waited_for(fd) && self.sockets(py).is_known(fd, socket);
        if !is_known {
            let ensure = intern!(py, "_ensure_fd_no_transport");
            event_loop.call_method1(ensure, (fd,))?;
        }
        let waiter = Waiter::new(event_loop.as_any())?;
        core.watch_once(fd, side, Item::source(&waiter), is_known && found_nothing)
            .map_err(|error| os_error(py, error))?;
        self.wait = Some(Wait {
            event_loop: event_loop.clone().unbind(),
            fd,
            waiter: waiter.clone().unbind(),
        });
        if !is_known {
            self.sockets(py).remember(fd, socket);
        }
        Ok(Step::Wait(waiter))
    }

    /// A wait is over: what it came to is raised, or says whether there is more to be found out than data.
    fn end_wait(&mut self, outcome: PyResult<Bound<'_, PyAny>>) -> PyResult<bool> {
        self.wait = None;
        outcome?.is_truthy()
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.object)?;
        match &self.wait {
            Some(wait) => visit.call(&wait.waiter),
            None => Ok(()),
        }
    }
}

/// Whether it is a `socket.socket` and nothing else, whose methods are known.
pub fn is_plain(socket: &Bound<'_, PyAny>) -> PyResult<bool> {
    static SOCKET: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = SOCKET.import(socket.py(), "socket", "socket")?;
    Ok(socket.get_type().is(class))
}

/// Whether an attempt is to be repeated, later.
fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Where received bytes go.
pub enum Into {
    /// A new `bytes` of so many at most.
    Bytes(usize),
    /// A buffer of the caller's.
    Buffer(Py<PyAny>),
}

pub struct Receive {
    pub socket: Socket,
    pub into: Into,
}

impl Receive {
    /// Receives; waits if there is nothing. `more`: there is more to be found out than data.
    fn attempt<'py>(&mut self, py: Python<'py>, more: bool) -> PyResult<Step<'py>> {
        let fd = self.socket.fd(py)?;
        let event_loop = self.socket.event_loop.get();
        let (received, room, value) = match &self.into {
            Into::Bytes(most) => {
                let mut buffer = if *most <= MOST_RECEIVED {
                    event_loop.take_buffer()
                } else {
                    vec![0; *most].into_boxed_slice()
                };
                let received = receive(fd, &mut buffer[..*most]);
                let value = match &received {
                    Ok(length) => Some(PyBytes::new(py, &buffer[..*length]).into_any()),
                    Err(_) => None,
                };
                if *most <= MOST_RECEIVED {
                    event_loop.give_buffer(buffer);
                }
                (received, *most, value)
            }
            Into::Buffer(buffer) => {
                let (received, room) = with_room(buffer.bind(py), |buffer| {
                    (receive(fd, buffer), buffer.len())
                })?;
                let value = match &received {
                    Ok(length) => Some(length.into_pyobject(py)?.into_any()),
                    Err(_) => None,
                };
                (received, room, value)
            }
        };
        match (received, value) {
            (Ok(length), Some(value)) => {
                let sockets = self.socket.sockets(py);
                if !more && length < room && length > 0 && sockets.is_tcp(fd) {
                    sockets.note_emptied(fd);
                }
                Ok(Step::Done(value))
            }
            (Err(error), _) if !would_block(&error) => Err(os_error(py, error)),
            _ => self.socket.wait(py, Side::Read, true),
        }
    }
}

impl Steps for Receive {
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        self.socket.check(py)?;
        let fd = self.socket.fd(py)?;
        let sockets = self.socket.sockets(py);
        if sockets.is_emptied(fd) && sockets.is_known(fd, self.socket.object.bind(py)) {
            return self.socket.wait(py, Side::Read, true);
        }
        // Whether an end has come with the data is not known: the next one tries, too.
        self.attempt(py, true)
    }

    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        let more = self.socket.end_wait(outcome)?;
        self.attempt(py, more)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Into::Buffer(buffer) = &self.into {
            visit.call(buffer)?;
        }
        self.socket.traverse(visit)
    }
}

pub struct SendAll {
    pub socket: Socket,
    pub data: Py<PyAny>,
    pub sent: usize,
}

impl SendAll {
    /// Sends some; how many bytes there are, and how many of them have gone.
    fn send(&self, py: Python<'_>) -> PyResult<(usize, io::Result<usize>)> {
        let (socket, data) = (self.socket.object.bind(py), self.data.bind(py));
        if is_plain(socket)? {
            let fd = self.socket.fd(py)?;
            let send = |bytes: &[u8]| {
                let rest = bytes.get(self.sent..).unwrap_or_default();
                (bytes.len(), send_some(fd, rest))
            };
            return match data.cast_exact::<PyBytes>() {
                Ok(data) => Ok(send(data.as_bytes())),
                Err(_) => with_bytes(data, send),
            };
        }
        let length = data.len()?;
        let rest = if self.sent == 0 {
            data.clone()
        } else {
            let length = isize::try_from(length)?;
            let rest = PySlice::new(py, isize::try_from(self.sent)?, length, 1);
            PyMemoryView::from(data)?.get_item(rest)?
        };
        match socket.call_method1(intern!(py, "send"), (rest,)) {
            Ok(sent) => Ok((length, Ok(sent.extract()?))),
            Err(error) if is_not_ready(py, &error) => {
                Ok((length, Err(io::ErrorKind::WouldBlock.into())))
            }
            Err(error) => Err(error),
        }
    }

    fn attempt<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        for _ in 0..MOST_SENDS {
            match self.send(py)? {
                (length, Ok(sent)) => {
                    self.sent += sent;
                    if self.sent >= length {
                        return Ok(Step::Done(py.None().into_bound(py)));
                    }
                }
                (_, Err(error)) if would_block(&error) => {
                    return self.socket.wait(py, Side::Write, true);
                }
                (_, Err(error)) => return Err(os_error(py, error)),
            }
        }
        self.socket.wait(py, Side::Write, false)
    }
}

impl Steps for SendAll {
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        self.socket.check(py)?;
        self.attempt(py)
    }

    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        self.socket.end_wait(outcome)?;
        self.attempt(py)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.data)?;
        self.socket.traverse(visit)
    }
}

/// A method of the socket that is called until it does not say that it would block.
pub struct Method {
    pub socket: Socket,
    pub name: Py<PyString>,
    pub args: Py<PyTuple>,
    pub side: Side,
    /// What it gives begins with a new connection.
    pub accepts: bool,
}

fn is_not_ready(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyBlockingIOError>(py) || error.is_instance_of::<PyInterruptedError>(py)
}

impl Method {
    fn attempt<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        let socket = self.socket.object.bind(py);
        match socket.call_method1(self.name.bind(py), self.args.bind(py)) {
            Ok(value) => {
                if self.accepts {
                    let connection = value.get_item(0)?;
                    connection.call_method1(intern!(py, "setblocking"), (false,))?;
                }
                Ok(Step::Done(value))
            }
            Err(error) if is_not_ready(py, &error) => {
                let found_nothing = error.is_instance_of::<PyBlockingIOError>(py);
                self.socket.wait(py, self.side, found_nothing)
            }
            Err(error) => Err(error),
        }
    }
}

impl Steps for Method {
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        self.socket.check(py)?;
        self.attempt(py)
    }

    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        self.socket.end_wait(outcome)?;
        self.attempt(py)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.args)?;
        self.socket.traverse(visit)
    }
}
