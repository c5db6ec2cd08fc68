//! What other threads can see of a loop while it runs: how far it is, and whether one item holds it. And the watch that looks.
//!
//! The loop's thread writes, others read; nothing is ordered by it but what `README.md` says of sleeping watches.

use std::collections::HashMap;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use plait_sync::parker::{Parker, Unparker};

use crate::sys::clock::monotonic_ns;
use crate::sys::process::{run_delay, thread_id};

/// A watch looks so often within the time that an item may take.
const LOOKS: u64 = 4;
/// But not more often than this.
const SHORTEST_PAUSE: u64 = 1_000_000;
/// How long it pauses after it was woken: a loop that wakes often must not wake the watch each time.
const FIRST_PAUSE: Duration = Duration::from_millis(125);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Pulse {
    turns: AtomicU64,
    items: AtomicU64,
    /// It runs, and does not sleep in its poller.
    is_awake: AtomicBool,
    /// Since when it runs; 0 while it does not. In nanoseconds, as all that follows.
    began: AtomicU64,
    /// How long it ran before that.
    ran: AtomicU64,
    /// How long it slept in its poller.
    slept: AtomicU64,
    sleep_began: AtomicU64,
    /// How long an item may take before it is a stall; 0 for any time.
    patience: AtomicU64,
    /// Since when the item that runs holds the loop, if the watch has found that it is a stall; else 0.
    stalled_since: AtomicU64,
    stalls: AtomicU64,
    /// The loop's thread, as the system knows it.
    thread: AtomicU32,
}

/// Written by the loop's thread alone, so that no other writer can come in between.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}

/// What a loop has done so far.
#[derive(Debug, Clone, Copy)]
pub struct Tally {
    /// Times that it looked for what is ready and ran it.
    pub turns: u64,
    /// Items that it began.
    pub items: u64,
    /// Nanoseconds that it ran, sleep included.
    pub ran_ns: u64,
    /// Of these, asleep in its poller.
    pub slept_ns: u64,
    /// Items that took longer than they may.
    pub stalls: u64,
}

impl Pulse {
    /// The loop begins to run, in this thread.
    pub fn begin_run(&self) {
        self.thread.store(thread_id(), Relaxed);
        self.began.store(monotonic_ns(), Relaxed);
        self.is_awake.store(true, SeqCst);
    }

    /// It ends.
    pub fn end_run(&self) {
        self.is_awake.store(false, Relaxed);
        let began = self.began.swap(0, Relaxed);
        add(&self.ran, monotonic_ns().saturating_sub(began));
    }

    /// A turn begins.
    pub fn begin_turn(&self) {
        add(&self.turns, 1);
    }

    /// An item begins.
    #[inline]
    pub fn begin_item(&self) {
        add(&self.items, 1);
    }

    /// The loop goes to sleep in its poller.
    pub fn begin_sleep(&self) {
        self.sleep_began.store(monotonic_ns(), Relaxed);
        self.is_awake.store(false, Relaxed);
    }

    /// It wakes. Whoever calls this calls [`Watch::loop_woke`] then.
    pub fn end_sleep(&self) {
        let began = self.sleep_began.load(Relaxed);
        add(&self.slept, monotonic_ns().saturating_sub(began));
        self.is_awake.store(true, SeqCst);
    }

    /// Nanoseconds that an item may take; 0 for any time.
    pub fn patience(&self) -> u64 {
        self.patience.load(Relaxed)
    }

    /// Another time.
    pub fn set_patience(&self, nanoseconds: u64) {
        self.patience.store(nanoseconds, Relaxed);
    }

    /// Whether the item that runs (or has just ended) holds the loop for longer than it may.
    #[inline]
    pub fn is_stalled(&self) -> bool {
        self.stalled_since.load(Relaxed) != 0
    }

    /// In the loop's thread: that item has ended; how long it took.
    pub fn end_stall(&self) -> Duration {
        let since = self.stalled_since.swap(0, Relaxed);
        Duration::from_nanos(monotonic_ns().saturating_sub(since))
    }

