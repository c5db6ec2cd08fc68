//! `_rust.Future`: the state of one job and everything that waits for it. The Python class
//! `plait.future.Future` derives from this and from `concurrent.futures.Future`.
//!
//! # Who holds what
//!
//! The standard class guards all of its state with one `threading.Condition`, and `wait`, `as_completed` and
//! others reach for that condition, for the list of waiters and for the state. Most futures never meet such
//! code, so here those objects (the [`StandardView`]) are made when somebody first asks for one of them.
//!
//! * The state is an atomic. `PENDING -> RUNNING` is a compare-and-swap that needs neither lock nor interpreter.
//! * Every other transition is made while holding `cell`, a small mutex; whoever loses sees the new state.
//! * Once the standard view exists, every such transition is made while *also* holding its condition, taken
//!   first ([`Future::transition`]). The view is published under `cell`, so a transition either came before
//!   it (and whoever asked for the view then reads the new state) or sees it and takes the condition. Hence code
//!   that holds `_condition` can trust what it reads in `_state` and append to `_waiters`, as with the
//!   standard class, and nothing is lost.
//! * `cell` is only ever held by attached threads, for a few loads and stores: no Python code runs, nothing is
//!   allocated by Python and no reference is dropped under it. So the garbage collector and `fork`, which
//!   happen at points where Python code could run, never find it held, and it cannot deadlock with the GIL.
//! * Threads in `result()` park on the Rust side. A transition to a final state takes their wakers out of
//!   `cell` and wakes them afterwards, in [`Wake::now`] or when the caller of [`Future::resolve_later`] likes.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use plait_sync::parker::Unparker;
use pyo3::exceptions::{PyException, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyType};

use crate::callback::raise;
use crate::waiting::{self, Wake};

/// Queued: nobody has begun to work on it.
const PENDING: u8 = 0;
/// A worker has begun.
const RUNNING: u8 = 1;
/// Cancelled before it began; whoever waits in `wait` or `as_completed` has not been told yet.
const CANCELLED: u8 = 2;
/// Cancelled, and everybody has been told.
const CANCELLED_AND_NOTIFIED: u8 = 3;
/// There is a result or an exception.
const FINISHED: u8 = 4;

/// One job's outcome to come. See the module's documentation.
#[pyclass(frozen, subclass, weakref, module = "plait._rust")]
pub struct Future {
    state: AtomicU8,
    cell: Mutex<Cell>,
    helper: OnceLock<Helper>,
}

/// Who can do something about a future, and the number by which they know its job.
struct Helper {
    help: Arc<dyn Help>,
    job: u64,
}

/// What can be done about a future besides waiting for it.
pub trait Help: Send + Sync {
    /// What a thread that is about to sleep for the future does instead, for a moment, to bring its end about.
    ///
    /// Returns soon, whether the future is done or not. Must not run callbacks: the waiting thread may hold locks.
    fn help(&self, future: &Bound<'_, Future>);

    /// Cancels the future, whose job was begun; false if that cannot be, or if the job has ended.
    fn cancel(&self, future: &Bound<'_, Future>, job: u64) -> bool {
        let _ = (future, job);
        false
    }

    /// What lets an event loop hear of the future's end by itself, if anything does: a `_rust.Listener`.
    fn listener(&self) -> Option<&Py<PyAny>> {
        None
    }
}

#[derive(Default)]
struct Cell {
    result: Option<Py<PyAny>>,
    exception: Option<Py<PyAny>>,
    /// Done-callbacks in order; only while there is no standard view, which then has them.
    callbacks: Vec<Py<PyAny>>,
    /// The threads in `result()` or `exception()`.
    parked: Vec<Unparker>,
    standard: Option<StandardView>,
    /// Somebody assigned `_state`, presumably holding `_condition`: readers take the condition too.
    assigned: bool,
}

/// The attributes of the standard class that other code reaches for.
struct StandardView {
    condition: Py<PyAny>,
    waiters: Py<PyAny>,
    callbacks: Py<PyAny>,
}

impl StandardView {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            condition: self.condition.clone_ref(py),
            waiters: self.waiters.clone_ref(py),
            callbacks: self.callbacks.clone_ref(py),
        }
    }
}

