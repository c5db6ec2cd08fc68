//! `_rust.Lock`, `RLock`, `Semaphore`, `Event`, `Condition`, `Barrier`: what is hot of the locks in `plait.threading`.
//! The Python classes derive from these; what is cold (constructors, `repr`, the coroutines' side) is theirs.
//!
//! A method that may block is: try, and only then stand in line, let go of the interpreter, sleep. The mutexes of `plait_sync`'s
//! locks are only ever held by attached threads, for a few loads and stores, under which no Python code runs: so no
//! fork and no collection finds one of them held, and none can deadlock with the GIL.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use plait_sync::barrier::{self, Arrival, Fate, TimedOut};
use plait_sync::semaphore::{self, Attempt, UnitWaiter};
use plait_sync::wait_queue::Wake;
use plait_sync::{condition, event, rlock, wait_queue};
use pyo3::exceptions::{
    PyDeprecationWarning, PyOverflowError, PyRuntimeError, PyStopIteration, PyTypeError,
    PyValueError,
};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use crate::callback::thread_ident;
use crate::loop_bell::{FutureWake, LoopBell};
use crate::waiting;

/// What no number of units exceeds.
const NO_BOUND: u64 = u64::MAX;

fn thread_wake() -> Box<dyn Wake> {
    Box::new(waiting::waker())
}

