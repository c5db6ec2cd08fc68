//! `_rust.StreamReader`: the bytes of a stream, and whoever waits for them.

use std::sync::LazyLock;

use plait_engine::stream_buffer::{Found, Separators, WrongSeparators};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{
    PyAssertionError, PyNotImplementedError, PyOverflowError, PyRuntimeError, PyValueError,
};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyTuple};

use super::classes;
use super::state::{Shared, State};
use crate::event_loop::EventLoop;
use crate::event_loop::waiter::Waiter;

const NOT_WITHIN_LIMIT: &str = "Separator is not found, and chunk exceed the limit";
const BEYOND_LIMIT: &str = "Separator is found, but chunk is longer than limit";

static NEWLINE: LazyLock<Separators> = LazyLock::new(Separators::newline);

/// What asyncio's `StreamReader` does often. For the thread of its event loop.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct StreamReader {
    shared: Shared,
}

fn limit_overrun(py: Python<'_>, message: &'static str, consumed: usize) -> PyErr {
    match classes(py) {
        Ok(known) => PyErr::from_type(known.limit_overrun.bind(py).clone(), (message, consumed)),
        Err(error) => error,
    }
}

fn incomplete_read(partial: Bound<'_, PyBytes>, expected: Option<Bound<'_, PyAny>>) -> PyErr {
    let py = partial.py();
    let arguments = (partial.unbind(), expected.map(Bound::unbind));
    match classes(py) {
        Ok(known) => PyErr::from_type(known.incomplete_read.bind(py).clone(), arguments),
        Err(error) => error,
    }
}

/// A number of bytes; as many as there can be, if it is larger.
fn size(number: &Bound<'_, PyAny>) -> PyResult<isize> {
    match number.extract::<isize>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(number.py()) => {
            Ok(if number.lt(0)? {
                isize::MIN
            } else {
                isize::MAX
            })
        }
        result => result,
    }
}

fn separator_bytes(separator: &Bound<'_, PyAny>) -> PyResult<Box<[u8]>> {
    if let Ok(bytes) = separator.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().into());
    }
    Ok(PyBuffer::<u8>::get(separator)?
        .to_vec(separator.py())?
        .into())
}

/// One separator, or a tuple of several.
fn separators(separator: &Bound<'_, PyAny>) -> PyResult<Separators> {
    let all = match separator.cast::<PyTuple>() {
        Ok(several) => several
            .iter()
            .map(|one| separator_bytes(&one))
            .collect::<PyResult<_>>()?,
        Err(_) => vec![separator_bytes(separator)?],
    };
    Separators::new(all).map_err(|wrong| {
        PyValueError::new_err(match wrong {
            WrongSeparators::None => "Separator should contain at least one element",
            WrongSeparators::Empty => "Separator should be at least one-byte string",
        })
    })
}

/// The first bytes, which are there.
fn take<'py>(py: Python<'py>, state: &mut State, size: usize) -> Bound<'py, PyBytes> {
    if let Some(chunk) = state.buffer.take_chunk(size) {
        let Ok(bytes) = chunk.into_pyobject(py);
        return bytes;
    }
    let all = state.buffer.as_slice();
    let bytes = PyBytes::new(py, all.get(..size).unwrap_or(all));
    state.buffer.consume(size);
    bytes
}

fn take_all<'py>(py: Python<'py>, state: &mut State) -> Bound<'py, PyBytes> {
    let size = state.buffer.len();
    take(py, state, size)
}

/// Tells whoever waits for a future of another loop's, unless they have been cancelled meanwhile.
#[cold]
fn complete(waiter: &Bound<'_, PyAny>, exception: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    let py = waiter.py();
    let cancelled = waiter.call_method0(intern!(py, "cancelled"))?;
    if cancelled.is_truthy()? {
        return Ok(());
    }
    match exception {
        Some(exception) => waiter.call_method1(intern!(py, "set_exception"), (exception,)),
        None => waiter.call_method1(intern!(py, "set_result"), (py.None(),)),
    }
    .map(drop)
}

