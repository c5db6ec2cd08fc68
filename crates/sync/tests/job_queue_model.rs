//! The job queue against a plain model of it, over random sequences of pushes and workers' steps.
#![cfg(not(plait_loom))]
#![allow(missing_docs)]

use std::collections::VecDeque;

use plait_sync::job_queue::{JobQueue, Next, Supply, Worker};
use proptest::prelude::*;

const WORKERS: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Push,
    PushAgain,
    /// Worker number so and so asks what to do, if it is not asleep.
    Ask(usize),
    /// It leaves if it is idle, and comes as a new one.
    Retire(usize),
    Drain,
    Close,
    Fork,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => Just(Step::Push),
        2 => Just(Step::PushAgain),
        40 => (0..WORKERS).prop_map(Step::Ask),
        5 => (0..WORKERS).prop_map(Step::Retire),
        1 => Just(Step::Drain),
        1 => Just(Step::Close),
        1 => Just(Step::Fork),
    ];
    prop::collection::vec(step, 0..300)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Expected,
    Busy,
    Idle,
    Waking,
    Gone,
}

struct Model {
    jobs: VecDeque<u32>,
    places: [Place; WORKERS],
    idle: Vec<usize>,
    closed: bool,
}

impl Model {
    fn new() -> Self {
        Self {
            jobs: VecDeque::new(),
            places: [Place::Expected; WORKERS],
            idle: Vec::new(),
            closed: false,
        }
    }

    fn call(&mut self) {
        if self.jobs.is_empty() || self.places.contains(&Place::Waking) {
            return;
        }
        if let Some(worker) = self.idle.pop() {
            self.places[worker] = Place::Waking;
        }
    }

    fn push(&mut self, job: u32) -> Supply {
        self.jobs.push_back(job);
        let free = self
            .places
            .iter()
            .filter(|place| !matches!(place, Place::Busy | Place::Gone))
            .count();
        self.call();
        if self.jobs.len() > free {
            Supply::Short
        } else {
            Supply::Enough
        }
    }

    fn next(&mut self, worker: usize) -> Next<u32> {
        self.places[worker] = Place::Busy;
        let job = self.jobs.pop_front();
        self.call();
        match job {
            Some(job) => Next::Job(job),
            None if self.closed => {
                self.places[worker] = Place::Gone;
                Next::Leave
            }
            None => {
                self.places[worker] = Place::Idle;
                self.idle.push(worker);
                Next::Wait
            }
        }
    }
}

fn start(queue: &JobQueue<u32>) -> Vec<Worker> {
    for _ in 0..WORKERS {
        queue.expect_worker();
    }
    (0..WORKERS).map(|_| Worker::new()).collect()
}

proptest! {
    #[test]
    fn it_does_what_the_model_does(steps in steps()) {
        let queue = JobQueue::new();
        let mut workers = start(&queue);
        let mut model = Model::new();
        for (job, step) in (0_u32..).zip(steps) {
            match step {
                Step::Push if model.closed => prop_assert_eq!(queue.push(job), Err(job)),
                Step::Push => prop_assert_eq!(queue.push(job), Ok(model.push(job))),
                Step::PushAgain => prop_assert_eq!(queue.push_again(job), model.push(job)),
                Step::Ask(number) => {
                    let worker = &mut workers[number];
                    match model.places[number] {
                        Place::Idle | Place::Gone => continue,
                        // It has been called: this would never return if it had not.
                        Place::Waking => drop(worker.wait(&queue)),
                        Place::Expected | Place::Busy => {}
                    }
                    prop_assert_eq!(queue.next(worker), model.next(number));
                }
                Step::Retire(number) => {
                    let is_idle = model.places[number] == Place::Idle;
                    prop_assert_eq!(queue.retire(&mut workers[number]), is_idle);
                    if is_idle {
                        model.idle.retain(|&idle| idle != number);
                        model.places[number] = Place::Busy;
                    }
                }
                Step::Drain => prop_assert_eq!(queue.drain(), std::mem::take(&mut model.jobs)),
                Step::Close => {
                    queue.close();
                    model.closed = true;
                    for worker in model.idle.drain(..) {
                        model.places[worker] = Place::Waking;
                    }
                }
                Step::Fork => {
                    prop_assert_eq!(queue.forget_workers(), std::mem::take(&mut model.jobs));
                    workers = start(&queue);
                    model = Model { closed: model.closed, ..Model::new() };
                }
            }
            prop_assert_eq!(queue.len(), model.jobs.len());
            prop_assert_eq!(queue.is_closed(), model.closed);
        }
    }
}