fn future_wake(bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Box<dyn Wake> {
    Box::new(FutureWake::new(bell, future))
}

fn not_a_number() -> PyErr {
    PyValueError::new_err("Invalid value NaN (not a number)")
}

/// How long a call may take.
#[derive(Clone, Copy)]
enum Patience {
    None,
    Until(Instant),
    Forever,
}

impl Patience {
    fn for_seconds(seconds: f64) -> PyResult<Self> {
        /// `threading.TIMEOUT_MAX`, in seconds.
        const MOST: f64 = 9_223_372_036.0;
        if seconds > MOST {
            return Err(PyOverflowError::new_err("timeout value is too large"));
        }
        let span = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Ok(Instant::now()
            .checked_add(span)
            .map_or(Self::Forever, Self::Until))
    }

    /// `timeout` of an `Event`, a `Condition`, a `Semaphore` or a `Barrier`: None for ever; what is not above 0 is 0, but
    /// a NaN is an error where it is one for the standard classes.
    fn of_wait(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(timeout) = timeout else {
            return Ok(Self::Forever);
        };
        let seconds: f64 = timeout.extract()?;
        if seconds > 0.0 {
            Self::for_seconds(seconds)
        } else if seconds.is_nan() && timeout.py().version_info() >= (3, 14) {
            Err(not_a_number())
        } else {
            Ok(Self::None)
        }
    }

    /// `blocking` and `timeout` of a lock's `acquire`.
    fn of_lock(
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        if blocking.is_none() && timeout.is_none() {
            return Ok(Self::Forever);
        }
        let blocking = blocking.map_or(Ok(true), PyAnyMethods::is_truthy)?;
        let seconds: f64 = timeout.map_or(Ok(-1.0), PyAnyMethods::extract)?;
        if seconds.is_nan() {
            return Err(not_a_number());
        }
        #[allow(clippy::float_cmp)] // This very value means that there is none.
        let endless = seconds == -1.0;
        match (blocking, endless) {
            (true, true) => Ok(Self::Forever),
            (false, true) => Ok(Self::None),
            (false, false) => Err(PyValueError::new_err(
                "can't specify a timeout for a non-blocking call",
            )),
            (true, false) if seconds < 0.0 => Err(PyValueError::new_err(
                "timeout value must be a non-negative number",
            )),
            (true, false) => Self::for_seconds(seconds),
        }
    }

    fn deadline(self) -> Option<Instant> {
        match self {
            Self::None => Some(Instant::now()),
            Self::Until(deadline) => Some(deadline),
            Self::Forever => None,
        }
    }
}

/// Blocks until there is a unit; false if there was none in time. After an exception of a signal handler the caller has none.
/// `lock` is what the wait is said to be for while waits are watched.
fn acquire_unit(
    lock: &Bound<'_, PyAny>,
    semaphore: &semaphore::Semaphore,
    patience: Patience,
    interruptible: bool,
) -> PyResult<bool> {
    if matches!(patience, Patience::None) {
        return Ok(semaphore.try_acquire());
    }
    let py = lock.py();
    let _watched = Watched::begin(lock);
    let deadline = patience.deadline();
    let mut attempt = semaphore.acquire(thread_wake);
    loop {
        let waiter = match attempt {
            Attempt::Acquired => return Ok(true),
            Attempt::Waiting(waiter) => waiter,
        };
        match waiting::sleep_in_line(py, deadline, interruptible, || waiter.is_granted()) {
            Ok(true) => attempt = semaphore.settle(waiter, thread_wake),
            Ok(false) => return Ok(semaphore.leave(&waiter)),
            Err(error) => {
                if semaphore.leave(&waiter) {
                    // It was taken this instant, so there is room for it.
                    let _ = semaphore.release(1);
                }
                return Err(error);
            }
        }
    }
}

/// Whether threads that stand in line for a lock say so in [`WAITS`].
static WATCHING: AtomicBool = AtomicBool::new(false);
/// The threads that do, by their number. No Python code runs and no reference is dropped under this mutex.
static WAITS: Mutex<BTreeMap<u64, Wait>> = Mutex::new(BTreeMap::new());

struct Wait {
    lock: Py<PyAny>,
    since: Instant,
}

fn waits() -> MutexGuard<'static, BTreeMap<u64, Wait>> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread's entry in [`WAITS`]; dropping it takes it out.
struct Watched(u64);

impl Watched {
    fn begin(lock: &Bound<'_, PyAny>) -> Option<Self> {
        if !WATCHING.load(Ordering::Relaxed) {
            return None;
        }
        let thread = thread_ident();
        let wait = Wait {
            lock: lock.clone().unbind(),
            since: Instant::now(),
        };
        // A signal handler may wait while this thread waits: the inner wait is what holds it up.
        let replaced = waits().insert(thread, wait);
        drop(replaced);
        Some(Self(thread))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let wait = waits().remove(&self.0);
        drop(wait);
    }
}

/// Has threads that wait for a `Lock` or an `RLock` be seen by `lock_waits`, from now on, or not any more.
#[pyfunction]
pub fn watch_locks(on: bool) {
    WATCHING.store(on, Ordering::Relaxed);
    let forgotten = if on {
        BTreeMap::new()
    } else {
        std::mem::take(&mut *waits())
    };
    drop(forgotten);
}

/// The threads that wait now: each one's number, the lock, and for how many seconds.
#[pyfunction]
pub fn lock_waits(py: Python<'_>) -> Vec<(u64, Py<PyAny>, f64)> {
    waits()
        .iter()
        .map(|(thread, wait)| {
            let seconds = wait.since.elapsed().as_secs_f64();
            (*thread, wait.lock.clone_ref(py), seconds)
        })
        .collect()
}

/// The place in line of a coroutine.
#[pyclass(frozen, module = "plait._rust")]
pub struct Waiter(Place);

enum Place {
    Unit(Arc<UnitWaiter>),
    Plain(Arc<wait_queue::Waiter<()>>),
    Arrived(Arc<wait_queue::Waiter<Fate>>),
}

impl Waiter {
    fn unit(&self) -> PyResult<&Arc<UnitWaiter>> {
        match &self.0 {
            Place::Unit(waiter) => Ok(waiter),
            _ => Err(elsewhere()),
        }
    }

    fn plain(&self) -> PyResult<&Arc<wait_queue::Waiter<()>>> {
        match &self.0 {
            Place::Plain(waiter) => Ok(waiter),
            _ => Err(elsewhere()),
        }
    }

    fn arrived(&self) -> PyResult<&Arc<wait_queue::Waiter<Fate>>> {
        match &self.0 {
            Place::Arrived(waiter) => Ok(waiter),
            _ => Err(elsewhere()),
        }
    }
}

fn elsewhere() -> PyErr {
    PyRuntimeError::new_err(
        "this place in line is another lock's: give it back to the one it is of",
    )
}

/// What is awaited and is there already: `await` of it does not suspend.
#[pyclass(frozen, module = "plait._rust")]
pub struct Ready {
    value: Py<PyAny>,
}

impl Ready {
    fn none(py: Python<'_>) -> PyResult<Py<Self>> {
        static NONE: PyOnceLock<Py<Ready>> = PyOnceLock::new();
        NONE.get_or_try_init(py, || Py::new(py, Self { value: py.None() }))
            .map(|ready| ready.clone_ref(py))
    }
}

#[pymethods]
impl Ready {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<()> {
        Err(PyStopIteration::new_err(self.value.clone_ref(py)))
    }
}

/// `threading.Lock`, and ``async with``: a lock that any thread or coroutine may release, whoever acquired it.
///
/// ``acquire(blocking=True, timeout=-1)`` takes a timeout in seconds and returns whether it was acquired; ``release()`` raises
/// `RuntimeError` if it is not locked. Ctrl-C interrupts a wait. Safe to use from any thread and any event loop.
#[pyclass(frozen, weakref, module = "plait")]
pub struct Lock {
    unit: semaphore::Semaphore,
    /// Who acquired it last: a thread's number, or what [`Lock::_set_holder`] was told. For reports only.
    holder: AtomicU64,
}

impl Lock {
    fn let_go(&self) -> PyResult<()> {
        self.unit
            .release(1)
            .map_err(|_| PyRuntimeError::new_err("release unlocked lock"))
    }

    fn take(slf: &Bound<'_, Self>, patience: Patience) -> PyResult<bool> {
        let this = slf.get();
        let acquired =
            this.unit.try_acquire() || acquire_unit(slf.as_any(), &this.unit, patience, true)?;
        if acquired {
            this.holder.store(thread_ident(), Ordering::Relaxed);
        }
        Ok(acquired)
    }
}

#[pymethods]
impl Lock {
    #[new]
    fn new() -> Self {
        Self {
            unit: semaphore::Semaphore::default(),
            holder: AtomicU64::new(0),
        }
    }

    #[pyo3(signature = (blocking = None, timeout = None), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire(
        slf: &Bound<'_, Self>,
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        Self::take(slf, Patience::of_lock(blocking, timeout)?)
    }

    #[pyo3(signature = (blocking = None, timeout = None), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire_lock(
        slf: &Bound<'_, Self>,
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        Self::acquire(slf, blocking, timeout)
    }

    fn release(&self) -> PyResult<()> {
        self.let_go()
    }

    fn release_lock(&self) -> PyResult<()> {
        self.let_go()
    }

    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::take(slf, Patience::Forever)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.let_go()
    }

    fn locked(&self) -> bool {
        self.unit.free() == 0
    }

    fn locked_lock(&self) -> bool {
        self.locked()
    }

    fn _at_fork_reinit(&self) {
        self.unit.reset(1, 1);
    }

    /// Acquires it, from a coroutine, and returns True. If the coroutine is cancelled, the lock stays as it was.
    fn acquire_async<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        in_line(slf.py())?.call_method1(intern!(slf.py(), "acquire"), (slf,))
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        if !WATCHING.load(Ordering::Relaxed) && this.unit.try_acquire() {
            this.holder.store(thread_ident(), Ordering::Relaxed);
            return Ok(Ready::none(py)?.into_bound(py).into_any());
        }
        in_line(py)?.call_method1(intern!(py, "enter"), (slf,))
    }

    fn __aexit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Py<Ready>> {
        self.let_go()?;
        Ready::none(py)
    }

    fn _join(&self, bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Option<Waiter> {
        place(self.unit.acquire(|| future_wake(bell, future)))
    }

    fn _settle(
        &self,
        waiter: &Waiter,
        bell: &Bound<'_, LoopBell>,
        future: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Waiter>> {
        let waiter = Arc::clone(waiter.unit()?);
        Ok(place(
            self.unit.settle(waiter, || future_wake(bell, future)),
        ))
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<bool> {
        Ok(self.unit.leave(waiter.unit()?))
    }

    /// Who has it: the number of a thread, or what `_set_holder` was told. None if nobody.
    fn _holder(&self) -> Option<u64> {
        self.locked().then(|| self.holder.load(Ordering::Relaxed))
    }

    fn _set_holder(&self, holder: u64) {
        self.holder.store(holder, Ordering::Relaxed);
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let state = if slf.get().locked() {
            "locked"
        } else {
            "unlocked"
        };
        format!(
            "<{state} plait.Lock object at {:#x}>",
            slf.as_ptr() as usize
        )
    }

    #[allow(clippy::unused_self)]
    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err("cannot pickle 'plait.Lock' object"))
    }
}

