//! Who has to be told when which time is over. Ordered by time, so that telling and taking back cost a logarithm.

use std::collections::BTreeMap;
use std::time::Instant;

/// Names one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    deadline: Instant,
    /// Tells entries with the same deadline apart.
    number: u64,
}

/// Work items with a deadline each. Whoever gets an item, by [`Deadlines::take`] or [`Deadlines::expired`], is the only
/// one to get it: that decides between a job that ends and its timeout.
pub struct Deadlines<D> {
    entries: BTreeMap<Ticket, D>,
    number: u64,
    /// When the timer that sleeps will look again by itself; None if it sleeps until it is woken.
    alarm: Option<Instant>,
}

impl<D> Deadlines<D> {
    /// No entries, and a timer that sleeps until it is woken.
    pub const fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            number: 0,
            alarm: None,
        }
    }

    /// Adds an entry; true if the timer has to be woken because it would sleep too long.
    pub fn insert(&mut self, deadline: Instant, item: D) -> (Ticket, bool) {
        let ticket = Ticket {
            deadline,
            number: self.number,
        };
        self.number += 1;
        self.entries.insert(ticket, item);
        let early = self.alarm.is_none_or(|alarm| deadline < alarm);
        if early {
            self.alarm = Some(deadline);
        }
        (ticket, early)
    }

    /// Takes an entry back; None if its time was over first.
    pub fn take(&mut self, ticket: Ticket) -> Option<D> {
        self.entries.remove(&ticket)
    }

    /// Takes one entry whose time is over at `now`.
    pub fn expired(&mut self, now: Instant) -> Option<D> {
        let first = self.entries.first_entry()?;
        (first.key().deadline <= now).then(|| first.remove())
    }

    /// When the timer, which is about to sleep, has to look again.
    pub fn set_alarm(&mut self) -> Option<Instant> {
        self.alarm = self
            .entries
            .first_key_value()
            .map(|(ticket, _)| ticket.deadline);
        self.alarm
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes all entries, for the child of a fork.
    pub fn drain(&mut self) -> Vec<D> {
        self.alarm = None;
        std::mem::take(&mut self.entries).into_values().collect()
    }
}

impl<D> Default for Deadlines<D> {
    fn default() -> Self {
        Self::new()
    }
}
