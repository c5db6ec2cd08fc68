//! What a stream's reader holds, and its bytes as the `bytearray` that others may ask for.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use plait_engine::stream_buffer::StreamBuffer;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PySlice};

use crate::callback::is_known_to_others;
use crate::event_loop::waiter::Waiter;

/// What a reader holds.
#[derive(Default)]
pub(super) struct State {
    pub(super) buffer: StreamBuffer<PyBackedBytes>,
    /// The `bytearray` that has the bytes between two calls, once somebody has asked for it.
    shared: Option<Py<PyByteArray>>,
    /// The most that a line may have, and half of what is buffered before the transport is paused.
    pub(super) limit: usize,
    pub(super) eof: bool,
    /// The transport reads no more, because of us.
    pub(super) paused: bool,
    /// What the one coroutine that waits for something waits for.
    pub(super) waiter: Option<Py<PyAny>>,
    /// One that is over, to be used again.
    pub(super) spare: Option<Py<Waiter>>,
    /// How many bytes it needs.
    pub(super) needed: usize,
    pub(super) event_loop: Option<Py<PyAny>>,
    pub(super) transport: Option<Py<PyAny>>,
    /// What reading raises from now on.
    pub(super) exception: Option<Py<PyAny>>,
}

/// [`State`] under a mutex that is held for loads, stores and moves of bytes only.
#[derive(Default)]
pub(super) struct Shared(Mutex<State>);

impl Shared {
    /// All but the buffer may be looked at and changed by this; what is taken out is to be dropped later.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at, or changes, any of it.
    pub(super) fn with<R>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&mut State) -> R,
    ) -> PyResult<R> {
        let mut state = self.lock();
        let Some(array) = &state.shared else {
            return Ok(body(&mut state));
        };
        let array = array.clone_ref(py);
        drop(state);
        self.with_array(py, array.into_bound(py), body)
    }

    /// The same where somebody else may know the bytes: they are copied in and out.
    #[cold]
    fn with_array<R>(
        &self,
        py: Python<'_>,
        array: Bound<'_, PyByteArray>,
        body: impl FnOnce(&mut State) -> R,
    ) -> PyResult<R> {
        let before = array.to_vec();
        // Ours, and the one that the state holds.
        let known = is_known_to_others(array.as_any(), 2);
        let mut state = self.lock();
        state.buffer.clear();
        state.buffer.feed(&before);
        let result = body(&mut state);
        if !known {
            let ours = state.shared.take();
            drop(state);
            drop(ours);
            return Ok(result);
        }
        let after = state.buffer.as_slice().to_vec();
        state.buffer.clear();
        drop(state);
        if after != before {
            let all = PySlice::full(py);
            array.as_any().set_item(all, PyByteArray::new(py, &after))?;
        }
        Ok(result)
    }

    /// The bytes for others, who may change them.
    pub(super) fn array<'py>(&self, py: Python<'py>) -> Bound<'py, PyByteArray> {
        let mut state = self.lock();
        if let Some(array) = &state.shared {
            return array.bind(py).clone();
        }
        let array = PyByteArray::new(py, state.buffer.as_slice());
        state.buffer.clear();
        state.shared = Some(array.clone().unbind());
        array
    }

    /// Has others' bytes take the place of those that were there.
    pub(super) fn set_array(&self, array: Bound<'_, PyByteArray>) {
        let mut state = self.lock();
        state.buffer.clear();
        let old = state.shared.replace(array.unbind());
        drop(state);
        drop(old);
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let state = match self.0.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        visit.call(&state.waiter)?;
        visit.call(&state.spare)?;
        visit.call(&state.event_loop)?;
        visit.call(&state.transport)?;
        visit.call(&state.exception)
    }

    pub(super) fn clear(&self) {
        let mut state = self.lock();
        let objects = (
            state.waiter.take(),
            state.spare.take(),
            state.event_loop.take(),
            state.transport.take(),
            state.exception.take(),
        );
        drop(state);
        drop(objects);
    }
}
