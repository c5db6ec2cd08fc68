//! The pool's end of a lane and the worker's, over real shared memory: two threads that work, and one that writes rubbish.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use super::account::Origin;
use super::lane::{ARENA, INLINE_MOST};
use super::link::{Function, Job, Link, Payload, Said, Sending};
use super::protocol::Status;
use super::worker::{Bytes, Call, Worker};
use crate::shared_memory::Arena;
use crate::sys::doorbell::Doorbell;
use crate::sys::mapping::Mapping;

/// Numbers that look random and are the same in every run (Steele and others' `SplitMix64`).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

struct Bench {
    link: Link,
    arguments: Arc<Arena>,
    doorbell: Doorbell,
}

const RESULTS: usize = 8 << 20;

impl Bench {
    fn new(results: usize, width: usize) -> Self {
        Self {
            link: Link::new(results, width).unwrap(),
            arguments: Arc::new(Arena::create("plait-arguments", 1 << 30).unwrap()),
            doorbell: Doorbell::new().unwrap(),
        }
    }

    fn lane(&self) -> Mapping {
        Mapping::open(self.link.memory().try_clone_to_owned().unwrap()).unwrap()
    }

    fn worker(&self) -> Worker {
        let arguments = self.arguments.mapping().as_fd().try_clone_to_owned();
        let doorbell = self.doorbell.as_fd().try_clone_to_owned();
        Worker::new(
            self.lane(),
            Mapping::open(arguments.unwrap()).unwrap(),
            Doorbell::from_fd(doorbell.unwrap()),
        )
        .unwrap()
    }

    fn payload(&self, bytes: Vec<u8>, room: &mut usize) -> Payload {
        if bytes.len() <= *room {
            *room -= bytes.len();
            return Payload::Inline(bytes);
        }
        Payload::Shared(Arc::new(self.arguments.store(&bytes).unwrap()))
    }

    fn job(&self, function: &Arc<Function>, length: usize, retries: u32) -> Job {
        let mut room = INLINE_MOST / 2;
        Job {
            function: Arc::clone(function),
            arguments: self.payload(pattern(length, 1), &mut room),
            buffers: (0..length % 3)
                .map(|at| self.payload(pattern(length * at, 2), &mut room))
                .collect(),
            timeout: None,
            retries,
            kept: Vec::new(),
            origin: Origin::default(),
        }
    }
}

/// Bytes that tell how many they are, and what for.
fn pattern(length: usize, kind: u8) -> Vec<u8> {
    vec![(length / 3) as u8 ^ kind; length]
}

fn function(slot: Option<u64>, generation: u64) -> Arc<Function> {
    let definition = Payload::Inline(vec![generation as u8; 10]);
    Arc::new(Function {
        slot,
        generation,
        definition,
    })
}

fn taken(bytes: Bytes) -> Vec<u8> {
    match bytes {
        Bytes::Inline(bytes) => bytes,
        Bytes::Shared(lease) => lease.to_vec(),
    }
}

/// A worker that answers with its arguments, doubled, and its buffers; checks everything on the way.
fn echo(worker: Worker) -> u64 {
    let mut known = std::collections::HashMap::new();
    let mut jobs = 0;
    worker.ready().unwrap();
    loop {
        let Some(call) = worker.take().unwrap() else {
            worker.wait(None).unwrap();
            continue;
        };
        let Call::Run {
            job,
            slot,
            definition,
            arguments,
            buffers,
        } = call
        else {
            return jobs;
        };
        jobs += 1;
        if let Some(definition) = definition {
            known.insert(slot, taken(definition));
        }
        assert!(
            known.contains_key(&slot),
            "a function that was never defined here"
        );
        let arguments = taken(arguments);
        assert_eq!(arguments, pattern(arguments.len(), 1));
        let buffers: Vec<_> = buffers.into_iter().map(taken).collect();
        for buffer in &buffers {
            assert_eq!(*buffer, pattern(buffer.len(), 2));
        }
        let payload = [&arguments[..], &arguments[..]].concat();
        let views: Vec<_> = buffers.iter().map(Vec::as_slice).collect();
        if job % 7 == 0 {
            worker.note(3, &arguments).unwrap();
        }
        if arguments.is_empty() {
            worker.answer(job, Status::Nothing, &[], &[]).unwrap();
        } else {
            worker.answer(job, Status::Value, &payload, &views).unwrap();
        }
    }
}

