//! One event loop per thread: what a second thread adds. `cargo bench --package plait-engine --bench loops_per_thread`
//!
//! Each loop passes items on to its next turn, sets and lets run timers, and answers over a socket of its own. Nothing
//! is shared, so two threads on two CPUs should do twice as much; on a machine with other work, what an operation costs
//! in CPU time says more than the wall clock.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use plait_engine::event_loop::{EventLoop, Side, Wait};
use rustix::time::{ClockId, clock_gettime};

const OPERATIONS: u64 = 2_000_000;
const ROUNDS: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Item {
    /// Comes again in the next turn; this often has it run.
    Soon(u64),
    Timer,
    Readable,
}

/// A loop with all that belongs to it.
struct Worker {
    event_loop: EventLoop<Item>,
    turn: VecDeque<Item>,
    here: UnixStream,
    there: UnixStream,
    done: u64,
}

impl Worker {
    fn new() -> io::Result<Self> {
        let (here, there) = UnixStream::pair()?;
        let event_loop = EventLoop::new()?;
        event_loop.watch(here.as_raw_fd(), Side::Read, Item::Readable)?;
        Ok(Self {
            event_loop,
            turn: VecDeque::new(),
            here,
            there,
            done: 0,
        })
    }

    fn run(&mut self, operations: u64) -> io::Result<()> {
        for number in 0..100 {
            self.event_loop.add(Item::Soon(number));
        }
        self.there.write_all(b"x")?;
        self.done = 0;
        while self.done < operations {
            let how = self.event_loop.prepare(false);
            if !matches!(how, Wait::Not) {
                self.event_loop.wait(&how)?;
                drop(self.event_loop.gather(|item, _| *item, |_| false));
            }
            self.event_loop.begin_turn(&mut self.turn);
            while let Some(item) = self.turn.pop_front() {
                self.done += 1;
                self.call(item)?;
            }
        }
        drop(self.event_loop.clear());
        self.event_loop
            .watch(self.here.as_raw_fd(), Side::Read, Item::Readable)?;
        Ok(())
    }

    fn call(&mut self, item: Item) -> io::Result<()> {
        match item {
            Item::Soon(times) => {
                if times % 16 == 0 {
                    self.event_loop
                        .add_timer(EventLoop::<Item>::now(), Item::Timer);
                }
                self.event_loop.add(Item::Soon(times + 1));
            }
            Item::Timer => {}
            Item::Readable => {
                let mut byte = [0];
                self.here.read_exact(&mut byte)?;
                self.there.write_all(&byte)?;
            }
        }
        Ok(())
    }
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Nanoseconds for an operation of each thread.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
}

fn measure(threads: usize) -> io::Result<Cost> {
    let start = Barrier::new(threads);
    let spent = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut worker = Worker::new()?;
                    worker.run(OPERATIONS / 10)?;
                    start.wait();
                    let (began, cpu) = (Instant::now(), thread_cpu());
                    worker.run(OPERATIONS)?;
                    Ok((began.elapsed(), thread_cpu().saturating_sub(cpu)))
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
            })
            .collect::<io::Result<Vec<(Duration, Duration)>>>()
    })?;
    let slowest = spent
        .iter()
        .map(|(wall, _)| wall.as_secs_f64())
        .fold(0.0, f64::max);
    let cpu = spent
        .iter()
        .map(|(_, cpu)| cpu.as_secs_f64())
        .fold(0.0, f64::max);
    let each = 1e9 / f64::from(u32::try_from(OPERATIONS).unwrap_or(u32::MAX));
    Ok(Cost {
        wall: slowest * each,
        cpu: cpu * each,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> io::Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push([measure(1)?, measure(2)?]); // alternating
    }
    let of = |figure: fn(&[Cost; 2]) -> f64| median(rounds.iter().map(figure).collect());
    println!(
        "one thread: {:.1} ns of CPU time for an operation; two: {:.1} ns",
        of(|[one, _]| one.cpu),
        of(|[_, two]| two.cpu)
    );
    println!(
        "two threads do {:.2} times as much by CPU time, {:.2} times by the wall clock",
        of(|[one, two]| 2.0 * one.cpu / two.cpu),
        of(|[one, two]| 2.0 * one.wall / two.wall)
    );
    Ok(())
}
