//! The thread that watches every running loop of the process for items that hold it (`README.md` of the engine's event loop).
//!
//! It takes the interpreter only to tell of a stall, by `plait._stall_watch`, which also ends it before the interpreter is taken
//! apart: after that nobody asks for the interpreter any more, and no other watch is begun.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use plait_engine::event_loop::{Pulse, StallWatch};
use pyo3::prelude::*;

enum State {
    NotBegun,
    Watching(Arc<StallWatch>, JoinHandle<()>),
    Over,
}

/// Locked by attached threads only, and not while they wait for anything: no fork finds it held.
static STATE: Mutex<State> = Mutex::new(State::NotBegun);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a loop watched from now on. None if no thread can be started, or the program is about to end.
pub(super) fn watch(pulse: &Arc<Pulse>) -> Option<Arc<StallWatch>> {
    let mut state = state();
    if matches!(*state, State::NotBegun) {
        let (watch, parker) = StallWatch::new();
        let watch = Arc::new(watch);
        let watching = Arc::clone(&watch);
        let thread = std::thread::Builder::new()
            .name("plait-stall-watch".to_owned())
            .spawn(move || watching.run(&parker, tell));
        *state = State::Watching(watch, thread.ok()?);
    }
    let State::Watching(watch, _) = &*state else {
        return None;
    };
    watch.add(pulse);
    Some(Arc::clone(watch))
}

/// A number by which Python finds the loop of a pulse.
pub(super) fn number(pulse: &Arc<Pulse>) -> usize {
    Arc::as_ptr(pulse).addr()
}

fn tell(pulse: &Arc<Pulse>) {
    Python::attach(|py| {
        // Whoever holds the loop may have held the interpreter, too, until it was over.
        if !pulse.is_stalled() {
            return;
        }
        let told = py
            .import("plait._stall_watch")
            .and_then(|module| module.call_method1("tell", (number(pulse),)));
        if let Err(error) = told {
            error.write_unraisable(py, None);
        }
    });
}

/// Ends the watch, for good: the program ends.
#[pyfunction]
pub fn end_stall_watch(py: Python<'_>) {
    let old = std::mem::replace(&mut *state(), State::Over);
    if let State::Watching(watch, thread) = old {
        watch.end();
        // A thread that has panicked has said so already.
        py.detach(|| drop(thread.join()));
    }
}

/// In the child of a fork: there is no such thread here.
#[pyfunction]
pub fn forget_stall_watch() {
    let old = std::mem::replace(&mut *state(), State::NotBegun);
    std::mem::forget(old);
}