#[test]
fn calls_of_all_sizes_are_answered_in_order_through_full_rings() {
    let mut bench = Bench::new(1 << 30, 1);
    let worker = bench.worker();
    let thread = thread::spawn(move || echo(worker));
    let mut chance = Chance(1);
    let lengths = [
        0,
        1,
        100,
        5_000,
        INLINE_MOST / 2,
        INLINE_MOST / 2 + 1,
        40_000,
        60_000,
    ];
    let (mut scratch, mut frame) = (Vec::new(), Vec::new());
    let mut expected: VecDeque<(u64, usize)> = VecDeque::new();
    let mut kept = VecDeque::new();
    let (mut next, mut revoked, mut full, mut ready) = (0, 0, 0, false);
    while next < 3_000 || !expected.is_empty() {
        if next < 3_000 && chance.below(3) > 0 {
            let length = lengths[chance.below(lengths.len())];
            let slot = Some(chance.next() % 4).filter(|slot| *slot != 3);
            let generation = slot.unwrap_or(9) * 10 + chance.next() % 2;
            let job = bench.job(
                &function(slot, generation),
                length,
                u32::from(chance.below(5) == 0),
            );
            match bench.link.send(next, &job, &mut scratch) {
                Sending::Sent => expected.push_back((next, length)),
                Sending::NoRoom => full += 1,
                Sending::Corrupt => panic!("nobody writes rubbish here"),
            }
            next += 1;
        }
        if chance.below(50) == 0 {
            let count = bench.link.revoke(chance.below(4)).unwrap();
            expected.truncate(expected.len() - count);
            revoked += count;
        }
        // Sometimes nothing is heard for long, so that the replies' ring becomes full.
        if next < 3_000 && next % 1_000 < 700 {
            continue;
        }
        match bench.link.hear(&mut frame).unwrap() {
            None => {
                assert!(!thread.is_finished(), "the worker has left");
                thread::yield_now();
            }
            Some(Said::Ready) => ready = true,
            Some(Said::Unusable(text)) => panic!("{text}"),
            // In order: what a job says comes before its answer.
            Some(Said::Retire { .. }) => panic!("it has no limit"),
            Some(Said::Note(note)) => {
                let &(job, length) = expected.front().unwrap();
                assert_eq!((job % 7, note.kind), (0, 3));
                assert_eq!(taken(note.payload), pattern(length, 1));
            }
            Some(Said::Answer {
                job,
                status,
                payload,
                buffers,
                ..
            }) => {
                let (sent, length) = expected.pop_front().unwrap();
                assert_eq!(job, sent);
                assert_eq!(status == Status::Nothing, length == 0);
                // Views of results are kept for a while: the worker must not use their memory again.
                kept.push_back((length, payload, buffers));
                if kept.len() > 20 {
                    let (length, payload, buffers) = kept.pop_front().unwrap();
                    let half = pattern(length, 1);
                    assert_eq!(taken(payload), [&half[..], &half[..]].concat());
                    for (at, buffer) in buffers.into_iter().enumerate() {
                        assert_eq!(taken(buffer), pattern(length * at, 2));
                    }
                }
            }
        }
    }
    assert!(ready && full > 0, "the window was never full");
    assert!(bench.link.stop(&mut scratch));
    let jobs = thread.join().unwrap();
    assert_eq!(jobs + revoked as u64 + full, 3_000);
    assert!(bench.link.begun().is_empty());
    // What the worker said last may still be there: that it uses no arguments any more.
    while bench.link.hear(&mut frame).unwrap().is_some() {}
    drop((kept, bench.link));
    assert_eq!(
        bench.arguments.in_use(),
        0,
        "arguments that nobody uses were not given back"
    );
}

/// Results of many times the arena's size pass through it.
#[test]
fn memory_of_results_comes_back_when_the_last_view_is_dropped() {
    let mut bench = Bench::new(RESULTS, 1);
    let worker = bench.worker();
    let thread = thread::spawn(move || echo(worker));
    let function = function(Some(0), 0);
    let (mut scratch, mut frame) = (Vec::new(), Vec::new());
    for number in 0..40 {
        let job = bench.job(&function, 1 << 20, 0);
        assert_eq!(bench.link.send(number, &job, &mut scratch), Sending::Sent);
        loop {
            if let Some(Said::Answer { payload, .. }) = bench.link.hear(&mut frame).unwrap() {
                assert!(matches!(payload, Bytes::Shared(lease) if lease.len() == 2 << 20));
                break;
            }
            assert!(!thread.is_finished(), "the worker has left");
            thread::yield_now();
        }
    }
    assert!(bench.link.stop(&mut scratch));
    assert_eq!(thread.join().unwrap(), 40);
}

