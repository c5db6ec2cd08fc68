//! The queue against a plain model of it, over random sequences of puts, gets, waits and those who give up.
#![cfg(not(plait_loom))]
#![allow(missing_docs)]
#![allow(
    clippy::too_many_lines,
    clippy::single_match_else,
    reason = "one arm per step, side by side"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use plait_sync::queue::{Get, InLine, Join, Joiner, Order, Put, Queue};
use plait_sync::wait_queue::Wake;
use proptest::prelude::*;

const ACTORS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// Whoever is so and so puts (gets, joins) if it is idle; settles, if it was woken.
    Put(usize, bool),
    Get(usize, bool),
    Join(usize),
    /// It gives up; with true, its time is over.
    Leave(usize, bool),
    LeavePut(usize, bool),
    LeaveJoin(usize),
    /// From now on nobody can reach it.
    Lose(usize),
    TaskDone,
    ShutDown(bool),
    SetBound(usize),
    Fork,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let actor = 0..ACTORS;
    let step = prop_oneof![
        20 => (actor.clone(), any::<bool>()).prop_map(|(at, waits)| Step::Put(at, waits)),
        20 => (actor.clone(), any::<bool>()).prop_map(|(at, waits)| Step::Get(at, waits)),
        4 => actor.clone().prop_map(Step::Join),
        4 => (actor.clone(), any::<bool>()).prop_map(|(at, late)| Step::Leave(at, late)),
        4 => (actor.clone(), any::<bool>()).prop_map(|(at, late)| Step::LeavePut(at, late)),
        2 => actor.clone().prop_map(Step::LeaveJoin),
        1 => actor.prop_map(Step::Lose),
        12 => Just(Step::TaskDone),
        1 => any::<bool>().prop_map(Step::ShutDown),
        1 => (1_usize..5).prop_map(Step::SetBound),
        1 => Just(Step::Fork),
    ];
    prop::collection::vec(step, 0..300)
}

/// Counts how often somebody was woken.
struct Counting {
    woken: Arc<AtomicUsize>,
    lost: Arc<AtomicBool>,
}

impl Wake for Counting {
    fn wake(&self) -> bool {
        self.woken.fetch_add(1, Ordering::Relaxed);
        !self.lost.load(Ordering::Relaxed)
    }
}

/// Somebody who may stand in a line; `T` is what it waits with.
struct Actor<W, T> {
    waiting: Option<(Arc<W>, T)>,
    woken: Arc<AtomicUsize>,
    lost: Arc<AtomicBool>,
    overtaken: usize,
}

impl<W, T> Actor<W, T> {
    fn new() -> Self {
        Self {
            waiting: None,
            woken: Arc::default(),
            lost: Arc::default(),
            overtaken: 0,
        }
    }

    fn wake(&self) -> impl Fn() -> Box<dyn Wake> + use<W, T> {
        let (woken, lost) = (Arc::clone(&self.woken), Arc::clone(&self.lost));
        move || {
            Box::new(Counting {
                woken: Arc::clone(&woken),
                lost: Arc::clone(&lost),
            })
        }
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Somebody else in its place.
    fn renew(&mut self) {
        *self = Self::new();
    }
}

struct World {
    queue: Queue<u32>,
    order: Order,
    items: VecDeque<u32>,
    bound: usize,
    next: u32,
    unfinished: usize,
    shut: bool,
    getters: Vec<Actor<InLine, ()>>,
    putters: Vec<Actor<InLine, u32>>,
    joiners: Vec<Actor<Joiner, ()>>,
}

impl World {
    fn new(order: Order, bound: usize) -> Self {
        Self {
            queue: Queue::new(order, Some(bound)),
            order,
            items: VecDeque::new(),
            bound,
            next: 0,
            unfinished: 0,
            shut: false,
            getters: (0..ACTORS).map(|_| Actor::new()).collect(),
            putters: (0..ACTORS).map(|_| Actor::new()).collect(),
            joiners: (0..ACTORS).map(|_| Actor::new()).collect(),
        }
    }

    fn got(&mut self, at: usize, outcome: Get<u32>) {
        let actor = &mut self.getters[at];
        let had_waited = actor.waiting.take().is_some();
        match outcome {
            Get::Item(item) => {
                let expected = match self.order {
                    Order::Fifo => self.items.pop_front(),
                    Order::Lifo => self.items.pop_back(),
                };
                assert_eq!(Some(item), expected);
                actor.overtaken = 0;
            }
            Get::Waiting(waiter) => {
                actor.overtaken += usize::from(had_waited);
                assert!(actor.overtaken <= 1, "overtaken twice");
                assert!(!self.shut || !self.items.is_empty());
                actor.woken.store(0, Ordering::Relaxed);
                actor.waiting = Some((waiter, ()));
            }
            Get::Empty => actor.overtaken = 0,
            Get::Elsewhere => unreachable!("nothing is moved"),
            Get::ShutDown => {
                assert!(self.shut && self.items.is_empty());
                actor.overtaken = 0;
            }
        }
    }

