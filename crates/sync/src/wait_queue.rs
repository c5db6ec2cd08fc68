//! A fair queue of waiters that are threads, coroutines, or anything else that can be woken. The base of every lock
//! and queue; the section "Waiting in line" of `README.md` beside this crate's `src` tells who wakes whom.
//!
//! The queue itself is plain data under the mutex of the lock or queue that owns it. A [`Waiter`] is shared between that
//! owner and whoever waits. It is granted a value exactly once or abandons exactly once, and one atomic decides which:
//! so the side that waits can give up (timeout, Ctrl-C, cancelled coroutine) without the owner's mutex, and what was
//! granted to it in the same instant comes back into its hands, to be passed on.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::AtomicU64;

use crate::parker::Unparker;
use crate::primitive::{Arc, AtomicU8, Ordering, UnsafeCell};

/// In line: nothing was granted, and the waiter still wants it.
const WAITING: u8 = 0;
/// A value was granted and nobody has taken it yet.
const GRANTED: u8 = 1;
/// The value was taken, or the waiter abandoned before there was one.
const GONE: u8 = 2;

/// How often this process has been forked off from another. Not loom's: no interleaving of threads changes it.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// In the child of a fork, before anything else: the threads and coroutines that stood in line are the parent's.
pub fn after_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// How a waiter is woken: a parked thread's [`Unparker`], a callback into an event loop, …
pub trait Wake: Send + Sync {
    /// Has the waiter look at what it was granted; called once per grant, outside every lock of the owner's.
    ///
    /// False if nobody can ever look (its event loop is closed): the caller then [`Waiter::take`]s the grant back and
    /// passes it on to the next.
    fn wake(&self) -> bool;
}

impl Wake for Unparker {
    fn wake(&self) -> bool {
        self.unpark();
        true
    }
}

/// One place in line, shared by the owner of the queue and whoever waits.
pub struct Waiter<T> {
    /// Grows from front to back.
    place: u64,
    /// Was woken before and found that others had been quicker.
    overtaken: bool,
    state: AtomicU8,
    /// Written by the one granter while WAITING (it has the `&mut WaitQueue`); read by whoever moves GRANTED to GONE.
    value: UnsafeCell<Option<T>>,
    wake: Box<dyn Wake>,
}

// SAFETY: `value` is reached by one side at a time, as `state` says (see the two blocks below); a value moves from the
// granting thread to the taking one, hence `T: Send`. The rest is immutable or atomic.
unsafe impl<T: Send> Sync for Waiter<T> {}
// SAFETY: as above; the parts are all `Send` if `T` is.
unsafe impl<T: Send> Send for Waiter<T> {}

impl<T> Waiter<T> {
    /// The value that was granted, if there is one that nobody took. Exactly one call gets it.
    pub fn take(&self) -> Option<T> {
        self.state
            .compare_exchange(GRANTED, GONE, Ordering::Acquire, Ordering::Relaxed)
            .ok()?;
        // SAFETY: only the granter touches the value before GRANTED and it is done (Release above, Acquire here); of those
        // that come after, only the one whose exchange succeeded gets here.
        self.value.with_mut(|value| unsafe { (*value).take() })
    }

    /// Gives up. `None`: nothing was granted and nothing will be. `Some`: it was granted just before; the caller has it
    /// now, and uses it or passes it on. If it was taken already, `None`.
    ///
    /// Whoever gave up then has its entry taken out by [`WaitQueue::remove`], under the owner's mutex.
    pub fn abandon(&self) -> Option<T> {
        match self
            .state
            .compare_exchange(WAITING, GONE, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => None,
            Err(_) => self.take(),
        }
    }

    /// Whether a value lies ready for [`Waiter::take`]. What was done before the grant is seen after a true.
    pub fn is_granted(&self) -> bool {
        self.state.load(Ordering::Acquire) == GRANTED
    }

    /// Wakes whoever waits; after a grant, outside every lock. See [`Wake::wake`].
    pub fn wake(&self) -> bool {
        self.wake.wake()
    }

    /// Where in line it stands, for [`WaitQueue::enqueue_again`]; the smaller the earlier.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// Whether it was woken before and found that others had been quicker: it stands in line for another time.
    pub fn was_overtaken(&self) -> bool {
        self.overtaken
    }

    /// Puts the value there if the waiter still waits; else gives it back.
    fn grant(&self, value: T) -> Result<(), T> {
        // SAFETY: the state is WAITING or GONE without ever having been GRANTED (the queue forgets a waiter when it grants),
        // so nobody reads the value; and grants to this waiter exclude each other by the `&mut WaitQueue`.
        drop(
            self.value
                .with_mut(|slot| unsafe { slot.replace(Some(value)) }),
        );
        if self
            .state
            .compare_exchange(WAITING, GRANTED, Ordering::Release, Ordering::Relaxed)
            .is_ok()
        {
            return Ok(());
        }
        // SAFETY: as above: it abandoned, and who abandons does not look at the value.
        match self.value.with_mut(|slot| unsafe { (*slot).take() }) {
            Some(value) => Err(value),
            None => Ok(()),
        }
    }
}

