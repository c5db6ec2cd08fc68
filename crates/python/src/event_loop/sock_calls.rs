//! The `sock_*` methods: which steps each of them is.

use plait_engine::event_loop::Side;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use super::coroutine::Coroutine;
use super::sock::{Into, Method, Receive, SendAll, Socket, SocketCalls, is_plain};

type Made<'py> = PyResult<Bound<'py, Coroutine>>;

/// A call of a method of the socket.
fn method<'py>(
    slf: &Bound<'py, SocketCalls>,
    name: &'static str,
    socket: Bound<'py, PyAny>,
    method: &Bound<'py, PyString>,
    args: Bound<'py, PyTuple>,
    side: Side,
) -> Made<'py> {
    let steps = Method {
        socket: Socket::new(slf.cast()?, socket),
        accepts: name.ends_with("accept"),
        name: method.clone().unbind(),
        args: args.unbind(),
        side,
    };
    Coroutine::new(slf.py(), name, steps)
}

#[pymethods]
impl SocketCalls {
    fn sock_recv<'py>(
        slf: &Bound<'py, Self>,
        sock: Bound<'py, PyAny>,
        n: Bound<'py, PyAny>,
    ) -> Made<'py> {
        const NAME: &str = "EventLoop.sock_recv";
        let py = slf.py();
        match n.extract::<usize>() {
            Ok(most) if is_plain(&sock)? => {
                let steps = Receive {
                    socket: Socket::new(slf.cast()?, sock),
                    into: Into::Bytes(most),
                };
                Coroutine::new(py, NAME, steps)
            }
            // The method says what is wrong with the number.
            _ => {
                let args = PyTuple::new(py, [n])?;
                method(slf, NAME, sock, intern!(py, "recv"), args, Side::Read)
            }
        }
    }

    fn sock_recv_into<'py>(
        slf: &Bound<'py, Self>,
        sock: Bound<'py, PyAny>,
        buf: Bound<'py, PyAny>,
    ) -> Made<'py> {
        const NAME: &str = "EventLoop.sock_recv_into";
        let py = slf.py();
        if is_plain(&sock)? {
            let steps = Receive {
                socket: Socket::new(slf.cast()?, sock),
                into: Into::Buffer(buf.unbind()),
            };
            return Coroutine::new(py, NAME, steps);
        }
        let args = PyTuple::new(py, [buf])?;
        method(slf, NAME, sock, intern!(py, "recv_into"), args, Side::Read)
    }

    fn sock_recvfrom<'py>(
        slf: &Bound<'py, Self>,
        sock: Bound<'py, PyAny>,
        bufsize: Bound<'py, PyAny>,
    ) -> Made<'py> {
        let py = slf.py();
        let (name, recvfrom) = ("EventLoop.sock_recvfrom", intern!(py, "recvfrom"));
        let args = PyTuple::new(py, [bufsize])?;
        method(slf, name, sock, recvfrom, args, Side::Read)
    }

    #[pyo3(signature = (sock, buf, nbytes=0))]
    fn sock_recvfrom_into<'py>(
        slf: &Bound<'py, Self>,
        sock: Bound<'py, PyAny>,
        buf: Bound<'py, PyAny>,
        nbytes: usize,
    ) -> Made<'py> {
        let py = slf.py();
        let nbytes = if nbytes == 0 { buf.len()? } else { nbytes };
        let args = (buf, nbytes).into_pyobject(py)?;
        let name = "EventLoop.sock_recvfrom_into";
        method(
            slf,
            name,
            sock,
            intern!(py, "recvfrom_into"),
            args,
            Side::Read,
        )
    }

    fn sock_sendall<'py>(
        slf: &Bound<'py, Self>,
        sock: Bound<'py, PyAny>,
        data: Bound<'py, PyAny>,
    ) -> Made<'py> {
        let steps = SendAll {
            socket: Socket::new(slf.cast()?, sock),
            data: data.unbind(),
            sent: 0,
        };
        Coroutine::new(slf.py(), "EventLoop.sock_sendall", steps)
    }

    fn sock_sendto<'py>(
        slf: &Bound<'py, Self>,
        sock: Bound<'py, PyAny>,
        data: Bound<'py, PyAny>,
        address: Bound<'py, PyAny>,
    ) -> Made<'py> {
        let py = slf.py();
        let (name, sendto) = ("EventLoop.sock_sendto", intern!(py, "sendto"));
        let args = PyTuple::new(py, [data, address])?;
        method(slf, name, sock, sendto, args, Side::Write)
    }

    fn sock_accept<'py>(slf: &Bound<'py, Self>, sock: Bound<'py, PyAny>) -> Made<'py> {
        let py = slf.py();
        let (name, accept) = ("EventLoop.sock_accept", intern!(py, "accept"));
        method(slf, name, sock, accept, PyTuple::empty(py), Side::Read)
    }
}
