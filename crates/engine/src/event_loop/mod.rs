//! One thread's event loop over work items of a type it does not know. `README.md` beside this file has the turn, and who
//! may do what.

mod interest;
mod pulse;
mod sources;
mod timers;

pub use crate::sys::poller::{Readiness, Watch, note_fork};
pub use interest::Side;
pub use pulse::{Pulse, Tally, Watch as StallWatch};
pub use sources::Token;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_queue::SegQueue;
use plait_sync::bell::Bell;

use crate::sys::clock::{coarse_ns, monotonic_ns};
use crate::sys::poller::{Found, Poller, Who};
use interest::Interests;
use sources::Sources;
use timers::Timers;

/// So many turns may pass without a look at descriptors and timers.
const MOST_UNPOLLED: u32 = 32;
/// Timers that are due within this are due: a sleep is not more exact than that.
const RESOLUTION: f64 = 1e-9;
/// Nobody waits longer without another look, so that a clock that jumps does no harm: a day.
const LONGEST_WAIT: f64 = 24.0 * 3600.0;

/// See the module's documentation. Everything but [`Self::add_remote`] and [`Self::wake`] is for the loop's own thread;
/// other threads that call it do no harm to memory, but may wait for that thread.
#[derive(Debug)]
pub struct EventLoop<T> {
    own: Mutex<Own<T>>,
    inbox: SegQueue<T>,
    bell: Bell,
    poller: Poller,
}

#[derive(Debug)]
struct Own<T> {
    ready: VecDeque<T>,
    timers: Timers<T>,
    interests: Interests<T>,
    sources: Sources<T>,
    /// Turns since the last look at descriptors and timers, and when that was on the coarse clock.
    unpolled: u32,
    polled_ns: u64,
    found: Found,
}

/// How a wait for something to do is to be made: see [`EventLoop::prepare`].
#[derive(Debug)]
pub enum Wait {
    /// There is something to do already.
    Not,
    /// Only look.
    Look,
    /// Until something is ready, for so long at most.
    Sleep(Option<Duration>),
}

