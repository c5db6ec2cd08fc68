//! How many jobs run at once: in each worker of a `hybrid` pool, or as threads; found by how throughput answers to it.
//!
//! Waiting work is done faster the more of it is begun, up to a point; computing work is not. So the width is doubled
//! while that brings more results a second, put back when it did not, and halved now and then to see whether fewer would do.
//! Hill climbing on throughput, as in Hellerstein, Morrison and Eilebrecht, "Optimizing concurrency levels in the .NET
//! `ThreadPool`" (2009), without its filter: a step is a factor of two, which noise does not fake.
//!
//! While jobs wait for the interpreter (its lock is contended), more of them at once cannot help: then the width is not
//! tried wider, only narrower.
#![allow(
    clippy::cast_precision_loss,
    reason = "widths and counts of jobs stay far below 2^52"
)]

/// What a width starts at: enough for the first rates to tell waiting from computing.
const FIRST: usize = 16;
/// Growing must bring so much more throughput to be kept.
const WORTH_IT: f64 = 1.15;
/// Shrinking may cost so much of the throughput.
const HARMLESS: f64 = 0.95;
/// A rate is measured over this time at least.
const SHORTEST_NS: u64 = 20_000_000;
/// And over so many turns of all that is begun, so that jobs begun under the last width do not count for this one.
const TURNS: u64 = 2;
/// After a trial that was of no use so many rates are passed over, twice as many after the next, up to the second
/// number: one that noise spoilt is made up for soon, and work that does not change is left alone.
const REST: (usize, usize) = (2, 32);

/// Another width that is being tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    from: usize,
    /// Results a nanosecond that it is compared to.
    base: f64,
}

/// Adapts the width of a pool's workers to their throughput. Plain data, told the time.
#[derive(Debug)]
pub struct Controller {
    width: usize,
    most: usize,
    workers: usize,
    trial: Option<Trial>,
    /// So many rates are passed over until the next trial.
    rest: usize,
    /// So many will be after the next trial that is of no use.
    next_rest: usize,
    /// Whether the next trial is a narrower width.
    narrower_next: bool,
    since_ns: u64,
    answered: u64,
    /// Whether jobs were waiting for a place ever since `since_ns`.
    saturated: bool,
    /// Whether jobs wait for the interpreter, as it was said last.
    contended: bool,
}

impl Controller {
    /// For `workers` workers that can run up to `most` jobs at once each.
    pub fn new(workers: usize, most: usize, now_ns: u64) -> Self {
        Self {
            width: FIRST.min(most).max(1),
            most: most.max(1),
            workers: workers.max(1),
            trial: None,
            rest: 0,
            next_rest: REST.0,
            narrower_next: false,
            since_ns: now_ns,
            answered: 0,
            saturated: true,
            contended: false,
        }
    }

    /// The present width.
    pub fn get(&self) -> usize {
        self.width
    }

    /// `answered` more jobs have ended by now, `saturated` says whether others are waiting for a place, and `contended`
    /// whether those that run wait for the interpreter. The new width, if it changes.
    pub fn observe(
        &mut self,
        answered: u64,
        saturated: bool,
        contended: bool,
        now_ns: u64,
    ) -> Option<usize> {
        self.answered += answered;
        self.saturated &= saturated;
        if contended && !self.contended {
            // What was learnt before says nothing about this.
            (self.rest, self.next_rest) = (0, REST.0);
        }
        self.contended = contended;
        let elapsed = now_ns.saturating_sub(self.since_ns);
        // Jobs that take turns at the interpreter end at the same rate whenever they were begun.
        let counted = if contended {
            self.width.min(FIRST)
        } else {
            self.width
        };
        let turnover = TURNS * (counted * self.workers) as u64;
        if elapsed < SHORTEST_NS || self.answered < turnover {
            return None;
        }
        let rate = self.answered as f64 / elapsed as f64;
        let saturated = std::mem::replace(&mut self.saturated, true);
        (self.answered, self.since_ns) = (0, now_ns);
        let width = if saturated {
            self.judge(rate)
        } else {
            // The width was not what limited the throughput, so the rate says nothing about it.
            self.trial.take().map_or(self.width, |trial| trial.from)
        };
        (std::mem::replace(&mut self.width, width) != width).then_some(width)
    }

