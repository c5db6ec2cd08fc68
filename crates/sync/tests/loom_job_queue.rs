//! Every interleaving of pushers, workers that sleep and a close: a lost wake-up or a job left behind is a deadlock.
#![cfg(plait_loom)]
#![allow(missing_docs)]

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use plait_sync::job_queue::{JobQueue, Next, Supply, Worker};

/// A worker's life; returns the sum of its jobs.
fn work(queue: &JobQueue<usize>) -> usize {
    let mut worker = Worker::new();
    let mut sum = 0;
    loop {
        match queue.next(&mut worker) {
            Next::Job(job) => sum += job,
            Next::Wait => drop(worker.wait(queue)),
            Next::Leave => return sum,
        }
    }
}

#[test]
fn every_job_is_run_and_every_worker_leaves() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let queue = Arc::new(JobQueue::new());
        let workers: Vec<_> = (0..2)
            .map(|_| {
                queue.expect_worker();
                let queue = Arc::clone(&queue);
                thread::spawn(move || work(&queue))
            })
            .collect();
        assert!(queue.push(1).is_ok());
        assert!(queue.push(2).is_ok());
        queue.close();
        assert_eq!(queue.push(4), Err(4));
        assert_eq!(
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum::<usize>(),
            3
        );
    });
}

/// Ends for everybody when two have begun.
#[derive(Default)]
struct Both {
    begun: Mutex<usize>,
    changed: Condvar,
}

impl Both {
    fn begin_and_wait(&self, more: usize) {
        let mut begun = self.begun.lock().unwrap();
        *begun += more;
        self.changed.notify_all();
        while *begun < 2 {
            begun = self.changed.wait(begun).unwrap();
        }
    }
}

/// Both jobs run at the same time: each ends only when the other has begun. One push wakes at most one worker and the
/// other push may wake none, so the first worker has to call the second.
#[test]
fn two_jobs_that_wait_for_each_other_both_begin() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let queue = Arc::new(JobQueue::new());
        let both = Arc::new(Both::default());
        let workers: Vec<_> = (0..2)
            .map(|_| {
                queue.expect_worker();
                let (queue, both) = (Arc::clone(&queue), Arc::clone(&both));
                thread::spawn(move || {
                    let mut worker = Worker::new();
                    loop {
                        match queue.next(&mut worker) {
                            Next::Job(()) => both.begin_and_wait(1),
                            Next::Wait => drop(worker.wait(&queue)),
                            Next::Leave => return,
                        }
                    }
                })
            })
            .collect();
        assert!(queue.push(()).is_ok());
        assert!(queue.push(()).is_ok());
        both.begin_and_wait(0);
        queue.close();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

/// A worker that gives up waiting is called for the job, or whoever pushes it hears that there is nobody.
#[test]
fn a_worker_that_retires_is_not_counted_on() {
    loom::model(|| {
        let queue = Arc::new(JobQueue::new());
        queue.expect_worker();
        let worker = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut worker = Worker::new();
                let mut ran = 0;
                loop {
                    match queue.next(&mut worker) {
                        Next::Job(job) => ran += job,
                        Next::Wait if queue.retire(&mut worker) => return ran,
                        Next::Wait => drop(worker.wait(&queue)),
                        Next::Leave => return ran,
                    }
                }
            })
        };
        let supply = queue.push(1).unwrap();
        let ran = worker.join().unwrap();
        assert_eq!(ran, usize::from(supply == Supply::Enough));
        assert_eq!(queue.len(), 1 - ran);
    });
}