fn exception_of(py: Python<'_>, state: &State) -> PyResult<()> {
    match &state.exception {
        Some(exception) => Err(PyErr::from_value(exception.bind(py).clone())),
        None => Ok(()),
    }
}

/// What a read has come to.
enum Step<'py> {
    Done(Bound<'py, PyBytes>),
    /// There is less than it needs: so many bytes; or where a search goes on.
    Wait(usize),
}

impl StreamReader {
    /// What reading raises, if anything.
    pub(super) fn has_exception(&self) -> bool {
        self.shared.lock().exception.is_some()
    }

    /// Tells whoever waits.
    fn complete(
        &self,
        waiter: Bound<'_, PyAny>,
        exception: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let waiter = match waiter.cast_into::<Waiter>() {
            Ok(waiter) => waiter,
            Err(error) => return complete(&error.into_inner(), exception),
        };
        match exception {
            Some(exception) => Waiter::set_error(&waiter, PyErr::from_value(exception.clone())),
            None => Waiter::wake(&waiter),
        }?;
        let old = self.shared.lock().spare.replace(waiter.unbind());
        drop(old);
        Ok(())
    }

    /// Bytes have come that are somebody else's.
    pub(super) fn feed_copy(slf: &Bound<'_, Self>, data: &[u8]) -> PyResult<()> {
        let py = slf.py();
        Self::feed(slf, |state| {
            if state.buffer.is_empty() {
                state.buffer.feed_chunk(PyBytes::new(py, data).into());
            } else {
                state.buffer.feed(data);
            }
        })
    }

    /// Adds bytes behind the others; wakes whoever waits for them, pauses the transport if there are too many.
    fn feed(slf: &Bound<'_, Self>, put: impl FnOnce(&mut State)) -> PyResult<()> {
        let py = slf.py();
        let (waiter, full) = slf.get().shared.with(py, |state| {
            if state.eof {
                return Err(PyAssertionError::new_err("feed_data after feed_eof"));
            }
            put(state);
            let length = state.buffer.len();
            let most = state.limit.saturating_mul(2).max(state.needed);
            let waiter = if length >= state.needed {
                state.needed = 0;
                state.waiter.take()
            } else {
                None
            };
            Ok((waiter, !state.paused && length > most))
        })??;
        if let Some(waiter) = waiter {
            slf.get().complete(waiter.into_bound(py), None)?;
        }
        if full {
            slf.get().pause(py)?;
        }
        Ok(())
    }

