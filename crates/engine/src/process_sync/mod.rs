//! Locks, semaphores, events and queues between processes, on nameless shared memory. The protocols are in README.md.

mod board;
mod condition;
mod event;
mod lock;
mod queue;
mod semaphore;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub use board::{Place, note_fork};
pub use condition::{Enrolled, MOST_WAITERS};
pub use plait_sync::permits::MOST as MOST_PERMITS;
pub use queue::{GetError, Message, Piece, PutError, Queue};

/// How long anybody sleeps before looking again: whether an owner is dead, whether a wake-up was lost with a process.
const SLICE: Duration = Duration::from_millis(50);
/// How long anybody looks before sleeping: less than a sleep and a wake-up cost.
const SPIN: Duration = Duration::from_micros(20);

/// How long an operation that must not wait waits for others that are in the middle of theirs, at most.
const BRIEF: Duration = Duration::from_millis(100);

/// How often in a row it was worth while to look before sleeping; below zero, how often nobody looked since it was not. A
/// guess that all threads of the process share.
static LUCK: AtomicI32 = AtomicI32::new(MOST_LUCK);
const MOST_LUCK: i32 = 16;

/// How far a wait has come. One step of it ends when what it waits for is there, or after [`SLICE`], or when a signal
/// arrives; the caller sees to signals between steps.
#[derive(Debug)]
pub struct Wait {
    deadline: Option<Instant>,
    /// Whether it waits for more than a lock that somebody holds for a moment.
    patient: bool,
    slept: bool,
    spun: bool,
}

/// What a step of a wait has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// What was waited for is there, and the caller's.
    Done,
    /// The deadline has passed.
    TimedOut,
    /// The process with this id held the lock and is dead; the lock is free now. Told to one waiter.
    OwnerDied(u32),
    /// Nothing yet: see to signals, and go on.
    Look,
}

impl Wait {
    /// A wait until `deadline`, or without end.
    pub fn until(deadline: Option<Instant>) -> Self {
        Self {
            deadline,
            patient: true,
            slept: false,
            spun: false,
        }
    }

    /// No wait: one attempt, which does not even look twice.
    pub fn not() -> Self {
        Self {
            patient: false,
            spun: true,
            ..Self::until(Some(Instant::now()))
        }
    }

    /// No wait for what is waited for, but for those who are just at it.
    pub fn brief() -> Self {
        Self {
            patient: false,
            ..Self::until(Some(Instant::now() + BRIEF))
        }
    }

    /// How long to sleep now; `None` if the time is over.
    fn slice(&self) -> Option<Duration> {
        let Some(deadline) = self.deadline else {
            return Some(SLICE);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| left.min(SLICE))
    }

    /// Looks for `found` for a moment, the first time only.
    fn spin(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if self.spun || !can_spin() {
            return false;
        }
        self.spun = true;
        let luck = LUCK.load(Ordering::Relaxed);
        if luck <= -MOST_LUCK {
            // Whoever is waited for takes longer, or has no processor: look again only after a while.
            LUCK.store(-1, Ordering::Relaxed);
        } else if luck < 0 {
            LUCK.store(luck - 1, Ordering::Relaxed);
            return false;
        }
        let begun = Instant::now();
        let until = self
            .deadline
            .map_or(begun + SPIN, |deadline| deadline.min(begun + SPIN));
        // Rarer and rarer: each look takes the cache line away from whoever is about to write to it.
        let mut pauses = 1;
        loop {
            for _ in 0..4 {
                if found() {
                    LUCK.store((luck.max(0) + 2).min(MOST_LUCK), Ordering::Relaxed);
                    return true;
                }
                for _ in 0..pauses {
                    std::hint::spin_loop();
                }
            }
            pauses = (pauses * 2).min(16);
            if Instant::now() >= until {
                LUCK.store(luck.max(0) - 1, Ordering::Relaxed);
                return false;
            }
        }
    }
}

/// Spinning on the only processor keeps the one from running that is waited for.
fn can_spin() -> bool {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from)) > 1
}
