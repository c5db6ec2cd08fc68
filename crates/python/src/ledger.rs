//! `_rust.Ledger`: the engine's ledger as Python reads it, and as the pools that are written in Python write to it. Also what
//! the pools of this crate have in common in writing to it.

use std::cell::Cell;
use std::sync::Arc;

use plait_engine::ledger::{
    Ending, KEPT, Ledger as EngineLedger, Model, Quantity, Record, Shard,
    Snapshot as EngineSnapshot, Sums, UNKNOWN,
};
use plait_engine::sys::clock::monotonic_ns;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyDict, PyFunction, PyList, PyString, PyTuple, PyType};

/// What every job cost. Thread-safe; belongs to the process that made it.
#[pyclass(frozen, module = "plait._rust")]
pub struct Ledger {
    pub(crate) inner: EngineLedger,
    /// For pools that are written in Python.
    own: Option<Arc<Shard>>,
}

fn model_of(name: &str) -> PyResult<Model> {
    Model::of(name).ok_or_else(|| PyValueError::new_err(format!("there is no model {name:?}")))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "2^53 nanoseconds are a hundred days"
)]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn known_seconds(ns: u64) -> Option<f64> {
    (ns != UNKNOWN).then(|| seconds(ns))
}

#[pymethods]
impl Ledger {
    /// An empty one that keeps about `most` records.
    #[new]
    #[pyo3(signature = (most = KEPT))]
    fn new(most: usize) -> Self {
        let inner = EngineLedger::new(most);
        let own = inner.shard();
        Self { inner, own }
    }

    /// One more worker, known by `label`: its number.
    fn worker_came(&self, model: &str, label: &str) -> PyResult<u32> {
        Ok(self.inner.worker_came(model_of(model)?, label, 0))
    }

    fn worker_left(&self, worker: u32) {
        self.inner.worker_left(worker);
    }

    /// Writes a record of a job that ends now; `started_ns` is 0 if it never began, `cost` (run, CPU,
    /// children's CPU and ready without a CPU, in nanoseconds) `None` if that is not known.
    #[allow(clippy::too_many_arguments, reason = "they are a record's fields")]
    fn write(
        &self,
        model: &str,
        function: &str,
        worker: u32,
        ending: u8,
        retries: u32,
        submitted_ns: u64,
        started_ns: u64,
        cost: Option<(u64, u64, u64, u64)>,
    ) -> PyResult<()> {
        let Some(shard) = self.own.as_ref().filter(|_| self.inner.is_here()) else {
            return Ok(());
        };
        let ending = match ending {
            0 => Ending::Returned,
            1 => Ending::Raised,
            2 => Ending::Cancelled,
            3 => Ending::TimedOut,
            _ => Ending::Lost,
        };
        let mut record = Record::new(model_of(model)?, ending, submitted_ns, monotonic_ns());
        record.name = self.inner.name(function);
        record.worker = worker;
        record.retries = retries;
        record.started_ns = started_ns;
        if let Some((run_ns, cpu_ns, children_ns, delayed_ns)) = cost {
            record.run_ns = run_ns;
            record.cpu_ns = cpu_ns.min(run_ns);
            record.children_ns = children_ns;
            record.delayed_ns = delayed_ns.min(run_ns);
        }
        shard.push(record);
        Ok(())
    }

    /// All that is known at this moment. Raises `RuntimeError` in a fork of the process that it belongs to.
    fn snapshot(&self, py: Python<'_>) -> PyResult<LedgerSnapshot> {
        if !self.inner.is_here() {
            return Err(PyRuntimeError::new_err(
                "this ledger belongs to the process that this one is a fork of; make an executor here",
            ));
        }
        Ok(LedgerSnapshot {
            inner: py.detach(|| self.inner.snapshot()),
        })
    }
}

/// A ledger as it was at one moment.
#[pyclass(frozen, module = "plait._rust")]
pub struct LedgerSnapshot {
    inner: EngineSnapshot,
}

impl LedgerSnapshot {
    fn name(&self, number: u32) -> &str {
        let name = self.inner.names.get(number as usize);
        name.map_or("(other functions)", |name| name)
    }
}

/// A field of [`Sums`], as Python knows it.
type Amounts<'py> = Bound<'py, PyDict>;

