//! For how long a lock is waited for: what `blocking` and `timeout` mean to the standard classes.

use std::time::Instant;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::waiting;

/// How long a call may take.
#[derive(Clone, Copy)]
pub enum Patience {
    None,
    Until(Instant),
    Forever,
}

impl Patience {
    fn for_seconds(seconds: f64) -> PyResult<Self> {
        Ok(waiting::deadline_in(seconds)?.map_or(Self::Forever, Self::Until))
    }

    /// `timeout` of an `Event`, a `Condition`, a `Semaphore` or a `Barrier`: None for ever; what is not above 0 is 0, but
    /// a NaN is an error where it is one for the standard classes.
    pub fn of_wait(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(timeout) = timeout else {
            return Ok(Self::Forever);
        };
        let seconds: f64 = timeout.extract()?;
        if seconds > 0.0 {
            Self::for_seconds(seconds)
        } else if seconds.is_nan() && timeout.py().version_info() >= (3, 14) {
            Err(waiting::not_a_number())
        } else {
            Ok(Self::None)
        }
    }

    /// `blocking` and `timeout` of a lock's `acquire`.
    pub fn of_lock(
        blocking: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        if blocking.is_none() && timeout.is_none() {
            return Ok(Self::Forever);
        }
        let blocking = blocking.map_or(Ok(true), PyAnyMethods::is_truthy)?;
        let seconds: f64 = timeout.map_or(Ok(-1.0), PyAnyMethods::extract)?;
        if seconds.is_nan() {
            return Err(waiting::not_a_number());
        }
        #[allow(clippy::float_cmp)] // This very value means that there is none.
        let endless = seconds == -1.0;
        match (blocking, endless) {
            (true, true) => Ok(Self::Forever),
            (false, true) => Ok(Self::None),
            (false, false) => Err(PyValueError::new_err(
                "can't specify a timeout for a non-blocking call",
            )),
            (true, false) if seconds < 0.0 => Err(PyValueError::new_err(
                "timeout value must be a non-negative number",
            )),
            (true, false) => Self::for_seconds(seconds),
        }
    }

    pub fn deadline(self) -> Option<Instant> {
        match self {
            Self::None => Some(Instant::now()),
            Self::Until(deadline) => Some(deadline),
            Self::Forever => None,
        }
    }
}
