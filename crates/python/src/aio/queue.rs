//! `_rust.AsyncQueue`: the hot half of `plait.asyncio.Queue`, `LifoQueue` and `PriorityQueue`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use super::event::Event;
use super::line::{Home, Line};
use super::ready;
use crate::event_loop::coroutine::{Coroutine, Step, Steps};
use crate::event_loop::waiter::Waiter;

/// The class has its own `_init`, `_get`, `_put`, `qsize`, `empty` or `full`.
const OWN_STORE: u8 = 1;
/// The class has its own `put_nowait`.
const OWN_PUT: u8 = 2;
/// The class has its own `get_nowait`.
const OWN_GET: u8 = 4;

/// In which order items leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    First,
    Last,
    Least,
}

/// Where the items are.
enum Items {
    /// Here.
    Own(VecDeque<Py<PyAny>>),
    /// In a deque or list that others know: the attribute `_queue`.
    Shown(Py<PyAny>),
}

struct Store {
    items: Items,
    order: Order,
}

/// See `README.md`.
#[pyclass(frozen, subclass, weakref, module = "plait._rust", name = "AsyncQueue")]
pub struct Queue {
    store: Mutex<Store>,
    /// None before `__init__`.
    maxsize: Mutex<Option<Py<PyAny>>>,
    /// The same as a number; 0 for no bound.
    bound: AtomicI64,
    own: AtomicU8,
    unfinished: AtomicI64,
    is_shut_down: AtomicBool,
    finished: PyOnceLock<Py<Event>>,
    getters: Py<Line>,
    putters: Py<Line>,
    home: Home,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn exception(py: Python<'_>, name: &'static str) -> PyErr {
    static EMPTY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static FULL: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static SHUT_DOWN: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let known = match name {
        "QueueEmpty" => &EMPTY,
        "QueueFull" => &FULL,
        _ => &SHUT_DOWN,
    };
    match known.import(py, "plait.asyncio.queues", name) {
        Ok(kind) => PyErr::from_type(kind.clone(), ()),
        Err(error) => error,
    }
}

/// A bound on a number of items: a whole number, and none (0) for what is not above 0 or above all numbers.
fn bound(maxsize: &Bound<'_, PyAny>) -> PyResult<i64> {
    if let Ok(whole) = maxsize.extract::<i64>() {
        return Ok(whole.max(0));
    }
    let number: f64 = maxsize.extract()?;
    // Below 2^53 every whole number is one of these.
    let is_bound = number > 0.0 && number < 9.0e15;
    Ok(if is_bound { number.ceil() as i64 } else { 0 })
}

impl Queue {
    fn has_own(&self, what: u8) -> bool {
        self.own.load(Relaxed) & what != 0
    }

    fn len(slf: &Bound<'_, Self>) -> PyResult<usize> {
        let shown = match &lock(&slf.get().store).items {
            Items::Own(items) => return Ok(items.len()),
            Items::Shown(items) => items.clone_ref(slf.py()),
        };
        shown.bind(slf.py()).len()
    }

    fn is_empty(slf: &Bound<'_, Self>) -> PyResult<bool> {
        if slf.get().has_own(OWN_STORE) {
            return slf.call_method0(intern!(slf.py(), "empty"))?.is_truthy();
        }
        Ok(Self::len(slf)? == 0)
    }

    fn is_full(slf: &Bound<'_, Self>) -> PyResult<bool> {
        if slf.get().has_own(OWN_STORE) {
            return slf.call_method0(intern!(slf.py(), "full"))?.is_truthy();
        }
        Self::is_as_long_as_may_be(slf)
    }

    fn is_as_long_as_may_be(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let bound = slf.get().bound.load(Relaxed);
        Ok(bound > 0 && i64::try_from(Self::len(slf)?).is_ok_and(|length| length >= bound))
    }

    /// Stores an item.
    fn push(slf: &Bound<'_, Self>, item: Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.has_own(OWN_STORE) {
            return slf.call_method1(intern!(py, "_put"), (item,)).map(drop);
        }
        let (shown, order) = {
            let mut store = lock(&this.store);
            match &mut store.items {
                Items::Own(items) => {
                    items.push_back(item.unbind());
                    return Ok(());
                }
                Items::Shown(items) => (items.clone_ref(py), store.order),
            }
        };
        if order == Order::Least {
            static PUSH: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
            let push = PUSH.import(py, "heapq", "heappush")?;
            return push.call1((shown, item)).map(drop);
        }
        let append = intern!(py, "append");
        shown.bind(py).call_method1(append, (item,)).map(drop)
    }