#[test]
fn a_result_that_does_not_fit_is_refused_and_another_fits() {
    let mut bench = Bench::new(RESULTS, 1);
    let worker = bench.worker();
    let function = function(Some(0), 0);
    let mut scratch = Vec::new();
    let job = bench.job(&function, 100, 0);
    assert_eq!(bench.link.send(7, &job, &mut scratch), Sending::Sent);
    assert!(matches!(worker.take(), Ok(Some(Call::Run { job: 7, .. }))));
    assert!(bench.link.is_running(7));
    assert_eq!(bench.link.begun(), [7]);
    let (large, small) = (vec![1; RESULTS / 2 + 1], vec![2; RESULTS / 4]);
    let refused = worker
        .answer(7, Status::Value, &large, &[&large])
        .unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::OutOfMemory);
    worker.answer(7, Status::Value, &small, &[&small]).unwrap();
    assert_eq!(bench.link.running().count(), 0);
    let said = bench.link.hear(&mut Vec::new()).unwrap();
    assert!(matches!(said, Some(Said::Answer { job: 7, .. })));
    assert_eq!(bench.link.begun(), []);
}

/// Several jobs at once: one thread takes calls while others answer them as they like.
#[test]
fn a_wide_worker_answers_in_any_order_and_loses_what_it_had_begun() {
    let mut bench = Bench::new(RESULTS, 4);
    let worker = bench.worker();
    let function = function(Some(0), 0);
    let (mut scratch, mut frame) = (Vec::new(), Vec::new());
    worker.ready().unwrap();
    let mut chance = Chance(3);
    let (mut out, mut sent) = (Vec::new(), 0);
    let mut answers = 0;
    while answers < 2_000 {
        while out.len() < 4 {
            let job = bench.job(&function, 10, 0);
            assert_eq!(bench.link.send(sent, &job, &mut scratch), Sending::Sent);
            assert!(matches!(worker.take(), Ok(Some(Call::Run { job, .. })) if job == sent));
            out.push(sent);
            sent += 1;
        }
        assert_eq!(bench.link.begun(), out);
        let count = 1 + chance.below(4);
        let ended: Vec<_> = (0..count)
            .map(|_| out.remove(chance.below(out.len())))
            .collect();
        thread::scope(|scope| {
            for &job in &ended {
                let worker = &worker;
                scope.spawn(move || worker.answer(job, Status::Nothing, &[], &[]).unwrap());
            }
        });
        let mut heard = Vec::new();
        while let Some(said) = bench.link.hear(&mut frame).unwrap() {
            if let Said::Answer { job, .. } = said {
                heard.push(job);
            }
        }
        heard.sort_unstable();
        let mut ended = ended;
        ended.sort_unstable();
        assert_eq!(heard, ended);
        assert_eq!(bench.link.begun(), out);
        answers += count;
    }
    let again = worker.answer(sent, Status::Nothing, &[], &[]);
    assert!(again.is_err(), "a job that it was never sent");
}

#[test]
fn a_worker_that_is_too_large_says_so_once() {
    let mut bench = Bench::new(RESULTS, 1);
    let worker = bench.worker();
    let function = function(Some(0), 0);
    let (mut scratch, mut frame) = (Vec::new(), Vec::new());
    worker.limit_memory(1);
    let mut retirements = 0;
    for number in 0..10 {
        let job = bench.job(&function, 10, 0);
        assert_eq!(bench.link.send(number, &job, &mut scratch), Sending::Sent);
        assert!(matches!(worker.take(), Ok(Some(Call::Run { .. }))));
        worker.answer(number, Status::Nothing, &[], &[]).unwrap();
        thread::sleep(std::time::Duration::from_millis(25));
        while let Some(said) = bench.link.hear(&mut frame).unwrap() {
            if let Said::Retire { resident_bytes } = said {
                assert!(resident_bytes > 1);
                retirements += 1;
            }
        }
    }
    assert_eq!(retirements, 1);
}

