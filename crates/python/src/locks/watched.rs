//! Which thread waits for which lock, noted while `plait.threading.watch` is on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyo3::prelude::*;

use crate::callback::thread_ident;

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

/// Whether waits are watched now.
pub fn is_watching() -> bool {
    WATCHING.load(Ordering::Relaxed)
}

/// This thread's entry in [`WAITS`]; dropping it takes it out.
pub struct Watched(u64);

impl Watched {
    /// Notes that this thread waits for `lock`, if waits are watched.
    pub fn begin(lock: &Bound<'_, PyAny>) -> Option<Self> {
        if !is_watching() {
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