    #[cold]
    fn pause(&self, py: Python<'_>) -> PyResult<()> {
        let transport = self
            .shared
            .lock()
            .transport
            .as_ref()
            .map(|it| it.clone_ref(py));
        let Some(transport) = transport else {
            return Ok(());
        };
        match transport.call_method0(py, intern!(py, "pause_reading")) {
            Ok(_) => {
                self.shared.lock().paused = true;
                Ok(())
            }
            Err(error) if error.is_instance_of::<PyNotImplementedError>(py) => {
                // It cannot be paused: everything is buffered, and it is not asked again.
                let old = self.shared.lock().transport.take();
                drop(old);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Has the transport go on, if it was paused and `when` says so.
    fn resume(&self, py: Python<'_>, when: impl FnOnce(&State) -> bool) -> PyResult<()> {
        let mut state = self.shared.lock();
        if !state.paused || !when(&state) {
            return Ok(());
        }
        state.paused = false;
        let transport = state.transport.as_ref().map(|it| it.clone_ref(py));
        drop(state);
        if let Some(transport) = transport {
            transport.call_method0(py, intern!(py, "resume_reading"))?;
        }
        Ok(())
    }

    /// A new waiter for so many bytes.
    fn wait<'py>(
        slf: &Bound<'py, Self>,
        needed: usize,
        method: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let shared = &slf.get().shared;
        let mut state = shared.lock();
        let is_waited_for = state.waiter.is_some();
        let event_loop = state.event_loop.as_ref().map(|it| it.clone_ref(py));
        let spare = state.spare.take();
        drop(state);
        if is_waited_for {
            return Err(PyRuntimeError::new_err(format!(
                "{method}() called while another coroutine is already waiting for incoming data"
            )));
        }
        let event_loop = event_loop.ok_or_else(|| {
            PyRuntimeError::new_err("this StreamReader has no loop: __init__() was not called")
        })?;
        let event_loop = event_loop.bind(py);
        let waiter = if let Some(again) = spare.and_then(|it| Waiter::again(it.into_bound(py))) {
            again.into_any()
        } else if event_loop.is_instance_of::<EventLoop>() {
            Waiter::new(event_loop)?.into_any()
        } else {
            event_loop.call_method0(intern!(py, "create_future"))?
        };
        let mut state = shared.lock();
        state.waiter = Some(waiter.clone().unbind());
        state.needed = needed;
        let paused = state.paused;
        drop(state);
        // Who waits for bytes while the transport is paused would wait for ever.
        if paused && let Err(error) = slf.get().resume(py, |_| true) {
            slf.get().forget(&waiter);
            return Err(error);
        }
        Ok(waiter)
    }

    /// The bytes if they are there, otherwise a waiter.
    fn bytes_or_waiter<'py>(
        slf: &Bound<'py, Self>,
        method: &str,
        step: impl FnOnce(Python<'py>, &mut State) -> PyResult<Step<'py>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let (step, paused) = slf
            .get()
            .shared
            .with(py, |state| (step(py, state), state.paused))?;
        match step? {
            Step::Done(bytes) => {
                if paused {
                    slf.get().resume_if_room(py)?;
                }
                Ok(bytes.into_any())
            }
            Step::Wait(needed) => Self::wait(slf, needed, method),
        }
    }

    /// Has a paused transport go on, if the buffer is within the limit again.
    fn resume_if_room(&self, py: Python<'_>) -> PyResult<()> {
        let has_room = self
            .shared
            .with(py, |state| state.buffer.len() <= state.limit)?;
        self.resume(py, |_| has_room)
    }

    /// What a search finds; if it is not there yet, a waiter, and where the next search begins.
    fn found_or_waiter<'py>(
        slf: &Bound<'py, Self>,
        search: impl FnOnce(Python<'py>, &mut State) -> PyResult<Step<'py>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let (step, paused) = slf
            .get()
            .shared
            .with(py, |state| (search(py, state), state.paused))?;
        let resume = || {
            if paused {
                slf.get().resume_if_room(py)
            } else {
                Ok(())
            }
        };
        match step {
            Ok(Step::Wait(from)) => {
                let waiter = Self::wait(slf, 0, "readuntil")?;
                Ok((waiter, from).into_pyobject(py)?.into_any())
            }
            Ok(Step::Done(bytes)) => resume().map(|()| bytes.into_any()),
            // A line that was too long is gone, too.
            Err(error) => resume().and(Err(error)),
        }
    }
}

#[pymethods]
impl StreamReader {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            shared: Shared::default(),
        }
    }

    /// Bytes have come.
    pub(super) fn feed_data(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Ok(bytes) = data.cast_exact::<PyBytes>() {
            let bytes = PyBackedBytes::from(bytes.clone());
            return Self::feed(slf, |state| state.buffer.feed_chunk(bytes));
        }
        let bytes = if data.is_truthy()? {
            PyBuffer::<u8>::get(data)?.to_vec(data.py())?
        } else {
            Vec::new()
        };
        Self::feed(slf, |state| state.buffer.feed(&bytes))
    }

    /// No more bytes will come.
    fn feed_eof(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().shared.lock().eof = true;
        slf.get().wake(slf.py())
    }

    /// Whether everything was read, and no more will come.
    fn at_eof(&self, py: Python<'_>) -> PyResult<bool> {
        self.shared
            .with(py, |state| state.eof && state.buffer.is_empty())
    }