    /// Takes one out; there is one.
    fn pop<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        if this.has_own(OWN_STORE) {
            return slf.call_method0(intern!(py, "_get"));
        }
        let (shown, order) = {
            let mut store = lock(&this.store);
            let order = store.order;
            match &mut store.items {
                Items::Own(items) => {
                    let item = match order {
                        Order::Last => items.pop_back(),
                        Order::First | Order::Least => items.pop_front(),
                    };
                    return item
                        .map(|item| item.into_bound(py))
                        .ok_or_else(|| exception(py, "QueueEmpty"));
                }
                Items::Shown(items) => (items.clone_ref(py), order),
            }
        };
        match order {
            Order::First => shown.bind(py).call_method0(intern!(py, "popleft")),
            Order::Last => shown.bind(py).call_method0(intern!(py, "pop")),
            Order::Least => {
                static POP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
                POP.import(py, "heapq", "heappop")?.call1((shown,))
            }
        }
    }

    /// Puts an item in, through the class's own `put_nowait` if it has one. There is room.
    fn put_now(slf: &Bound<'_, Self>, item: Bound<'_, PyAny>) -> PyResult<()> {
        if slf.get().has_own(OWN_PUT) {
            let name = intern!(slf.py(), "put_nowait");
            return slf.call_method1(name, (item,)).map(drop);
        }
        Self::put_nowait(slf, item)
    }

    /// Takes an item, through the class's own `get_nowait` if it has one. There is one.
    fn get_now<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        if slf.get().has_own(OWN_GET) {
            return slf.call_method0(intern!(slf.py(), "get_nowait"));
        }
        Self::get_nowait(slf)
    }

    /// Everything that was put has been done.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        match self.finished.get(py) {
            Some(finished) => finished.get().raise(py),
            None => Ok(()),
        }
    }
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        py: Python<'_>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        Ok(Self {
            store: Mutex::new(Store {
                items: Items::Own(VecDeque::new()),
                order: Order::First,
            }),
            maxsize: Mutex::new(None),
            bound: AtomicI64::new(0),
            own: AtomicU8::new(0),
            unfinished: AtomicI64::new(0),
            is_shut_down: AtomicBool::new(false),
            finished: PyOnceLock::new(),
            getters: Py::new(py, Line::default())?,
            putters: Py::new(py, Line::default())?,
            home: Home::default(),
        })
    }

    /// Begins: `order` is 0 for first in first out, 1 for last in, 2 for the least; `own` are the methods that the class has of
    /// its own (1: those that store, 2: `put_nowait`, 4: `get_nowait`); `finished` is set while nothing is to be done.
    fn _begin(
        slf: &Bound<'_, Self>,
        maxsize: Bound<'_, PyAny>,
        order: u8,
        own: u8,
        finished: Py<Event>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.set_maxsize(maxsize.clone())?;
        finished.get().raise(py)?;
        // A second `__init__` changes nothing here.
        drop(this.finished.set(py, finished));
        this.own.store(own, Relaxed);
        lock(&this.store).order = match order {
            0 => Order::First,
            1 => Order::Last,
            _ => Order::Least,
        };
        if order > 1 || own & OWN_STORE != 0 {
            slf.call_method1(intern!(py, "_init"), (maxsize,))?;
        }
        Ok(())
    }

    /// How many items there are.
    fn qsize(slf: &Bound<'_, Self>) -> PyResult<usize> {
        Self::len(slf)
    }

    /// Whether there is no item.
    fn empty(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Ok(Self::len(slf)? == 0)
    }

    /// Whether there are as many items as there may be.
    fn full(slf: &Bound<'_, Self>) -> PyResult<bool> {
        if slf.get().has_own(OWN_STORE) {
            let bound = slf.get().bound.load(Relaxed);
            let length: i64 = slf.call_method0(intern!(slf.py(), "qsize"))?.extract()?;
            return Ok(bound > 0 && length >= bound);
        }
        Self::is_as_long_as_may_be(slf)
    }

    /// Puts an item in, when there is room. Raises `QueueShutDown`.
    fn put<'py>(slf: &Bound<'py, Self>, item: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let steps = Put(End::new(slf), Some(item.unbind()));
        Ok(Coroutine::new(slf.py(), "Queue.put", steps)?.into_any())
    }

    /// Puts an item in. Raises `QueueFull` or `QueueShutDown`.
    fn put_nowait(slf: &Bound<'_, Self>, item: Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.is_shut_down.load(Relaxed) {
            return Err(exception(py, "QueueShutDown"));
        }
        if Self::is_full(slf)? {
            return Err(exception(py, "QueueFull"));
        }
        Self::push(slf, item)?;
        this.unfinished.fetch_add(1, Relaxed);
        if let Some(finished) = this.finished.get(py) {
            finished.get().lower();
        }
        this.getters.get().take_next(py)
    }

    /// Takes an item, when there is one. Raises `QueueShutDown`.
    fn get<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let steps = Get(End::new(slf));
        Ok(Coroutine::new(slf.py(), "Queue.get", steps)?.into_any())
    }

    /// Takes an item. Raises `QueueEmpty` or `QueueShutDown`.
    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        if Self::is_empty(slf)? {
            let is_over = this.is_shut_down.load(Relaxed);
            let name = if is_over {
                "QueueShutDown"
            } else {
                "QueueEmpty"
            };
            return Err(exception(py, name));
        }
        let item = Self::pop(slf)?;
        this.putters.get().take_next(py)?;
        Ok(item)
    }

    /// What was taken has been done. Raises `ValueError` if called more often than items were put in.
    fn task_done(&self, py: Python<'_>) -> PyResult<()> {
        let left = self.unfinished.load(Relaxed) - 1;
        if left < 0 {
            return Err(PyValueError::new_err("task_done() called too many times"));
        }
        self.unfinished.store(left, Relaxed);
        if left == 0 { self.finish(py) } else { Ok(()) }
    }

    /// Waits until everything that was put in has been done.
    fn join<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        match this.finished.get(py) {
            Some(finished) => Event::waiting(finished.bind(py), "Queue.join", false),
            None => ready(py),
        }
    }

    /// Ends it: nothing can be put in any more, and nothing taken once it is empty, or at once if `immediate`.
    #[pyo3(signature = (immediate=false))]
    fn shutdown(slf: &Bound<'_, Self>, immediate: bool) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.is_shut_down.store(true, Relaxed);
        if immediate {
            while !Self::is_empty(slf)? {
                drop(Self::pop(slf)?);
                let left = this.unfinished.load(Relaxed);
                this.unfinished.store((left - 1).max(0), Relaxed);
            }
            if this.unfinished.load(Relaxed) == 0 {
                this.finish(py)?;
            }
        }
        this.getters.get().take_all(py)?;
        this.putters.get().take_all(py)
    }

    /// As it was given.
    #[getter(maxsize)]
    fn maxsize(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let maxsize = lock(&self.maxsize);
        maxsize.as_ref().map(|maxsize| maxsize.clone_ref(py))
    }

    #[getter(_maxsize)]
    fn own_maxsize(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.maxsize(py)
    }

    #[setter(_maxsize)]
    fn set_maxsize(&self, maxsize: Bound<'_, PyAny>) -> PyResult<()> {
        self.bound.store(bound(&maxsize)?, Relaxed);
        let old = lock(&self.maxsize).replace(maxsize.unbind());
        drop(old);
        Ok(())
    }

    /// The items, which lie in what is given from now on.
    #[getter(_queue)]
    fn shown<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        static DEQUE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let (py, this) = (slf.py(), slf.get());
        let (items, order) = {
            let mut store = lock(&this.store);
            match &mut store.items {
                Items::Shown(shown) => return Ok(shown.bind(py).clone()),
                Items::Own(items) => (std::mem::take(items), store.order),
            }
        };
        let list = pyo3::types::PyList::new(py, items)?.into_any();
        let shown = match order {
            Order::First => DEQUE.import(py, "collections", "deque")?.call1((list,))?,
            Order::Last | Order::Least => list,
        };
        this.show(shown.clone().unbind());
        Ok(shown)
    }

    #[setter(_queue)]
    fn show(&self, items: Py<PyAny>) {
        let old = std::mem::replace(&mut lock(&self.store).items, Items::Shown(items));
        drop(old);
    }

    #[getter(_unfinished_tasks)]
    fn unfinished(&self) -> i64 {
        self.unfinished.load(Relaxed)
    }

    #[setter(_unfinished_tasks)]
    fn set_unfinished(&self, unfinished: i64) {
        self.unfinished.store(unfinished, Relaxed);
    }

    #[getter(_is_shutdown)]
    fn is_shut_down(&self) -> bool {
        self.is_shut_down.load(Relaxed)
    }

    #[getter(_finished)]
    fn finished(&self, py: Python<'_>) -> Option<Py<Event>> {
        self.finished.get(py).map(|finished| finished.clone_ref(py))
    }

    #[getter(_getters)]
    fn getters(&self, py: Python<'_>) -> Py<Line> {
        self.getters.clone_ref(py)
    }

    #[getter(_putters)]
    fn putters(&self, py: Python<'_>) -> Py<Line> {
        self.putters.clone_ref(py)
    }

    #[getter(_loop)]
    fn get_loop(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.home.get(py)
    }

    #[setter(_loop)]
    fn set_loop(&self, event_loop: Option<Py<PyAny>>) {
        self.home.set(event_loop);
    }

    #[allow(clippy::needless_pass_by_value, reason = "as PyO3 wants it")]
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.getters)?;
        visit.call(&self.putters)?;
        if let Ok(store) = self.store.try_lock() {
            match &store.items {
                Items::Own(items) => {
                    for item in items {
                        visit.call(item)?;
                    }
                }
                Items::Shown(shown) => visit.call(shown)?,
            }
        }
        if let Ok(maxsize) = self.maxsize.try_lock() {
            visit.call(&*maxsize)?;
        }
        self.home.traverse(&visit)
    }

    fn __clear__(&self) {
        let empty = Items::Own(VecDeque::new());
        let old = std::mem::replace(&mut lock(&self.store).items, empty);
        drop(old);
        self.home.set(None);
    }
}