    fn put(&mut self, at: usize, outcome: Put<u32>, item: u32) {
        let actor = &mut self.putters[at];
        let had_waited = actor.waiting.take().is_some();
        match outcome {
            Put::Done => {
                assert!(!self.shut && self.items.len() < self.bound);
                self.items.push_back(item);
                self.unfinished += 1;
                actor.overtaken = 0;
            }
            Put::Waiting(waiter, back) => {
                assert_eq!(back, item);
                actor.overtaken += usize::from(had_waited);
                assert!(actor.overtaken <= 1, "overtaken twice");
                actor.woken.store(0, Ordering::Relaxed);
                actor.waiting = Some((waiter, item));
            }
            Put::Full(back) => {
                assert_eq!(back, item);
                actor.overtaken = 0;
            }
            Put::ShutDown(back) => {
                assert_eq!(back, item);
                assert!(self.shut);
                actor.overtaken = 0;
            }
            Put::Elsewhere(_) => unreachable!("nothing is moved"),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Get(at, waits) => {
                let actor = &self.getters[at];
                let wake = actor.wake();
                if actor.is_lost() {
                    return;
                }
                let outcome = match &actor.waiting {
                    Some((waiter, ())) => {
                        if !waiter.is_granted() {
                            return;
                        }
                        self.queue.settle_get(Arc::clone(waiter), &wake)
                    }
                    None => self.queue.get(if waits { Some(&wake) } else { None }),
                };
                self.got(at, outcome);
            }
            Step::Put(at, waits) => {
                let actor = &self.putters[at];
                let wake = actor.wake();
                if actor.is_lost() {
                    return;
                }
                let (outcome, item) = match &actor.waiting {
                    Some((waiter, item)) => {
                        if !waiter.is_granted() {
                            return;
                        }
                        (
                            self.queue.settle_put(Arc::clone(waiter), *item, &wake),
                            *item,
                        )
                    }
                    None => {
                        self.next += 1;
                        let wake: &dyn Fn() -> Box<dyn Wake> = &wake;
                        (self.queue.put(self.next, waits.then_some(wake)), self.next)
                    }
                };
                self.put(at, outcome, item);
            }
            Step::Join(at) => {
                let actor = &mut self.joiners[at];
                let wake = actor.wake();
                if actor.is_lost() {
                    return;
                }
                let outcome = match actor.waiting.take() {
                    Some((waiter, ())) => {
                        if !waiter.is_granted() {
                            actor.waiting = Some((waiter, ()));
                            return;
                        }
                        self.queue.settle_join(waiter, &wake)
                    }
                    None => self.queue.join(&wake),
                };
                match outcome {
                    Join::Done => assert_eq!(self.unfinished, 0),
                    Join::Waiting(waiter) => {
                        assert_ne!(self.unfinished, 0);
                        actor.waiting = Some((waiter, ()));
                    }
                    Join::Elsewhere => unreachable!("nothing is moved"),
                }
            }
            Step::Leave(at, late) => {
                let Some((waiter, ())) = &self.getters[at].waiting else {
                    return;
                };
                if late && !self.getters[at].is_lost() {
                    let outcome = self.queue.expire_get(waiter);
                    self.got(at, outcome);
                } else {
                    self.queue.leave_get(waiter);
                    self.getters[at].renew();
                }
            }
            Step::LeavePut(at, late) => {
                let Some((waiter, item)) = &self.putters[at].waiting else {
                    return;
                };
                if late && !self.putters[at].is_lost() {
                    let item = *item;
                    let outcome = self.queue.expire_put(waiter, item);
                    self.put(at, outcome, item);
                } else {
                    self.queue.leave_put(waiter);
                    self.putters[at].renew();
                }
            }
            Step::LeaveJoin(at) => {
                if let Some((waiter, ())) = &self.joiners[at].waiting {
                    self.queue.leave_join(waiter);
                    self.joiners[at].renew();
                }
            }
            // One whose wake-up is on the way already is not lost: it was granted something and will come.
            Step::Lose(at) => {
                let getter = &self.getters[at];
                if !getter
                    .waiting
                    .as_ref()
                    .is_some_and(|(w, ())| w.is_granted())
                {
                    getter.lost.store(true, Ordering::Relaxed);
                }
                let putter = &self.putters[at];
                if !putter.waiting.as_ref().is_some_and(|(w, _)| w.is_granted()) {
                    putter.lost.store(true, Ordering::Relaxed);
                }
            }
            Step::TaskDone => {
                let done = self.queue.task_done();
                assert_eq!(done.is_ok(), self.unfinished > 0);
                self.unfinished = self.unfinished.saturating_sub(1);
            }
            Step::ShutDown(immediate) => {
                self.shut = true;
                let dropped = self.queue.shut_down(immediate);
                if immediate {
                    assert_eq!(dropped, self.items);
                    self.unfinished = self.unfinished.saturating_sub(self.items.len());
                    self.items.clear();
                } else {
                    assert!(dropped.is_empty());
                }
            }
            // Never fewer than there are: a place that was promised is there.
            Step::SetBound(more) => {
                self.bound += more;
                self.queue.set_bound(Some(self.bound));
            }
            Step::Fork => {
                self.queue.forget_waiters();
                self.getters.iter_mut().for_each(Actor::renew);
                self.putters.iter_mut().for_each(Actor::renew);
                self.joiners.iter_mut().for_each(Actor::renew);
            }
        }
    }

