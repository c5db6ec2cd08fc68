//! `_rust.Barrier`.

use plait_sync::barrier::{self, Arrival, Fate, TimedOut};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::line::{Place, Waiter, future_wake};
use super::patience::Patience;
use crate::loop_bell::LoopBell;
use crate::waiting;

/// Where parties wait for each other.
#[pyclass(frozen, subclass, module = "plait._rust")]
pub struct Barrier {
    core: barrier::Barrier,
}

#[pymethods]
impl Barrier {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            core: barrier::Barrier::new(1),
        }
    }

    /// By the constructor: the number of parties.
    fn _begin(&self, parties: usize) {
        self.core.set_parties(parties);
    }

    /// Arrives and waits: the index, and whether this is the last one, which has to `_open`. None if it is broken.
    #[pyo3(signature = (timeout))]
    fn _arrive(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<(usize, bool)>> {
        let patience = Patience::of_wait(timeout)?;
        let deadline = patience.deadline();
        loop {
            let (index, waiter) = match self.core.arrive(waiting::thread_wake) {
                Arrival::Broken => return Ok(None),
                Arrival::Last(index) => return Ok(Some((index, true))),
                Arrival::Waiting { index, waiter } => (index, waiter),
            };
            // The time does not count at the gate, where somebody's action is under way.
            let mut until = index.and(deadline);
            let fate = loop {
                match waiting::sleep_in_line(py, until, true, || waiter.is_granted()) {
                    Ok(true) => break waiter.take(),
                    Ok(false) => match self.core.time_out(&waiter) {
                        TimedOut::Decided(fate) => break Some(fate),
                        TimedOut::TooLate => until = None,
                    },
                    Err(error) => {
                        self.core.leave(&waiter);
                        return Err(error);
                    }
                }
            };
            match fate {
                Some(Fate::Passed) => return Ok(index.map(|index| (index, false))),
                Some(Fate::Again) => {}
                Some(Fate::Broken) | None => return Ok(None),
            }
        }
    }

    fn _open(&self, succeeded: bool) {
        self.core.open(succeeded);
    }

    fn reset(&self) {
        self.core.reset();
    }

    fn abort(&self) {
        self.core.abort();
    }

    #[getter]
    fn parties(&self) -> usize {
        self.core.parties()
    }

    #[getter]
    fn n_waiting(&self) -> usize {
        self.core.waiting()
    }

    #[getter]
    fn broken(&self) -> bool {
        self.core.is_broken()
    }

    /// As `_arrive` for a coroutine: the index and its place in line, if it has to wait; `(index, None)` if it is the last.
    fn _join(
        &self,
        bell: &Bound<'_, LoopBell>,
        future: &Bound<'_, PyAny>,
    ) -> Option<(Option<usize>, Option<Waiter>)> {
        match self.core.arrive(|| future_wake(bell, future)) {
            Arrival::Broken => None,
            Arrival::Last(index) => Some((Some(index), None)),
            Arrival::Waiting { index, waiter } => {
                Some((index, Some(Waiter(Place::Arrived(waiter)))))
            }
        }
    }

    /// What became of one that waited and was woken: "passed", "again" or "broken".
    #[allow(clippy::unused_self)] // Called on the barrier like all the rest.
    fn _fate(&self, waiter: &Waiter) -> PyResult<&'static str> {
        Ok(match waiter.arrived()?.take() {
            Some(Fate::Passed) => "passed",
            Some(Fate::Again) => "again",
            Some(Fate::Broken) | None => "broken",
        })
    }

    fn _leave(&self, waiter: &Waiter) -> PyResult<()> {
        self.core.leave(waiter.arrived()?);
        Ok(())
    }
}
