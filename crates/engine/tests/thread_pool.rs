//! The thread pool's decisions, step by step on one thread: when a worker is asked for, who leaves, who gets a deadline.
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use plait_engine::thread_pool::{Deadlines, Next, Submitted, ThreadPool, Worker};
use proptest::prelude::*;

#[test]
fn workers_are_asked_for_while_more_jobs_wait_than_workers_are_free() {
    let pool = ThreadPool::new(2);
    assert_eq!(pool.workers(), 0);
    assert_eq!(pool.submit(1), Ok(Submitted::StartWorker));
    let mut first = Worker::new();
    assert_eq!(pool.next(&mut first), Next::Job(1));
    assert_eq!(pool.next(&mut first), Next::Wait);
    assert_eq!(
        pool.submit(2),
        Ok(Submitted::Queued),
        "the idle one will take it"
    );
    assert_eq!(pool.submit(3), Ok(Submitted::StartWorker));
    assert_eq!(
        pool.submit(4),
        Ok(Submitted::Queued),
        "there may not be more"
    );
    assert_eq!(pool.workers(), 2);
    let mut second = Worker::new();
    assert_eq!(pool.next(&mut second), Next::Job(2));
    pool.wait(&first);
    assert_eq!(pool.next(&mut first), Next::Job(3));
    pool.close();
    assert_eq!(pool.submit(5), Err(5));
    assert_eq!(pool.next(&mut first), Next::Job(4));
    assert_eq!(pool.next(&mut first), Next::Leave);
    assert_eq!(pool.next(&mut second), Next::Leave);
    assert_eq!(pool.workers(), 0);
}

#[test]
fn a_worker_that_cannot_be_started_strands_jobs_only_if_it_was_the_only_one() {
    let pool = ThreadPool::new(2);
    assert_eq!(pool.submit(1), Ok(Submitted::StartWorker));
    assert_eq!(pool.worker_did_not_start(), VecDeque::from([1]));
    assert_eq!(
        pool.submit(2),
        Ok(Submitted::StartWorker),
        "it is tried again"
    );
    assert_eq!(pool.submit(3), Ok(Submitted::StartWorker));
    assert_eq!(pool.worker_did_not_start(), VecDeque::new());
    let mut worker = Worker::new();
    assert_eq!(pool.next(&mut worker), Next::Job(2));
    assert_eq!(pool.next(&mut worker), Next::Job(3));
}

#[test]
fn a_job_that_comes_again_after_the_end_gets_a_worker() {
    let pool = ThreadPool::new(1);
    assert_eq!(pool.submit(1), Ok(Submitted::StartWorker));
    let mut worker = Worker::new();
    assert_eq!(pool.next(&mut worker), Next::Job(1));
    pool.close();
    assert_eq!(
        pool.submit_again(1),
        Submitted::Queued,
        "the worker that is there takes it"
    );
    assert_eq!(pool.next(&mut worker), Next::Job(1));
    assert_eq!(pool.next(&mut worker), Next::Leave);
    assert_eq!(pool.submit_again(1), Submitted::StartWorker);
    let mut worker = Worker::new();
    assert_eq!(pool.next(&mut worker), Next::Job(1));
    assert_eq!(pool.next(&mut worker), Next::Leave);
}

#[test]
fn after_a_fork_the_pool_is_as_new() {
    let pool = ThreadPool::new(1);
    assert_eq!(pool.submit(1), Ok(Submitted::StartWorker));
    assert_eq!(pool.submit(2), Ok(Submitted::Queued));
    assert_eq!(pool.forget_workers(), VecDeque::from([1, 2]));
    assert_eq!((pool.workers(), pool.waiting()), (0, 0));
    assert_eq!(pool.submit(3), Ok(Submitted::StartWorker));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u64),
    Take(usize),
    /// The clock goes on by so much and the timer looks.
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..50_u64).prop_map(Step::Insert),
        2 => (0..20_usize).prop_map(Step::Take),
        2 => (0..20_u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Each entry is got once, by `take` or by `expired`, and none is late although the timer sleeps until its alarm.
    #[test]
    fn deadlines_are_met_and_got_once(steps in steps()) {
        let origin = Instant::now();
        let at = |millis: u64| origin + Duration::from_millis(millis);
        let mut deadlines = Deadlines::new();
        let mut tickets = Vec::new();
        let mut pending: Vec<(u64, usize)> = Vec::new();
        let mut clock = 0;
        let mut alarm = deadlines.set_alarm();
        for step in steps {
            match step {
                Step::Insert(after) => {
                    let number = tickets.len();
                    let (ticket, early) = deadlines.insert(at(clock + after), number);
                    tickets.push(ticket);
                    pending.push((clock + after, number));
                    prop_assert_eq!(early, alarm.is_none_or(|alarm| at(clock + after) < alarm));
                    if early {
                        alarm = Some(at(clock + after));
                    }
                }
                Step::Take(number) => {
                    let Some(&ticket) = tickets.get(number) else { continue };
                    let known = pending.iter().position(|&(_, other)| other == number);
                    prop_assert_eq!(deadlines.take(ticket), known.map(|at| pending.remove(at).1));
                }
                Step::Pass(time) => {
                    clock += time;
                    if alarm.is_none_or(|alarm| at(clock) < alarm) {
                        prop_assert!(pending.iter().all(|&(deadline, _)| deadline > clock), "the timer sleeps too long");
                        continue;
                    }
                    pending.sort_unstable();
                    while let Some(number) = deadlines.expired(at(clock)) {
                        prop_assert!(pending[0].0 <= clock);
                        prop_assert_eq!(pending.remove(0).1, number);
                    }
                    prop_assert!(pending.iter().all(|&(deadline, _)| deadline > clock));
                    alarm = deadlines.set_alarm();
                    prop_assert_eq!(alarm.is_none(), pending.is_empty());
                }
            }
            prop_assert_eq!(deadlines.is_empty(), pending.is_empty());
        }
    }
}
