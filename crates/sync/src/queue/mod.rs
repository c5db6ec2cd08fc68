//! A queue of items, bounded or not, whose ends may be waited for by threads and coroutines. "Queues" in `README.md`
//! beside this crate's `src` tells who wakes whom, and why no item and no wake-up is lost.
//!
//! There are two lines: getters, who wait for an item, and putters, who wait for a place; joiners wait until all is done. What
//! becomes available is anybody's, and the first in line is called to take it. One that comes too late is *overtaken*: it goes
//! back to its place in line, and the next item (or place) is kept for it, so nobody is overtaken twice in a row.

mod line;

use std::collections::VecDeque;

use crate::primitive::{Arc, Mutex, MutexGuard};
use crate::wait_queue::{Granted, WaitQueue, Waiter, Wake};
pub use line::Grant;
use line::Line;

/// One that waits for an item or for a place.
pub type InLine = Waiter<Grant>;
/// One that waits until all is done.
pub type Joiner = Waiter<()>;

/// Which item comes out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The one that went in first.
    Fifo,
    /// The one that went in last.
    Lifo,
}

/// What came of an attempt to get an item.
#[derive(Debug)]
pub enum Get<T> {
    /// This one.
    Item(T),
    /// There is none; the caller stands in line, if it asked for that: sleep, then [`Queue::settle_get`].
    Waiting(Arc<InLine>),
    /// There is none, and the caller did not ask to wait.
    Empty,
    /// There is none and there will be none.
    ShutDown,
    /// The items were moved out: see [`Queue::move_out`].
    Elsewhere,
}

/// What came of an attempt to put an item.
#[derive(Debug)]
pub enum Put<T> {
    /// It is in the queue.
    Done,
    /// There is no place; the caller stands in line: sleep, then [`Queue::settle_put`] with the item.
    Waiting(Arc<InLine>, T),
    /// There is no place, and the caller did not ask to wait.
    Full(T),
    /// The queue takes no more items.
    ShutDown(T),
    /// The items were moved out: see [`Queue::move_out`].
    Elsewhere(T),
}

/// What came of an attempt to see all done.
#[derive(Debug)]
pub enum Join {
    /// It is.
    Done,
    /// The caller stands in line: sleep until it is granted.
    Waiting(Arc<Joiner>),
    /// The items were moved out: see [`Queue::move_out`].
    Elsewhere,
}

/// More items were said to be done than there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyDone;

/// How a caller that is ready to wait is woken; made only if it has to.
type MakeWake<'a> = &'a dyn Fn() -> Box<dyn Wake>;

/// See the module's documentation. Every method may be called from any thread; none blocks, and none drops an item or wakes
/// anybody while it holds the mutex.
pub struct Queue<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    items: VecDeque<T>,
    order: Order,
    /// No more items than this are taken.
    bound: usize,
    getters: Line,
    putters: Line,
    joiners: WaitQueue<()>,
    /// Items that were put and of which nobody has said that they are done.
    unfinished: usize,
    is_shut: bool,
    has_moved: bool,
}

/// Who is to be woken when the mutex is free.
#[must_use = "somebody may be asleep"]
#[derive(Default)]
struct Calls {
    getters: Granted<Grant>,
    putters: Granted<Grant>,
    joiners: Granted<()>,
}

impl<T> State<T> {
    fn places(&self) -> usize {
        self.bound.saturating_sub(self.items.len())
    }

    /// Takes an item that is not kept for another.
    fn take_free(&mut self) -> Option<T> {
        if self.items.len() <= self.getters.kept() {
            return None;
        }
        self.take()
    }

    fn take(&mut self) -> Option<T> {
        match self.order {
            Order::Fifo => self.items.pop_front(),
            Order::Lifo => self.items.pop_back(),
        }
    }

    fn add(&mut self, item: T) {
        self.items.push_back(item);
        self.unfinished += 1;
    }

