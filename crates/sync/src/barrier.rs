//! A barrier: the last of a number of parties to arrive lets all of them go on; then it serves again.
//!
//! The last one may have something to do before (its *action*). While it does, the barrier is shut: whoever
//! arrives then waits at the gate, and arrives when it is open again.

use crate::primitive::{Arc, Mutex, MutexGuard};
use crate::wait_queue::{Granted, WaitQueue, Waiter, Wake};

/// What a waiter is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All have arrived: go on.
    Passed,
    /// The barrier was broken or reset.
    Broken,
    /// The gate is open: arrive again.
    Again,
}

/// What came of an arrival.
#[derive(Debug)]
pub enum Arrival {
    /// Sleep until the waiter is granted its fate, or [`Barrier::time_out`], or [`Barrier::leave`].
    Waiting {
        /// How many had arrived before, if this one has; None at the gate.
        index: Option<usize>,
        /// To be woken by.
        waiter: Arc<Waiter<Fate>>,
    },
    /// It was the last one, with this index: do what is to be done, then [`Barrier::open`].
    Last(usize),
    /// The barrier is broken.
    Broken,
}

/// What came of a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimedOut {
    /// This is its fate.
    Decided(Fate),
    /// All have arrived, and the last one acts: wait for the fate that it will be granted.
    TooLate,
}

/// See the module's documentation.
pub struct Barrier {
    state: Mutex<State>,
}

struct State {
    parties: usize,
    /// How many of them have arrived and wait.
    arrived: usize,
    /// The last one has arrived and has not opened the barrier yet.
    shut: bool,
    broken: bool,
    waiters: WaitQueue<Fate>,
    gate: WaitQueue<Fate>,
}

impl State {
    /// Sends everybody in `waiters` on their way.
    fn send(&mut self, fate: Fate, granted: &mut Granted<Fate>) {
        self.arrived = 0;
        while let Ok(waiter) = self.waiters.grant(fate) {
            granted.push(waiter);
        }
    }

    fn open_gate(&mut self, granted: &mut Granted<Fate>) {
        self.shut = false;
        while let Ok(waiter) = self.gate.grant(Fate::Again) {
            granted.push(waiter);
        }
    }
}

/// Whoever cannot be reached takes nothing away from the others: each is told the same.
fn wake(granted: Granted<Fate>) {
    granted.wake(drop);
}

impl Barrier {
    /// A barrier for this many parties.
    pub fn new(parties: usize) -> Self {
        Self {
            state: Mutex::new(State {
                parties,
                arrived: 0,
                shut: false,
                broken: false,
                waiters: WaitQueue::new(),
                gate: WaitQueue::new(),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Arrives.
    pub fn arrive(&self, waker: impl FnOnce() -> Box<dyn Wake>) -> Arrival {
        let mut state = self.state();
        if state.shut {
            return Arrival::Waiting {
                index: None,
                waiter: state.gate.enqueue(waker()),
            };
        }
        if state.broken {
            return Arrival::Broken;
        }
        let index = state.arrived;
        if index + 1 >= state.parties {
            state.shut = true;
            return Arrival::Last(index);
        }
        state.arrived += 1;
        Arrival::Waiting {
            index: Some(index),
            waiter: state.waiters.enqueue(waker()),
        }
    }

    /// By the last one, after its action: lets all go on, or breaks the barrier if the action failed.
    pub fn open(&self, succeeded: bool) {
        let mut granted = Granted::new();
        let mut state = self.state();
        if succeeded {
            state.send(Fate::Passed, &mut granted);
        } else {
            state.broken = true;
            state.send(Fate::Broken, &mut granted);
        }
        state.open_gate(&mut granted);
        drop(state);
        wake(granted);
    }

    /// For one whose time is over: breaks the barrier for all, unless its own fate is decided already.
    pub fn time_out(&self, waiter: &Waiter<Fate>) -> TimedOut {
        let mut granted = Granted::new();
        let mut state = self.state();
        if state.shut && state.waiters.contains(waiter) {
            return TimedOut::TooLate;
        }
        let fate = waiter.abandon();
        if fate.is_none() && state.waiters.remove(waiter) {
            state.broken = true;
            state.send(Fate::Broken, &mut granted);
        }
        drop(state);
        wake(granted);
        TimedOut::Decided(fate.unwrap_or(Fate::Broken))
    }

    /// For one that gives up by an exception: it has not arrived, as far as others are concerned.
    pub fn leave(&self, waiter: &Waiter<Fate>) {
        let fate = waiter.abandon();
        let mut state = self.state();
        if fate.is_none() {
            if state.waiters.remove(waiter) {
                state.arrived = state.arrived.saturating_sub(1);
            } else {
                state.gate.remove(waiter);
            }
        }
    }

    /// Makes it usable again; whoever waits is told that it was broken.
    pub fn reset(&self) {
        let mut granted = Granted::new();
        let mut state = self.state();
        // While the last one acts, all have arrived already: they go on.
        if !state.shut {
            state.send(Fate::Broken, &mut granted);
        }
        state.broken = false;
        drop(state);
        wake(granted);
    }

    /// Breaks it until it is reset.
    pub fn abort(&self) {
        let mut granted = Granted::new();
        let mut state = self.state();
        state.broken = true;
        if !state.shut {
            state.send(Fate::Broken, &mut granted);
        }
        drop(state);
        wake(granted);
    }

    /// How many parties there must be.
    pub fn parties(&self) -> usize {
        self.state().parties
    }

    /// How many have arrived and wait for the others.
    pub fn waiting(&self) -> usize {
        let state = self.state();
        if state.shut { 0 } else { state.arrived }
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.state().broken
    }

    /// Before it is used, for another number of parties.
    pub fn set_parties(&self, parties: usize) {
        self.state().parties = parties;
    }
}