    /// The width to go on with after a rate at the present one.
    fn judge(&mut self, rate: f64) -> usize {
        match self.trial.take() {
            Some(Trial { from, base }) if self.width > from => {
                if rate >= base * WORTH_IT {
                    self.next_rest = REST.0;
                    if self.contended {
                        return self.width;
                    }
                    return self.attempt(self.width.saturating_mul(2), rate);
                }
                self.rest(true);
                from
            }
            Some(Trial { from, base }) => {
                if rate >= base * HARMLESS {
                    // Fewer do as well: each of them ends sooner. The base stays, or many small losses would add up.
                    self.next_rest = REST.0;
                    return self.attempt(self.width / 2, base);
                }
                self.rest(false);
                from
            }
            None if self.rest > 0 => {
                self.rest -= 1;
                self.width
            }
            None if self.narrower_next || self.contended => self.attempt(self.width / 2, rate),
            None => self.attempt(self.width.saturating_mul(2), rate),
        }
    }

    /// Tries another width, if there is one in that direction.
    fn attempt(&mut self, width: usize, base: f64) -> usize {
        let width = width.clamp(1, self.most);
        if width == self.width {
            self.rest(width == self.most);
        } else {
            self.trial = Some(Trial {
                from: self.width,
                base,
            });
        }
        width
    }

    /// Nothing is tried for a while.
    fn rest(&mut self, narrower_next: bool) {
        (self.rest, self.narrower_next) = (self.next_rest, narrower_next);
        self.next_rest = (self.next_rest * 2).min(REST.1);
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_sign_loss,
    reason = "simulated time does not run backwards"
)]
mod tests {
    use super::Controller;

    const WORKERS: usize = 2;

    /// Runs `jobs` that each wait for `wait_ns` and compute for `compute_ns`, with never a place free.
    fn settled(wait_ns: f64, compute_ns: f64, most: usize) -> Vec<usize> {
        let mut width = Controller::new(WORKERS, most, 0);
        let (mut now, mut widths) = (0.0, Vec::new());
        for _ in 0..4000 {
            let places = (width.get() * WORKERS) as f64;
            // What limits: a turn of all that is begun, or the workers' own time.
            let each = ((wait_ns + compute_ns) / places).max(compute_ns / WORKERS as f64);
            now += each * places;
            width.observe((width.get() * WORKERS) as u64, true, false, now as u64);
            widths.push(width.get());
        }
        widths
    }

    #[test]
    fn waiting_work_is_begun_as_wide_as_allowed() {
        let widths = settled(50e6, 1e3, 512);
        assert_eq!(widths.iter().max(), Some(&512));
        let at_most = widths[2000..].iter().filter(|&&width| width == 512).count();
        assert!(at_most > 1600, "{at_most} of 2000");
    }

    #[test]
    fn computing_is_not_begun_all_at_once() {
        let widths = settled(0.0, 1e6, 512);
        assert!(widths[2000..].iter().all(|&width| width <= 4), "{widths:?}");
    }

    #[test]
    fn mixed_work_ends_where_more_brings_nothing() {
        // 20 ms of waiting for each millisecond of computing: 21 at a time keep a worker busy.
        let widths = settled(20e6, 1e6, 512);
        let fits = widths[2000..]
            .iter()
            .filter(|&&width| (16..=64).contains(&width));
        assert!(fits.count() > 1800, "{widths:?}");
    }

    #[test]
    fn a_width_that_is_not_used_up_stays() {
        let mut width = Controller::new(WORKERS, 512, 0);
        for turn in 1..1000_u64 {
            assert_eq!(width.observe(100, false, false, turn * 50_000_000), None);
        }
    }

    #[test]
    fn while_the_interpreter_is_contended_it_only_narrows() {
        // Throughput that grows a little with the width, as long as nobody looks at what it costs others.
        let mut width = Controller::new(1, 512, 0);
        let (mut now, mut last) = (0_u64, width.get());
        for _ in 0..2000 {
            let places = width.get() as u64;
            now += 30_000_000;
            width.observe(places * 10, true, true, now);
            assert!(width.get() <= last.max(16), "{} after {last}", width.get());
            last = width.get();
        }
        // And one thread does not do better than two if the interpreter is all they wait for.
        let mut width = Controller::new(1, 512, 0);
        for turn in 1..200_u64 {
            width.observe(10_000, true, true, turn * 30_000_000);
        }
        assert_eq!(width.get(), 1);
    }

    #[test]
    fn it_never_leaves_its_bounds() {
        for most in [0, 1, 2, 3, 100] {
            for wait in [0.0, 1e5, 1e8] {
                let widths = settled(wait, 1e4, most);
                assert!(
                    widths
                        .iter()
                        .all(|&width| (1..=most.max(1)).contains(&width))
                );
            }
        }
    }
}