    /// Calls whoever has something to come for, and sends away those for whom there will be nothing.
    fn call(&mut self, calls: &mut Calls) {
        self.getters.call(self.items.len(), &mut calls.getters);
        if !self.is_shut {
            self.putters.call(self.places(), &mut calls.putters);
            return;
        }
        self.putters.send_away(&mut calls.putters);
        if self.items.is_empty() {
            self.getters.send_away(&mut calls.getters);
        }
    }

    fn call_joiners(&mut self, calls: &mut Calls) {
        if self.unfinished == 0 {
            while let Ok(joiner) = self.joiners.grant(()) {
                calls.joiners.push(joiner);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.is_shut && self.items.is_empty()
    }
}

impl<T> Queue<T> {
    /// An empty queue that takes up to `bound` items, or any number.
    pub fn new(order: Order, bound: Option<usize>) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                order,
                bound: bound.unwrap_or(usize::MAX),
                getters: Line::new(),
                putters: Line::new(),
                joiners: WaitQueue::new(),
                unfinished: 0,
                is_shut: false,
                has_moved: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Lets go of the mutex and wakes those that were called. One that nobody can reach any more gives its turn back, and
    /// others are called.
    fn finish(&self, state: MutexGuard<'_, State<T>>, calls: Calls) {
        drop(state);
        let mut calls = calls;
        loop {
            let (mut getters, mut putters) = (Vec::new(), Vec::new());
            calls.getters.wake(|grant| getters.push(grant));
            calls.putters.wake(|grant| putters.push(grant));
            // A joiner that cannot be reached has nothing that others could use.
            calls.joiners.wake(|()| {});
            if getters.is_empty() && putters.is_empty() {
                return;
            }
            calls = Calls::default();
            let mut state = self.state();
            for grant in getters {
                state.getters.give_back(grant);
            }
            for grant in putters {
                state.putters.give_back(grant);
            }
            state.call(&mut calls);
        }
    }

    /// Puts an item if there is a place; else, with `wake`, the caller joins the line of putters.
    pub fn put(&self, item: T, wake: Option<MakeWake<'_>>) -> Put<T> {
        let mut state = self.state();
        if state.has_moved {
            return Put::Elsewhere(item);
        }
        if state.is_shut {
            return Put::ShutDown(item);
        }
        if state.places() > state.putters.kept() {
            state.add(item);
            if !state.getters.is_empty() {
                let mut calls = Calls::default();
                state.call(&mut calls);
                self.finish(state, calls);
            }
            return Put::Done;
        }
        match wake {
            Some(wake) => Put::Waiting(state.putters.join(wake()), item),
            None => Put::Full(item),
        }
    }

    /// Gets an item if there is one; else, with `wake`, the caller joins the line of getters.
    pub fn get(&self, wake: Option<MakeWake<'_>>) -> Get<T> {
        let mut state = self.state();
        if let Some(item) = state.take_free() {
            self.taken(state);
            return Get::Item(item);
        }
        if state.has_moved {
            return Get::Elsewhere;
        }
        if state.is_over() {
            return Get::ShutDown;
        }
        match wake {
            Some(wake) => Get::Waiting(state.getters.join(wake())),
            None => Get::Empty,
        }
    }

    /// An item was taken: there is a place for a putter, and it may have been the last item ever.
    fn taken(&self, mut state: MutexGuard<'_, State<T>>) {
        if !state.putters.is_empty() || (state.is_shut && !state.getters.is_empty()) {
            let mut calls = Calls::default();
            state.call(&mut calls);
            self.finish(state, calls);
        }
    }

    /// For a getter that was woken, or was not and looks nevertheless.
    pub fn settle_get(&self, waiter: Arc<InLine>, wake: MakeWake<'_>) -> Get<T> {
        let Some(grant) = waiter.take() else {
            return Get::Waiting(waiter);
        };
        let mut state = self.state();
        if let Some(item) = state.accept_get(grant) {
            self.taken(state);
            return Get::Item(item);
        }
        if state.has_moved {
            return Get::Elsewhere;
        }
        if state.is_over() {
            return Get::ShutDown;
        }
        Get::Waiting(state.getters.join_again(waiter.place(), wake()))
    }

    /// For a getter whose time is over. If an item is there for it in this instant, it has it.
    pub fn expire_get(&self, waiter: &InLine) -> Get<T> {
        let granted = waiter.abandon();
        let mut state = self.state();
        state.getters.remove(waiter);
        let Some(grant) = granted else {
            return Get::Empty;
        };
        match state.accept_get(grant) {
            Some(item) => {
                self.taken(state);
                Get::Item(item)
            }
            None if state.has_moved => Get::Elsewhere,
            None if state.is_over() => Get::ShutDown,
            None => Get::Empty,
        }
    }

    /// For a getter that gives up and wants no item.
    pub fn leave_get(&self, waiter: &InLine) {
        let granted = waiter.abandon();
        let mut state = self.state();
        state.getters.remove(waiter);
        if let Some(grant) = granted {
            state.getters.give_back(grant);
            let mut calls = Calls::default();
            state.call(&mut calls);
            self.finish(state, calls);
        }
    }

    /// For a putter that was woken, or was not and looks nevertheless.
    pub fn settle_put(&self, waiter: Arc<InLine>, item: T, wake: MakeWake<'_>) -> Put<T> {
        let Some(grant) = waiter.take() else {
            return Put::Waiting(waiter, item);
        };
        self.accept_put(grant, item, |state, item| {
            let waiter = state.putters.join_again(waiter.place(), wake());
            Put::Waiting(waiter, item)
        })
    }

    /// For a putter whose time is over. If there is a place for it in this instant, the item is in the queue.
    pub fn expire_put(&self, waiter: &InLine, item: T) -> Put<T> {
        let granted = waiter.abandon();
        let Some(grant) = granted else {
            self.state().putters.remove(waiter);
            return Put::Full(item);
        };
        self.accept_put(grant, item, |_, item| Put::Full(item))
    }

    fn accept_put(
        &self,
        grant: Grant,
        item: T,
        too_late: impl FnOnce(&mut State<T>, T) -> Put<T>,
    ) -> Put<T> {
        let mut state = self.state();
        state.putters.give_back(grant);
        if state.has_moved {
            return Put::Elsewhere(item);
        }
        if state.is_shut {
            return Put::ShutDown(item);
        }
        let has_place = match grant {
            Grant::Kept => true,
            Grant::Turn => state.places() > state.putters.kept(),
            Grant::Nothing => false,
        };
        if !has_place {
            return too_late(&mut state, item);
        }
        state.add(item);
        let mut calls = Calls::default();
        state.call(&mut calls);
        self.finish(state, calls);
        Put::Done
    }

    /// For a putter that gives up.
    pub fn leave_put(&self, waiter: &InLine) {
        let granted = waiter.abandon();
        let mut state = self.state();
        state.putters.remove(waiter);
        if let Some(grant) = granted {
            state.putters.give_back(grant);
            let mut calls = Calls::default();
            state.call(&mut calls);
            self.finish(state, calls);
        }
    }

    /// An item that was got is done.
    pub fn task_done(&self) -> Result<(), TooManyDone> {
        let mut state = self.state();
        state.unfinished = state.unfinished.checked_sub(1).ok_or(TooManyDone)?;
        if state.unfinished == 0 && !state.joiners.is_empty() {
            let mut calls = Calls::default();
            state.call_joiners(&mut calls);
            self.finish(state, calls);
        }
        Ok(())
    }

    /// Whether all items are done; if not, the caller joins the line.
    pub fn join(&self, wake: MakeWake<'_>) -> Join {
        let mut state = self.state();
        if state.has_moved {
            return Join::Elsewhere;
        }
        if state.unfinished == 0 {
            return Join::Done;
        }
        Join::Waiting(state.joiners.enqueue(wake()))
    }

    /// For a joiner that was woken: items may have been put meanwhile.
    pub fn settle_join(&self, waiter: Arc<Joiner>, wake: MakeWake<'_>) -> Join {
        if waiter.take().is_none() {
            return Join::Waiting(waiter);
        }
        self.join(wake)
    }

    /// For a joiner that gives up.
    pub fn leave_join(&self, waiter: &Joiner) {
        waiter.abandon();
        self.state().joiners.remove(waiter);
    }

    /// Takes no more items. With `immediate` those that are there are done with, and handed back to be dropped. May be called
    /// again.
    pub fn shut_down(&self, immediate: bool) -> VecDeque<T> {
        let mut state = self.state();
        state.is_shut = true;
        let mut calls = Calls::default();
        let dropped = if immediate {
            let items = std::mem::take(&mut state.items);
            state.unfinished = state.unfinished.saturating_sub(items.len());
            state.call_joiners(&mut calls);
            items
        } else {
            VecDeque::new()
        };
        state.call(&mut calls);
        self.finish(state, calls);
        dropped
    }

    /// From now on the items are elsewhere, where the caller keeps them: hands all back, says how many are not done and whether it
    /// was shut down. Everybody in line is woken, and told so.
    pub fn move_out(&self) -> (VecDeque<T>, usize, bool) {
        let mut state = self.state();
        state.has_moved = true;
        let moved = (
            std::mem::take(&mut state.items),
            std::mem::take(&mut state.unfinished),
            state.is_shut,
        );
        let mut calls = Calls::default();
        state.getters.send_away(&mut calls.getters);
        state.putters.send_away(&mut calls.putters);
        state.call_joiners(&mut calls);
        self.finish(state, calls);
        moved
    }

    /// From now on it takes up to `bound` items, or any number. Those that are there stay.
    pub fn set_bound(&self, bound: Option<usize>) {
        let mut state = self.state();
        state.bound = bound.unwrap_or(usize::MAX);
        let mut calls = Calls::default();
        state.call(&mut calls);
        self.finish(state, calls);
    }

    /// How many items there are, those included that are kept for somebody.
    pub fn len(&self) -> usize {
        self.state().items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no place.
    pub fn is_full(&self) -> bool {
        self.state().places() == 0
    }

    /// How many items were put of which nobody has said that they are done.
    pub fn unfinished(&self) -> usize {
        self.state().unfinished
    }

    /// Whether it was shut down.
    pub fn is_shut(&self) -> bool {
        self.state().is_shut
    }

    /// Whether there is no item and there will be none.
    pub fn is_over(&self) -> bool {
        self.state().is_over()
    }

    /// Shows all items to `look`, unless somebody holds the mutex; it is called under it, so it must only look.
    pub fn look(&self, mut look: impl FnMut(&T)) {
        if let Ok(state) = self.state.try_lock() {
            state.items.iter().for_each(&mut look);
        }
    }

    /// Takes all items out as if they had never been there, for whoever drops the queue.
    pub fn clear(&self) -> VecDeque<T> {
        std::mem::take(&mut self.state().items)
    }

    /// In the child of a fork, where nobody of those in line exists any more.
    pub fn forget_waiters(&self) {
        let mut state = self.state();
        let getters = std::mem::replace(&mut state.getters, Line::new());
        let putters = std::mem::replace(&mut state.putters, Line::new());
        let joiners = std::mem::take(&mut state.joiners);
        drop(state);
        drop((getters, putters, joiners));
    }
}

impl<T> State<T> {
    /// A getter comes with what it was granted.
    fn accept_get(&mut self, grant: Grant) -> Option<T> {
        self.getters.give_back(grant);
        match grant {
            // What was kept is gone if the queue was emptied (`shut_down`, `move_out`).
            Grant::Kept => self.take(),
            Grant::Turn | Grant::Nothing => self.take_free(),
        }
    }
}
