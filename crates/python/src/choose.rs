//! `choose`: the engine's choice of the model, for the numbers that `plait.auto` measured.
use plait_engine::choose::{Crossing, Decision, Evidence, Model, Reason, choose as decide};
use pyo3::prelude::*;

/// What `choose` gives: model, workers, reason, and the expected rates of tasks, threads and processes.
type Chosen = (&'static str, u32, &'static str, f64, f64, f64);

/// Choose a model. `crossing` is the seconds it takes to pickle what goes to a process and comes back, or why nothing does:
/// "unknown", "refused", "mutates".
#[pyfunction]
#[pyo3(signature = (*, jobs, wall, cpu, second_thread, coroutine, crossing, cpus, workers, jobs_left))]
#[allow(clippy::too_many_arguments)]
pub fn choose(
    jobs: u32,
    wall: f64,
    cpu: f64,
    second_thread: Option<f64>,
    coroutine: bool,
    crossing: CrossingArgument,
    cpus: u32,
    workers: Option<u32>,
    jobs_left: Option<u64>,
) -> Chosen {
    let crossing = crossing.0;
    let evidence = Evidence {
        jobs,
        wall,
        cpu,
        second_thread,
        coroutine,
        crossing,
        cpus,
        workers,
        jobs_left,
    };
    let Decision {
        model,
        workers,
        reason,
        rates,
    } = decide(&evidence);
    (
        model_name(model),
        workers,
        reason_name(reason),
        rates.tasks,
        rates.threads,
        rates.processes,
    )
}

/// The argument of that name.
#[derive(Clone, Copy)]
pub struct CrossingArgument(Crossing);

impl<'py> FromPyObject<'_, 'py> for CrossingArgument {
    type Error = PyErr;

    fn extract(argument: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(seconds) = argument.extract::<f64>() {
            return Ok(Self(Crossing::Costs(seconds)));
        }
        match argument.extract::<&str>()? {
            "unknown" => Ok(Self(Crossing::Unknown)),
            "refused" => Ok(Self(Crossing::Refused)),
            "mutates" => Ok(Self(Crossing::Mutates)),
            other => Err(pyo3::exceptions::PyValueError::new_err(format!(
                "crossing must be seconds, 'unknown', 'refused' or 'mutates', not {other:?}"
            ))),
        }
    }
}

fn model_name(model: Model) -> &'static str {
    match model {
        Model::Tasks => "tasks",
        Model::Threads => "threads",
        Model::Processes => "processes",
    }
}

fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::NoWork => "no work",
        Reason::TooShort => "too short",
        Reason::Waits => "waits",
        Reason::ThreadsScale => "threads scale",
        Reason::GilHeld => "GIL held",
        Reason::CannotCross => "cannot cross",
        Reason::Mutates => "mutates",
        Reason::CrossingDear => "crossing dear",
        Reason::OneCpu => "one CPU",
        Reason::SoonOver => "soon over",
        Reason::TooLittleSeen => "too little seen",
    }
}
