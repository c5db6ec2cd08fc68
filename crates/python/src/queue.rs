//! `_rust.Queue` and `_rust.SimpleQueue`: what is hot of `plait.queue`, over `plait_sync::queue`.
//!
//! A method that may block is: try, and only then stand in line, let go of the interpreter, sleep. The queue's mutex is only
//! ever held by attached threads, for a few loads and stores, under which no Python code runs and nothing of Python's is
//! dropped: so no fork and no collection finds it held, and it cannot deadlock with the GIL.
//!
//! A `Queue` can become *classic*: its items are moved out, and every method hands over to one in Python that keeps them as the
//! standard class does, under `mutex`. That happens to subclasses that say how items are kept (`_put`, `_get`, …), and
//! when somebody reaches for the inside of the standard class (`mutex`, `queue`, …).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use plait_sync::queue::{Get, InLine, Join, Joiner, Order, Put, Queue as Ends};
use plait_sync::wait_queue::Wake;
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::loop_bell::{FutureWake, LoopBell};
use crate::waiting;

/// How many forks this process has come from, as far as queues are concerned.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// In the child of a fork: whoever stood in line before does not exist here.
pub fn note_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

fn thread_wake() -> Box<dyn Wake> {
    Box::new(waiting::waker())
}

/// What is true in Python.
pub struct Truth(bool);

impl FromPyObject<'_, '_> for Truth {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        value.is_truthy().map(Self)
    }
}