/// What a coroutine does that has to wait: `plait._in_line`.
fn in_line(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    MODULE
        .get_or_try_init(py, || py.import("plait._in_line").map(Bound::unbind))
        .map(|module| module.bind(py))
}

fn place(attempt: Attempt) -> Option<Waiter> {
    match attempt {
        Attempt::Acquired => None,
        Attempt::Waiting(waiter) => Some(Waiter(Place::Unit(waiter))),
    }
}

/// `threading.RLock`: a lock that the thread that has it may acquire again.
///
/// It belongs to a thread, so coroutines, which share one, cannot use it: take a `Lock` there.
#[pyclass(frozen, subclass, weakref, module = "plait.threading")]
pub struct RLock {
    core: rlock::RLock,
}

impl RLock {
    fn take(slf: &Bound<'_, Self>, patience: Patience) -> PyResult<bool> {
        let core = &slf.get().core;
        let caller = thread_ident();
        if core.try_acquire(caller) {
            return Ok(true);
        }
        let acquired = acquire_unit(slf.as_any(), core.unit(), patience, true)?;
        if acquired {
            core.own(caller, 1);
        }
        Ok(acquired)
    }

    fn let_go(&self) -> PyResult<()> {
        self.core.release(thread_ident()).map_err(|_| not_owned())
    }

