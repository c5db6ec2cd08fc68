//! Calls that are so plain that a worker runs them without a line of its own Python: a function that it knows, with plain
//! arguments (see `plain.rs`). Most short jobs are such, and what stands around a call costs more than theirs does.
//!
//! Whatever is not plain after all (a coroutine, a list, an exception) is given to `plait._worker.Server`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use plait_engine::process_pool::{Bytes, Call, Worker, protocol::Status};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::plain;
use crate::process_pool::lost_pool;

/// What a worker keeps for plain calls.
#[derive(Default)]
pub(crate) struct PlainCalls {
    /// The functions in the worker's slots that give plain values, or so it seems.
    functions: Mutex<HashMap<u64, Py<PyAny>>>,
    /// A function is running that was called from here.
    pub(crate) calling: AtomicBool,
    /// This process is a fork that a job has made: the lane is its parent's.
    pub(crate) left: AtomicBool,
}

/// A plain call, taken apart.
pub(crate) struct PlainCall<'py> {
    job: u64,
    pub(crate) slot: u64,
    pub(crate) function: Bound<'py, PyAny>,
    arguments: Bound<'py, PyTuple>,
}

impl PlainCalls {
    fn functions(&self) -> MutexGuard<'_, HashMap<u64, Py<PyAny>>> {
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, calls of what is in `slot` may be run here; `None` if they may not.
    pub(crate) fn learn(&self, slot: u64, function: Option<Py<PyAny>>) {
        let replaced = match function {
            Some(function) => self.functions().insert(slot, function),
            None => self.functions().remove(&slot),
        };
        drop(replaced);
    }

    /// The call as a plain one, if it is.
    pub(crate) fn find<'py>(&self, py: Python<'py>, call: &Call) -> Option<PlainCall<'py>> {
        let Call::Run {
            job,
            slot,
            definition: None,
            arguments: Bytes::Inline(pickle),
            buffers,
        } = call
        else {
            return None;
        };
        if !buffers.is_empty() {
            return None;
        }
        let function = self.functions().get(slot)?.clone_ref(py).into_bound(py);
        let arguments = plain::read(py, pickle)?.cast_into::<PyTuple>().ok()?;
        Some(PlainCall {
            job: *job,
            slot: *slot,
            function,
            arguments,
        })
    }

    /// Runs a call and answers it, through `server` if need be.
    pub(crate) fn run(
        &self,
        worker: &Worker,
        server: &Bound<'_, PyAny>,
        call: PlainCall<'_>,
        pickle: &mut Vec<u8>,
    ) -> PyResult<()> {
        let py = server.py();
        let PlainCall {
            job,
            function,
            arguments,
            ..
        } = call;
        if worker.is_interrupted(job) {
            // Nobody waits for it any more, only for its end.
            return worker
                .answer(job, Status::Nothing, &[], &[])
                .map_err(|error| lost_pool(&error));
        }
        // Nothing between these two runs Python code but the function, so a handler of signals that finds the flag set
        // interrupts the function and nothing else.
        self.calling.store(true, Ordering::Relaxed);
        let outcome = function.call1(arguments);
        self.calling.store(false, Ordering::Relaxed);
        match outcome {
            Ok(value) => {
                pickle.clear();
                let status = if value.is_none() {
                    Status::Nothing
                } else {
                    Status::Value
                };
                let is_plain = value.is_none() || plain::write(&value, pickle);
                if is_plain && !self.left.load(Ordering::Relaxed) {
                    drop(value);
                    return worker
                        .answer_at_once(job, status, pickle)
                        .map_err(|error| lost_pool(&error));
                }
                worker.ran_at_once(job);
                server.call_method1(intern!(py, "settle"), (job, value))?;
            }
            Err(error) => {
                worker.ran_at_once(job);
                server.call_method1(intern!(py, "fail_plain"), (job, error.into_value(py)))?;
            }
        }
        Ok(())
    }
}
