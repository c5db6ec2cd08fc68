//! How a thread waits in `result()`: it lets go of the interpreter, looks for a moment, then sleeps; on the main thread
//! it wakes now and then to see to signals. What it waits for is in `future.rs`.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use plait_sync::parker::{Parker, Unparker};
use plait_sync::wait_queue;
use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// How long a thread in `result()` looks before it sleeps: about what a sleep and a wake-up cost.
const SPIN: Duration = Duration::from_micros(30);
/// How often the main thread, asleep in `result()`, looks for signals such as Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(40);

thread_local! {
    /// What this thread sleeps on in `result()`.
    static PARKER: RefCell<Parker> = RefCell::new(Parker::new());
}

/// The sleeping threads that have to be told that a future is done.
#[must_use = "somebody may be asleep"]
#[derive(Default)]
pub struct Wake(Vec<Unparker>);

impl Wake {
    /// These threads.
    pub fn new(threads: Vec<Unparker>) -> Self {
        Self(threads)
    }

    /// Wakes them. Needs no interpreter.
    pub fn now(&mut self) {
        for thread in self.0.drain(..) {
            thread.unpark();
        }
    }

    /// Adds those of `other`.
    pub fn merge(&mut self, mut other: Wake) {
        self.0.append(&mut other.0);
    }
}

/// What wakes this thread from [`sleep`].
pub fn waker() -> Unparker {
    PARKER.with_borrow(Parker::unparker)
}

/// As [`waker`], for a place in line.
pub fn thread_wake() -> Box<dyn wait_queue::Wake> {
    Box::new(waker())
}

/// What a timeout that is not a number comes to.
pub fn not_a_number() -> PyErr {
    PyValueError::new_err("Invalid value NaN (not a number)")
}

/// When a wait of so many seconds that begins now is over; None for never. Fails as the standard classes do.
pub fn deadline_in(seconds: f64) -> PyResult<Option<Instant>> {
    /// `threading.TIMEOUT_MAX`, in seconds.
    const MOST: f64 = 9_223_372_036.0;
    if seconds.is_nan() {
        return Err(not_a_number());
    }
    if seconds > MOST {
        return Err(PyOverflowError::new_err("timeout value is too large"));
    }
    let span = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    Ok(Instant::now().checked_add(span))
}

/// Sleeps until `is_done`, of which somebody tells the [`waker`]; false if `deadline` came first.
pub fn sleep(
    py: Python<'_>,
    deadline: Option<Instant>,
    is_done: impl Fn() -> bool,
) -> PyResult<bool> {
    let woken = detach(py, || {
        PARKER.with_borrow(|parker| parker.spin(SPIN, || true))
    });
    sleep_on(py, deadline, woken, None, is_done, false)
}

/// As [`sleep`], for a place in line at a lock: it looks for a moment only if another processor can make progress
/// meanwhile, and asks for the interpreter when whoever woke it has let go of that.
///
/// If not `interruptible`, it sees to no signals: for a lock that has to be had again, whatever happens.
pub fn sleep_in_line(
    py: Python<'_>,
    deadline: Option<Instant>,
    interruptible: bool,
    is_granted: impl Fn() -> bool,
) -> PyResult<bool> {
    let woken = detach_in_line(py, || PARKER.with_borrow(spin_in_turn));
    let sees_signals = if interruptible { None } else { Some(false) };
    sleep_on(py, deadline, woken, sees_signals, is_granted, true)
}

/// Looks for a token; those that come later take the turns of those that came before, of which there are as many as
/// processors besides the waker's. (The other way round, one that was just called and has not seen it yet would take
/// the turn of the one that called it.)
fn spin_in_turn(parker: &Parker) -> bool {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    static OTHERS: OnceLock<usize> = OnceLock::new();
    let others = *OTHERS.get_or_init(|| {
        std::thread::available_parallelism().map_or(0, |processors| processors.get() - 1)
    });
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let has_turn = || TURN.load(Ordering::Relaxed).wrapping_sub(turn) <= others;
    others > 0 && parker.spin(SPIN, has_turn)
}

