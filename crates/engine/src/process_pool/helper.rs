//! What a job's owner can do about it: hear workers itself, for a moment, instead of sleeping; or cancel it.

use std::fmt;
use std::sync::{Arc, Weak};

use super::books::Shared;
use super::link::Link;
use super::outcome::{Handle, Outcome};
use super::state::JobId;
use super::stream::Owner;
use crate::sys::process;

/// How often a thread that waits for a quick job looks for its answer before it leaves that to the collector.
const HELP_SPINS: u32 = 256;

/// Lets a thread that waits for a job hear workers itself (two wake-ups less than through the collector), and cancel one.
pub struct Helper<H: Handle> {
    shared: Weak<Shared<H>>,
}

impl<H: Handle> Helper<H> {
    pub(super) fn new(shared: &Arc<Shared<H>>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
        }
    }

    /// Hears workers for a moment, if jobs have been short lately, until `done`, or until there is the outcome that
    /// is `wanted`, which is then the caller's to deliver. Every other outcome is left to the collector: its callbacks
    /// could need a lock that the waiting thread holds.
    pub fn help(
        &self,
        done: impl Fn() -> bool,
        wanted: impl Fn(&H) -> bool,
    ) -> Option<(H, Outcome)> {
        let shared = self.shared.upgrade()?;
        if process::id() != shared.owner {
            return None;
        }
        let mut state = shared.lock();
        if !state.supervisor.is_quick() {
            return None;
        }
        // While somebody helps, workers need not wake the collector.
        state.helpers += 1;
        state.links.values().for_each(Link::withdraw_sleep);
        drop(state);
        let mut found = None;
        for _ in 0..HELP_SPINS {
            if done() {
                break;
            }
            if let Ok(mut state) = shared.state.try_lock() {
                shared.hear_workers(&mut state);
                if state.has_notes() {
                    break;
                }
                if let Some(at) = state.outbox.iter().position(|(handle, _)| wanted(handle)) {
                    found = Some(state.outbox.swap_remove(at));
                    break;
                }
            }
            (0..8).for_each(|_| std::hint::spin_loop());
        }
        let mut state = shared.lock();
        state.helpers -= 1;
        if state.helpers == 0 {
            state.links.values().for_each(Link::announce_sleep);
        }
        if state.has_news() || state.links.values().any(Link::has_reply) {
            state.wake_collector();
        }
        found
    }
}

impl<H: Handle> Helper<H> {
    /// Cancels a job, also one that runs: its handle comes back, and no outcome will. `None` if it has ended; its outcome was
    /// delivered or is about to be.
    pub fn cancel(&self, job: JobId) -> Option<H> {
        let shared = self.shared.upgrade()?;
        if process::id() != shared.owner {
            return None;
        }
        let mut state = shared.lock();
        let owner = shared.cancel(&mut state, job);
        if state.has_news() {
            state.wake_collector();
        }
        match owner {
            Some(Owner::Handle(handle)) => Some(handle),
            _ => None,
        }
    }
}

impl<H: Handle> fmt::Debug for Helper<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Helper")
    }
}
