//! How long the jobs of one thread compute: its CPU clock, read as seldom as that allows. `README.md` has the rules.

use std::cell::RefCell;

use crate::sys::usage::{self, Usage};

use super::record::UNKNOWN;

/// A job shorter than this is taken to be on the CPU for as long as it runs; a wait shorter than this for none.
pub const SHORT: u64 = 100_000;
/// After so long a reading is too old to begin with.
const STALE: u64 = 1_000_000;
/// What happens between two jobs that follow each other takes no longer.
const GAP: u64 = 10_000;
/// A thread that computes lets go of the interpreter after so long if another one asks for it.
pub const SWITCH: u64 = 5_000_000;

/// What one job cost its thread, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// How long it ran.
    pub run_ns: u64,
    /// On the CPU.
    pub cpu_ns: u64,
    /// CPU time of child processes that ended and were waited for.
    pub children_ns: u64,
    /// By estimate, waiting for the interpreter.
    pub gil_ns: u64,
    /// Ready, while the CPUs were others'.
    pub delayed_ns: u64,
}

impl Cost {
    /// That of a job of which nothing is known.
    pub const UNKNOWN: Self = Self {
        run_ns: UNKNOWN,
        cpu_ns: UNKNOWN,
        children_ns: UNKNOWN,
        gil_ns: UNKNOWN,
        delayed_ns: UNKNOWN,
    };
}

/// What the thread has used, as read at some time.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    /// Of the thread's own clock.
    at_ns: u64,
    cpu_ns: u64,
    /// Of the rest.
    rest_at_ns: u64,
    rest: Usage,
    /// The thread's clock at that time.
    rest_cpu_ns: u64,
    /// Of how long it was ready without a CPU.
    delay_at_ns: u64,
    delayed_ns: u64,
}

/// For one thread. Between `begin` and `end` there may be other such pairs, if their jobs are inside of it (then both count).
#[derive(Debug, Default)]
pub struct Meter {
    marks: Marks,
    ended_ns: u64,
    was_long: bool,
    /// The last job was off the CPU for long.
    was_off: bool,
    has_read: bool,
}

/// A job that runs.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    began_ns: u64,
}

impl Begun {
    /// One that began at this time, in this thread.
    pub fn at(began_ns: u64) -> Self {
        Self { began_ns }
    }

    /// When it began.
    pub fn began_ns(self) -> u64 {
        self.began_ns
    }
}

impl Meter {
    /// A job begins now. `rested` says that the thread has slept since the last one ended.
    #[inline]
    pub fn begin(&mut self, now_ns: u64, rested: bool) -> Begun {
        let gap = now_ns.saturating_sub(self.ended_ns);
        let is_stale = now_ns.saturating_sub(self.marks.rest_at_ns) >= STALE;
        if !self.has_read || (is_stale && gap > GAP) || (self.was_long && gap > GAP) {
            self.read_all(now_ns);
        } else if rested {
            // It computed for none of that time, nearly.
            self.marks.at_ns += gap;
        }
        Begun { began_ns: now_ns }
    }

    fn read_all(&mut self, now_ns: u64) {
        let cpu_ns = usage::thread_cpu_ns();
        let (mut delay_at_ns, mut delayed_ns) = (self.marks.delay_at_ns, self.marks.delayed_ns);
        if self.was_off || !self.has_read {
            (delay_at_ns, delayed_ns) = (now_ns, usage::delayed_ns());
        }
        self.marks = Marks {
            at_ns: now_ns,
            cpu_ns,
            rest_at_ns: now_ns,
            rest: Usage::now(),
            rest_cpu_ns: cpu_ns,
            delay_at_ns,
            delayed_ns,
        };
        self.has_read = true;
    }

    /// It ends now. `asks_ns` is how long a thread that asks for the interpreter waits for it: `None` if there is none to wait
    /// for, or if nobody shall know.
    #[inline]
    pub fn end(&mut self, begun: Begun, now_ns: u64, asks_ns: Option<u64>) -> Cost {
        let run_ns = now_ns.saturating_sub(begun.began_ns);
        self.ended_ns = now_ns;
        self.was_long = run_ns >= SHORT;
        if !self.was_long {
            if now_ns.saturating_sub(self.marks.at_ns) >= STALE {
                self.marks.at_ns = now_ns;
                self.marks.cpu_ns = usage::thread_cpu_ns();
            }
            return Cost {
                run_ns,
                cpu_ns: run_ns,
                children_ns: 0,
                gil_ns: 0,
                delayed_ns: 0,
            };
        }
        self.end_long(begun, now_ns, run_ns, asks_ns)
    }