    fn let_go_of_all(&self) -> PyResult<u64> {
        self.core
            .release_all(thread_ident())
            .map_err(|_| not_owned())
    }

    /// Not interruptible: whoever waited for a condition has to have its lock again.
    fn take_again(slf: &Bound<'_, Self>, depth: u64) -> PyResult<()> {
        let core = &slf.get().core;
        acquire_unit(slf.as_any(), core.unit(), Patience::Forever, false)?;
        core.own(thread_ident(), depth);
        Ok(())
    }

    fn is_owned(&self) -> bool {
        self.core.is_owned_by(thread_ident())
    }
}

fn not_owned() -> PyErr {
    PyRuntimeError::new_err("cannot release un-acquired lock")
}

#[pymethods]
impl RLock {
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let py = args.py();
        let nothing = args.is_empty() && kwargs.is_none_or(PyDictMethods::is_empty);
        if !nothing && py.version_info() >= (3, 13) {
            let message = c"Passing arguments to RLock is deprecated and will be removed in 3.15";
            PyErr::warn(py, &py.get_type::<PyDeprecationWarning>(), message, 1)?;
        }
        Ok(Self {
            core: rlock::RLock::new(),
        })
    }

    #[pyo3(signature = (blocking = None, timeout = None), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire(
        slf: &Bound<'_, Self>,
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        Self::take(slf, Patience::of_lock(blocking, timeout)?)
    }

    fn release(&self) -> PyResult<()> {
        self.let_go()
    }

    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<bool> {
        Self::take(slf, Patience::Forever)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.let_go()
    }

    fn locked(&self) -> bool {
        self.core.owner().is_some()
    }

    fn _is_owned(&self) -> bool {
        self.is_owned()
    }

    fn _recursion_count(&self) -> u64 {
        if self.is_owned() {
            self.core.depth()
        } else {
            0
        }
    }

    fn _release_save(&self) -> PyResult<(u64, u64)> {
        Ok((self.let_go_of_all()?, thread_ident()))
    }

    fn _acquire_restore(slf: &Bound<'_, Self>, state: (u64, u64)) -> PyResult<()> {
        Self::take_again(slf, state.0)
    }

    fn _at_fork_reinit(&self) {
        self.core.reset();
    }

    /// The number of the thread that has it; None if nobody.
    fn _holder(&self) -> Option<u64> {
        self.core.owner()
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let core = &slf.get().core;
        let (owner, depth) = (core.owner(), core.depth());
        let state = if owner.is_some() {
            "locked"
        } else {
            "unlocked"
        };
        let kind = slf.get_type().fully_qualified_name()?;
        let (owner, at) = (owner.unwrap_or(0), slf.as_ptr() as usize);
        Ok(format!(
            "<{state} {kind} object owner={owner} count={depth} at {at:#x}>"
        ))
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<()> {
        let kind = slf.get_type().fully_qualified_name()?;
        Err(PyTypeError::new_err(format!(
            "cannot pickle '{kind}' object"
        )))
    }
}