fn amounts<'py>(py: Python<'py>, sums: &Sums) -> PyResult<Amounts<'py>> {
    let dict = PyDict::new(py);
    dict.set_item("jobs", sums.jobs)?;
    let names = [
        Ending::Returned,
        Ending::Raised,
        Ending::Cancelled,
        Ending::TimedOut,
        Ending::Lost,
    ];
    for (ending, count) in names.into_iter().zip(sums.endings) {
        dict.set_item(ending.name().replace(' ', "_"), count)?;
    }
    dict.set_item("retries", sums.retries)?;
    dict.set_item("measured", sums.measured)?;
    for (key, ns) in [
        ("latency", sums.latency_ns),
        ("queued", sums.queued_ns),
        ("serialise_arguments", sums.arguments_ns),
        ("serialise_result", sums.result_ns),
        ("run", sums.run_ns),
        ("cpu", sums.cpu_ns + sums.children_ns),
        ("gil_wait", sums.gil_ns),
        ("delayed", sums.delayed_ns),
        ("waiting", sums.waiting_ns),
        ("first", sums.first_ns),
        ("last", sums.last_ns),
    ] {
        dict.set_item(key, seconds(ns))?;
    }
    for (key, bytes) in [
        ("argument_bytes", sums.arguments_bytes),
        ("result_bytes", sums.result_bytes),
        ("copied_bytes", sums.copied_bytes),
        ("shared_bytes", sums.shared_bytes),
        ("peak_memory", sums.peak_bytes),
    ] {
        dict.set_item(key, bytes)?;
    }
    Ok(dict)
}

#[pymethods]
impl LedgerSnapshot {
    /// When it was, in seconds of the monotonic clock.
    #[getter]
    fn now(&self) -> f64 {
        seconds(self.inner.now_ns)
    }

    /// How many jobs there were whose records are not kept any more.
    #[getter]
    fn fallen(&self) -> u64 {
        self.inner.fallen.jobs
    }

    /// Sums over all jobs ever, by model and function: a list of (model, function, amounts).
    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Vec<(&'static str, &str, Amounts<'py>)>> {
        let mut all: Vec<_> = self.inner.totals().into_iter().collect();
        all.sort_by_key(|((model, name), _)| (*model as u8, *name));
        all.into_iter()
            .map(|((model, name), sums)| Ok((model.name(), self.name(name), amounts(py, &sums)?)))
            .collect()
    }

    /// The values in seconds below or at which such shares of the jobs are, of "latency", "queued" or "run"; an empty list if
    /// there are no jobs.
    fn quantiles(&self, of: &str, model: Option<&str>, shares: Vec<f64>) -> PyResult<Vec<f64>> {
        let of = match of {
            "latency" => Quantity::Latency,
            "queued" => Quantity::Queued,
            "run" => Quantity::Run,
            other => {
                return Err(PyValueError::new_err(format!(
                    "quantiles are known of 'latency', 'queued' and 'run', not of {other:?}"
                )));
            }
        };
        let model = model.map(model_of).transpose()?;
        let found = self.inner.quantiles(of, model, &shares);
        Ok(found.into_iter().map(seconds).collect())
    }

    /// The workers: (number, model, label, process, since, until) each, times in seconds; until is `None` while it is there.
    #[allow(clippy::type_complexity, reason = "it is a tuple in Python")]
    fn workers(&self) -> Vec<(u32, &'static str, &str, u32, f64, Option<f64>)> {
        let workers = self.inner.workers.iter();
        workers
            .map(|(&number, worker)| {
                let until = (worker.until_ns > 0).then(|| seconds(worker.until_ns));
                (
                    number,
                    worker.model.name(),
                    &*worker.label,
                    worker.pid,
                    seconds(worker.since_ns),
                    until,
                )
            })
            .collect()
    }

    /// The kept records, in the order in which they ended, as tuples; `plait.ledger.JobRecord` names their fields.
    #[pyo3(signature = (model = None, function = None))]
    fn records<'py>(
        &self,
        py: Python<'py>,
        model: Option<&str>,
        function: Option<&str>,
    ) -> PyResult<Bound<'py, PyList>> {
        let model = model.map(model_of).transpose()?;
        let names: Vec<_> = self
            .inner
            .names
            .iter()
            .map(|name| PyString::new(py, name))
            .collect();
        let list = PyList::empty(py);
        for record in &self.inner.records {
            if model.is_some_and(|model| model != record.model)
                || function.is_some_and(|function| function != self.name(record.name))
            {
                continue;
            }
            list.append(self.tuple(py, record, &names)?)?;
        }
        Ok(list)
    }
}

