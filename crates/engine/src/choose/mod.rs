//! Which concurrency model suits some work: a pure function from what was measured to what to do.
//!
//! The decision compares the rates, in jobs per second, that each model can reach at best:
//!
//! | model | limited by |
//! | --- | --- |
//! | tasks (coroutines only) | jobs in flight / wall time of one; one core |
//! | threads | threads / wall time; the cores; one core for the share of a job that holds the GIL |
//! | processes | workers / wall time; the cores, crossing included; the parent's share of the crossing |
//!
//! Threads and tasks share memory and need no start-up, so processes must be clearly better to be chosen, and work that
//! was not seen to cross a process border whole never leaves the process.
mod rates;

pub use rates::Rates;

/// What is known about some work. Times are in seconds and are means over the jobs measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evidence {
    /// How many jobs the means are over.
    pub jobs: u32,
    /// How long one job takes.
    pub wall: f64,
    /// How much of that its thread spent on a CPU.
    pub cpu: f64,
    /// Throughput of two threads over that of one; `None` if that was not measured.
    pub second_thread: Option<f64>,
    /// Whether the work is a coroutine function.
    pub coroutine: bool,
    /// Whether and at what price a job crosses to a process.
    pub crossing: Crossing,
    /// How many CPUs there are for us.
    pub cpus: u32,
    /// How many workers the user asked for.
    pub workers: Option<u32>,
    /// How many jobs are still to come, if that is known.
    pub jobs_left: Option<u64>,
}

/// Whether a job's function, arguments and result can be sent between processes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crossing {
    /// No job has come back yet, so its result was never tried.
    Unknown,
    /// Something cannot be pickled.
    Refused,
    /// The job changes its arguments or its function's state: in another process the caller would not see that.
    Mutates,
    /// Everything can, and pickling it takes this many seconds a job.
    Costs(f64),
}

/// A concurrency model that can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Coroutines on one event loop.
    Tasks,
    /// OS threads.
    Threads,
    /// Worker processes.
    Processes,
}

/// Why it was chosen; the words are the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing was measured.
    NoWork,
    /// A job is so short that handing it over costs as much: no model helps.
    TooShort,
    /// Jobs mostly wait, and waiting is done in parallel.
    Waits,
    /// Jobs compute, and more threads do it faster: they release the GIL, or there is none.
    ThreadsScale,
    /// Jobs compute holding the GIL, so that only processes use more than one CPU.
    GilHeld,
    /// As before, but something cannot be pickled.
    CannotCross,
    /// As before, but a job changes what it is given.
    Mutates,
    /// As before, but crossing costs more than it brings.
    CrossingDear,
    /// As before, but there is one CPU.
    OneCpu,
    /// As before, but what is left is over before worker processes are there.
    SoonOver,
    /// Jobs compute, but too little was seen to leave the process.
    TooLittleSeen,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The model.
    pub model: Model,
    /// How many jobs at once.
    pub workers: u32,
    /// Why.
    pub reason: Reason,
    /// What each model was expected to reach.
    pub rates: Rates,
}

/// Processes must promise this many times the rate of the best model without a border.
const CLEARLY_BETTER: f64 = 1.25;
/// A job shorter than this many seconds costs about as much to hand over as to run.
const TOO_SHORT: f64 = 20e-6;
/// A pool of processes is there after this many seconds: what is over before then may stay. Not more, since the first jobs
/// may be shorter than those to come.
const PROCESS_START: f64 = 0.05;
/// Of a job that waits, this share at most is CPU.
const MOSTLY_CPU: f64 = 0.5;
/// A second thread that brings this factor helps.
const HELPS: f64 = 1.3;
/// Coroutines are cheap.
const TASKS_IN_FLIGHT: u32 = 1000;
/// More threads than this are not started unasked, however much the jobs wait.
const MOST_THREADS: u32 = 64;

/// Choose the model for the work that `evidence` describes. Defined for any numbers, however odd.
pub fn choose(evidence: &Evidence) -> Decision {
    let evidence = sane(evidence);
    let rates = Rates::expected(&evidence);
    let here = if evidence.coroutine {
        Model::Tasks
    } else {
        Model::Threads
    };
    let (model, reason) = if evidence.jobs == 0 {
        (here, Reason::NoWork)
    } else if evidence.wall < TOO_SHORT {
        (here, Reason::TooShort)
    } else {
        weigh(&evidence, &rates, here)
    };
    Decision {
        model,
        workers: evidence.workers.unwrap_or_else(|| width(&evidence, model)),
        reason,
        rates,
    }
}

