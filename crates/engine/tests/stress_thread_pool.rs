//! The thread pool with real threads: every job runs exactly once, jobs that wait for each other all begin, everybody
//! leaves. The seed is printed; `PLAIT_SEED=n` repeats it.
#![allow(missing_docs)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plait_engine::thread_pool::{Next, Retired, Submitted, ThreadPool, Worker};

/// What a job is: a number to be noted, and perhaps others to wait for.
struct Job {
    number: usize,
    meet: Option<Arc<Barrier>>,
}

#[derive(Default)]
struct Stage {
    threads: Mutex<Vec<JoinHandle<()>>>,
    started: AtomicUsize,
    runs: Mutex<HashMap<usize, usize>>,
    /// Workers leave when they have been idle for a moment.
    impatient: bool,
}

fn submit(pool: &Arc<ThreadPool<Job>>, stage: &Arc<Stage>, job: Job) {
    match pool.submit(job) {
        Ok(Submitted::Queued) => {}
        Ok(Submitted::StartWorker) => {
            stage.started.fetch_add(1, Ordering::Relaxed);
            let (pool, notes) = (Arc::clone(pool), Arc::clone(stage));
            let thread = std::thread::spawn(move || work(&pool, &notes));
            stage.threads.lock().unwrap().push(thread);
        }
        Err(job) => panic!("job {} was refused by an open pool", job.number),
    }
}

fn work(pool: &ThreadPool<Job>, stage: &Stage) {
    let mut worker = Worker::new();
    loop {
        match pool.next(&mut worker) {
            Next::Job(job) => {
                if let Some(barrier) = job.meet {
                    barrier.wait();
                }
                *stage.runs.lock().unwrap().entry(job.number).or_default() += 1;
            }
            Next::Wait if !stage.impatient => drop(pool.wait(&worker)),
            Next::Wait => {
                if pool.wait_for(&worker, Duration::from_micros(20)).is_none() {
                    match pool.retire(&mut worker) {
                        Retired::Left => return,
                        Retired::Called => drop(pool.wait(&worker)),
                        Retired::Needed => {}
                    }
                }
            }
            Next::Leave => return,
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

#[test]
fn every_job_runs_once_and_everybody_leaves() {
    let seed = std::env::var("PLAIT_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |since| since.as_nanos() as u64 | 1)
        });
    println!("PLAIT_SEED={seed}");
    let mut random = Random(seed);
    for _ in 0..200 {
        let limit = 1 + random.below(5) as usize;
        let pool = Arc::new(ThreadPool::new(limit));
        let stage = Arc::new(Stage {
            impatient: random.below(2) == 1,
            ..Stage::default()
        });
        let mut submitted = 0;
        let submitters: Vec<_> = (0..=random.below(2))
            .map(|_| {
                let count = random.below(60) as usize;
                let first = submitted;
                submitted += count;
                let mut pause = Random(seed ^ (first as u64 + 1));
                let (pool, stage) = (Arc::clone(&pool), Arc::clone(&stage));
                std::thread::spawn(move || {
                    for number in first..first + count {
                        submit(&pool, &stage, Job { number, meet: None });
                        for _ in 0..pause.below(200) {
                            std::hint::spin_loop();
                        }
                    }
                })
            })
            .collect();
        for submitter in submitters {
            submitter.join().unwrap();
        }
        // As many jobs as there may be workers, none of which ends before all have begun.
        let barrier = Arc::new(Barrier::new(limit));
        for number in submitted..submitted + limit {
            submit(
                &pool,
                &stage,
                Job {
                    number,
                    meet: Some(Arc::clone(&barrier)),
                },
            );
        }
        pool.close();
        assert!(
            pool.submit(Job {
                number: 0,
                meet: None
            })
            .is_err()
        );
        let threads = std::mem::take(&mut *stage.threads.lock().unwrap());
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(pool.workers(), 0);
        assert_eq!(pool.waiting(), 0);
        assert!(stage.impatient || stage.started.load(Ordering::Relaxed) <= limit);
        let runs = stage.runs.lock().unwrap();
        assert_eq!(runs.len(), submitted + limit);
        assert!(runs.values().all(|&count| count == 1));
    }
}