    #[cold]
    fn end_long(&mut self, begun: Begun, now_ns: u64, run_ns: u64, asks_ns: Option<u64>) -> Cost {
        let marks = self.marks;
        let cpu_now_ns = usage::thread_cpu_ns();
        // Between the reading and its beginning there were short jobs, which computed all the time.
        let before = begun.began_ns.saturating_sub(marks.at_ns);
        let used = cpu_now_ns.saturating_sub(marks.cpu_ns);
        let cpu_ns = used.saturating_sub(before).min(run_ns);
        self.marks.at_ns = now_ns;
        self.marks.cpu_ns = cpu_now_ns;
        let off_ns = run_ns - cpu_ns;
        let mut cost = Cost {
            run_ns,
            cpu_ns,
            children_ns: 0,
            gil_ns: 0,
            delayed_ns: 0,
        };
        self.was_off = off_ns >= STALE;
        if self.was_off {
            let delayed_ns = usage::delayed_ns();
            let window_ns = now_ns.saturating_sub(marks.delay_at_ns);
            let seen_ns = delayed_ns.saturating_sub(marks.delayed_ns);
            cost.delayed_ns = share(seen_ns, run_ns, window_ns).min(off_ns);
            self.marks.delay_at_ns = now_ns;
            self.marks.delayed_ns = delayed_ns;
        }
        if off_ns >= SHORT || now_ns.saturating_sub(marks.rest_at_ns) >= 10 * STALE {
            let rest = Usage::now();
            let seen = rest.since(&marks.rest);
            cost.children_ns = usage::claim_children(rest.children_ns).min(seen.children_ns);
            if let Some(asks_ns) = asks_ns {
                let thread_ns = cpu_now_ns.saturating_sub(marks.rest_cpu_ns);
                let others_ns = seen.process_ns.saturating_sub(thread_ns);
                let window = now_ns.saturating_sub(marks.rest_at_ns);
                let off_ns = off_ns - cost.delayed_ns;
                cost.gil_ns = gil_wait(off_ns, run_ns, window, others_ns, seen.sleeps, asks_ns);
            }
            self.marks.rest_at_ns = now_ns;
            self.marks.rest = rest;
            self.marks.rest_cpu_ns = cpu_now_ns;
        }
        cost
    }
}

/// Of what happened in the last `window_ns`, the share of a job that ended with it.
fn share(total: u64, run_ns: u64, window_ns: u64) -> u64 {
    if window_ns <= run_ns {
        total
    } else {
        (u128::from(total) * u128::from(run_ns) / u128::from(window_ns)) as u64
    }
}

thread_local! {
    static HERE: RefCell<Meter> = RefCell::default();
}

/// A job begins in this thread, by its own meter.
pub fn begin_here(now_ns: u64, rested: bool) -> Begun {
    HERE.with(|meter| match meter.try_borrow_mut() {
        Ok(mut meter) => meter.begin(now_ns, rested),
        Err(_) => Begun { began_ns: now_ns },
    })
}

/// It ends.
pub fn end_here(begun: Begun, now_ns: u64) -> Cost {
    HERE.with(|meter| match meter.try_borrow_mut() {
        Ok(mut meter) => meter.end(begun, now_ns, None),
        Err(_) => Cost::UNKNOWN,
    })
}

/// The least of the bounds on how long a thread waited for the interpreter, of `off_ns` off the CPU in a job of `run_ns`.
/// In `window_ns`, up to the job's end, other threads computed for `others_ns` and it went to sleep `sleeps` times.
pub fn gil_wait(
    off_ns: u64,
    run_ns: u64,
    window_ns: u64,
    others_ns: u64,
    sleeps: u64,
    asks_ns: u64,
) -> u64 {
    let share = |total| share(total, run_ns, window_ns);
    // It is there at once while no other thread computes.
    let taken_ns = others_ns.min(window_ns);
    let when_taken_ns = u128::from(asks_ns) * u128::from(taken_ns) / u128::from(window_ns.max(1));
    let when_taken_ns = when_taken_ns as u64;
    off_ns
        .min(share(others_ns))
        .min(share(sleeps).max(1).saturating_mul(when_taken_ns))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sys::clock::monotonic_ns;

    fn measured(meter: &mut Meter, job: impl FnOnce()) -> Cost {
        let begun = meter.begin(monotonic_ns(), false);
        job();
        meter.end(begun, monotonic_ns(), Some(SWITCH))
    }

    fn compute(length: Duration) {
        let until = usage::thread_cpu_ns() + length.as_nanos() as u64;
        while usage::thread_cpu_ns() < until {}
    }

    #[test]
    fn sleeping_is_not_computing() {
        let mut meter = Meter::default();
        for _ in 0..3 {
            let cost = measured(&mut meter, || std::thread::sleep(Duration::from_millis(20)));
            assert!(cost.run_ns >= 20_000_000);
            assert!(cost.cpu_ns < 5_000_000, "{cost:?}");
            let cost = measured(&mut meter, || compute(Duration::from_millis(10)));
            assert!(
                (10_000_000..=cost.run_ns).contains(&cost.cpu_ns),
                "{cost:?}"
            );
        }
    }

    #[test]
    fn a_long_job_after_short_ones() {
        let mut meter = Meter::default();
        for _ in 0..1000 {
            measured(&mut meter, || ());
        }
        let cost = measured(&mut meter, || std::thread::sleep(Duration::from_millis(20)));
        assert!(cost.cpu_ns < 5_000_000, "{cost:?}");
    }

    #[test]
    fn bounds_on_the_gil_wait() {
        // Nobody else computed.
        assert_eq!(gil_wait(1_000, 1_000, 1_000, 0, 10, SWITCH), 0);
        // Two threads took turns.
        assert_eq!(gil_wait(50, 100, 100, 50, 10, SWITCH), 50);
        // One long sleep while others computed.
        let sleep = 1_000_000_000;
        assert_eq!(gil_wait(sleep, sleep, sleep, sleep, 1, SWITCH), SWITCH);
        // They did so before the job.
        assert_eq!(gil_wait(100, 100, 1_000, 100, 10, SWITCH), 10);
        // Two short sleeps while others computed for a tenth of the time.
        let run = 40_000_000;
        assert_eq!(gil_wait(run, run, run, run / 10, 2, SWITCH), SWITCH / 5);
    }
}