impl LedgerSnapshot {
    fn tuple<'py>(
        &self,
        py: Python<'py>,
        record: &Record,
        names: &[Bound<'py, PyString>],
    ) -> PyResult<Bound<'py, PyTuple>> {
        let worker = self.inner.workers.get(&record.worker);
        let cpu_ns = match (record.cpu_ns, record.children_ns) {
            (UNKNOWN, _) => UNKNOWN,
            (cpu_ns, UNKNOWN) => cpu_ns,
            (cpu_ns, children_ns) => cpu_ns.saturating_add(children_ns),
        };
        let head = (
            names.get(record.name as usize),
            record.model.name(),
            (record.worker > 0).then_some(record.worker),
            worker.map(|worker| &*worker.label),
            record.ending.name(),
            record.retries,
            seconds(record.submitted_ns),
            (record.started_ns > 0).then(|| seconds(record.started_ns)),
            seconds(record.finished_ns),
            seconds(record.arguments_ns),
        )
            .into_pyobject(py)?;
        let tail = (
            seconds(record.result_ns),
            record.arguments_bytes,
            record.result_bytes,
            record.copied_bytes,
            record.shared_bytes,
            known_seconds(record.run_ns),
            known_seconds(cpu_ns),
            record.waiting_ns().map(seconds),
            known_seconds(record.gil_ns),
            known_seconds(record.delayed_ns),
            (record.peak_bytes > 0).then_some(record.peak_bytes),
        )
            .into_pyobject(py)?;
        head.add(tail)?.cast_into::<PyTuple>().map_err(PyErr::from)
    }
}

/// Finds the numbers of functions' names, knowing the last one.
#[derive(Default)]
pub(crate) struct Names {
    last: Option<(String, u32)>,
}

impl Names {
    /// The number of what `function` is called.
    pub(crate) fn of(&mut self, ledger: &EngineLedger, function: &Bound<'_, PyAny>) -> u32 {
        name_of(function).map_or(0, |name| {
            name.to_str().map_or(0, |name| self.number(ledger, name))
        })
    }

    pub(crate) fn number(&mut self, ledger: &EngineLedger, name: &str) -> u32 {
        match &self.last {
            Some((last, number)) if last == name => *number,
            _ => {
                let number = ledger.name(name);
                self.last = Some((name.to_owned(), number));
                number
            }
        }
    }
}

/// What a function is called. May run Python code, whose failures are those of a property of the user's: none.
pub(crate) fn name_of<'py>(function: &Bound<'py, PyAny>) -> Option<Bound<'py, PyString>> {
    job_name(function).ok().flatten()
}

/// As `plait._job.job_name` gives it.
fn job_name<'py>(function: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyString>>> {
    static METHOD: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static JOB_NAME: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static DEFAULT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = function.py();
    if function.is_instance_of::<PyFunction>()
        || function.is_instance_of::<PyCFunction>()
        || function.is_exact_instance(METHOD.import(py, "types", "MethodType")?)
    {
        let name = function.getattr(intern!(py, "__qualname__"))?;
        return Ok(name.cast_into::<PyString>().ok());
    }
    let name = JOB_NAME.import(py, "plait._job", "job_name")?.call1((
        function,
        DEFAULT.import(py, "plait._job", "DEFAULT_OPTIONS")?,
    ))?;
    Ok(name.cast_into::<PyString>().ok())
}

/// What the job that this thread runs has to add to its record.
#[derive(Clone, Copy, Default)]
pub(crate) struct Crossing {
    pub(crate) pickled_ns: u64,
    pub(crate) arguments_ns: u64,
    pub(crate) result_ns: u64,
    pub(crate) arguments_bytes: u64,
    pub(crate) result_bytes: u64,
    /// Somebody else writes the record.
    pub(crate) is_elsewhere: bool,
}

thread_local! {
   static CROSSING: Cell<Option<Crossing>> = const { Cell::new(None) };
}

/// What [`job_crossed`] and [`job_goes_on`] have noted in this thread since this was asked last.
pub(crate) fn take_crossing() -> Option<Crossing> {
    CROSSING.take()
}

/// The job that this thread runs went to another interpreter and came back: what that took, in nanoseconds, before it ran
/// and while it did, and its bytes.
#[pyfunction]
pub fn job_crossed(
    pickled_ns: u64,
    arguments_ns: u64,
    result_ns: u64,
    argument_bytes: u64,
    result_bytes: u64,
) {
    CROSSING.set(Some(Crossing {
        pickled_ns,
        arguments_ns,
        result_ns,
        arguments_bytes: argument_bytes,
        result_bytes,
        is_elsewhere: false,
    }));
}

/// The job that this thread runs goes on elsewhere, and is recorded there.
#[pyfunction]
pub fn job_goes_on() {
    CROSSING.set(Some(Crossing {
        is_elsewhere: true,
        ..Crossing::default()
    }));
}