impl<T> EventLoop<T> {
    /// A loop with nothing to do.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            own: Mutex::new(Own {
                ready: VecDeque::new(),
                timers: Timers::default(),
                interests: Interests::default(),
                sources: Sources::default(),
                unpolled: 0,
                polled_ns: 0,
                found: Found::default(),
            }),
            inbox: SegQueue::new(),
            bell: Bell::new(),
            poller: Poller::new()?,
        })
    }

    fn own(&self) -> MutexGuard<'_, Own<T>> {
        // Nothing in a critical section panics half-way, so a poisoned lock is a good lock.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds on the monotonic clock, as timers count them.
    pub fn now() -> f64 {
        seconds(monotonic_ns())
    }

    /// An item for the next turn.
    pub fn add(&self, item: T) {
        let mut own = self.own();
        // What this thread added as if it were another one comes first.
        self.empty_inbox(&mut own);
        own.ready.push_back(item);
    }

    /// The same from any thread: wakes the loop if it sleeps.
    pub fn add_remote(&self, item: T) {
        self.inbox.push(item);
        if self.bell.must_ring() {
            self.poller.ring();
        }
    }

    /// Has the loop make a turn, if it sleeps, or not sleep the next time.
    pub fn wake(&self) {
        self.poller.ring();
    }

    /// An item for when it is `when`.
    pub fn add_timer(&self, when: f64, item: T) {
        self.own().timers.add(when, item);
    }

    /// The item of a timer was cancelled. What is swept out is the caller's to drop.
    pub fn note_cancelled(&self, is_cancelled: impl Fn(&T) -> bool) -> Vec<T> {
        let timers = &mut self.own().timers;
        if timers.note_cancelled() {
            timers.sweep(is_cancelled)
        } else {
            Vec::new()
        }
    }

    /// Watches a descriptor for `item`; gives the item that it replaces. An error if a source owns it.
    pub fn watch(&self, fd: RawFd, side: Side, item: T) -> io::Result<Option<T>> {
        let mut own = self.own();
        let Own {
            interests, sources, ..
        } = &mut *own;
        let is_owned = sources.owner(fd).is_some();
        interests.set(&self.poller, fd, side, item, is_owned)
    }

    /// Stops that; gives the item.
    pub fn unwatch(&self, fd: RawFd, side: Side) -> Option<T> {
        self.own().interests.remove(&self.poller, fd, side)
    }

    /// Has an item told when a descriptor is ready, until it leaves: see [`Self::leave`]. To be called after a try that found it
    /// not ready; what becomes ready after that is told. `is_known`: it is certain that the number stands for the same file
    /// as at the last wait, so that the kernel need not be told again. An error if a source owns the descriptor.
    pub fn watch_once(&self, fd: RawFd, side: Side, item: T, is_known: bool) -> io::Result<()> {
        let mut own = self.own();
        let Own {
            interests, sources, ..
        } = &mut *own;
        let is_owned = sources.owner(fd).is_some();
        interests.wait(&self.poller, fd, side, item, is_known, is_owned)
    }

    /// Whether a descriptor is watched for those who wait once, and for nobody else.
    pub fn is_only_waited_for(&self, fd: RawFd) -> bool {
        self.own().interests.has_edges(fd)
    }

    /// Ends a wait; gives its item.
    pub fn leave(&self, fd: RawFd, is_mine: impl Fn(&T) -> bool) -> Option<T> {
        self.own().interests.leave(&self.poller, fd, is_mine)
    }

    /// Registers the one owner of a descriptor, who is told on every edge. What is given back beside the token are the
    /// items of those who watched the number before.
    pub fn register(&self, fd: RawFd, watch: Watch, item: T) -> io::Result<(Token, Vec<T>)> {
        let mut own = self.own();
        let Own {
            interests, sources, ..
        } = &mut *own;
        let (token, old) = sources.add(&self.poller, fd, watch, item)?;
        let mut dropped: Vec<T> = old.into_iter().collect();
        dropped.extend(interests.forget(fd));
        Ok((token, dropped))
    }

    /// Has a source told of something else; what it is ready for already counts as an edge. Nothing happens if it is not
    /// registered any more.
    pub fn change(&self, token: Token, watch: Watch) -> io::Result<()> {
        self.own().sources.change(&self.poller, token, watch)
    }

    /// Forgets a source; gives its item. What epoll has found already is not told any more. To be called before the
    /// descriptor is closed.
    pub fn unregister(&self, token: Token) -> Option<T> {
        let mut own = self.own();
        let Own {
            interests, sources, ..
        } = &mut *own;
        sources.remove(&self.poller, token, |fd| interests.has(fd))
    }

    /// The source that owns a descriptor, as `look` sees it.
    pub fn owner<R>(&self, fd: RawFd, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.own().sources.owner(fd).map(look)
    }

    /// The next turn looks at descriptors and timers, whatever is ready.
    pub fn look_next(&self) {
        self.own().unpolled = MOST_UNPOLLED;
    }

    /// Begins a turn: how to wait for something to do. After `Look` and `Sleep` comes [`Self::wait`], then
    /// [`Self::gather`]. `hurry`: do not sleep.
    pub fn prepare(&self, hurry: bool) -> Wait {
        let mut own = self.own();
        self.empty_inbox(&mut own);
        if !own.ready.is_empty() || hurry {
            own.unpolled += 1;
            if own.unpolled < MOST_UNPOLLED && own.polled_ns == coarse_ns() && !hurry {
                return Wait::Not;
            }
            return Wait::Look;
        }
        let timeout = own.timers.next_due().map(|when| when - Self::now());
        if timeout.is_some_and(|seconds| seconds <= 0.0) {
            return Wait::Look;
        }
        self.bell.announce();
        if !self.inbox.is_empty() {
            self.bell.withdraw();
            return Wait::Look;
        }
        Wait::Sleep(timeout.map(|seconds| Duration::from_secs_f64(seconds.min(LONGEST_WAIT))))
    }

    /// Waits as [`Self::prepare`] has said. The interpreter's lock is best let go of meanwhile if that is a sleep.
    pub fn wait(&self, how: &Wait) -> io::Result<()> {
        let timeout = match how {
            Wait::Not => return Ok(()),
            Wait::Look => Some(Duration::ZERO),
            Wait::Sleep(limit) => *limit,
        };
        let mut found = std::mem::take(&mut self.own().found);
        let waited = self.poller.wait(timeout, &mut found);
        self.bell.withdraw();
        self.own().found = found;
        waited
    }

    /// What the wait found becomes ready: descriptors (`copy` makes an item of one that stays, and of what it is ready for),
    /// other threads' items, then timers that are due.
    pub fn gather(
        &self,
        copy: impl Fn(&T, Readiness) -> T,
        is_cancelled: impl Fn(&T) -> bool,
    ) -> Vec<T> {
        let mut own = self.own();
        let Own {
            ready,
            timers,
            interests,
            sources,
            found,
            ..
        } = &mut *own;
        for (who, readiness) in found.iter() {
            match who {
                Who::Source(number) => {
                    ready.extend(sources.found(number).map(|item| copy(item, readiness)));
                }
                Who::Fd(fd) => {
                    let items = interests.found(fd, readiness);
                    ready.extend(items.map(|item| copy(item, readiness)));
                }
            }
        }
        found.clear();
        let mut dropped = Vec::new();
        if !timers.is_empty() {
            let end = Self::now() + RESOLUTION;
            while let Some(item) = timers.take_due(end) {
                if is_cancelled(&item) {
                    timers.forget_cancelled();
                    dropped.push(item);
                } else {
                    ready.push_back(item);
                }
            }
        }
        self.empty_inbox(&mut own);
        own.unpolled = 0;
        own.polled_ns = coarse_ns();
        dropped
    }

    fn empty_inbox(&self, own: &mut Own<T>) {
        while let Some(item) = self.inbox.pop() {
            own.ready.push_back(item);
        }
    }

    /// Swaps the ready items for `empty`: those are this turn's, and what comes now is for the next.
    pub fn begin_turn(&self, empty: &mut VecDeque<T>) {
        std::mem::swap(&mut self.own().ready, empty);
    }

    /// Gives back what a turn that ended early did not run.
    pub fn put_back(&self, rest: &mut VecDeque<T>) {
        let ready = &mut self.own().ready;
        while let Some(item) = rest.pop_back() {
            ready.push_front(item);
        }
    }

    /// Lets go of every item; they are the caller's to drop.
    pub fn clear(&self) -> Vec<T> {
        let mut own = self.own();
        self.empty_inbox(&mut own);
        let mut items: Vec<T> = std::mem::take(&mut own.ready).into();
        items.extend(own.timers.clear());
        items.extend(own.interests.clear());
        items.extend(own.sources.clear());
        items
    }

    /// How many items are ready, and how many timers there are.
    pub fn counts(&self) -> (usize, usize) {
        let own = self.own();
        (own.ready.len() + self.inbox.len(), own.timers.len())
    }

    /// Shows the ready items, in order.
    pub fn visit_ready(&self, visitor: impl FnMut(&T)) {
        let mut own = self.own();
        self.empty_inbox(&mut own);
        own.ready.iter().for_each(visitor);
    }

    /// Shows every item that is here, but for the inbox; false if another thread is at it right now.
    pub fn visit(&self, mut visitor: impl FnMut(&T)) -> bool {
        let Ok(own) = self.own.try_lock() else {
            return false;
        };
        own.ready.iter().for_each(&mut visitor);
        own.timers.iter().for_each(&mut visitor);
        own.interests.iter().for_each(&mut visitor);
        own.sources.iter().for_each(&mut visitor);
        true
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "nanoseconds are lost after 104 days of uptime, as with Python's own clock"
)]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