/// The standard view with its condition held; dropping it lets go.
struct Held<'py> {
    py: Python<'py>,
    view: StandardView,
}

impl<'py> Held<'py> {
    fn acquire(py: Python<'py>, view: StandardView) -> PyResult<Self> {
        view.condition.call_method0(py, intern!(py, "acquire"))?;
        Ok(Self { py, view })
    }

    /// Tells everybody in `condition.wait()`, and every waiter by the method `verb`. All are told even if one
    /// fails; the first failure is returned.
    fn notify(&self, future: &Bound<'py, Future>, verb: Option<&str>) -> PyResult<()> {
        let mut outcome = Ok(());
        if let Some(verb) = verb {
            match self.view.waiters.bind(self.py).try_iter() {
                Ok(waiters) => {
                    for waiter in waiters {
                        outcome = outcome
                            .and(waiter.and_then(|w| w.call_method1(verb, (future,)).map(drop)));
                    }
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome.and(
            self.view
                .condition
                .call_method0(self.py, intern!(self.py, "notify_all"))
                .map(drop),
        )
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = self
            .view
            .condition
            .call_method0(self.py, intern!(self.py, "release"))
        {
            error.write_unraisable(self.py, None);
        }
    }
}

/// What a transition to a final state leaves to be done once `cell` is free.
struct Finished {
    parked: Vec<Unparker>,
    callbacks: Vec<Py<PyAny>>,
    /// What `_result` or `_exception` held before, to be dropped without the lock.
    _replaced: Option<Py<PyAny>>,
}

fn is_final(state: u8) -> bool {
    matches!(state, CANCELLED | CANCELLED_AND_NOTIFIED | FINISHED)
}

fn state_name(state: u8) -> &'static str {
    match state {
        PENDING => "PENDING",
        RUNNING => "RUNNING",
        CANCELLED => "CANCELLED",
        CANCELLED_AND_NOTIFIED => "CANCELLED_AND_NOTIFIED",
        _ => "FINISHED",
    }
}

impl Future {
    /// A new pending future of the class `future_type`, which derives from this one.
    pub fn create<'py>(
        py: Python<'py>,
        future_type: &Bound<'py, PyType>,
    ) -> PyResult<Bound<'py, Future>> {
        let _ = py;
        Ok(future_type.call0()?.cast_into::<Future>()?)
    }

