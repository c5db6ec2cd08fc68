//! `_rust.MapItems`: a map's items on their way through a process pool. Inputs in, results out, many at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plait_engine::process_pool::{
    Bytes, Function as EngineFunction, Job, Origin, Outcome, Payload, Stream,
};
use pyo3::exceptions::{PyException, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyIterator, PyList, PyString};

use crate::callback::raise;
use crate::plain;
use crate::process_pool::{Payloads, PoolHelper, ProcessPool, refusal};
use crate::waiting;

/// Results that are there are not kept waiting for longer than this while inputs are read.
const LONGEST_FILL: Duration = Duration::from_millis(1);
/// So many results are unpickled before the first of them is given out.
const MOST_AHEAD: usize = 64;

/// The items of one map. Used by one thread at a time; others may close it.
#[pyclass(frozen, module = "plait._rust")]
pub struct MapItems {
    pool: Py<ProcessPool>,
    stream: Arc<Stream>,
    function: Arc<EngineFunction>,
    /// The items' name, or the function to take it from.
    name: Py<PyAny>,
    timeout: Option<Duration>,
    retries: u32,
    helper: Arc<PoolHelper>,
    /// The items' number in the ledger.
    number: u32,
    /// Gives the pickle and the buffers of a tuple of arguments.
    pickle: Py<PyAny>,
    /// Gives the exception for arguments that it raised an exception for.
    refuse: Py<PyAny>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Taken from the stream and not given out.
    outcomes: VecDeque<(u64, Outcome)>,
    /// The exceptions of items that could not be pickled, by number.
    refused: VecDeque<(u64, Py<PyAny>)>,
    /// To be raised next.
    failure: Option<PyErr>,
}

impl MapItems {
    #[allow(
        clippy::too_many_arguments,
        reason = "each is one thing that is known of the map"
    )]
    pub(crate) fn new(
        pool: &Bound<'_, ProcessPool>,
        function: Arc<EngineFunction>,
        name: Py<PyAny>,
        timeout: Option<Duration>,
        retries: u32,
        ordered: bool,
        pickle: Py<PyAny>,
        refuse: Py<PyAny>,
    ) -> Self {
        let (py, this) = (pool.py(), pool.get());
        Self {
            pool: pool.clone().unbind(),
            stream: py.detach(|| this.inner.open_stream(ordered)),
            function,
            number: this.name(name.bind(py)),
            name,
            timeout,
            retries,
            helper: Arc::clone(&this.helper),
            pickle,
            refuse,
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises in a fork of the pool's process, where the stream's locks may be held for ever.
    fn check_forked(&self, py: Python<'_>) -> PyResult<()> {
        match self.pool.get().inner.forked() {
            Some(refused) => Err(refusal(py, refused)),
            None => Ok(()),
        }
    }

    /// Queues what was fed.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.pool
            .get()
            .inner
            .flush(&self.stream)
            .map_err(|refused| refusal(py, refused))
    }

    /// One item as a job.
    fn job(&self, args: &Bound<'_, PyAny>) -> PyResult<Job> {
        let mut plain = Vec::new();
        let mut pickled_ns = 0;
        let pool = self.pool.get();
        // The name goes along with the arguments, and is none of the plainest things.
        let named = self.name.bind(args.py()).is_instance_of::<PyString>();
        let payloads = if !named && plain::write(args, &mut plain) {
            Payloads {
                arguments: Payload::Inline(plain),
                buffers: Vec::new(),
                kept: Vec::new(),
            }
        } else {
            let began = Instant::now();
            let pickled = self.pickle.bind(args.py()).call1((args,))?;
            pickled_ns = began.elapsed().as_nanos() as u64;
            let (payload, buffers): (Bound<'_, PyBytes>, Vec<Bound<'_, PyAny>>) =
                pickled.extract()?;
            pool.payloads(args.py(), payload.as_bytes(), &buffers)?
        };
        Ok(Job {
            function: Arc::clone(&self.function),
            arguments: payloads.arguments,
            buffers: payloads.buffers,
            timeout: self.timeout,
            retries: self.retries,
            kept: payloads.kept,
            origin: Origin {
                name: self.number,
                submitted_ns: 0,
                pickled_ns,
            },
        })
    }

    /// Waits until there is an outcome to give out; false if there is none in time.
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let mut deadline = None;
        loop {
            let mut inner = self.inner();
            if inner.outcomes.is_empty() {
                self.stream.take(MOST_AHEAD, &mut inner.outcomes);
            }
            if !inner.outcomes.is_empty() {
                return Ok(true);
            }
            drop(inner);
            let deadline = match deadline {
                Some(known) => known,
                None => *deadline.insert(waiting::to_deadline(timeout)?),
            };
            if self.stream.announce(waiting::waker())
                && !waiting::sleep(py, deadline, || self.stream.is_ready())?
            {
                return Ok(false);
            }
        }
    }

    /// The next outcome; if it is not the first of its list, only a small one: a large result stays packed until its turn.
    fn next(&self, first: bool) -> Option<(u64, Outcome)> {
        let mut inner = self.inner();
        let (_, outcome) = inner.outcomes.front()?;
        let is_small = match outcome {
            Outcome::Answer {
                buffers, payload, ..
            } => buffers.is_empty() && matches!(payload, Bytes::Inline(_)),
            _ => true,
        };
        if first || is_small {
            inner.outcomes.pop_front()
        } else {
            None
        }
    }

    /// The value or the exception of one item.
    fn value(&self, py: Python<'_>, number: u64, outcome: Outcome) -> PyResult<Py<PyAny>> {
        if matches!(outcome, Outcome::Cancelled) {
            let refused = &mut self.inner().refused;
            let at = refused.iter().position(|&(other, _)| other == number);
            return Err(match at.and_then(|at| refused.remove(at)) {
                Some((_, error)) => raise(error.into_bound(py)),
                None => crate::future::cancelled_error(py),
            });
        }
        self.helper
            .resolver
            .value(py, &self.name, self.timeout, outcome)?
            .map_err(|error| raise(error.into_bound(py)))
    }
}

