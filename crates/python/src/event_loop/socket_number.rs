//! The descriptor's number of a Python socket, read from the socket at every use.
//!
//! The socket object owns its descriptor. Whoever keeps the number beside it may use a number that belongs to somebody else by
//! then: that is how one user's bytes get to another. A closed or detached socket has -1, which every system call refuses. To ask
//! by `fileno()` takes a Python call each time; the field behind it is found once, by what `fileno()` says.
#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// The class of the interpreter's own sockets, and where the number lies in them, in bytes; none if that is not to be found.
struct Field {
    class: Py<PyType>,
    offset: Option<usize>,
}

static FIELD: PyOnceLock<Field> = PyOnceLock::new();

fn field(py: Python<'_>) -> PyResult<&'static Field> {
    FIELD.get_or_try_init(py, || {
        let class = py.import("_socket")?.getattr("socket")?.cast_into()?;
        Ok(Field {
            offset: find(&class)?,
            class: class.unbind(),
        })
    })
}

/// A word of a live object of at least `offset` + 4 bytes.
///
/// # Safety
/// As said; the word is a C `int` that is only ever changed as a whole.
unsafe fn word(object: &Bound<'_, PyAny>, offset: usize) -> RawFd {
    // SAFETY: as promised; aligned, since offsets are multiples of four and objects are aligned for pointers. Atomic, for another
    // thread may close the socket meanwhile.
    unsafe {
        let place = object.as_ptr().byte_add(offset).cast::<i32>();
        AtomicI32::from_ptr(place).load(Ordering::Relaxed)
    }
}

/// Looks for the number in two sockets, then for what becomes of it when one is closed.
fn find(class: &Bound<'_, PyType>) -> PyResult<Option<usize>> {
    let py = class.py();
    let pair = py.import("socket")?.call_method0("socketpair")?;
    let (first, second) = (pair.get_item(0)?, pair.get_item(1)?);
    // SAFETY: a live class.
    let size = unsafe { (*class.as_type_ptr()).tp_basicsize };
    let size = usize::try_from(size).unwrap_or(0);
    let mut offsets: Vec<usize> = (size_of::<ffi::PyObject>()..size.saturating_sub(3))
        .step_by(4)
        .collect();
    let mut keep = |socket: &Bound<'_, PyAny>| -> PyResult<()> {
        let number: RawFd = socket.call_method0("fileno")?.extract()?;
        // SAFETY: an instance of the class, which is this large.
        offsets.retain(|&offset| unsafe { word(socket, offset) } == number);
        Ok(())
    };
    keep(&first)?;
    keep(&second)?;
    first.call_method0("close")?;
    keep(&first)?;
    second.call_method0("close")?;
    keep(&second)?;
    Ok(match offsets[..] {
        [offset] => Some(offset),
        _ => None,
    })
}

/// How the number of one socket is read.
#[derive(Clone, Copy)]
pub struct SocketNumber {
    offset: Option<usize>,
}

impl SocketNumber {
    /// How it is read of this one.
    pub fn of(socket: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = socket.py();
        let Field { class, offset } = field(py)?;
        // The real type: a mock may say that it is a socket.
        let is_known = socket.get_type().is_subclass(class.bind(py))?;
        Ok(Self {
            offset: offset.filter(|_| is_known),
        })
    }

    /// The number that the descriptor has now; -1 if it is closed. `socket` is the one that this was made of.
    pub fn read(self, socket: &Bound<'_, PyAny>) -> PyResult<RawFd> {
        match self.offset {
            // SAFETY: an instance of the class in which the number was found there; no assignment of another class changes
            // where it is.
            Some(offset) => Ok(unsafe { word(socket, offset) }),
            None => socket
                .call_method0(intern!(socket.py(), "fileno"))?
                .extract(),
        }
    }
}

/// The same of a socket whose way is not kept.
pub fn socket_number(socket: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    SocketNumber::of(socket)?.read(socket)
}
