//! The rate, in jobs per second, that each model can be expected to reach.
use super::{Crossing, Evidence, MOST_THREADS, TASKS_IN_FLIGHT};

/// Seconds that handing a job to a thread and its result back takes, in the interpreter that does it.
const THREAD_HAND_OVER: f64 = 4e-6;
/// The same for a task on an event loop.
const TASK_HAND_OVER: f64 = 12e-6;
/// The same for a process, on each side of the border.
const PROCESS_HAND_OVER: f64 = 8e-6;

/// What each model can be expected to reach, in jobs per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Coroutines on one event loop; 0 for work that is not a coroutine function.
    pub tasks: f64,
    /// OS threads.
    pub threads: f64,
    /// Worker processes, with what crossing costs; 0 if the work cannot cross.
    pub processes: f64,
    /// Worker processes if crossing cost nothing but the hand-over: what they could bring at best.
    pub processes_free: f64,
}

impl Rates {
    pub(super) fn expected(evidence: &Evidence) -> Self {
        if evidence.jobs == 0 {
            return Self::default();
        }
        let Evidence { wall, cpu, .. } = *evidence;
        let cpus = f64::from(evidence.cpus);
        let at_most = |unasked: u32| f64::from(evidence.workers.unwrap_or(unasked));
        let gil = gil_share(evidence).unwrap_or(0.0);
        Self {
            tasks: if evidence.coroutine {
                least([
                    at_most(TASKS_IN_FLIGHT) / wall,
                    1.0 / (cpu + TASK_HAND_OVER),
                ])
            } else {
                0.0
            },
            threads: least([
                at_most(MOST_THREADS) / wall,
                cpus / cpu,
                1.0 / (gil * cpu + THREAD_HAND_OVER),
            ]),
            processes: match evidence.crossing {
                Crossing::Costs(pickling) => processes(evidence, pickling),
                _ => 0.0,
            },
            processes_free: processes(evidence, 0.0),
        }
    }
}

/// `pickling` is what the arguments and the result take to be pickled; to unpickle them is taken to cost as much.
fn processes(evidence: &Evidence, pickling: f64) -> f64 {
    let cpus = f64::from(evidence.cpus);
    let workers = f64::from(evidence.workers.unwrap_or(2 * evidence.cpus));
    let each_side = pickling + PROCESS_HAND_OVER;
    least([
        workers / (evidence.wall + each_side),
        cpus / (evidence.cpu + 2.0 * each_side),
        1.0 / each_side,
    ])
}

/// The share of a job's CPU time during which no other thread can run Python; `None` if threads were seen not to disturb
/// each other at all.
///
/// Two threads that compute all the time get through `second_thread` times the work of one: 1 when the GIL is always
/// held, 2 when never. Jobs that wait half of the time or more do not get into each other's way enough to tell, so what
/// they compute is taken for Python.
pub(super) fn gil_share(evidence: &Evidence) -> Option<f64> {
    let busy = if evidence.wall > 0.0 {
        evidence.cpu / evidence.wall
    } else {
        0.0
    };
    let share = match evidence.second_thread {
        Some(gain) if busy > 0.5 => {
            // Of two threads busy for that share of the time each, one core would carry this many.
            let most_lost = 2.0 - 1.0 / busy;
            ((2.0 - gain) / most_lost).clamp(0.0, 1.0)
        }
        _ => 1.0,
    };
    // A machine that has other things to do loses some of the second thread, too.
    (share > 0.15).then_some(share)
}

fn least<const N: usize>(rates: [f64; N]) -> f64 {
    // Finite, so that two of them can be compared by a ratio.
    rates
        .into_iter()
        .fold(1e12, |least, rate| if rate < least { rate } else { least })
}