impl<T> fmt::Debug for Waiter<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Waiter")
            .field("place", &self.place)
            .field("overtaken", &self.overtaken)
            .finish_non_exhaustive()
    }
}

/// See the module's documentation. First in, first out, except for those that abandon.
///
/// **The one rule of its users**: whoever waits keeps its `Arc<Waiter>` until the entry is out of the queue, by a grant or
/// by [`WaitQueue::remove`]. Then no waiter (and nothing that its [`Wake`] refers to) is ever dropped by this queue, hence
/// not under its owner's mutex.
pub struct WaitQueue<T> {
    /// In the order of their places.
    waiters: VecDeque<Arc<Waiter<T>>>,
    next_place: u64,
    /// [`FORKS`] when it was last used.
    forks: u64,
}

impl<T> WaitQueue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            waiters: VecDeque::new(),
            next_place: 0,
            forks: 0,
        }
    }

    /// Forgets those in line if this process was forked off since they joined; true if so. All that joins or grants
    /// does it first; an owner that keeps account of its waiters asks before it looks at its account.
    pub fn renew(&mut self) -> bool {
        let forks = FORKS.load(Ordering::Relaxed);
        if self.forks == forks {
            return false;
        }
        self.forks = forks;
        // Not dropped: that could run Python code under the owner's mutex, or wait for one that a lost thread held.
        std::mem::forget(std::mem::take(&mut self.waiters));
        true
    }

    /// Joins at the end.
    pub fn enqueue(&mut self, wake: Box<dyn Wake>) -> Arc<Waiter<T>> {
        self.renew();
        let place = self.next_place;
        self.next_place += 1;
        let waiter = Waiter::arc(place, false, wake);
        self.waiters.push_back(Arc::clone(&waiter));
        waiter
    }

    /// Joins at the place that it had when it was granted its turn and found nothing left to take; it has been
    /// overtaken, as [`Waiter::was_overtaken`] will tell.
    pub fn enqueue_again(&mut self, place: u64, wake: Box<dyn Wake>) -> Arc<Waiter<T>> {
        self.renew();
        let waiter = Waiter::arc(place, true, wake);
        let (Ok(at) | Err(at)) = self.find(place);
        self.waiters.insert(at, Arc::clone(&waiter));
        waiter
    }

    /// Grants the value to the first that has not abandoned, which is out of line then: wake it, outside the owner's mutex.
    /// Gives the value back if there is nobody.
    pub fn grant(&mut self, value: T) -> Result<Arc<Waiter<T>>, T> {
        self.renew();
        let mut value = value;
        while let Some(waiter) = self.waiters.pop_front() {
            match waiter.grant(value) {
                Ok(()) => return Ok(waiter),
                Err(back) => value = back,
            }
        }
        Err(value)
    }

    /// Takes out the entry of one that abandoned; false if it was out already, or never in this queue.
    pub fn remove(&mut self, waiter: &Waiter<T>) -> bool {
        self.contains(waiter)
            && self
                .find(waiter.place)
                .is_ok_and(|at| self.waiters.remove(at).is_some())
    }

    /// Whether its entry is in this queue.
    pub fn contains(&self, waiter: &Waiter<T>) -> bool {
        self.find(waiter.place)
            .is_ok_and(|at| std::ptr::eq(&raw const *self.waiters[at], waiter))
    }

    /// The first in line; it may have abandoned a moment ago.
    pub fn first(&self) -> Option<&Waiter<T>> {
        self.waiters.front().map(|waiter| &**waiter)
    }

    /// How many stand in line, those included that abandoned a moment ago.
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody stands in line.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    fn find(&self, place: u64) -> Result<usize, usize> {
        self.waiters
            .binary_search_by_key(&place, |waiter| waiter.place)
    }
}

impl<T> Waiter<T> {
    fn arc(place: u64, overtaken: bool, wake: Box<dyn Wake>) -> Arc<Self> {
        Arc::new(Self {
            place,
            overtaken,
            state: AtomicU8::new(WAITING),
            value: UnsafeCell::new(None),
            wake,
        })
    }
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Those that were granted something under the owner's mutex and are to be woken once it is free.
#[must_use = "somebody is asleep"]
#[derive(Debug)]
pub struct Granted<T>(Vec<Arc<Waiter<T>>>);

impl<T> Granted<T> {
    /// Nobody yet; allocates nothing.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one.
    pub fn push(&mut self, waiter: Arc<Waiter<T>>) {
        self.0.push(waiter);
    }

    /// Whether there is nobody to wake.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Wakes them in order, and hands to `pass_on` what was granted to those that cannot be reached.
    pub fn wake(self, mut pass_on: impl FnMut(T)) {
        for waiter in self.0 {
            if !waiter.wake()
                && let Some(value) = waiter.take()
            {
                pass_on(value);
            }
        }
    }
}

impl<T> Default for Granted<T> {
    fn default() -> Self {
        Self::new()
    }
}
