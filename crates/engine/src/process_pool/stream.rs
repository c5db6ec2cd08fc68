//! One map's items on their way: what waits to be queued, and what has ended and waits to be given out.
//!
//! `README.md` beside this file says who takes which lock when; here are a stream's own books.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plait_sync::parker::Unparker;

use super::link::Job;
use super::outcome::{Handle, Outcome};

/// So many items are queued together.
const BATCH: usize = 32;

/// What is known of a map's items, in the pool's process.
pub struct Stream {
    backlog: Mutex<Backlog>,
    done: Mutex<Done>,
    closed: AtomicBool,
}

struct Backlog {
    /// Items that the pool has not been given, with their numbers.
    jobs: Vec<(u64, Job)>,
    /// The number of the next item.
    next: u64,
    /// Nothing is pending in the pool: an item must not wait for others.
    eager: bool,
}

struct Done {
    ordered: bool,
    /// Only in order: what follows the last outcome in `ready`, where it has ended.
    ahead: VecDeque<Option<Outcome>>,
    /// The number of the item at the front of `ahead`.
    first: u64,
    /// To be given out, in this order.
    ready: VecDeque<(u64, Outcome)>,
    /// How many items have ended and were not cancelled.
    completed: u64,
    /// Whoever sleeps until something is ready.
    sleeper: Option<Unparker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in a critical section can panic half-way, so a poisoned lock is a good lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            backlog: Mutex::new(Backlog {
                jobs: Vec::new(),
                next: 0,
                eager: true,
            }),
            done: Mutex::new(Done {
                ordered,
                ahead: VecDeque::new(),
                first: 0,
                ready: VecDeque::new(),
                completed: 0,
                sleeper: None,
            }),
            closed: AtomicBool::new(false),
        }
    }

    /// One more item; true if the pool must be given the backlog now.
    pub(super) fn add(&self, job: Job) -> bool {
        let mut backlog = lock(&self.backlog);
        let number = backlog.next;
        backlog.next += 1;
        backlog.jobs.push((number, job));
        backlog.eager || backlog.jobs.len() >= BATCH
    }

    /// An item that cannot even be queued: it ends as cancelled in its turn. Its number.
    pub fn refuse(&self) -> u64 {
        let mut backlog = lock(&self.backlog);
        let number = backlog.next;
        backlog.next += 1;
        drop(backlog);
        // Only the consumer's own thread refuses, so nobody sleeps.
        lock(&self.done).put(number, Outcome::Cancelled);
        number
    }

    /// Everything in the backlog, which is eager until [`Self::set_patient`].
    pub(super) fn take_backlog(&self) -> Vec<(u64, Job)> {
        let mut backlog = lock(&self.backlog);
        backlog.eager = true;
        std::mem::take(&mut backlog.jobs)
    }

    /// There are jobs pending: what is added next may wait for company.
    pub(super) fn set_patient(&self) {
        lock(&self.backlog).eager = false;
    }

    /// An item has ended; whoever is to be woken for it.
    pub(super) fn put(&self, number: u64, outcome: Outcome) -> Option<Unparker> {
        if self.is_closed() {
            return None;
        }
        let mut done = lock(&self.done);
        done.completed += u64::from(!matches!(outcome, Outcome::Cancelled));
        done.put(number, outcome);
        if done.ready.is_empty() {
            None
        } else {
            done.sleeper.take()
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Forgets everything; what still comes is dropped.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let backlog = std::mem::take(&mut lock(&self.backlog).jobs);
        let mut done = lock(&self.done);
        let outcomes = (
            std::mem::take(&mut done.ahead),
            std::mem::take(&mut done.ready),
        );
        drop(done);
        drop((backlog, outcomes));
    }

    /// Takes up to `most` outcomes that are ready, with the numbers of their items.
    pub fn take(&self, most: usize, into: &mut VecDeque<(u64, Outcome)>) {
        let ready = &mut lock(&self.done).ready;
        let count = ready.len().min(most);
        into.extend(ready.drain(..count));
    }

    /// Whether there is something to take.
    pub fn is_ready(&self) -> bool {
        !lock(&self.done).ready.is_empty()
    }

    /// Has `sleeper` woken when something is ready; false if something is.
    pub fn announce(&self, sleeper: Unparker) -> bool {
        let mut done = lock(&self.done);
        let sleeps = done.ready.is_empty();
        done.sleeper = sleeps.then_some(sleeper);
        sleeps
    }

    /// How many items have ended and were not cancelled.
    pub fn completed(&self) -> u64 {
        lock(&self.done).completed
    }
}