fn exception(name: &str) -> PyErr {
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
fn seconds(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<f64>> {
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

/// When a wait of so many seconds that begins now is over.
fn deadline(seconds: Option<f64>) -> PyResult<Option<Instant>> {
    /// `threading.TIMEOUT_MAX`.
    const MOST: f64 = 9_223_372_036.0;
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    if seconds.is_nan() {
        return Err(PyValueError::new_err("Invalid value NaN (not a number)"));
    }
    if seconds > MOST {
        return Err(PyOverflowError::new_err("timeout value is too large"));
    }
    Ok(Instant::now().checked_add(Duration::from_secs_f64(seconds)))
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
pub struct QueueWaiter(Place);

enum Place {
    InLine(Arc<InLine>),
    Joiner(Arc<Joiner>),
}

impl QueueWaiter {
    fn in_line(&self) -> PyResult<Arc<InLine>> {
        match &self.0 {
            Place::InLine(waiter) => Ok(Arc::clone(waiter)),
            Place::Joiner(_) => Err(elsewhere()),
        }
    }

    fn joiner(&self) -> PyResult<Arc<Joiner>> {
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
struct Core {
    ends: Ends<Py<PyAny>>,
    forks: AtomicU32,
}

/// What came of a blocking call.
enum Outcome<T> {
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
    fn new(order: Order) -> Self {
        Self {
            ends: Ends::new(order, None),
            forks: AtomicU32::new(FORKS.load(Ordering::Relaxed)),
        }
    }

    fn ends(&self) -> &Ends<Py<PyAny>> {
        let forks = FORKS.load(Ordering::Relaxed);
        if self.forks.load(Ordering::Relaxed) != forks
            && self.forks.swap(forks, Ordering::Relaxed) != forks
        {
            self.ends.forget_waiters();
        }
        &self.ends
    }

    /// `blocks` is for how long: None for not at all.
    fn get(
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
        let deadline = deadline(timeout)?;
        let mut outcome = ends.get(Some(&thread_wake));
        loop {
            let waiter = match outcome {
                Get::Item(item) => return Ok(Outcome::Done(item)),
                Get::ShutDown => return Err(exception("ShutDown")),
                Get::Elsewhere => return Ok(Outcome::Elsewhere(left(deadline))),
                Get::Empty => return Err(exception("Empty")),
                Get::Waiting(waiter) => waiter,
            };
            match waiting::sleep_in_line(py, deadline, true, || waiter.is_granted()) {
                Ok(true) => outcome = ends.settle_get(waiter, &thread_wake),
                Ok(false) => outcome = ends.expire_get(&waiter),
                Err(error) => {
                    ends.leave_get(&waiter);
                    return Err(error);
                }
            }
        }
    }

    /// With `Elsewhere`, the item comes back in `item`.
    fn put(
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
        let deadline = deadline(timeout)?;
        let mut outcome = ends.put(given, Some(&thread_wake));
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
                Ok(true) => outcome = ends.settle_put(waiter, given, &thread_wake),
                Ok(false) => outcome = ends.expire_put(&waiter, given),
                Err(error) => {
                    ends.leave_put(&waiter);
                    return Err(error);
                }
            }
        }
    }

    fn join(&self, py: Python<'_>) -> PyResult<Outcome<()>> {
        let ends = self.ends();
        let mut outcome = ends.join(&thread_wake);
        loop {
            let waiter = match outcome {
                Join::Done => return Ok(Outcome::Done(())),
                Join::Elsewhere => return Ok(Outcome::Elsewhere(None)),
                Join::Waiting(waiter) => waiter,
            };
            match waiting::sleep_in_line(py, None, true, || waiter.is_granted()) {
                Ok(_) => outcome = ends.settle_join(waiter, &thread_wake),
                Err(error) => {
                    ends.leave_join(&waiter);
                    return Err(error);
                }
            }
        }
    }

    /// An item that is there, or [`nothing`].
    fn take(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.ends().get(None) {
            Get::Item(item) => Ok(item),
            Get::ShutDown => Err(exception("ShutDown")),
            Get::Empty | Get::Waiting(_) | Get::Elsewhere => nothing(py),
        }
    }

    /// For a coroutine: (true, item), or (false, its place in line), which it comes again with when `future` is done. None if the
    /// items were moved out.
    fn enter_get<'py>(
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

/// The base of `plait.queue.Queue`.
#[pyclass(frozen, subclass, weakref, module = "plait._rust")]
pub struct Queue {
    core: Core,
    maxsize: AtomicI64,
    is_classic: AtomicBool,
}

impl Queue {
    fn is_classic(&self) -> bool {
        self.is_classic.load(Ordering::Acquire)
    }
}

#[pymethods]
impl Queue {
    /// What the class says by `_lifo` is the order; everything else is for `__init__`.
    #[new]
    #[classmethod]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        cls: &Bound<'_, PyType>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let lifo = cls
            .getattr_opt(intern!(cls.py(), "_lifo"))?
            .map_or(Ok(false), |lifo| lifo.is_truthy())?;
        Ok(Self {
            core: Core::new(if lifo { Order::Lifo } else { Order::Fifo }),
            maxsize: AtomicI64::new(0),
            is_classic: AtomicBool::new(false),
        })
    }

    #[getter]
    fn maxsize(&self) -> i64 {
        self.maxsize.load(Ordering::Relaxed)
    }

    #[setter]
    fn set_maxsize(&self, maxsize: i64) {
        self.maxsize.store(maxsize, Ordering::Relaxed);
        let bound = usize::try_from(maxsize).ok().filter(|&bound| bound > 0);
        self.core.ends().set_bound(bound);
    }

    #[pyo3(signature = (item, block = Truth(true), timeout = None), text_signature = "($self, item, block=True, timeout=None)")]
    fn put(
        slf: &Bound<'_, Self>,
        item: Py<PyAny>,
        block: Truth,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let mut item = Some(item);
        let mut timeout_left = None;
        if !this.is_classic() {
            if timeout.is_some() && block.0 && this.maxsize() > 0 {
                timeout_left = seconds(timeout).map_err(|error| {
                    // As the standard class, which looks at this first.
                    if this.core.ends().is_shut() {
                        return exception("ShutDown");
                    }
                    error
                })?;
            }
            match this.core.put(py, &mut item, block.0, timeout_left)? {
                Outcome::Done(()) => return Ok(()),
                Outcome::Elsewhere(left) => timeout_left = left,
            }
        }
        let put = intern!(py, "_classic_put");
        match timeout_left {
            Some(seconds) => slf.call_method1(put, (item, block.0, seconds)),
            None => slf.call_method1(put, (item, block.0, timeout)),
        }
        .map(drop)
    }

    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        block: Truth,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let mut timeout_left = None;
        if !this.is_classic() {
            if timeout.is_some() && block.0 {
                timeout_left = seconds(timeout).map_err(|error| {
                    if this.core.ends().is_over() {
                        return exception("ShutDown");
                    }
                    error
                })?;
            }
            match this.core.get(py, block.0, timeout_left)? {
                Outcome::Done(item) => return Ok(item.into_bound(py)),
                Outcome::Elsewhere(left) => timeout_left = left,
            }
        }
        let get = intern!(py, "_classic_get");
        match timeout_left {
            Some(seconds) => slf.call_method1(get, (block.0, seconds)),
            None => slf.call_method1(get, (block.0, timeout)),
        }
    }

    fn put_nowait(slf: &Bound<'_, Self>, item: Py<PyAny>) -> PyResult<()> {
        // By its name: subclasses replace `put`.
        let py = slf.py();
        let put = slf.getattr(intern!(py, "put"))?;
        put.call1((item, false)).map(drop)
    }

    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.call_method1(intern!(slf.py(), "get"), (false,))
    }

    fn task_done(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        if this.is_classic() {
            return slf
                .call_method0(intern!(slf.py(), "_classic_task_done"))
                .map(drop);
        }
        this.core
            .ends()
            .task_done()
            .map_err(|_| PyValueError::new_err("task_done() called too many times"))
    }

    fn join(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        if !this.is_classic() && matches!(this.core.join(py)?, Outcome::Done(())) {
            return Ok(());
        }
        slf.call_method0(intern!(py, "_classic_join")).map(drop)
    }

    fn qsize<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let this = slf.get();
        let py = slf.py();
        if this.is_classic() {
            return slf.call_method0(intern!(py, "_classic_qsize"));
        }
        Ok(this.core.ends().len().into_pyobject(py)?.into_any())
    }

    fn empty(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let this = slf.get();
        if this.is_classic() {
            let size = slf.call_method0(intern!(slf.py(), "_classic_qsize"))?;
            return Ok(!size.is_truthy()?);
        }
        Ok(this.core.ends().is_empty())
    }

    fn full(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let this = slf.get();
        if this.is_classic() {
            let size = slf.call_method0(intern!(slf.py(), "_classic_qsize"))?;
            let maxsize = this.maxsize();
            return Ok(maxsize > 0 && size.ge(maxsize)?);
        }
        Ok(this.core.ends().is_full())
    }

    #[pyo3(signature = (immediate = Truth(false)), text_signature = "($self, immediate=False)")]
    fn shutdown(slf: &Bound<'_, Self>, immediate: Truth) -> PyResult<()> {
        let this = slf.get();
        if this.is_classic() {
            return slf
                .call_method1(intern!(slf.py(), "_classic_shutdown"), (immediate.0,))
                .map(drop);
        }
        let dropped = this.core.ends().shut_down(immediate.0);
        drop(dropped);
        Ok(())
    }

    /// An item that is there, or `nothing()`.
    fn _take(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.core.take(py)
    }

    /// Puts the item if there is a place here: true.
    fn _offer(&self, item: Py<PyAny>) -> PyResult<bool> {
        match self.core.ends().put(item, None) {
            Put::Done => Ok(true),
            Put::ShutDown(_) => Err(exception("ShutDown")),
            Put::Full(_) | Put::Waiting(..) | Put::Elsewhere(_) => Ok(false),
        }
    }

    #[pyo3(signature = (bell, future, place))]
    fn _enter_get<'py>(
        &self,
        bell: &Bound<'py, LoopBell>,
        future: &Bound<'py, PyAny>,
        place: Option<&Bound<'py, QueueWaiter>>,
    ) -> PyResult<Option<(bool, Py<PyAny>)>> {
        let place = place.map(Bound::get);
        self.core.enter_get(bell, future, place)
    }

    fn _leave_get(&self, place: &QueueWaiter) -> PyResult<()> {
        self.core.ends().leave_get(&*place.in_line()?);
        Ok(())
    }

    /// Puts the item: true; or joins the line: the place in it. None if the queue is classic.
    #[pyo3(signature = (item, bell, future, place))]
    fn _enter_put<'py>(
        &self,
        item: Py<PyAny>,
        bell: &Bound<'py, LoopBell>,
        future: &Bound<'py, PyAny>,
        place: Option<&Bound<'py, QueueWaiter>>,
    ) -> PyResult<Option<(bool, Option<QueueWaiter>)>> {
        let wake = || -> Box<dyn Wake> { Box::new(FutureWake::new(bell, future)) };
        let ends = self.core.ends();
        let outcome = match place {
            Some(place) => ends.settle_put(place.get().in_line()?, item, &wake),
            None => ends.put(item, Some(&wake)),
        };
        match outcome {
            Put::Done => Ok(Some((true, None))),
            Put::Waiting(waiter, _) => Ok(Some((false, Some(QueueWaiter(Place::InLine(waiter)))))),
            Put::Elsewhere(_) => Ok(None),
            Put::ShutDown(_) => Err(exception("ShutDown")),
            Put::Full(_) => Err(exception("Full")),
        }
    }

    fn _leave_put(&self, place: &QueueWaiter) -> PyResult<()> {
        self.core.ends().leave_put(&*place.in_line()?);
        Ok(())
    }

    /// All is done: (true, None); or joins the line. None if the queue is classic.
    #[pyo3(signature = (bell, future, place))]
    fn _enter_join<'py>(
        &self,
        bell: &Bound<'py, LoopBell>,
        future: &Bound<'py, PyAny>,
        place: Option<&Bound<'py, QueueWaiter>>,
    ) -> PyResult<Option<(bool, Option<QueueWaiter>)>> {
        let wake = || -> Box<dyn Wake> { Box::new(FutureWake::new(bell, future)) };
        let ends = self.core.ends();
        let outcome = match place {
            Some(place) => ends.settle_join(place.get().joiner()?, &wake),
            None => ends.join(&wake),
        };
        Ok(match outcome {
            Join::Done => Some((true, None)),
            Join::Waiting(waiter) => Some((false, Some(QueueWaiter(Place::Joiner(waiter))))),
            Join::Elsewhere => None,
        })
    }

    fn _leave_join(&self, place: &QueueWaiter) -> PyResult<()> {
        self.core.ends().leave_join(&*place.joiner()?);
        Ok(())
    }

    /// (how many are not done, whether it was shut down)
    fn _state(&self) -> (usize, bool) {
        (self.core.ends().unfinished(), self.core.ends().is_shut())
    }

    /// Becomes classic: the items, how many are not done, whether it was shut down. Everybody in line is told.
    fn _move_out(&self) -> (Vec<Py<PyAny>>, usize, bool) {
        self.is_classic.store(true, Ordering::Release);
        let (items, unfinished, is_shut) = self.core.ends().move_out();
        (items.into(), unfinished, is_shut)
    }

    #[getter]
    fn _is_classic(&self) -> bool {
        self.is_classic()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.core.traverse(&visit)
    }

    fn __clear__(&self) {
        drop(self.core.ends.clear());
    }
}