    /// What the loop has done so far.
    pub fn tally(&self) -> Tally {
        let began = self.began.load(Relaxed);
        let running = if began == 0 {
            0
        } else {
            monotonic_ns().saturating_sub(began)
        };
        Tally {
            turns: self.turns.load(Relaxed),
            items: self.items.load(Relaxed),
            ran_ns: self.ran.load(Relaxed) + running,
            slept_ns: self.slept.load(Relaxed),
            stalls: self.stalls.load(Relaxed),
        }
    }
}

/// What the watch remembers of an item that it has seen running.
#[derive(Debug)]
struct Seen {
    item: u64,
    /// When it was first and last seen.
    since: u64,
    last: u64,
    /// How long it ran between the looks. A watch that was itself kept from looking does not count that.
    held: u64,
    /// How long the thread had waited for a processor when the item was first seen.
    delay: u64,
    is_told: bool,
}

impl Seen {
    fn new(item: u64, now: u64, delay: u64) -> Self {
        Self {
            item,
            since: now,
            last: now,
            held: 0,
            delay,
            is_told: false,
        }
    }

    /// The same item is still running: whether that is a stall now, told for the first time. What the thread waited for a
    /// processor is the machine's doing.
    fn look(&mut self, now: u64, delay: u64, pause: u64, patience: u64) -> bool {
        self.held += (now - self.last).min(2 * pause);
        self.last = now;
        let waited = delay.saturating_sub(self.delay);
        let is_stalled = !self.is_told && self.held.saturating_sub(waited) >= patience;
        self.is_told |= is_stalled;
        is_stalled
    }
}

/// Looks at loops now and then. Sleeps while all of them do.
pub struct Watch {
    loops: Mutex<Vec<Weak<Pulse>>>,
    /// It sleeps until a loop wakes.
    is_asleep: AtomicBool,
    is_over: AtomicBool,
    alarm: Unparker,
}

impl Watch {
    /// One that watches no loop yet, and what [`Self::run`] sleeps on.
    pub fn new() -> (Self, Parker) {
        let parker = Parker::new();
        let watch = Self {
            loops: Mutex::default(),
            is_asleep: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            alarm: parker.unparker(),
        };
        (watch, parker)
    }

    fn loops(&self) -> MutexGuard<'_, Vec<Weak<Pulse>>> {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a loop from now on.
    pub fn add(&self, pulse: &Arc<Pulse>) {
        let mut loops = self.loops();
        loops.retain(|known| known.strong_count() > 0);
        let known = Arc::downgrade(pulse);
        if !loops.iter().any(|other| other.ptr_eq(&known)) {
            loops.push(known);
        }
    }

    /// A loop is awake: it has begun to run, or has slept.
    pub fn loop_woke(&self) {
        if self.is_asleep.load(SeqCst) && self.is_asleep.swap(false, SeqCst) {
            self.alarm.unpark();
        }
    }

    /// Ends [`Self::run`].
    pub fn end(&self) {
        self.is_over.store(true, SeqCst);
        self.alarm.unpark();
    }

    /// The watch's life, in a thread of its own, until [`Self::end`]. `tell` is called during a stall, once for each.
    pub fn run(&self, parker: &Parker, mut tell: impl FnMut(&Arc<Pulse>)) {
        let mut seen: HashMap<usize, Seen> = HashMap::new();
        let mut items: HashMap<usize, u64> = HashMap::new();
        let mut pause = FIRST_PAUSE;
        while !self.is_over.load(SeqCst) {
            parker.park_until(Instant::now() + pause);
            let loops: Vec<_> = self.loops().iter().filter_map(Weak::upgrade).collect();
            let mut has_moved = false;
            let mut shortest = u64::MAX;
            let before = std::mem::take(&mut items);
            for pulse in &loops {
                let patience = pulse.patience();
                if patience == 0 {
                    continue;
                }
                let number = Arc::as_ptr(pulse).addr();
                let item = pulse.items.load(Relaxed);
                items.insert(number, item);
                has_moved |= before.get(&number) != Some(&item);
                if !pulse.is_awake.load(Relaxed) {
                    seen.remove(&number);
                    continue;
                }
                has_moved = true;
                let interval = (patience / LOOKS).max(SHORTEST_PAUSE);
                shortest = shortest.min(interval);
                let (now, delay) = (monotonic_ns(), run_delay(pulse.thread.load(Relaxed)));
                match seen.get_mut(&number) {
                    Some(known) if known.item == item => {
                        if known.look(now, delay, interval, patience) {
                            pulse.stalled_since.store(known.since, SeqCst);
                            if pulse.items.load(SeqCst) == item {
                                add(&pulse.stalls, 1);
                                tell(pulse);
                            } else {
                                // It has just ended, and the next one is not to blame.
                                pulse.stalled_since.store(0, Relaxed);
                            }
                        }
                    }
                    _ => drop(seen.insert(number, Seen::new(item, now, delay))),
                }
            }
            seen.retain(|number, _| items.contains_key(number));
            pause = Duration::from_nanos(shortest).min(FIRST_PAUSE);
            if !has_moved {
                self.sleep(parker, &loops);
                pause = FIRST_PAUSE;
            }
        }
    }