    /// What reading raises, or None.
    fn exception(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let state = self.shared.lock();
        state.exception.as_ref().map(|it| it.clone_ref(py))
    }

    /// From now on, reading raises this.
    fn set_exception(&self, exc: &Bound<'_, PyAny>) -> PyResult<()> {
        let new = (!exc.is_none()).then(|| exc.clone().unbind());
        let mut state = self.shared.lock();
        let old = std::mem::replace(&mut state.exception, new);
        let waiter = state.waiter.take();
        drop(state);
        drop(old);
        match waiter {
            Some(waiter) => self.complete(waiter.into_bound(exc.py()), Some(exc)),
            None => Ok(()),
        }
    }

    #[pyo3(name = "_wakeup_waiter")]
    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        let waiter = self.shared.lock().waiter.take();
        match waiter {
            Some(waiter) => self.complete(waiter.into_bound(py), None),
            None => Ok(()),
        }
    }

    /// Whoever waited by this does so no more.
    #[pyo3(name = "_forget")]
    fn forget(&self, waiter: &Bound<'_, PyAny>) {
        let mut state = self.shared.lock();
        let ours = state.waiter.take_if(|known| known.is(waiter));
        drop(state);
        drop(ours);
    }

    /// At most `n` bytes, `n` being positive; a future if there are none yet.
    fn _take<'py>(slf: &Bound<'py, Self>, n: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let n = size(n)?.unsigned_abs();
        Self::bytes_or_waiter(slf, "read", |py, state| {
            exception_of(py, state)?;
            let there = state.buffer.len();
            if n == 0 || there > 0 || state.eof {
                Ok(Step::Done(take(py, state, n.min(there))))
            } else {
                Ok(Step::Wait(0))
            }
        })
    }

    /// Exactly `n` bytes; a future if there are fewer yet.
    fn _take_exactly<'py>(
        slf: &Bound<'py, Self>,
        n: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let expected = n;
        let Ok(n) = usize::try_from(size(n)?) else {
            return Err(PyValueError::new_err(
                "readexactly size can not be less than zero",
            ));
        };
        Self::bytes_or_waiter(slf, "readexactly", |py, state| {
            exception_of(py, state)?;
            if state.buffer.len() >= n {
                Ok(Step::Done(take(py, state, n)))
            } else if state.eof {
                let partial = take_all(py, state);
                Err(incomplete_read(partial, Some(expected.clone())))
            } else {
                Ok(Step::Wait(n))
            }
        })
    }

    /// The bytes up to a separator and with it. If it is not there yet: a future, and where to search on afterwards.
    fn _take_until<'py>(
        slf: &Bound<'py, Self>,
        separator: &Bound<'py, PyAny>,
        start: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let separators = separators(separator)?;
        Self::found_or_waiter(slf, |py, state| {
            exception_of(py, state)?;
            match state.buffer.find(&separators, state.limit, start) {
                Found::At(end) => Ok(Step::Done(take(py, state, end))),
                Found::BeyondLimit(size) => Err(limit_overrun(py, BEYOND_LIMIT, size)),
                Found::NotWithinLimit(size) => Err(limit_overrun(py, NOT_WITHIN_LIMIT, size)),
                Found::NotYet(_) if state.eof => Err(incomplete_read(take_all(py, state), None)),
                Found::NotYet(from) => Ok(Step::Wait(from)),
            }
        })
    }

    /// A line, or what is left at the end. If it is not there yet: a future, and where to search on afterwards.
    fn _take_line<'py>(slf: &Bound<'py, Self>, start: usize) -> PyResult<Bound<'py, PyAny>> {
        Self::found_or_waiter(slf, |py, state| {
            exception_of(py, state)?;
            match state.buffer.find(&NEWLINE, state.limit, start) {
                Found::At(end) => Ok(Step::Done(take(py, state, end))),
                Found::BeyondLimit(size) => {
                    state.buffer.consume(size + 1);
                    Err(PyValueError::new_err(BEYOND_LIMIT))
                }
                Found::NotWithinLimit(_) => {
                    state.buffer.clear();
                    Err(PyValueError::new_err(NOT_WITHIN_LIMIT))
                }
                Found::NotYet(_) if state.eof => Ok(Step::Done(take_all(py, state))),
                Found::NotYet(from) => Ok(Step::Wait(from)),
            }
        })
    }

    /// Puts back what was read last, in front of the rest.
    fn _put_back(&self, py: Python<'_>, data: &Bound<'_, PyBytes>) -> PyResult<()> {
        let full = self.shared.with(py, |state| {
            state.buffer.put_back(data.as_bytes());
            !state.paused && !state.eof && state.buffer.len() > state.limit.saturating_mul(2)
        })?;
        if full { self.pause(py) } else { Ok(()) }
    }

    #[getter(_buffer)]
    fn array<'py>(&self, py: Python<'py>) -> Bound<'py, PyByteArray> {
        self.shared.array(py)
    }

    #[setter(_buffer)]
    fn set_array(&self, buffer: Bound<'_, PyByteArray>) {
        self.shared.set_array(buffer);
    }

    #[getter(_limit)]
    fn limit(&self) -> usize {
        self.shared.lock().limit
    }

    #[setter(_limit)]
    fn set_limit(&self, limit: &Bound<'_, PyAny>) -> PyResult<()> {
        // An infinite one is larger than every buffer.
        let infinite = limit.extract::<f64>().is_ok_and(f64::is_infinite);
        let limit = if infinite {
            usize::MAX
        } else {
            usize::try_from(size(limit)?).unwrap_or(0)
        };
        self.shared.lock().limit = limit;
        Ok(())
    }

    #[getter(_eof)]
    fn is_eof(&self) -> bool {
        self.shared.lock().eof
    }

    #[setter(_eof)]
    fn set_eof(&self, eof: bool) {
        self.shared.lock().eof = eof;
    }

    #[getter(_paused)]
    fn is_paused(&self) -> bool {
        self.shared.lock().paused
    }

    #[setter(_paused)]
    fn set_paused(&self, paused: bool) {
        self.shared.lock().paused = paused;
    }

    #[getter(_waiter)]
    fn waiter(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let state = self.shared.lock();
        state.waiter.as_ref().map(|it| it.clone_ref(py))
    }

    #[setter(_waiter)]
    fn set_waiter(&self, waiter: Option<Py<PyAny>>) {
        let mut state = self.shared.lock();
        state.needed = 0;
        let old = std::mem::replace(&mut state.waiter, waiter);
        drop(state);
        drop(old);
    }

    #[getter(_loop)]
    fn event_loop(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let state = self.shared.lock();
        state.event_loop.as_ref().map(|it| it.clone_ref(py))
    }

    #[setter(_loop)]
    fn set_event_loop(&self, event_loop: Option<Py<PyAny>>) {
        let mut state = self.shared.lock();
        let old = std::mem::replace(&mut state.event_loop, event_loop);
        let spare = state.spare.take();
        drop(state);
        drop((old, spare));
    }

    #[getter(_transport)]
    fn transport(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let state = self.shared.lock();
        state.transport.as_ref().map(|it| it.clone_ref(py))
    }

    #[setter(_transport)]
    fn set_transport_object(&self, transport: Option<Py<PyAny>>) {
        let old = std::mem::replace(&mut self.shared.lock().transport, transport);
        drop(old);
    }

    #[getter(_exception)]
    fn exception_object(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.exception(py)
    }

    #[setter(_exception)]
    fn set_exception_object(&self, exception: Option<Py<PyAny>>) {
        let old = std::mem::replace(&mut self.shared.lock().exception, exception);
        drop(old);
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.shared.traverse(&visit)
    }

    fn __clear__(&self) {
        self.shared.clear();
    }
}
