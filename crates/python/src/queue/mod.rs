//! `_rust.Queue` and `_rust.SimpleQueue`: what is hot of `plait.queue`, over `plait_sync::queue`.
//!
//! A method that may block is: try, and only then stand in line, let go of the interpreter, sleep. The queue's mutex is only
//! ever held by attached threads, for a few loads and stores, under which no Python code runs and nothing of Python's is
//! dropped: so no fork and no collection finds it held, and it cannot deadlock with the GIL.
//!
//! A `Queue` can become *classic*: its items are moved out, and every method hands over to one in Python that keeps them as the
//! standard class does, under `mutex`. That happens to subclasses that say how items are kept (`_put`, `_get`, …), and
//! when somebody reaches for the inside of the standard class (`mutex`, `queue`, …).

mod core;
mod simple;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use plait_sync::queue::{Join, Order, Put};
use plait_sync::wait_queue::Wake;
use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use self::core::{Core, Outcome, Place, Truth, exception, seconds};
pub use self::core::{QueueWaiter, note_fork, nothing};
pub use self::simple::SimpleQueue;
use crate::loop_bell::{FutureWake, LoopBell};

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
        drop(self.core.ends().clear());
    }
}