    /// Until a loop wakes. A loop says that it is awake before it looks whether the watch sleeps, and the watch says that it
    /// sleeps before it looks whether a loop is awake: one of them sees the other.
    fn sleep(&self, parker: &Parker, loops: &[Arc<Pulse>]) {
        self.is_asleep.store(true, SeqCst);
        fence(SeqCst);
        let is_awake = |pulse: &Arc<Pulse>| pulse.is_awake.load(SeqCst) && pulse.patience() != 0;
        if loops.iter().any(is_awake) || self.is_over.load(SeqCst) {
            self.is_asleep.store(false, SeqCst);
            return;
        }
        parker.park();
        self.is_asleep.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn an_item_is_told_of_once_when_it_has_run_for_longer_than_it_may() {
        let mut seen = Seen::new(7, 0, 0);
        assert!(!seen.look(100 * MS, 0, 100 * MS, 350 * MS));
        assert!(!seen.look(300 * MS, 0, 100 * MS, 350 * MS));
        assert!(seen.look(400 * MS, 0, 100 * MS, 350 * MS));
        assert!(!seen.look(900 * MS, 0, 100 * MS, 350 * MS));
    }

    #[test]
    fn a_machine_that_stood_still_is_no_stall() {
        let mut seen = Seen::new(7, 0, 0);
        // Neither the watch nor the loop ran for an hour.
        assert!(!seen.look(3_600_000 * MS, 0, 100 * MS, 350 * MS));
    }

    #[test]
    fn what_a_thread_waits_for_a_processor_is_no_stall() {
        let mut seen = Seen::new(7, 0, 50 * MS);
        for look in 1..=8 {
            assert!(!seen.look(look * 100 * MS, (50 + look * 90) * MS, 100 * MS, 350 * MS));
        }
        for look in 9..=10 {
            assert!(!seen.look(look * 100 * MS, 770 * MS, 100 * MS, 350 * MS));
        }
        assert!(seen.look(1100 * MS, 770 * MS, 100 * MS, 350 * MS));
    }

    #[test]
    fn a_watch_sleeps_while_its_loops_do_and_sees_one_that_stalls() {
        let (watch, parker) = Watch::new();
        let pulse = Arc::new(Pulse::default());
        pulse.set_patience(4 * MS);
        watch.add(&pulse);
        std::thread::scope(|scope| {
            let (told, hear) = std::sync::mpsc::channel();
            let watching = &watch;
            scope.spawn(move || {
                watching.run(&parker, |pulse| {
                    told.send(pulse.is_stalled()).unwrap();
                });
            });
            while !watch.is_asleep.load(SeqCst) {
                std::thread::yield_now();
            }
            pulse.begin_run();
            pulse.begin_item();
            watch.loop_woke();
            assert!(hear.recv_timeout(Duration::from_secs(60)).unwrap());
            assert!(pulse.end_stall() >= Duration::from_millis(4));
            assert!(!pulse.is_stalled());
            pulse.end_run();
            assert_eq!(pulse.tally().stalls, 1);
            assert_eq!(pulse.tally().items, 1);
            watch.end();
        });
    }
}
