//! Which handle of `call_soon_threadsafe` a loop runs now, and who waits for its end: from Python 3.14 on such a handle's
//! `cancel` and `cancelled`, called in another thread, come back when a call that has begun is over.
//!
//! The loop notes the handle in the same critical section in which it sees that it is not cancelled; who cancels it marks
//! it first and looks here then. So either the loop sees the mark, or the other one sees the note.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::ffi;
use pyo3::prelude::*;

/// So often a thread that waits looks for signals.
const SIGNALS: Duration = Duration::from_millis(50);

thread_local! {
    /// Its address stands for the thread.
    static HERE: u8 = const { 0 };
}

fn this_thread() -> usize {
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// One loop's note.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// The address of the handle that runs, or zero; and the thread that runs it.
    handle: AtomicUsize,
    thread: AtomicUsize,
    waiting: AtomicUsize,
    lock: Mutex<()>,
    ended: Condvar,
}

/// A call that goes on; it is over when this is dropped.
pub(super) struct Call<'a> {
    running: &'a Running,
    /// What ran already: a callback may run its loop again, by the one or other trick.
    outer: usize,
}

impl Running {
    /// A handle's call begins.
    pub(super) fn begin(&self, handle: *mut ffi::PyObject) -> Call<'_> {
        self.thread.store(this_thread(), Ordering::Relaxed);
        let outer = self.handle.swap(handle.addr(), Ordering::SeqCst);
        Call {
            running: self,
            outer,
        }
    }

    fn is_elsewhere(&self, handle: usize) -> bool {
        self.handle.load(Ordering::SeqCst) == handle
            && self.thread.load(Ordering::Relaxed) != this_thread()
    }

    /// Waits until a handle's call is over, unless this is the thread that makes it; what a signal raises ends that.
    pub(super) fn wait(&self, handle: &Bound<'_, PyAny>) -> PyResult<()> {
        let address = handle.as_ptr().addr();
        while self.is_elsewhere(address) {
            handle.py().detach(|| {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let guard = self.guard();
                // Looked at under the lock, so that no end is missed.
                if self.is_elsewhere(address) {
                    drop(self.ended.wait_timeout(guard, SIGNALS));
                }
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            });
            handle.py().check_signals()?;
        }
        Ok(())
    }

    fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.running.handle.store(self.outer, Ordering::SeqCst);
        if self.running.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.running.guard());
            self.running.ended.notify_all();
        }
    }
}