/// A wide worker that is asleep in `wait` does not keep others from answering.
#[test]
fn a_wide_worker_answers_while_it_waits_for_calls() {
    let mut bench = Bench::new(RESULTS, 2);
    let worker = bench.worker();
    let function = function(Some(0), 0);
    let (mut scratch, mut frame) = (Vec::new(), Vec::new());
    worker.ready().unwrap();
    for number in 0..50 {
        let job = bench.job(&function, 10, 0);
        assert_eq!(bench.link.send(number, &job, &mut scratch), Sending::Sent);
        assert!(matches!(worker.take(), Ok(Some(Call::Run { .. }))));
        thread::scope(|scope| {
            let taker = scope.spawn(|| {
                while worker.take().unwrap().is_none() {
                    worker.wait(None).unwrap();
                }
            });
            worker.answer(number, Status::Nothing, &[], &[]).unwrap();
            while !matches!(
                bench.link.hear(&mut frame).unwrap(),
                Some(Said::Answer { .. })
            ) {}
            assert!(!taker.is_finished());
            let stop = bench.link.stop(&mut scratch);
            assert!(stop);
            taker.join().unwrap();
        });
    }
}

/// Whatever a worker writes over its lane, the pool's end neither panics nor goes round for ever, and is not misled about
/// which job had begun.
#[test]
fn rubbish_in_a_lane_harms_nobody_else() {
    for seed in 0..600 {
        let mut chance = Chance(seed);
        let width = 1 + seed as usize % 3;
        let mut bench = Bench::new(RESULTS, width);
        let worker = bench.worker();
        let lane = bench.lane();
        let function = function(Some(0), 0);
        let (mut scratch, mut frame) = (Vec::new(), Vec::new());
        let mut sent = Vec::new();
        let mut corrupt = false;
        for number in 0..60 {
            match chance.below(6) {
                0 | 1 => {
                    let job = bench.job(&function, chance.below(40_000), 0);
                    match bench.link.send(number, &job, &mut scratch) {
                        Sending::Sent => sent.push(number),
                        Sending::NoRoom => {}
                        Sending::Corrupt => corrupt = true,
                    }
                }
                // An honest step of the worker, as far as it gets.
                2 if !corrupt => {
                    if let Ok(Some(Call::Run { job, .. })) = worker.take() {
                        let _ = worker.answer(job, Status::Value, &[1; 100], &[]);
                    }
                }
                3 => {
                    let at = [
                        chance.below(2_500),
                        chance.below(4_096),
                        chance.below(ARENA),
                    ][chance.below(3)];
                    let length = [1, 8, 64, 5_000][chance.below(4)].min(ARENA - at);
                    let rubbish = match chance.below(4) {
                        0 => vec![0; length],
                        1 => vec![255; length],
                        _ => chance.bytes(length),
                    };
                    assert!(lane.copy_in(at, &rubbish));
                }
                4 => match bench.link.revoke(chance.below(5)) {
                    Ok(count) => sent.truncate(sent.len() - count.min(sent.len())),
                    Err(_) => corrupt = true,
                },
                _ => {
                    for _ in 0..1_000 {
                        match bench.link.hear(&mut frame) {
                            Ok(Some(Said::Answer { job, .. })) => {
                                let at = sent.iter().position(|&sent| sent == job);
                                assert!(at.is_some_and(|at| at < width), "seed {seed}");
                                sent.remove(at.unwrap());
                            }
                            Ok(Some(_)) => {}
                            Ok(None) => break,
                            Err(_) => {
                                corrupt = true;
                                assert!(!bench.link.has_reply(), "it is not heard any more");
                                break;
                            }
                        }
                    }
                }
            }
            let begun = bench.link.begun();
            let may = &sent[..width.min(sent.len())];
            assert!(begun.iter().all(|job| may.contains(job)), "seed {seed}");
        }
        bench.link.kill();
    }
}

/// A worker asleep in `wait` is woken by a call, and one that waits for room by being heard.
#[test]
fn nobody_sleeps_while_there_is_something_to_do() {
    let mut bench = Bench::new(RESULTS, 1);
    let worker = bench.worker();
    let thread = thread::spawn(move || echo(worker));
    let function = function(Some(0), 0);
    let (mut scratch, mut frame) = (Vec::new(), Vec::new());
    for number in 0..300 {
        let job = bench.job(&function, 10, 0);
        assert_eq!(bench.link.send(number, &job, &mut scratch), Sending::Sent);
        bench.link.announce_sleep();
        while !bench.link.has_reply() {
            bench.doorbell.wait(&[], None).unwrap();
        }
        bench.link.withdraw_sleep();
        while bench.link.hear(&mut frame).unwrap().is_some() {}
        if number % 10 == 0 {
            // Long enough for the worker to fall asleep; if it does not, the test tests less, and holds.
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    assert!(bench.link.stop(&mut scratch));
    assert_eq!(thread.join().unwrap(), 300);
}