#[pymethods]
impl MapItems {
    /// Takes up to `room` inputs (tuples of arguments), for a millisecond at most, and queues them. Gives how many it
    /// took, and why no more come: `True` if there are none, the exception of the iterator, or `None` if more may come.
    fn fill(
        &self,
        py: Python<'_>,
        inputs: &Bound<'_, PyIterator>,
        room: usize,
    ) -> PyResult<(usize, Option<Py<PyAny>>)> {
        self.check_forked(py)?;
        let mut inputs = inputs.clone();
        let (mut taken, mut end) = (0, None);
        let began = Instant::now();
        while taken < room {
            let args = match inputs.next() {
                Some(Ok(args)) => args,
                None => {
                    end = Some(PyBool::new(py, true).to_owned().into_any().unbind());
                    break;
                }
                Some(Err(error)) if error.is_instance_of::<PyException>(py) => {
                    end = Some(error.into_value(py).into_any());
                    break;
                }
                Some(Err(error)) => {
                    self.flush(py)?;
                    return Err(error);
                }
            };
            taken += 1;
            match self.job(&args) {
                Ok(job) => {
                    let fed = self.pool.get().inner.feed(&self.stream, job);
                    fed.map_err(|refused| refusal(py, refused))?;
                }
                Err(error) if error.is_instance_of::<PyException>(py) => {
                    let error = self.refuse.call1(py, (args, error))?;
                    let mut inner = self.inner();
                    inner.refused.push_back((self.stream.refuse(), error));
                }
                Err(error) => return Err(error),
            }
            if began.elapsed() > LONGEST_FILL {
                break;
            }
        }
        self.flush(py)?;
        Ok((taken, end))
    }

    /// Whether there is a result, or an exception, within so many seconds.
    fn is_ready_within(&self, py: Python<'_>, seconds: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.check_forked(py)?;
        Ok(self.inner().failure.is_some() || self.wait(py, Some(seconds))?)
    }

    /// Waits up to `timeout` seconds for results: a list of some that are next. Raises the exception of an item whose turn
    /// it is, and `TimeoutError`.
    fn take<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        self.check_forked(py)?;
        if let Some(error) = self.inner().failure.take() {
            return Err(error);
        }
        if !self.wait(py, timeout)? {
            return Err(PyTimeoutError::new_err(()));
        }
        let values = PyList::empty(py);
        while let Some((number, outcome)) = self.next(values.is_empty()) {
            match self.value(py, number, outcome) {
                Ok(value) => values.append(value)?,
                Err(error) if values.is_empty() => return Err(error),
                Err(error) => {
                    self.inner().failure = Some(error);
                    break;
                }
            }
        }
        Ok(values)
    }

    /// How many items have ended and were not cancelled.
    fn completed(&self, py: Python<'_>) -> PyResult<u64> {
        self.check_forked(py)?;
        Ok(self.stream.completed())
    }

    /// Items that were not sent never run; what comes of the others is dropped.
    fn close(&self, py: Python<'_>) {
        let pool = self.pool.get();
        if pool.inner.forked().is_none() {
            py.detach(|| pool.inner.close_stream(&self.stream));
        }
        let dropped = std::mem::take(&mut *self.inner());
        drop(dropped);
    }
}

impl Drop for MapItems {
    fn drop(&mut self) {
        Python::attach(|py| self.close(py));
    }
}