    /// What must hold between any two steps.
    fn check(&self) {
        let queue = &self.queue;
        assert_eq!(queue.len(), self.items.len());
        assert_eq!(queue.is_full(), self.items.len() >= self.bound);
        assert_eq!(queue.unfinished(), self.unfinished);
        assert_eq!(queue.is_shut(), self.shut);
        let coming = |granted: usize, waiting: usize, available: usize, what: &str| {
            assert!(
                waiting == 0 || granted >= available,
                "{waiting} {what} wait, {granted} are coming, for {available}"
            );
        };
        let (granted, waiting) = counts(&self.getters);
        coming(granted, waiting, self.items.len(), "getters");
        if self.shut {
            assert!(waiting == 0 || !self.items.is_empty());
        }
        let (granted, waiting) = counts(&self.putters);
        if self.shut {
            assert_eq!(waiting, 0);
        } else {
            coming(granted, waiting, self.bound - self.items.len(), "putters");
        }
        let (_, waiting) = counts(&self.joiners);
        assert!(waiting == 0 || self.unfinished > 0);
        self.getters.iter().for_each(woken_once);
        self.putters.iter().for_each(woken_once);
    }
}

/// Who was granted something was woken for it once, and who was not was not.
fn woken_once<T>(actor: &Actor<InLine, T>) {
    if let Some((waiter, _)) = &actor.waiting
        && !actor.is_lost()
    {
        let woken = actor.woken.load(Ordering::Relaxed);
        assert_eq!(woken, usize::from(waiter.is_granted()));
    }
}

/// How many were granted something, and how many wait for that and can be reached.
fn counts<G, T>(actors: &[Actor<plait_sync::wait_queue::Waiter<G>, T>]) -> (usize, usize) {
    let states: Vec<bool> = actors
        .iter()
        .filter(|actor| !actor.is_lost())
        .filter_map(|actor| actor.waiting.as_ref())
        .map(|(waiter, _)| waiter.is_granted())
        .collect();
    let granted = states.iter().filter(|&&granted| granted).count();
    (granted, states.len() - granted)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn it_does_what_the_model_does(
        steps in steps(),
        bound in 1_usize..4,
        lifo in any::<bool>(),
    ) {
        let order = if lifo { Order::Lifo } else { Order::Fifo };
        let mut world = World::new(order, bound);
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}

#[test]
fn many_threads_put_and_get_everything_once() {
    use plait_sync::parker::Parker;

    const EACH: usize = 1000;
    let queue = Arc::new(Queue::new(Order::Fifo, Some(3)));
    let sum = Arc::new(AtomicUsize::new(0));
    let putters: Vec<_> = (0..4)
        .map(|putter| {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || {
                let parker = Parker::new();
                let wake = || -> Box<dyn Wake> { Box::new(parker.unparker()) };
                for number in 0..EACH {
                    let mut outcome = queue.put(putter * EACH + number, Some(&wake));
                    while let Put::Waiting(waiter, item) = outcome {
                        parker.park();
                        outcome = queue.settle_put(waiter, item, &wake);
                    }
                    assert!(matches!(outcome, Put::Done));
                }
            })
        })
        .collect();
    let getters: Vec<_> = (0..4)
        .map(|getter| {
            let (queue, sum) = (Arc::clone(&queue), Arc::clone(&sum));
            std::thread::spawn(move || {
                let parker = Parker::new();
                let wake = || -> Box<dyn Wake> { Box::new(parker.unparker()) };
                let mut turn = getter;
                loop {
                    turn += 1;
                    let mut outcome = queue.get(Some(&wake));
                    while let Get::Waiting(waiter) = outcome {
                        if turn % 7 == 0 {
                            // It changes its mind, and comes again.
                            queue.leave_get(&waiter);
                            outcome = Get::Empty;
                            break;
                        }
                        parker.park();
                        outcome = queue.settle_get(waiter, &wake);
                    }
                    match outcome {
                        Get::Item(item) => {
                            sum.fetch_add(item, Ordering::Relaxed);
                        }
                        Get::ShutDown => return,
                        _ => {}
                    }
                }
            })
        })
        .collect();
    for putter in putters {
        putter.join().unwrap();
    }
    assert!(queue.shut_down(false).is_empty());
    for getter in getters {
        getter.join().unwrap();
    }
    let all = 4 * EACH;
    assert_eq!(sum.load(Ordering::Relaxed), all * (all - 1) / 2);
}
