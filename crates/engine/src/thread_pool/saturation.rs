//! When a pool that is as wide as it may be, with jobs waiting all the time, says so: once.

use std::time::Duration;

/// How long it has to have been so.
pub const SATURATED_FOR: Duration = Duration::from_secs(10);

/// Told how the pool is, from time to time. Has no clock of its own.
#[derive(Debug, Default)]
pub struct Saturation {
    /// When it was seen to be saturated for the first time since it was not.
    since: Option<Duration>,
    has_told: bool,
}

impl Saturation {
    /// `now` is the time since some fixed moment; true if the user is to be told.
    pub fn observe(&mut self, is_saturated: bool, now: Duration) -> bool {
        if !is_saturated {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        if self.has_told || now.saturating_sub(since) < SATURATED_FOR {
            return false;
        }
        self.has_told = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn it_is_told_after_ten_seconds_and_once() {
        let mut saturation = Saturation::default();
        assert!(!saturation.observe(true, at(5_000)));
        assert!(!saturation.observe(true, at(14_999)));
        assert!(saturation.observe(true, at(15_000)));
        assert!(!saturation.observe(true, at(60_000)));
        assert!(!saturation.observe(false, at(60_100)));
        assert!(!saturation.observe(true, at(60_200)));
        assert!(!saturation.observe(true, at(90_000)));
    }

    #[test]
    fn a_moment_without_jobs_that_wait_begins_the_time_anew() {
        let mut saturation = Saturation::default();
        for second in 0..100 {
            let now = at(second * 1000);
            assert!(!saturation.observe(second % 10 != 9, now), "{second}");
        }
        assert!(!saturation.observe(true, at(100_000)));
        assert!(saturation.observe(true, at(110_000)));
    }

    #[test]
    fn a_clock_that_goes_backwards_tells_nothing() {
        let mut saturation = Saturation::default();
        assert!(!saturation.observe(true, at(50_000)));
        assert!(!saturation.observe(true, at(10)));
    }
}
