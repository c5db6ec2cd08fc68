//! What both classes of queues are: items, lines of those who wait, and calls that block.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use plait_sync::queue::{Get, InLine, Join, Joiner, Order, Put, Queue as Ends};
use plait_sync::wait_queue::Wake;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::loop_bell::{FutureWake, LoopBell};
use crate::waiting;

/// How many forks this process has come from, as far as queues are concerned.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// In the child of a fork: whoever stood in line before does not exist here.
pub fn note_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// What is true in Python.
pub struct Truth(pub bool);

impl FromPyObject<'_, '_> for Truth {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        value.is_truthy().map(Self)
    }
}

pub fn exception(name: &str) -> PyErr {
    static EMPTY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static FULL: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static SHUT_DOWN: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let known = match name {
        "Empty" => &EMPTY,
        "Full" => &FULL,
        _ => &SHUT_DOWN,
    };
    Python::attach(|py| match known.import(py, "plait.queue", name) {
        Ok(kind) => PyErr::from_type(kind.clone(), ()),
        Err(error) => error,
    })
}

/// `timeout`, if there is one, as a number that is not negative.
pub fn seconds(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<f64>> {
    let Some(timeout) = timeout else {
        return Ok(None);
    };
    let seconds: f64 = timeout.extract()?;
    if seconds < 0.0 {
        return Err(PyValueError::new_err(
            "'timeout' must be a non-negative number",
        ));
    }
    Ok(Some(seconds))
}

#[pyclass(frozen, module = "plait._rust")]
struct Nothing;

/// What `_take` returns if there is no item; it is no item itself. An argument that says so would cost more than the rest.
#[pyfunction]
pub fn nothing(py: Python<'_>) -> PyResult<Py<PyAny>> {
    static NOTHING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    NOTHING
        .get_or_try_init(py, || Py::new(py, Nothing).map(Py::into_any))
        .map(|nothing| nothing.clone_ref(py))
}

/// The place in line of a coroutine.
#[pyclass(frozen, module = "plait._rust")]
pub struct QueueWaiter(pub(super) Place);

/// In which line of the queue it is.
pub enum Place {
    InLine(Arc<InLine>),
    Joiner(Arc<Joiner>),
}

impl QueueWaiter {
    pub fn in_line(&self) -> PyResult<Arc<InLine>> {
        match &self.0 {
            Place::InLine(waiter) => Ok(Arc::clone(waiter)),
            Place::Joiner(_) => Err(elsewhere()),
        }
    }

    pub fn joiner(&self) -> PyResult<Arc<Joiner>> {
        match &self.0 {
            Place::Joiner(waiter) => Ok(Arc::clone(waiter)),
            Place::InLine(_) => Err(elsewhere()),
        }
    }
}

fn elsewhere() -> PyErr {
    PyRuntimeError::new_err("this place is in another line of the queue")
}

/// What both classes are.
pub struct Core {
    ends: Ends<Py<PyAny>>,
    forks: AtomicU32,
}

/// What came of a blocking call.
pub enum Outcome<T> {
    Done(T),
    /// The items were moved out, and the call has to be made there; with what is left of the time.
    Elsewhere(Option<f64>),
}

fn left(deadline: Option<Instant>) -> Option<f64> {
    deadline.map(|deadline| {
        deadline
            .saturating_duration_since(Instant::now())
            .as_secs_f64()
    })
}

impl Core {
    pub fn new(order: Order) -> Self {
        Self {
            ends: Ends::new(order, None),
            forks: AtomicU32::new(FORKS.load(Ordering::Relaxed)),
        }
    }

    pub fn ends(&self) -> &Ends<Py<PyAny>> {
        let forks = FORKS.load(Ordering::Relaxed);
        if self.forks.load(Ordering::Relaxed) != forks
            && self.forks.swap(forks, Ordering::Relaxed) != forks
        {
            self.ends.forget_waiters();
        }
        &self.ends
    }

    /// `blocks` is for how long: None for not at all.
    pub fn get(
        &self,
        py: Python<'_>,
        blocks: bool,
        timeout: Option<f64>,
    ) -> PyResult<Outcome<Py<PyAny>>> {
        let ends = self.ends();
        match ends.get(None) {
            Get::Item(item) => return Ok(Outcome::Done(item)),
            Get::ShutDown => return Err(exception("ShutDown")),
            Get::Elsewhere => return Ok(Outcome::Elsewhere(timeout)),
            Get::Empty | Get::Waiting(_) if !blocks => return Err(exception("Empty")),
            Get::Empty | Get::Waiting(_) => {}
        }
        let deadline = timeout.map_or(Ok(None), waiting::deadline_in)?;
        let mut outcome = ends.get(Some(&waiting::thread_wake));
        loop {
            let waiter = match outcome {
                Get::Item(item) => return Ok(Outcome::Done(item)),
                Get::ShutDown => return Err(exception("ShutDown")),
                Get::Elsewhere => return Ok(Outcome::Elsewhere(left(deadline))),
                Get::Empty => return Err(exception("Empty")),
                Get::Waiting(waiter) => waiter,
            };
            match waiting::sleep_in_line(py, deadline, true, || waiter.is_granted()) {
                Ok(true) => outcome = ends.settle_get(waiter, &waiting::thread_wake),
                Ok(false) => outcome = ends.expire_get(&waiter),
                Err(error) => {
                    ends.leave_get(&waiter);
                    return Err(error);
                }
            }
        }
    }

    /// With `Elsewhere`, the item comes back in `item`.
    pub fn put(
        &self,
        py: Python<'_>,
        item: &mut Option<Py<PyAny>>,
        blocks: bool,
        timeout: Option<f64>,
    ) -> PyResult<Outcome<()>> {
        let ends = self.ends();
        let Some(given) = item.take() else {
            return Ok(Outcome::Done(()));
        };
        let given = match ends.put(given, None) {
            Put::Done => return Ok(Outcome::Done(())),
            Put::ShutDown(given) => {
                drop(given);
                return Err(exception("ShutDown"));
            }
            Put::Elsewhere(given) => {
                *item = Some(given);
                return Ok(Outcome::Elsewhere(timeout));
            }
            Put::Full(_) | Put::Waiting(..) if !blocks => return Err(exception("Full")),
            Put::Full(given) | Put::Waiting(_, given) => given,
        };
        let deadline = timeout.map_or(Ok(None), waiting::deadline_in)?;
        let mut outcome = ends.put(given, Some(&waiting::thread_wake));
        loop {
            let (waiter, given) = match outcome {
                Put::Done => return Ok(Outcome::Done(())),
                Put::ShutDown(_) => return Err(exception("ShutDown")),
                Put::Elsewhere(given) => {
                    *item = Some(given);
                    return Ok(Outcome::Elsewhere(left(deadline)));
                }
                Put::Full(_) => return Err(exception("Full")),
                Put::Waiting(waiter, given) => (waiter, given),
            };
            match waiting::sleep_in_line(py, deadline, true, || waiter.is_granted()) {
                Ok(true) => outcome = ends.settle_put(waiter, given, &waiting::thread_wake),
                Ok(false) => outcome = ends.expire_put(&waiter, given),
                Err(error) => {
                    ends.leave_put(&waiter);
                    return Err(error);
                }
            }
        }
    }

    pub fn join(&self, py: Python<'_>) -> PyResult<Outcome<()>> {
        let ends = self.ends();
        let mut outcome = ends.join(&waiting::thread_wake);
        loop {
            let waiter = match outcome {
                Join::Done => return Ok(Outcome::Done(())),
                Join::Elsewhere => return Ok(Outcome::Elsewhere(None)),
                Join::Waiting(waiter) => waiter,
            };
            match waiting::sleep_in_line(py, None, true, || waiter.is_granted()) {
                Ok(_) => outcome = ends.settle_join(waiter, &waiting::thread_wake),
                Err(error) => {
                    ends.leave_join(&waiter);
                    return Err(error);
                }
            }
        }
    }

    /// An item that is there, or [`nothing`].
    pub fn take(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.ends().get(None) {
            Get::Item(item) => Ok(item),
            Get::ShutDown => Err(exception("ShutDown")),
            Get::Empty | Get::Waiting(_) | Get::Elsewhere => nothing(py),
        }
    }

    /// For a coroutine: (true, item), or (false, its place in line), which it comes again with when `future` is done. None if the
    /// items were moved out.
    pub fn enter_get<'py>(
        &self,
        bell: &Bound<'py, LoopBell>,
        future: &Bound<'py, PyAny>,
        place: Option<&QueueWaiter>,
    ) -> PyResult<Option<(bool, Py<PyAny>)>> {
        let py = bell.py();
        let wake = || -> Box<dyn Wake> { Box::new(FutureWake::new(bell, future)) };
        let outcome = match place {
            Some(place) => self.ends().settle_get(place.in_line()?, &wake),
            None => self.ends().get(Some(&wake)),
        };
        match outcome {
            Get::Item(item) => Ok(Some((true, item))),
            Get::Waiting(waiter) => {
                let place = Py::new(py, QueueWaiter(Place::InLine(waiter)))?;
                Ok(Some((false, place.into_any())))
            }
            Get::Elsewhere => Ok(None),
            Get::ShutDown => Err(exception("ShutDown")),
            Get::Empty => Err(exception("Empty")),
        }
    }
}

impl Core {
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let mut outcome = Ok(());
        self.ends.look(|item| {
            if outcome.is_ok() {
                outcome = visit.call(item);
            }
        });
        outcome
    }
}