/// One who puts or gets, and waits for that.
struct End {
    queue: Py<Queue>,
    waiter: Option<Py<Waiter>>,
}

impl End {
    fn new(queue: &Bound<'_, Queue>) -> Self {
        Self {
            queue: queue.clone().unbind(),
            waiter: None,
        }
    }

    /// Stands in line.
    fn wait<'py>(&mut self, py: Python<'py>, line: &Line) -> PyResult<Step<'py>> {
        let queue = self.queue.bind(py);
        if queue.get().is_shut_down.load(Relaxed) {
            return Err(exception(py, "QueueShutDown"));
        }
        let waiter = queue.get().home.waiter(queue.as_any())?;
        line.join(&waiter);
        self.waiter = Some(waiter.clone().unbind());
        Ok(Step::Wait(waiter))
    }

    /// Leaves without having done what it came for. If it was woken, and `can_go_on`, the next is.
    fn give_up(
        &mut self,
        py: Python<'_>,
        line: &Line,
        can_go_on: impl FnOnce(&Bound<'_, Queue>) -> PyResult<bool>,
    ) -> PyResult<()> {
        let Some(waiter) = self.waiter.take() else {
            return Ok(());
        };
        line.leave(&waiter);
        let waiter = waiter.get();
        if waiter.is_done() && !waiter.cancelled() && can_go_on(self.queue.bind(py))? {
            line.take_next(py)?;
        }
        Ok(())
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.queue)?;
        visit.call(&self.waiter)
    }

    fn dropped(&mut self, leave: impl FnOnce(&mut Self, Python<'_>) -> PyResult<()>) {
        if self.waiter.is_some() {
            Python::attach(|py| {
                if let Err(error) = leave(self, py) {
                    error.write_unraisable(py, Some(self.queue.bind(py)));
                }
            });
        }
    }
}

