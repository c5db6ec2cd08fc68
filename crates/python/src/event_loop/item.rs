//! What a loop's queue holds: handles, and work of Rust code that never passes through a Python callable.
#![allow(unsafe_code)]

use plait_engine::event_loop::Readiness;
use pyo3::PyTypeInfo;
use pyo3::prelude::*;

use super::{EventLoop, handle};

/// A Python object written in Rust that owns a descriptor, and is told when that is ready.
pub trait Source: PyTypeInfo {
    /// Runs in the turn that found the descriptor ready, in no context of its own. A source that was unregistered since may
    /// still be called once. What it raises goes to the loop's exception handler.
    fn ready(
        slf: &Bound<'_, Self>,
        event_loop: &Bound<'_, EventLoop>,
        readiness: Readiness,
    ) -> PyResult<()>;
}

/// As [`Source::ready`], of an object whose type is to be looked at.
pub type ReadyFn = fn(&Bound<'_, PyAny>, &Bound<'_, EventLoop>, Readiness) -> PyResult<()>;
/// What is to be done to an object in a turn. What it raises goes to the loop's exception handler.
pub type CallFn = fn(&Bound<'_, PyAny>, &Bound<'_, EventLoop>) -> PyResult<()>;

/// A work item. The loop owns the object, and shows it to the garbage collector; so there is no closure, whose references
/// nobody could see.
pub enum Item {
    /// An `asyncio.Handle`.
    Handle(Py<PyAny>),
    /// An object's descriptor is ready.
    Source(Py<PyAny>, ReadyFn, Readiness),
    /// A function of ours on an object.
    Call(Py<PyAny>, CallFn),
}

impl Item {
    /// The item of a source, as it is registered.
    pub fn source<S: Source>(source: &Bound<'_, S>) -> Self {
        let nothing = Readiness {
            read: false,
            write: false,
            more: false,
        };
        Self::Source(source.clone().into_any().unbind(), ready::<S>, nothing)
    }

    /// A copy of one that stays, now that its descriptor is ready.
    pub fn found(&self, py: Python<'_>, readiness: Readiness) -> Self {
        match self {
            Self::Handle(handle) => Self::Handle(handle.clone_ref(py)),
            Self::Source(source, ready, _) => Self::Source(source.clone_ref(py), *ready, readiness),
            Self::Call(object, run) => Self::Call(object.clone_ref(py), *run),
        }
    }

    /// The handle, or the object that something is done to.
    pub fn object(&self) -> &Py<PyAny> {
        match self {
            Self::Handle(object) | Self::Source(object, ..) | Self::Call(object, _) => object,
        }
    }

    /// Whether it is a handle that was cancelled.
    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        match self {
            Self::Handle(handle) => handle::is_cancelled(handle.bind(py)),
            _ => false,
        }
    }
}

fn ready<S: Source>(
    source: &Bound<'_, PyAny>,
    event_loop: &Bound<'_, EventLoop>,
    readiness: Readiness,
) -> PyResult<()> {
    // SAFETY: `Item::source` puts this function beside an object of this type, and nothing else does.
    let source = unsafe { source.cast_unchecked::<S>() };
    S::ready(source, event_loop, readiness)
}
