//! An event loop that hears workers itself, so that results reach it without a thread in between.
//!
//! While it listens it is what the workers' doorbell wakes; the collector keeps to callers, the zygote and deadlines, and
//! looks every few milliseconds whether the loop is held up.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use super::books::Shared;
use super::link::Link;
use super::outcome::{Handle, Outcome};
use crate::sys::process;

/// Lets one event loop hear the workers of a pool.
pub struct Listener<H: Handle> {
    shared: Weak<Shared<H>>,
}

impl<H: Handle> Listener<H> {
    pub(super) fn new(shared: &Arc<Shared<H>>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
        }
    }

    fn shared(&self) -> Option<Arc<Shared<H>>> {
        let shared = self.shared.upgrade()?;
        (process::id() == shared.owner).then_some(shared)
    }

    /// From now on the caller hears workers: whenever the descriptor that this gives is readable it calls
    /// [`Self::hear`], and once at first. `None` if another loop does, or there is nothing to hear any more.
    pub fn begin(&self) -> Option<OwnedFd> {
        let shared = self.shared()?;
        let mut state = shared.lock();
        if state.listening || state.closing {
            return None;
        }
        let doorbell = state.plumbing.as_ref()?.doorbell.as_fd();
        let doorbell = doorbell.try_clone_to_owned().ok()?;
        state.listening = true;
        state.wake_collector();
        Some(doorbell)
    }

    /// The outcomes that are there and `wanted`, which are the caller's to deliver. The others are left to the collector:
    /// their callbacks are no business of this thread.
    pub fn hear(&self, wanted: impl Fn(&H) -> bool) -> Vec<(H, Outcome)> {
        let Some(shared) = self.shared() else {
            return Vec::new();
        };
        let mut state = shared.lock();
        if let Some(plumbing) = &state.plumbing {
            plumbing.doorbell.silence();
        }
        state.links.values().for_each(Link::withdraw_sleep);
        loop {
            shared.hear_workers(&mut state);
            state.links.values().for_each(Link::announce_sleep);
            if !state.links.values().any(Link::has_reply) {
                break;
            }
        }
        if state.has_notes() {
            state.wake_collector();
            return Vec::new();
        }
        let (found, others) = std::mem::take(&mut state.outbox)
            .into_iter()
            .partition(|(handle, _)| wanted(handle));
        state.outbox = others;
        if state.has_news() {
            state.wake_collector();
        }
        found
    }

    /// The collector hears workers again.
    pub fn end(&self) {
        if let Some(shared) = self.shared() {
            let mut state = shared.lock();
            state.listening = false;
            state.wake_collector();
        }
    }
}

impl<H: Handle> fmt::Debug for Listener<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}