/// A counter of free units.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct Semaphore {
    units: semaphore::Semaphore,
}

impl Semaphore {
    fn give(&self, count: u64) -> PyResult<()> {
        self.units
            .release(count)
            .map_err(|_| PyValueError::new_err("Semaphore released too many times"))
    }

    fn wait_for_unit(slf: &Bound<'_, Self>, patience: Patience) -> PyResult<bool> {
        acquire_unit(slf.as_any(), &slf.get().units, patience, true)
    }
}

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            units: semaphore::Semaphore::new(1, NO_BOUND),
        }
    }

    /// By the constructor: how many units are free, and whether there can ever be more of them.
    fn _begin(&self, value: u64, bounded: bool) {
        let bound = if bounded { value } else { NO_BOUND };
        self.units.reset(value, bound);
    }

    #[pyo3(signature = (blocking = None, timeout = None), text_signature = "($self, blocking=True, timeout=None)")]
    fn acquire(
        slf: &Bound<'_, Self>,
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let blocking = blocking.map_or(Ok(true), PyAnyMethods::is_truthy)?;
        if !blocking && timeout.is_some() {
            return Err(PyValueError::new_err(
                "can't specify timeout for non-blocking acquire",
            ));
        }
        if slf.get().units.try_acquire() {
            return Ok(true);
        }
        if !blocking {
            return Ok(false);
        }
        Self::wait_for_unit(slf, Patience::of_wait(timeout)?)
    }

    #[pyo3(signature = (n = 1))]
    fn release(&self, n: i64) -> PyResult<()> {
        match u64::try_from(n) {
            Ok(count) if count > 0 => self.give(count),
            _ => Err(PyValueError::new_err("n must be one or more")),
        }
    }

    fn __enter__(slf: &Bound<'_, Self>) -> PyResult<bool> {
        if slf.get().units.try_acquire() {
            return Ok(true);
        }
        Self::wait_for_unit(slf, Patience::Forever)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.give(1)
    }

    #[getter]
    fn _value(&self) -> u64 {
        self.units.free()
    }

    #[getter]
    fn _initial_value(&self) -> u64 {
        self.units.bound()
    }

    fn _at_fork_reinit(&self) {
        self.units.reset(self.units.free(), self.units.bound());
    }

    /// Takes a unit, from a coroutine, and returns True. If the coroutine is cancelled, it has taken none.
    fn acquire_async<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        in_line(slf.py())?.call_method1(intern!(slf.py(), "acquire"), (slf,))
    }

    fn __aenter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if slf.get().units.try_acquire() {
            return Ok(Ready::none(py)?.into_bound(py).into_any());
        }
        in_line(py)?.call_method1(intern!(py, "enter"), (slf,))
    }

    fn __aexit__(
        &self,
        py: Python<'_>,
        _type: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<Py<Ready>> {
        self.give(1)?;
        Ready::none(py)
    }

    fn _join(&self, bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Option<Waiter> {
        place(self.units.acquire(|| future_wake(bell, future)))
    }

    fn _settle(
        &self,
        waiter: &Waiter,
        bell: &Bound<'_, LoopBell>,
        future: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Waiter>> {
        let waiter = Arc::clone(waiter.unit()?);
        Ok(place(
            self.units.settle(waiter, || future_wake(bell, future)),
        ))
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<bool> {
        Ok(self.units.leave(waiter.unit()?))
    }
}

/// A flag to wait for.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct Event {
    core: event::Event,
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            core: event::Event::new(),
        }
    }

    fn is_set(&self) -> bool {
        self.core.is_set()
    }

    fn set(&self) {
        self.core.set();
    }

    fn clear(&self) {
        self.core.clear();
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        if self.core.is_set() {
            return Ok(true);
        }
        let patience = Patience::of_wait(timeout)?;
        if matches!(patience, Patience::None) {
            return Ok(self.core.is_set());
        }
        let Some(waiter) = self.core.wait(thread_wake) else {
            return Ok(true);
        };
        let deadline = patience.deadline();
        let outcome = waiting::sleep_in_line(py, deadline, true, || waiter.is_granted());
        if matches!(outcome, Ok(true)) {
            return Ok(true);
        }
        let set = self.core.leave(&waiter);
        outcome.map(|_| set)
    }

    #[getter]
    fn _flag(&self) -> bool {
        self.core.is_set()
    }

    fn _at_fork_reinit(&self) {
        self.core.forget_waiters();
    }

    fn _join(&self, bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Option<Waiter> {
        let waiter = self.core.wait(|| future_wake(bell, future))?;
        Some(Waiter(Place::Plain(waiter)))
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<bool> {
        Ok(self.core.leave(waiter.plain()?))
    }
}

/// The lock of a condition, by what it can be asked for.
enum Guard {
    RLock(Py<RLock>),
    Lock(Py<Lock>),
    Other(Py<PyAny>),
}

impl Guard {
    fn of(lock: &Bound<'_, PyAny>) -> Self {
        // Not of a class that derives from these: that may do something else.
        if let Ok(lock) = lock.cast_exact::<RLock>() {
            return Self::RLock(lock.clone().unbind());
        }
        if let Ok(lock) = lock.cast_exact::<Lock>() {
            return Self::Lock(lock.clone().unbind());
        }
        Self::Other(lock.clone().unbind())
    }
}

/// What a waiter for a condition remembers of the lock that it let go of.
enum Saved {
    Depth(u64),
    Nothing,
    Other(Py<PyAny>),
}

/// A condition variable.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct Condition {
    line: condition::Condition,
    guard: OnceLock<Guard>,
}

impl Condition {
    fn guard(&self) -> PyResult<&Guard> {
        self.guard
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("Condition.__init__() was not called"))
    }

    fn is_owned(&self, py: Python<'_>) -> PyResult<bool> {
        match self.guard()? {
            Guard::RLock(lock) => Ok(lock.get().is_owned()),
            Guard::Lock(lock) => Ok(lock.get().unit.free() == 0),
            Guard::Other(lock) => {
                let lock = lock.bind(py);
                if let Some(is_owned) = lock.getattr_opt(intern!(py, "_is_owned"))? {
                    return is_owned.call0()?.is_truthy();
                }
                // As the standard class: nobody can take a lock that is held.
                if lock
                    .call_method1(intern!(py, "acquire"), (false,))?
                    .is_truthy()?
                {
                    lock.call_method0(intern!(py, "release"))?;
                    return Ok(false);
                }
                Ok(true)
            }
        }
    }

    fn let_go(&self, py: Python<'_>) -> PyResult<Saved> {
        match self.guard()? {
            Guard::RLock(lock) => lock.get().let_go_of_all().map(Saved::Depth),
            Guard::Lock(lock) => lock.get().let_go().map(|()| Saved::Nothing),
            Guard::Other(lock) => {
                let lock = lock.bind(py);
                match lock.getattr_opt(intern!(py, "_release_save"))? {
                    Some(release) => Ok(Saved::Other(release.call0()?.unbind())),
                    None => lock
                        .call_method0(intern!(py, "release"))
                        .map(|_| Saved::Nothing),
                }
            }
        }
    }

    fn take_again(&self, py: Python<'_>, saved: Saved) -> PyResult<()> {
        match (self.guard()?, saved) {
            (Guard::RLock(lock), Saved::Depth(depth)) => RLock::take_again(lock.bind(py), depth),
            (Guard::Lock(lock), _) => Lock::take(lock.bind(py), Patience::Forever).map(drop),
            (Guard::Other(lock), Saved::Other(state)) => lock
                .call_method1(py, intern!(py, "_acquire_restore"), (state,))
                .map(drop),
            (Guard::Other(lock), _) => lock.call_method0(py, intern!(py, "acquire")).map(drop),
            (Guard::RLock(lock), _) => RLock::take_again(lock.bind(py), 1),
        }
    }

    fn notify_some(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        if !self.is_owned(py)? {
            return Err(PyRuntimeError::new_err("cannot notify on un-acquired lock"));
        }
        self.line.notify(count);
        Ok(())
    }

    fn lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self.guard()? {
            Guard::RLock(lock) => lock.bind(py).as_any().clone(),
            Guard::Lock(lock) => lock.bind(py).as_any().clone(),
            Guard::Other(lock) => lock.bind(py).clone(),
        })
    }
}

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            line: condition::Condition::new(),
            guard: OnceLock::new(),
        }
    }

    /// By the constructor: the lock. The first one stays.
    fn _begin(&self, lock: &Bound<'_, PyAny>) {
        let _ = self.guard.set(Guard::of(lock));
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock(py)
    }

    /// The lock's own method, as in the standard class.
    #[getter]
    fn acquire<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock(py)?.getattr(intern!(py, "acquire"))
    }

    /// The lock's own method, as in the standard class.
    #[getter]
    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.lock(py)?.getattr(intern!(py, "release"))
    }

    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let entered = match self.guard()? {
            Guard::RLock(lock) => RLock::take(lock.bind(py), Patience::Forever)?,
            Guard::Lock(lock) => Lock::take(lock.bind(py), Patience::Forever)?,
            Guard::Other(lock) => return lock.bind(py).call_method0(intern!(py, "__enter__")),
        };
        Ok(entered.into_pyobject(py)?.to_owned().into_any())
    }

    fn __exit__<'py>(
        &self,
        py: Python<'py>,
        r#type: &Bound<'py, PyAny>,
        value: &Bound<'py, PyAny>,
        traceback: &Bound<'py, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        match self.guard()? {
            Guard::RLock(lock) => lock.get().let_go()?,
            Guard::Lock(lock) => lock.get().let_go()?,
            Guard::Other(lock) => {
                return lock.call_method1(py, intern!(py, "__exit__"), (r#type, value, traceback));
            }
        }
        Ok(py.None())
    }

    fn _is_owned(&self, py: Python<'_>) -> PyResult<bool> {
        self.is_owned(py)
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        if !self.is_owned(py)? {
            return Err(PyRuntimeError::new_err("cannot wait on un-acquired lock"));
        }
        let patience = Patience::of_wait(timeout)?;
        let waiter = self.line.wait(thread_wake());
        let saved = match self.let_go(py) {
            Ok(saved) => saved,
            Err(error) => {
                self.line.leave(&waiter);
                return Err(error);
            }
        };
        let deadline = patience.deadline();
        let mut outcome = waiting::sleep_in_line(py, deadline, true, || waiter.is_granted());
        if !matches!(outcome, Ok(true)) && self.line.leave(&waiter) {
            match &mut outcome {
                Ok(notified) => *notified = true,
                // Somebody else may make use of it.
                Err(_) => self.line.notify(1),
            }
        }
        let again = self.take_again(py, saved);
        outcome.and_then(|notified| again.map(|()| notified))
    }

    #[pyo3(signature = (n = 1))]
    fn notify(&self, py: Python<'_>, n: i64) -> PyResult<()> {
        self.notify_some(py, usize::try_from(n).unwrap_or(0))
    }

    fn notify_all(&self, py: Python<'_>) -> PyResult<()> {
        self.notify_some(py, usize::MAX)
    }

    fn _waiting(&self) -> usize {
        self.line.waiting()
    }

    fn _at_fork_reinit(&self, py: Python<'_>) -> PyResult<()> {
        self.lock(py)?
            .call_method0(intern!(py, "_at_fork_reinit"))?;
        self.line.forget_waiters();
        Ok(())
    }

    fn _join(&self, bell: &Bound<'_, LoopBell>, future: &Bound<'_, PyAny>) -> Waiter {
        Waiter(Place::Plain(self.line.wait(future_wake(bell, future))))
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<bool> {
        Ok(self.line.leave(waiter.plain()?))
    }

    /// Notifies one instead of one that was notified and gave up.
    fn _pass_on(&self) {
        self.line.notify(1);
    }
}

