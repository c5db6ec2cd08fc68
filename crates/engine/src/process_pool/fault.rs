//! Ends or stops a process exactly at a step of the protocol, for tests. Without the feature `fault-hooks` nothing of it
//! is compiled: `reached` is empty.
//!
//! What is to happen stands in a file, the *plan*, that `PLAIT_FAULT_PLAN` names and all processes of a pool map: one
//! record of eight 32-bit words per step. A test writes `at`, `every` and `action` by ordinary file operations, and
//! reads there how often the step was reached and by which process the fault was carried out.
//!
//! ```text
//! 0 hits     how often the step was reached, by all processes together
//! 1 at       the action happens when `hits` comes to this number; never if it is 0 ...
//! 2 every    ... and each time that `hits` is a multiple of this, if it is not 0
//! 3 action   1: the process ends by SIGKILL; 2: it stops by SIGSTOP
//! 4 pid      the last process to which it happened
//! ```
#![cfg_attr(feature = "fault-hooks", allow(unsafe_code))]

/// A place in the protocol, named by what was done just before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Step {
    /// Worker: its end of the lane exists.
    Opened,
    /// Worker: `Ready` is published.
    Ready,
    /// Worker: a call is claimed.
    Claimed,
    /// Worker: the call's bytes are copied; their room is not given back yet.
    Copied,
    /// Worker: that room is the pool's again.
    Read,
    /// Worker: `running` holds the job.
    Begun,
    /// Worker: the function has returned, and its result is pickled.
    Ran,
    /// Worker: results for the arena are there.
    Written,
    /// Worker: the bytes of a reply lie in the ring; it is not published yet.
    Put,
    /// Worker: the answer is published.
    Published,
    /// Worker: the pool was woken, if it slept.
    Rung,
    /// Worker: `running` says that nothing runs.
    Ended,
    /// Worker: offsets of arguments that it does not use any more are on their way without an answer.
    Released,
    /// Worker: it has announced its sleep.
    Asleep,
    /// Worker: it has woken up.
    Awake,
    /// Worker: it was told to leave.
    Told,
    /// Pool: the zygote was asked for a worker.
    Spawning,
    /// Pool: a worker's process is known.
    Started,
    /// Pool: a call is in the window.
    Sent,
    /// Pool: calls were taken back.
    Revoked,
    /// Pool: an answer was taken out of the ring.
    Heard,
    /// Pool: a worker is buried.
    Buried,
    /// Pool: outcomes are about to be delivered.
    Delivering,
}

/// Every step by the name that tests use, in the order of the plan's records.
#[cfg(feature = "fault-hooks")]
pub const STEPS: &[(&str, Step)] = &[
    ("opened", Step::Opened),
    ("ready", Step::Ready),
    ("claimed", Step::Claimed),
    ("copied", Step::Copied),
    ("read", Step::Read),
    ("begun", Step::Begun),
    ("ran", Step::Ran),
    ("written", Step::Written),
    ("put", Step::Put),
    ("published", Step::Published),
    ("rung", Step::Rung),
    ("ended", Step::Ended),
    ("released", Step::Released),
    ("asleep", Step::Asleep),
    ("awake", Step::Awake),
    ("told", Step::Told),
    ("spawning", Step::Spawning),
    ("started", Step::Started),
    ("sent", Step::Sent),
    ("revoked", Step::Revoked),
    ("heard", Step::Heard),
    ("buried", Step::Buried),
    ("delivering", Step::Delivering),
];

/// A step was reached.
#[cfg(not(feature = "fault-hooks"))]
#[inline]
pub(super) fn reached(_: Step) {}

#[cfg(feature = "fault-hooks")]
pub(super) use hooks::reached;

#[cfg(feature = "fault-hooks")]
mod hooks {
    use std::fs::OpenOptions;
    use std::ptr::NonNull;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{STEPS, Step};
    use crate::sys::mapping::Mapping;
    use crate::sys::process;

    /// Where the plan is.
    const VARIABLE: &str = "PLAIT_FAULT_PLAN";
    const KILL: u32 = 1;
    const STOP: u32 = 2;

    #[repr(C)]
    struct Record {
        hits: AtomicU32,
        at: AtomicU32,
        every: AtomicU32,
        action: AtomicU32,
        pid: AtomicU32,
        spare: [u32; 3],
    }

    struct Plan(Mapping);

    impl Plan {
        fn open() -> Option<Self> {
            let path = std::env::var_os(VARIABLE)?;
            let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
            Mapping::open(file.into()).map(Self).ok()
        }

        fn record(&self, step: Step) -> Option<&Record> {
            let start: NonNull<Record> = self
                .0
                .address(step as usize * size_of::<Record>(), size_of::<Record>())?
                .cast();
            // SAFETY: it lies inside the mapping, whose start is aligned to a page, and any bytes are valid integers.
            // What other processes change they change by atomics, or by single aligned writes of a test.
            Some(unsafe { start.as_ref() })
        }
    }

    /// A step was reached: counts it, and does what the plan says.
    pub(in super::super) fn reached(step: Step) {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        debug_assert_eq!(STEPS[step as usize].1, step, "the list has another order");
        let Some(record) = PLAN
            .get_or_init(Plan::open)
            .as_ref()
            .and_then(|plan| plan.record(step))
        else {
            return;
        };
        let hits = record.hits.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        let every = record.every.load(Ordering::Acquire);
        if record.at.load(Ordering::Acquire) == hits || (every != 0 && hits % every == 0) {
            record.pid.store(process::id(), Ordering::Release);
            match record.action.load(Ordering::Acquire) {
                KILL => process::end_here(),
                STOP => process::stop_here(),
                _ => {}
            }
        }
    }
}
