//! `_rust.GilWatch`: a thread of Rust that asks for the interpreter now and then and measures how long it waits for it.
//!
//! It asks at random moments (exponentially distributed pauses), so the share of its asks that find the interpreter taken
//! is the share of time in which it is taken. Between two asks it sleeps without the interpreter.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plait_sync::parker::{Parker, Unparker};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Whoever waits longer than this for the interpreter found it taken. A thread that finds it free has it in a microsecond
/// or, if it was woken on a cold processor, in ten.
const TAKEN: Duration = Duration::from_micros(50);
/// No pause is longer than so many times the mean.
const LONGEST_PAUSE: f64 = 8.0;

/// What was measured.
#[derive(Default, Clone, Copy)]
struct Tally {
    asks: u64,
    taken: u64,
    waited: Duration,
    longest: Duration,
}

struct Shared {
    tally: Mutex<Tally>,
    stop: Mutex<bool>,
}

/// Nothing can panic half-way under these locks, and no Python code runs.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `sleep` without the interpreter; how long it then took to get it back.
pub fn time_to_return(py: Python<'_>, sleep: impl FnOnce() + Send) -> Duration {
    let asked = py.detach(|| {
        sleep();
        Instant::now()
    });
    asked.elapsed()
}

/// Exponentially distributed pauses.
struct Pauses {
    mean: f64,
    state: u64,
}

impl Pauses {
    #[allow(
        clippy::cast_precision_loss,
        reason = "53 bits of it are enough for a random number"
    )]
    fn next(&mut self) -> Duration {
        // xorshift64*
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let bits = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        let uniform = (bits as f64 + 1.0) / (1_u64 << 53) as f64;
        Duration::from_secs_f64(self.mean * (-uniform.ln()).min(LONGEST_PAUSE))
    }
}

/// Watches the interpreter's lock from when it is made until `stop`.
#[pyclass(frozen, module = "plait._rust")]
pub struct GilWatch {
    shared: Arc<Shared>,
    alarm: Unparker,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[pymethods]
impl GilWatch {
    /// Starts the thread; it asks about every `interval` seconds.
    #[new]
    fn new(interval: f64) -> PyResult<Self> {
        if !(interval > 0.0 && interval < 1e6) {
            return Err(PyValueError::new_err(format!(
                "interval must be a number of seconds above 0, not {interval}"
            )));
        }
        let shared = Arc::new(Shared {
            tally: Mutex::default(),
            stop: Mutex::new(false),
        });
        let parker = Parker::new();
        let alarm = parker.unparker();
        let watched = Arc::clone(&shared);
        let mut pauses = Pauses {
            mean: interval,
            state: std::ptr::from_ref(&*shared).addr() as u64 | 1,
        };
        let thread = std::thread::Builder::new()
            .name("plait-gil-watch".to_owned())
            .spawn(move || {
                Python::attach(|py| {
                    while !*lock(&watched.stop) {
                        let pause = pauses.next();
                        let mut woken = false;
                        let wait = time_to_return(py, || {
                            woken = parker.park_until(Instant::now() + pause);
                        });
                        if !woken {
                            watched.count(wait);
                        }
                    }
                });
            })?;
        Ok(Self {
            shared,
            alarm,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Ends the thread, and waits for that. May be called again.
    fn stop(&self, py: Python<'_>) {
        self.tell();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A thread that has panicked has said so already, and has nothing else to give.
            py.detach(|| drop(thread.join()));
        }
    }

    /// (asks, those that found it taken, seconds waited in all, the longest of the waits in seconds) so far.
    fn tally(&self) -> (u64, u64, f64, f64) {
        let tally = *lock(&self.shared.tally);
        (
            tally.asks,
            tally.taken,
            tally.waited.as_secs_f64(),
            tally.longest.as_secs_f64(),
        )
    }

    /// In the child of a fork: there is no such thread here.
    fn forget_thread(&self) {
        std::mem::forget(lock(&self.thread).take());
    }
}

impl GilWatch {
    fn tell(&self) {
        *lock(&self.shared.stop) = true;
        self.alarm.unpark();
    }
}

impl Drop for GilWatch {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Shared {
    fn count(&self, wait: Duration) {
        let mut tally = lock(&self.tally);
        tally.asks += 1;
        tally.taken += u64::from(wait > TAKEN);
        tally.waited += wait;
        tally.longest = tally.longest.max(wait);
    }
}