impl Core {
    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let mut outcome = Ok(());
        self.ends.look(|item| {
            if outcome.is_ok() {
                outcome = visit.call(item);
            }
        });
        outcome
    }
}

/// The base of `plait.queue.SimpleQueue`.
#[pyclass(frozen, subclass, weakref, module = "plait._rust")]
pub struct SimpleQueue {
    core: Core,
}

#[pymethods]
impl SimpleQueue {
    #[new]
    fn new() -> Self {
        Self {
            core: Core::new(Order::Fifo),
        }
    }

    #[pyo3(signature = (item, block = None, timeout = None), text_signature = "($self, item, block=True, timeout=None)")]
    #[allow(unused_variables, reason = "it never blocks")]
    fn put(
        &self,
        item: Py<PyAny>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.put_nowait(item)
    }

    fn put_nowait(&self, item: Py<PyAny>) -> PyResult<()> {
        match self.core.ends().put(item, None) {
            Put::Done => Ok(()),
            Put::ShutDown(_) => Err(exception("ShutDown")),
            Put::Full(_) | Put::Waiting(..) | Put::Elsewhere(_) => Err(exception("Full")),
        }
    }

    #[pyo3(signature = (block = Truth(true), timeout = None), text_signature = "($self, block=True, timeout=None)")]
    fn get(
        &self,
        py: Python<'_>,
        block: Truth,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let timeout = if block.0 { seconds(timeout)? } else { None };
        match self.core.get(py, block.0, timeout)? {
            Outcome::Done(item) => Ok(item),
            Outcome::Elsewhere(_) => Err(exception("Empty")),
        }
    }