fn weigh(evidence: &Evidence, rates: &Rates, here: Model) -> (Model, Reason) {
    let at_home = if here == Model::Tasks {
        rates.tasks
    } else {
        rates.threads
    };
    let computes = evidence.cpu > MOSTLY_CPU * evidence.wall;
    let stays = if computes {
        compute_reason(evidence)
    } else {
        Reason::Waits
    };
    let reason = match evidence.crossing {
        // What waits, or scales with threads, gains nothing from processes, so nothing keeps it here.
        _ if rates.processes_free < CLEARLY_BETTER * at_home => stays,
        Crossing::Unknown => Reason::TooLittleSeen,
        Crossing::Refused => Reason::CannotCross,
        Crossing::Mutates => Reason::Mutates,
        Crossing::Costs(_) if rates.processes < CLEARLY_BETTER * at_home => Reason::CrossingDear,
        Crossing::Costs(_) if soon_over(evidence, at_home) => Reason::SoonOver,
        Crossing::Costs(_) if !evidence.coroutine && evidence.second_thread.is_none() => {
            Reason::TooLittleSeen
        }
        Crossing::Costs(_) => return (Model::Processes, Reason::GilHeld),
    };
    (here, reason)
}

/// Why work that computes stays in the process although it could be fast nowhere else.
fn compute_reason(evidence: &Evidence) -> Reason {
    match evidence.second_thread {
        _ if evidence.cpus == 1 => Reason::OneCpu,
        _ if evidence.coroutine => Reason::CrossingDear,
        Some(gain) if gain >= HELPS => Reason::ThreadsScale,
        Some(_) => Reason::CrossingDear,
        None => Reason::TooLittleSeen,
    }
}

/// Whether what is left would be done here before processes have started.
fn soon_over(evidence: &Evidence, at_home: f64) -> bool {
    #[allow(clippy::cast_precision_loss)]
    evidence
        .jobs_left
        .is_some_and(|left| left as f64 / at_home < PROCESS_START)
}

/// How many workers, when the user did not say: as many as the bottleneck can feed.
fn width(evidence: &Evidence, model: Model) -> u32 {
    let cpus = evidence.cpus;
    // How many jobs must be under way for one core to be busy all the time.
    let overlap = if evidence.cpu > 0.0 {
        evidence.wall / evidence.cpu
    } else {
        f64::INFINITY
    };
    let at_once = |limit: f64| {
        #[allow(clippy::cast_sign_loss)]
        // A little over a whole number is noise, not a reason for one more.
        let wanted = (limit - 0.1).ceil().clamp(1.0, 1e6) as u32;
        wanted
    };
    match model {
        Model::Tasks => TASKS_IN_FLIGHT,
        Model::Threads if evidence.jobs == 0 => (cpus + 4).min(32),
        Model::Threads => {
            let cores = rates::gil_share(evidence)
                .map_or(f64::from(cpus), |share| f64::from(cpus).min(1.0 / share));
            at_once(cores * overlap).clamp(cpus, MOST_THREADS.max(cpus))
        }
        Model::Processes => at_once(f64::from(cpus) * overlap).clamp(cpus, 2 * cpus),
    }
}

/// The same evidence without what no measurement can give: negative or infinite times, more CPU than wall, no CPU at all.
fn sane(evidence: &Evidence) -> Evidence {
    let seconds = |value: f64| {
        if value.is_finite() && value > 0.0 {
            value
        } else {
            0.0
        }
    };
    let wall = seconds(evidence.wall);
    Evidence {
        wall,
        cpu: seconds(evidence.cpu).min(wall),
        second_thread: evidence
            .second_thread
            .filter(|gain| gain.is_finite())
            .map(|gain| gain.clamp(0.0, 2.0)),
        crossing: match evidence.crossing {
            Crossing::Costs(cost) => Crossing::Costs(seconds(cost)),
            other => other,
        },
        cpus: evidence.cpus.max(1),
        workers: evidence.workers.map(|workers| workers.max(1)),
        ..*evidence
    }
}

#[cfg(test)]
mod tests;