impl Done {
    fn put(&mut self, number: u64, outcome: Outcome) {
        if !self.ordered {
            self.ready.push_back((number, outcome));
            return;
        }
        if number == self.first && self.ahead.is_empty() {
            self.first += 1;
            self.ready.push_back((number, outcome));
            return;
        }
        // Numbers are given out in a row and each ends once, so it is not before `first`, nor far behind it.
        let at = number.saturating_sub(self.first) as usize;
        if self.ahead.len() <= at {
            self.ahead.resize_with(at + 1, || None);
        }
        self.ahead[at] = Some(outcome);
        while let Some(Some(_)) = self.ahead.front() {
            if let Some(Some(outcome)) = self.ahead.pop_front() {
                self.ready.push_back((self.first, outcome));
                self.first += 1;
            }
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// Who wants a job's outcome: somebody with a handle, or a stream.
pub(super) enum Owner<H> {
    Handle(H),
    Item { stream: Arc<Stream>, number: u64 },
}

impl<H: Handle> Owner<H> {
    /// The job is about to be sent: false if nobody wants it any more.
    pub(super) fn try_start(&self) -> bool {
        match self {
            Self::Handle(handle) => handle.try_start(),
            Self::Item { stream, .. } => !stream.is_closed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use plait_sync::parker::Parker;

    use super::*;
    use crate::process_pool::Bytes;
    use crate::process_pool::protocol::Status;

    fn taken(stream: &Stream) -> Vec<u64> {
        let mut outcomes = VecDeque::new();
        stream.take(usize::MAX, &mut outcomes);
        outcomes.into_iter().map(|(number, _)| number).collect()
    }

    fn nothing() -> Outcome {
        Outcome::Answer {
            status: Status::Nothing,
            payload: Bytes::Inline(Vec::new()),
            buffers: Vec::new(),
            place: None,
        }
    }

    #[test]
    fn outcomes_are_given_out_in_the_order_of_the_items() {
        let stream = Stream::new(true);
        for number in [1, 3, 0] {
            stream.put(number, nothing());
        }
        assert_eq!(taken(&stream), [0, 1]);
        assert!(!stream.is_ready());
        for number in [4, 2] {
            stream.put(number, nothing());
        }
        assert_eq!(taken(&stream), [2, 3, 4]);
        assert_eq!(stream.completed(), 5);
    }

    #[test]
    fn or_as_they_come() {
        let stream = Stream::new(false);
        for number in [1, 3, 0] {
            stream.put(number, nothing());
        }
        assert_eq!(taken(&stream), [1, 3, 0]);
    }

    #[test]
    fn a_sleeper_is_woken_by_the_item_whose_turn_it_is() {
        let stream = Stream::new(true);
        let parker = Parker::new();
        assert!(stream.announce(parker.unparker()));
        assert!(stream.put(1, nothing()).is_none());
        assert!(stream.put(0, nothing()).is_some());
        assert!(!stream.announce(parker.unparker()));
    }

    #[test]
    fn what_comes_after_the_end_is_dropped() {
        let stream = Stream::new(true);
        stream.put(0, nothing());
        stream.close();
        stream.put(1, nothing());
        assert!(!stream.is_ready());
        assert_eq!(stream.refuse(), 0);
    }
}