    fn get_nowait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get(py, Truth(false), None)
    }

    fn qsize(&self) -> usize {
        self.core.ends().len()
    }

    fn empty(&self) -> bool {
        self.core.ends().is_empty()
    }

    #[pyo3(signature = (immediate = Truth(false)), text_signature = "($self, immediate=False)")]
    fn shutdown(&self, immediate: Truth) {
        let dropped = self.core.ends().shut_down(immediate.0);
        drop(dropped);
    }

    #[getter]
    fn is_shutdown(&self) -> bool {
        self.core.ends().is_shut()
    }

    /// An item that is there, or `nothing()`.
    fn _take(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.core.take(py)
    }

    #[pyo3(signature = (bell, future, place))]
    fn _enter_get<'py>(
        &self,
        bell: &Bound<'py, LoopBell>,
        future: &Bound<'py, PyAny>,
        place: Option<&Bound<'py, QueueWaiter>>,
    ) -> PyResult<Option<(bool, Py<PyAny>)>> {
        let place = place.map(Bound::get);
        self.core.enter_get(bell, future, place)
    }

    fn _leave_get(&self, place: &QueueWaiter) -> PyResult<()> {
        self.core.ends().leave_get(&*place.in_line()?);
        Ok(())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.core.traverse(&visit)
    }

    fn __clear__(&self) {
        drop(self.core.ends.clear());
    }
}