    /// `PENDING -> RUNNING`; false if it was cancelled (or began already). Needs no interpreter.
    pub fn try_start(&self) -> bool {
        self.state
            .compare_exchange(PENDING, RUNNING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Whether there is a result, an exception or a cancellation. Needs no interpreter.
    pub fn is_done(&self) -> bool {
        is_final(self.state())
    }

    /// Sets the result (`Ok`) or the exception (`Err`), wakes whoever waits and runs the callbacks, whose failures are
    /// logged. Nothing happens if the future is done already.
    pub fn resolve(slf: &Bound<'_, Self>, outcome: Result<Py<PyAny>, Py<PyAny>>) {
        Self::resolve_later(slf, outcome).now();
    }

    /// As [`Future::resolve`], but leaves the waking of threads in `result()` to the caller if there is no Python code to
    /// run, so that they can be woken when the interpreter is free.
    pub fn resolve_later(slf: &Bound<'_, Self>, outcome: Result<Py<PyAny>, Py<PyAny>>) -> Wake {
        match Self::finish(slf, outcome) {
            Ok(Ok(wake)) => wake,
            Ok(Err(_)) => Wake::default(),
            Err(error) => {
                log(
                    slf.py(),
                    "critical",
                    "Exception in a done-callback",
                    &[],
                    &error,
                );
                Wake::default()
            }
        }
    }

    /// Lets whoever waits for this future help to bring its end about, and cancel it. The first helper stays.
    pub fn set_helper(&self, help: Arc<dyn Help>, job: u64) {
        // A second one would be a mistake of ours that costs nothing.
        let _ = self.helper.set(Helper { help, job });
    }

    /// Whether resolving it would run nothing but the wake-up of threads in `result()`.
    pub fn is_plain(&self) -> bool {
        let cell = self.cell();
        cell.standard.is_none() && cell.callbacks.is_empty()
    }

    /// Tells `wait` and `as_completed` about a cancelled future; nothing happens if it is not cancelled.
    pub fn notify_cancelled(slf: &Bound<'_, Self>) {
        if let Err(error) = Self::tell_cancelled(slf) {
            error.write_unraisable(slf.py(), Some(slf.as_any()));
        }
    }

    /// Cancels a future whose job was started and given back without having been run to its end: a pool that is shut
    /// down has to give up such jobs, while a caller cannot cancel them.
    pub fn give_up(slf: &Bound<'_, Self>) {
        let _ =
            slf.get()
                .state
                .compare_exchange(RUNNING, PENDING, Ordering::AcqRel, Ordering::Acquire);
        if let Err(error) = Self::cancel(slf) {
            error.write_unraisable(slf.py(), Some(slf.as_any()));
        }
        Self::notify_cancelled(slf);
    }

    /// In the child of a fork, for a job that only the parent can run: nobody may wait for it. Takes no condition, which
    /// another thread may have held at the fork, and runs no callbacks, which are the parent's.
    pub fn abandon(&self) {
        for state in [PENDING, RUNNING, CANCELLED] {
            let _ = self.state.compare_exchange(
                state,
                CANCELLED_AND_NOTIFIED,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Nothing in a critical section can panic half-way, so a poisoned lock is a good lock.
    fn cell(&self) -> MutexGuard<'_, Cell> {
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` under `cell` and, if there is a standard view, under its condition, which is returned held.
    /// `change` must not run Python code or drop references.
    fn transition<'py, R>(
        slf: &Bound<'py, Self>,
        change: impl FnOnce(&AtomicU8, &mut Cell) -> R,
    ) -> PyResult<(R, Option<Held<'py>>)> {
        let py = slf.py();
        let this = slf.get();
        let mut held: Option<Held<'py>> = None;
        loop {
            let mut cell = this.cell();
            let view = match &cell.standard {
                Some(view)
                    if !held
                        .as_ref()
                        .is_some_and(|h| h.view.condition.is(&view.condition)) =>
                {
                    view.clone_ref(py)
                }
                _ => {
                    let outcome = change(&this.state, &mut cell);
                    drop(cell);
                    return Ok((outcome, held));
                }
            };
            drop(cell);
            drop(held.take());
            held = Some(Held::acquire(py, view)?);
        }
    }

    /// The standard view, made now if nobody has asked before.
    fn standard(slf: &Bound<'_, Self>) -> PyResult<StandardView> {
        static CONDITION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        let this = slf.get();
        if let Some(view) = &this.cell().standard {
            return Ok(view.clone_ref(py));
        }
        let condition = CONDITION.import(py, "threading", "Condition")?.call0()?;
        let callbacks = PyList::empty(py);
        let view = StandardView {
            condition: condition.unbind(),
            waiters: PyList::empty(py).into_any().unbind(),
            callbacks: callbacks.clone().into_any().unbind(),
        };
        // Held while it is published, so that nobody runs the callbacks before they are in the list.
        let held = Held::acquire(py, view.clone_ref(py))?;
        let native = {
            let mut cell = this.cell();
            if let Some(other) = &cell.standard {
                let other = other.clone_ref(py);
                drop(cell);
                return Ok(other);
            }
            cell.standard = Some(view.clone_ref(py));
            std::mem::take(&mut cell.callbacks)
        };
        for callback in native {
            callbacks.append(callback)?;
        }
        drop(held);
        Ok(view)
    }

    /// Sets the outcome. `Ok(Err(state))` if there is one already: the state's name.
    fn finish(
        slf: &Bound<'_, Self>,
        outcome: Result<Py<PyAny>, Py<PyAny>>,
    ) -> PyResult<Result<Wake, &'static str>> {
        let verb = if outcome.is_ok() {
            "add_result"
        } else {
            "add_exception"
        };
        let py = slf.py();
        let mut outcome = Some(outcome);
        let (finished, held) = Self::transition(slf, |state, cell| {
            let seen = state.load(Ordering::Acquire);
            if is_final(seen) {
                return Err(state_name(seen));
            }
            let replaced = match outcome.take() {
                Some(Ok(result)) => cell.result.replace(result),
                // As in the standard class: `set_exception(None)` finishes the future without an exception.
                Some(Err(exception)) if exception.is_none(py) => None,
                Some(Err(exception)) => cell.exception.replace(exception),
                None => None,
            };
            state.store(FINISHED, Ordering::Release);
            Ok(Finished {
                parked: std::mem::take(&mut cell.parked),
                callbacks: std::mem::take(&mut cell.callbacks),
                _replaced: replaced,
            })
        })?;
        match finished {
            Ok(finished) => Self::conclude(slf, finished, held, Some(verb)).map(Ok),
            Err(state) => Ok(Err(state)),
        }
    }

    /// After a transition to a final state: tells everybody, in the order of the standard class.
    fn conclude<'py>(
        slf: &Bound<'py, Self>,
        finished: Finished,
        held: Option<Held<'py>>,
        verb: Option<&str>,
    ) -> PyResult<Wake> {
        let py = slf.py();
        let mut wake = Wake::new(finished.parked);
        if held.is_none() && finished.callbacks.is_empty() {
            return Ok(wake);
        }
        wake.now();
        let mut told = Ok(());
        let mut listed = None;
        if let Some(held) = held {
            told = held.notify(slf, verb);
            listed = Some(held.view.callbacks.clone_ref(py));
        }
        for callback in finished.callbacks {
            run_callback(slf, callback.bind(py))?;
        }
        if let Some(listed) = listed {
            for callback in listed.bind(py).try_iter()? {
                run_callback(slf, &callback?)?;
            }
        }
        told.map(|()| wake)
    }

    /// `CANCELLED -> CANCELLED_AND_NOTIFIED`, and tells the waiters; false if it was not in that state.
    fn tell_cancelled(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let (changed, held) = Self::transition(slf, |state, _| {
            state
                .compare_exchange(
                    CANCELLED,
                    CANCELLED_AND_NOTIFIED,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                )
                .is_ok()
        })?;
        match held {
            Some(held) if changed => held.notify(slf, Some("add_cancelled")).map(|()| true),
            _ => Ok(changed),
        }
    }

    /// Sleeps until the future is done; false if `deadline` came first. Signals are seen to on the main thread.
    fn wait(&self, py: Python<'_>, deadline: Option<Instant>) -> PyResult<bool> {
        let waker = waiting::waker();
        {
            let mut cell = self.cell();
            if self.is_done() {
                return Ok(true);
            }
            cell.parked.push(waker.clone());
        }
        let outcome = waiting::sleep(py, deadline, || self.is_done());
        if !self.is_done() {
            self.cell().parked.retain(|other| !other.is_same(&waker));
        }
        outcome
    }

    /// Waits for the end, then hands `cell` to `read`; raises `CancelledError` or `TimeoutError`.
    fn read_when_done<R>(
        slf: &Bound<'_, Self>,
        timeout: Option<&Bound<'_, PyAny>>,
        read: impl Fn(&Cell) -> R,
    ) -> PyResult<R> {
        let py = slf.py();
        let this = slf.get();
        let mut deadline = None;
        loop {
            if !this.is_done() {
                let deadline = match deadline {
                    Some(known) => known,
                    None => *deadline.insert(waiting::to_deadline(timeout)?),
                };
                if let Some(helper) = this.helper.get() {
                    helper.help.help(slf);
                }
                if !this.wait(py, deadline)? {
                    return Err(PyTimeoutError::new_err(()));
                }
            }
            let cell = this.cell();
            let view = if cell.assigned {
                cell.standard.as_ref()
            } else {
                None
            };
            if let Some(view) = view.map(|view| view.clone_ref(py)) {
                // Whoever assigned the state may be about to assign the rest.
                drop(cell);
                drop(Held::acquire(py, view)?);
                match this.state() {
                    FINISHED => return Ok(read(&this.cell())),
                    CANCELLED | CANCELLED_AND_NOTIFIED => return Err(cancelled_error(py)),
                    _ => continue,
                }
            }
            return match this.state() {
                FINISHED => Ok(read(&cell)),
                _ => Err(cancelled_error(py)),
            };
        }
    }

    fn assign(&self, slot: impl FnOnce(&mut Cell) -> Option<Py<PyAny>>) {
        let replaced = slot(&mut self.cell());
        drop(replaced);
    }
}

#[pymethods]
impl Future {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            state: AtomicU8::new(PENDING),
            cell: Mutex::new(Cell::default()),
            helper: OnceLock::new(),
        }
    }

    /// All is set up by `__new__`; this keeps the standard class's `__init__` from running.
    #[allow(clippy::unused_self)]
    fn __init__(&self) {}

    fn cancel(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let (change, held) = Self::transition(slf, |state, cell| {
            let seen =
                state.compare_exchange(PENDING, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
            match seen {
                Ok(_) => Ok(Finished {
                    parked: std::mem::take(&mut cell.parked),
                    callbacks: std::mem::take(&mut cell.callbacks),
                    _replaced: None,
                }),
                Err(seen) => Err(matches!(seen, CANCELLED | CANCELLED_AND_NOTIFIED)),
            }
        })?;
        match change {
            Ok(finished) => {
                Self::conclude(slf, finished, held, None)?.now();
                Ok(true)
            }
            Err(true) => Ok(true),
            Err(false) => {
                drop(held);
                let this = slf.get();
                let helper = this.helper.get().filter(|_| this.running());
                Ok(helper.is_some_and(|helper| helper.help.cancel(slf, helper.job)))
            }
        }
    }

    fn cancelled(&self) -> bool {
        matches!(self.state(), CANCELLED | CANCELLED_AND_NOTIFIED)
    }

    fn running(&self) -> bool {
        self.state() == RUNNING
    }

    fn done(&self) -> bool {
        self.is_done()
    }

    #[pyo3(signature = (timeout = None))]
    fn result(slf: &Bound<'_, Self>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let outcome = Self::read_when_done(slf, timeout, |cell| match &cell.exception {
            Some(exception) => Err(exception.clone_ref(py)),
            None => Ok(cell.result.as_ref().map(|result| result.clone_ref(py))),
        })?;
        match outcome {
            Ok(result) => Ok(result.unwrap_or_else(|| py.None())),
            Err(exception) => Err(raise(exception.into_bound(py))),
        }
    }

    #[pyo3(signature = (timeout = None))]
    fn exception(
        slf: &Bound<'_, Self>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        let py = slf.py();
        Self::read_when_done(slf, timeout, |cell| {
            cell.exception
                .as_ref()
                .map(|exception| exception.clone_ref(py))
        })
    }

    /// What lets an event loop hear of this future's end without a thread in between, if anything does.
    fn _listener(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let listener = self.helper.get()?.help.listener()?;
        Some(listener.clone_ref(py))
    }

    #[pyo3(signature = (r#fn))]
    fn add_done_callback(slf: &Bound<'_, Self>, r#fn: Py<PyAny>) -> PyResult<()> {
        let py = slf.py();
        let mut callback = Some(r#fn);
        let (listed, held) = Self::transition(slf, |state, cell| {
            if is_final(state.load(Ordering::Acquire)) {
                return false;
            }
            if cell.standard.is_none() {
                cell.callbacks.extend(callback.take());
            }
            true
        })?;
        let Some(callback) = callback else {
            return Ok(());
        };
        match held {
            // Nobody can finish the future while its condition is held.
            Some(held) if listed => held
                .view
                .callbacks
                .call_method1(py, intern!(py, "append"), (callback,))
                .map(drop),
            held => {
                drop(held);
                run_callback(slf, callback.bind(py))
            }
        }
    }

    fn set_running_or_notify_cancel(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let this = slf.get();
        if this.try_start() {
            return Ok(true);
        }
        if Self::tell_cancelled(slf)? {
            return Ok(false);
        }
        let py = slf.py();
        let message = "Future %s in unexpected state: %s";
        logger(py)?.call_method1(
            "critical",
            (message, slf.as_ptr() as usize, state_name(this.state())),
        )?;
        Err(PyRuntimeError::new_err("Future in unexpected state"))
    }

    fn set_result(slf: &Bound<'_, Self>, result: Py<PyAny>) -> PyResult<()> {
        match Self::finish(slf, Ok(result))? {
            Ok(mut wake) => {
                wake.now();
                Ok(())
            }
            Err(state) => Err(invalid_state(slf, state)),
        }
    }

    fn set_exception(slf: &Bound<'_, Self>, exception: Py<PyAny>) -> PyResult<()> {
        match Self::finish(slf, Err(exception))? {
            Ok(mut wake) => {
                wake.now();
                Ok(())
            }
            Err(state) => Err(invalid_state(slf, state)),
        }
    }

    /// (done, cancelled, result, exception) at one moment: what asyncio asks for from 3.14 on.
    fn _get_snapshot(&self, py: Python<'_>) -> (bool, bool, Option<Py<PyAny>>, Option<Py<PyAny>>) {
        let cell = self.cell();
        match self.state() {
            FINISHED => (
                true,
                false,
                cell.result.as_ref().map(|result| result.clone_ref(py)),
                cell.exception
                    .as_ref()
                    .map(|exception| exception.clone_ref(py)),
            ),
            CANCELLED | CANCELLED_AND_NOTIFIED => (true, true, None, None),
            _ => (false, false, None, None),
        }
    }

    #[getter(_state)]
    fn get_state(&self) -> &'static str {
        state_name(self.state())
    }

    #[setter(_state)]
    fn assign_state(&self, name: &str) -> PyResult<()> {
        let state = [
            PENDING,
            RUNNING,
            CANCELLED,
            CANCELLED_AND_NOTIFIED,
            FINISHED,
        ]
        .into_iter()
        .find(|state| state_name(*state) == name)
        .ok_or_else(|| PyValueError::new_err(format!("{name:?} is not a state of a future")))?;
        let mut cell = self.cell();
        cell.assigned = true;
        self.state.store(state, Ordering::Release);
        let parked = if is_final(state) {
            std::mem::take(&mut cell.parked)
        } else {
            Vec::new()
        };
        drop(cell);
        Wake::new(parked).now();
        Ok(())
    }

    #[getter(_result)]
    fn get_result(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.cell()
            .result
            .as_ref()
            .map(|result| result.clone_ref(py))
    }

    #[setter(_result)]
    fn assign_result(&self, value: Option<Py<PyAny>>) {
        self.assign(|cell| std::mem::replace(&mut cell.result, value));
    }

    #[getter(_exception)]
    fn get_exception(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.cell()
            .exception
            .as_ref()
            .map(|exception| exception.clone_ref(py))
    }

    #[setter(_exception)]
    fn assign_exception(&self, value: Option<Py<PyAny>>) {
        self.assign(|cell| std::mem::replace(&mut cell.exception, value));
    }

    #[getter(_condition)]
    fn get_condition(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::standard(slf).map(|view| view.condition)
    }

    #[setter(_condition)]
    fn assign_condition(slf: &Bound<'_, Self>, value: Py<PyAny>) -> PyResult<()> {
        Self::standard(slf)?;
        slf.get().assign(|cell| {
            cell.standard
                .as_mut()
                .map(|view| std::mem::replace(&mut view.condition, value))
        });
        Ok(())
    }

    #[getter(_waiters)]
    fn get_waiters(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::standard(slf).map(|view| view.waiters)
    }

    #[setter(_waiters)]
    fn assign_waiters(slf: &Bound<'_, Self>, value: Py<PyAny>) -> PyResult<()> {
        Self::standard(slf)?;
        slf.get().assign(|cell| {
            cell.standard
                .as_mut()
                .map(|view| std::mem::replace(&mut view.waiters, value))
        });
        Ok(())
    }

    #[getter(_done_callbacks)]
    fn get_done_callbacks(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        Self::standard(slf).map(|view| view.callbacks)
    }

    #[setter(_done_callbacks)]
    fn assign_done_callbacks(slf: &Bound<'_, Self>, value: Py<PyAny>) -> PyResult<()> {
        Self::standard(slf)?;
        slf.get().assign(|cell| {
            cell.standard
                .as_mut()
                .map(|view| std::mem::replace(&mut view.callbacks, value))
        });
        Ok(())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let py = slf.py();
        let this = slf.get();
        let name = slf.get_type().name()?;
        let id = slf.as_ptr() as usize;
        let (state, outcome) = match this.state() {
            PENDING => ("pending", None),
            RUNNING => ("running", None),
            FINISHED => {
                let cell = this.cell();
                let outcome = match &cell.exception {
                    Some(exception) => ("raised", Some(exception.clone_ref(py))),
                    None => (
                        "returned",
                        cell.result.as_ref().map(|result| result.clone_ref(py)),
                    ),
                };
                ("finished", Some(outcome))
            }
            _ => ("cancelled", None),
        };
        Ok(match outcome {
            None => format!("<{name} at {id:#x} state={state}>"),
            Some((verb, value)) => {
                let kind = value.unwrap_or_else(|| py.None()).bind(py).get_type();
                format!("<{name} at {id:#x} state={state} {verb} {}>", kind.name()?)
            }
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Nobody holds the lock where the collector can run (see above). If somebody did, skipping is safe:
        // what is not visited counts as reachable.
        let Ok(cell) = self.cell.try_lock() else {
            return Ok(());
        };
        visit.call(&cell.result)?;
        visit.call(&cell.exception)?;
        for callback in &cell.callbacks {
            visit.call(callback)?;
        }
        if let Some(view) = &cell.standard {
            visit.call(&view.condition)?;
            visit.call(&view.waiters)?;
            visit.call(&view.callbacks)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let mut cell = self.cell();
        let held = (
            cell.result.take(),
            cell.exception.take(),
            std::mem::take(&mut cell.callbacks),
            cell.standard.take(),
        );
        drop(cell);
        drop(held);
    }
}

/// Calls one done-callback. Its exceptions are logged, except those that end the program.
fn run_callback(future: &Bound<'_, Future>, callback: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    match callback.call1((future,)) {
        Err(error) if error.is_instance_of::<PyException>(py) => {
            log(
                py,
                "error",
                "exception calling callback for %r",
                &[future.as_any()],
                &error,
            );
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Logs `error` to the standard `concurrent.futures` logger.
pub(crate) fn log(
    py: Python<'_>,
    level: &str,
    message: &str,
    arguments: &[&Bound<'_, PyAny>],
    error: &PyErr,
) {
    let record = || -> PyResult<()> {
        let keywords = PyDict::new(py);
        keywords.set_item("exc_info", error.value(py))?;
        let mut positional: Vec<Bound<'_, PyAny>> = vec![message.into_pyobject(py)?.into_any()];
        positional.extend(arguments.iter().map(|&argument| argument.clone()));
        let positional = pyo3::types::PyTuple::new(py, positional)?;
        logger(py)?
            .call_method(level, positional, Some(&keywords))
            .map(drop)
    };
    if let Err(error) = record() {
        error.write_unraisable(py, None);
    }
}

fn logger(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOGGER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOGGER.import(py, "concurrent.futures._base", "LOGGER")
}

pub(crate) fn cancelled_error(py: Python<'_>) -> PyErr {
    static CANCELLED_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CANCELLED_ERROR.import(py, "concurrent.futures._base", "CancelledError") {
        Ok(kind) => PyErr::from_type(kind.clone(), ()),
        Err(error) => error,
    }
}

fn invalid_state(future: &Bound<'_, Future>, state: &str) -> PyErr {
    static INVALID_STATE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = future.py();
    let error = || -> PyResult<PyErr> {
        let kind = INVALID_STATE.import(py, "concurrent.futures._base", "InvalidStateError")?;
        Ok(PyErr::from_type(
            kind.clone(),
            format!("{state}: {}", future.repr()?),
        ))
    };
    error().unwrap_or_else(|error| error)
}