fn sleep_on(
    py: Python<'_>,
    deadline: Option<Instant>,
    mut woken: bool,
    mut sees_signals: Option<bool>,
    is_done: impl Fn() -> bool,
    in_line: bool,
) -> PyResult<bool> {
    loop {
        if is_done() {
            return Ok(true);
        }
        if !woken && deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(false);
        }
        let sees_signals = match sees_signals {
            Some(known) => known,
            None => *sees_signals.insert(is_main_thread(py)?),
        };
        let until = if sees_signals {
            py.check_signals()?;
            if is_done() {
                return Ok(true); // by a handler, or while one took the wake-up for a wait of its own
            }
            let next = Instant::now() + SIGNAL_INTERVAL;
            Some(deadline.map_or(next, |deadline| deadline.min(next)))
        } else {
            deadline
        };
        let park = || {
            PARKER.with_borrow(|parker| {
                if let Some(until) = until {
                    return parker.park_until(until);
                }
                parker.park();
                true
            })
        };
        woken = if in_line {
            detach_in_line(py, park)
        } else {
            detach(py, park)
        };
    }
}

/// How many threads have let go of the interpreter in `result()`.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// `Python::detach` that others can see from [`await_free_interpreter`].
fn detach<R: Send>(py: Python<'_>, body: impl FnOnce() -> R + Send) -> R {
    py.detach(|| {
        WAITING.fetch_add(1, Ordering::Relaxed);
        let outcome = body();
        WAITING.fetch_sub(1, Ordering::Relaxed);
        outcome
    })
}

/// As [`detach`]; who was woken by a thread that still has the interpreter waits until it has let go of that.
fn detach_in_line(py: Python<'_>, body: impl FnOnce() -> bool + Send) -> bool {
    py.detach(|| {
        WAITING.fetch_add(1, Ordering::Relaxed);
        let woken = body();
        WAITING.fetch_sub(1, Ordering::Relaxed);
        if woken && cfg!(not(Py_GIL_DISABLED)) {
            await_free_interpreter();
        }
        woken
    })
}

/// In the child of a fork: the thread that is left may wait again, although another was perhaps about to wake it.
#[pyfunction]
pub fn forget_waiting_threads() {
    wait_queue::after_fork();
    PARKER.replace(Parker::new());
    WAITING.store(0, Ordering::Relaxed);
    crate::queue::note_fork();
}

/// For a detached thread that was called by one which is still attached: waits a few microseconds, until that one
/// waits in `result()`. Asking for the interpreter while another thread has it means to sleep in the kernel and
/// to be woken from there, which takes much longer than it takes the caller to get to its `result()`.
pub fn await_free_interpreter() {
    const LIMIT: Duration = Duration::from_micros(10);
    let began = Instant::now();
    while WAITING.load(Ordering::Relaxed) == 0 && began.elapsed() < LIMIT {
        std::thread::yield_now();
    }
}

/// When a wait of `timeout` seconds that begins now ends; None for never (or for longer than a clock can hold).
pub fn to_deadline(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Instant>> {
    let Some(timeout) = timeout else {
        return Ok(None);
    };
    let seconds: f64 = timeout.extract()?;
    if seconds.is_nan() {
        return Err(not_a_number());
    }
    Ok(Duration::try_from_secs_f64(seconds.max(0.0))
        .ok()
        .and_then(|span| Instant::now().checked_add(span)))
}

/// Whether this is the thread in which Python runs signal handlers.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    static MAIN_THREAD: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static GET_IDENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let main = MAIN_THREAD
        .import(py, "threading", "main_thread")?
        .call0()?
        .getattr(intern!(py, "ident"))?;
    main.eq(GET_IDENT.import(py, "_thread", "get_ident")?.call0()?)
}