/// Where parties wait for each other.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct Barrier {
    core: barrier::Barrier,
}

#[pymethods]
impl Barrier {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            core: barrier::Barrier::new(1),
        }
    }

    /// By the constructor: the number of parties.
    fn _begin(&self, parties: usize) {
        self.core.set_parties(parties);
    }

    /// Arrives and waits: the index, and whether this is the last one, which has to `_open`. None if it is broken.
    #[pyo3(signature = (timeout))]
    fn _arrive(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<(usize, bool)>> {
        let patience = Patience::of_wait(timeout)?;
        let deadline = patience.deadline();
        loop {
            let (index, waiter) = match self.core.arrive(thread_wake) {
                Arrival::Broken => return Ok(None),
                Arrival::Last(index) => return Ok(Some((index, true))),
                Arrival::Waiting { index, waiter } => (index, waiter),
            };
            // The time does not count at the gate, where somebody's action is under way.
            let mut until = index.and(deadline);
            let fate = loop {
                match waiting::sleep_in_line(py, until, true, || waiter.is_granted()) {
                    Ok(true) => break waiter.take(),
                    Ok(false) => match self.core.time_out(&waiter) {
                        TimedOut::Decided(fate) => break Some(fate),
                        TimedOut::TooLate => until = None,
                    },
                    Err(error) => {
                        self.core.leave(&waiter);
                        return Err(error);
                    }
                }
            };
            match fate {
                Some(Fate::Passed) => return Ok(index.map(|index| (index, false))),
                Some(Fate::Again) => {}
                Some(Fate::Broken) | None => return Ok(None),
            }
        }
    }

    fn _open(&self, succeeded: bool) {
        self.core.open(succeeded);
    }

    fn reset(&self) {
        self.core.reset();
    }

    fn abort(&self) {
        self.core.abort();
    }

    #[getter]
    fn parties(&self) -> usize {
        self.core.parties()
    }

    #[getter]
    fn n_waiting(&self) -> usize {
        self.core.waiting()
    }

    #[getter]
    fn broken(&self) -> bool {
        self.core.is_broken()
    }

    /// As `_arrive` for a coroutine: the index and its place in line, if it has to wait; `(index, None)` if it is the last.
    fn _join(
        &self,
        bell: &Bound<'_, LoopBell>,
        future: &Bound<'_, PyAny>,
    ) -> Option<(Option<usize>, Option<Waiter>)> {
        match self.core.arrive(|| future_wake(bell, future)) {
            Arrival::Broken => None,
            Arrival::Last(index) => Some((Some(index), None)),
            Arrival::Waiting { index, waiter } => {
                Some((index, Some(Waiter(Place::Arrived(waiter)))))
            }
        }
    }

    /// What became of one that waited and was woken: "passed", "again" or "broken".
    #[allow(clippy::unused_self)] // Called on the barrier like all the rest.
    fn _fate(&self, waiter: &Waiter) -> PyResult<&'static str> {
        Ok(match waiter.arrived()?.take() {
            Some(Fate::Passed) => "passed",
            Some(Fate::Again) => "again",
            Some(Fate::Broken) | None => "broken",
        })
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<()> {
        self.core.leave(waiter.arrived()?);
        Ok(())
    }
}