/// `put`, with the item until it is in.
struct Put(End, Option<Py<PyAny>>);

impl Put {
    fn give_up(end: &mut End, py: Python<'_>) -> PyResult<()> {
        let line = end.queue.get().putters.clone_ref(py);
        end.give_up(py, line.get(), |queue| Ok(!Queue::is_full(queue)?))
    }
}

impl Steps for Put {
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        let queue = self.0.queue.bind(py);
        if Queue::is_full(queue)? {
            let line = queue.get().putters.clone_ref(py);
            return self.0.wait(py, line.get());
        }
        if let Some(item) = self.1.take() {
            Queue::put_now(queue, item.into_bound(py))?;
        }
        Ok(Step::Done(py.None().into_bound(py)))
    }

    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        if let Err(error) = outcome {
            Self::give_up(&mut self.0, py)?;
            return Err(error);
        }
        self.0.waiter = None;
        self.start(py)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.1)?;
        self.0.traverse(visit)
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        self.0.dropped(Self::give_up);
    }
}

/// `get`.
struct Get(End);

impl Get {
    fn give_up(end: &mut End, py: Python<'_>) -> PyResult<()> {
        let line = end.queue.get().getters.clone_ref(py);
        end.give_up(py, line.get(), |queue| Ok(!Queue::is_empty(queue)?))
    }
}

impl Steps for Get {
    fn start<'py>(&mut self, py: Python<'py>) -> PyResult<Step<'py>> {
        let queue = self.0.queue.bind(py);
        if Queue::is_empty(queue)? {
            let line = queue.get().getters.clone_ref(py);
            return self.0.wait(py, line.get());
        }
        Ok(Step::Done(Queue::get_now(queue)?))
    }

    fn resume<'py>(
        &mut self,
        py: Python<'py>,
        outcome: PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Step<'py>> {
        if let Err(error) = outcome {
            Self::give_up(&mut self.0, py)?;
            return Err(error);
        }
        self.0.waiter = None;
        self.start(py)
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.traverse(visit)
    }
}

impl Drop for Get {
    fn drop(&mut self) {
        self.0.dropped(Self::give_up);
    }
}
