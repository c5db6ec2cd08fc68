//! A queue of messages between processes: the log of `plait_sync::log` in a memory of its own, two locks and three gates.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use plait_sync::gate::Gate;
use plait_sync::log::{self, Frame, Header, Log};
use plait_sync::memory::Memory;
use plait_sync::owned_lock::OwnedLock;

use super::board::{new_nonce, strange};
use super::lock::{self, Step};
use super::{Progress, Wait};
use crate::shared_memory::map_largest;
use crate::sys::mapping::Mapping;
use crate::sys::{futex, identity};

const MAGIC: u64 = u64::from_le_bytes(*b"plaitque");
/// Room for the control, before the log.
const CONTROL: usize = 4096;
/// Address space of a log, where there is that much.
const LOG: usize = 16 << 30;
/// Read memory up to this offset is kept for the next messages: touching a fresh page costs ten times as much.
const WARM: u64 = 256 << 20;
/// A number in a frame.
const WORD: usize = 8;

/// The first page.
#[repr(C)]
struct Control {
    magic: AtomicU64,
    nonce: AtomicU64,
    log: Header,
    producers: Line<OwnedLock>,
    consumers: Line<OwnedLock>,
    /// Consumers sleep here while there is no message.
    items: Line<Gate>,
    /// Producers sleep here while the queue is full.
    room: Line<Gate>,
    /// Who joins sleeps here until all that was put is done.
    finished: Line<Gate>,
    /// How many messages were said to be done.
    done: AtomicU64,
}

/// Something on a cache line of its own.
#[repr(C, align(64))]
struct Line<T>(T);

/// Why nothing was put.
#[derive(Debug)]
pub enum PutError {
    /// The message is longer than half of the queue's address space.
    TooLong,
    /// What lies in the shared memory makes no sense.
    Corrupt,
}

/// Why nothing was got; the message is still there.
#[derive(Debug, PartialEq, Eq)]
pub enum GetError {
    /// This process has no memory for it.
    NoMemory,
    /// What lies in the shared memory makes no sense.
    Corrupt,
}

impl From<log::Corrupt> for GetError {
    fn from(_: log::Corrupt) -> Self {
        Self::Corrupt
    }
}

/// A part of a message, in memory of this process.
pub trait Piece: Sized {
    /// Memory for `length` bytes, filled by `fill` (which is called once); `None` if there is not that much.
    fn filled(length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Option<Self>;
}

/// A message as it was put: a pickle, and the buffers that it refers to.
#[derive(Debug)]
pub struct Message<P> {
    /// The pickle.
    pub pickle: P,
    /// Its buffers.
    pub buffers: Vec<P>,
}

/// A queue, as one process has it.
pub struct Queue {
    mapping: Mapping,
    control: NonNull<Control>,
    nonce: u64,
}

// SAFETY: the control is made of atomics, in a mapping that is `Send` and `Sync` itself and lives as long as the queue.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("nonce", &self.nonce)
            .finish_non_exhaustive()
    }
}

// SAFETY: the data begins where the control ends and is a power of two long (`create` and `open` see to that); the mapping
// lives as long as the queue.
unsafe impl Memory for Queue {
    fn capacity(&self) -> usize {
        self.mapping.len() - CONTROL
    }

    unsafe fn write_at(&self, at: usize, from: &[u8]) {
        self.mapping.copy_in(CONTROL + at, from);
    }

    unsafe fn read_at(&self, at: usize, into: &mut [u8]) {
        self.mapping.copy_out(CONTROL + at, into);
    }
}

impl Log for Queue {
    fn header(&self) -> &Header {
        &self.control().log
    }
}

impl Queue {
    /// A new queue, empty.
    pub fn create() -> io::Result<Self> {
        let queue = Self::of(map_largest("plait-queue", CONTROL, LOG)?, new_nonce())?;
        let control = queue.control();
        control.nonce.store(queue.nonce, Ordering::Relaxed);
        control.magic.store(MAGIC, Ordering::Release);
        Ok(queue)
    }

    /// The queue behind a descriptor from another process, of which a duplicate is kept.
    pub fn open(fd: BorrowedFd<'_>, nonce: u64) -> io::Result<Self> {
        let queue = Self::of(Mapping::open(fd.try_clone_to_owned()?)?, nonce)?;
        let control = queue.control();
        if control.magic.load(Ordering::Acquire) != MAGIC
            || control.nonce.load(Ordering::Relaxed) != nonce
        {
            return Err(strange());
        }
        Ok(queue)
    }

    fn of(mapping: Mapping, nonce: u64) -> io::Result<Self> {
        const { assert!(size_of::<Control>() <= CONTROL) };
        let data = mapping.len().checked_sub(CONTROL).ok_or_else(strange)?;
        if !data.is_power_of_two() || data < CONTROL {
            return Err(strange());
        }
        let control = mapping.address(0, CONTROL).ok_or_else(strange)?.cast();
        Ok(Self {
            mapping,
            control,
            nonce,
        })
    }

    /// What another process needs to open it: a descriptor, and the nonce of the memory.
    pub fn locate(&self) -> (RawFd, u64) {
        (self.mapping.as_fd().as_raw_fd(), self.nonce)
    }

    fn control(&self) -> &Control {
        // SAFETY: the first page of the mapping, which `create` and `open` have made sure exists: aligned to a page, alive as
        // long as `self`, and made of atomics only, for which any bytes are valid.
        unsafe { self.control.as_ref() }
    }

    /// A step of putting a message of a `pickle` and its `buffers`. With `most`, while there are fewer than that many.
    /// [`Progress::Done`]: it is put.
    pub fn put_step(
        &self,
        pickle: &[u8],
        buffers: &[&[u8]],
        most: Option<u64>,
        wait: &mut Wait,
    ) -> Result<Progress, PutError> {
        let control = self.control();
        if let Some(progress) = acquire(&control.producers.0, wait) {
            return Ok(progress);
        }
        let full = |most: u64| {
            let header = &control.log;
            header.puts().saturating_sub(header.gets()) >= most
        };
        if most.is_some_and(full) {
            lock::unlock(&control.producers.0);
            return Ok(Self::sleep(&control.room.0, wait, || {
                !most.is_some_and(full)
            }));
        }
        let result = self.append(pickle, buffers);
        lock::unlock(&control.producers.0);
        match result {
            Ok(()) => {
                if wait.slept && most.is_some() {
                    pass_on(&control.room.0, || !most.is_some_and(full));
                }
                open(&control.items.0);
                Ok(Progress::Done)
            }
            Err(log::PutError::Full) => {
                // All address space is unread messages: what is read makes room, of which nobody is told.
                Ok(Self::sleep(&control.room.0, wait, || false))
            }
            Err(log::PutError::TooLong) => Err(PutError::TooLong),
            Err(log::PutError::Corrupt) => Err(PutError::Corrupt),
        }
    }

    fn append(&self, pickle: &[u8], buffers: &[&[u8]]) -> Result<(), log::PutError> {
        if buffers.is_empty() {
            return log::put(self, &[&[0; WORD], pickle], WARM);
        }
        let mut numbers = Vec::with_capacity((1 + buffers.len()) * WORD);
        numbers.extend((buffers.len() as u64).to_le_bytes());
        for buffer in buffers {
            numbers.extend((buffer.len() as u64).to_le_bytes());
        }
        let mut parts: Vec<&[u8]> = Vec::with_capacity(2 + buffers.len());
        parts.extend([numbers.as_slice(), pickle]);
        parts.extend(buffers);
        log::put(self, &parts, WARM)
    }

    /// A step of getting the oldest message. [`Progress::Done`]: it is in `into`. `largest` may refuse it by its size:
    /// then it stays, and so does the step's caller ([`Progress::Look`]).
    pub fn get_step<P: Piece>(
        &self,
        wait: &mut Wait,
        largest: u64,
        into: &mut Option<Message<P>>,
    ) -> Result<Progress, GetError> {
        let control = self.control();
        let waiting = || !control.log.is_empty();
        if !waiting() {
            return Ok(Self::sleep(&control.items.0, wait, waiting));
        }
        if let Some(progress) = acquire(&control.consumers.0, wait) {
            return Ok(progress);
        }
        let found = log::peek(self)
            .map_err(GetError::from)
            .and_then(|frame| match frame {
                Some(frame) if frame.len() <= largest => {
                    *into = Some(self.read(&frame)?);
                    log::take(self, &frame);
                    while let Some(spent) = log::spent(self, WARM) {
                        let length = spent.pages.end - spent.pages.start;
                        if length > 0 {
                            let offset = CONTROL + spent.pages.start as usize;
                            // If it fails, the pages stay until they are used again.
                            let _ = self.mapping.discard(offset, length as usize);
                        }
                        log::freed(self, &spent);
                    }
                    Ok(Progress::Done)
                }
                // Too large for the caller, or another consumer was faster.
                Some(_) | None => Ok(Progress::Look),
            });
        lock::unlock(&control.consumers.0);
        if found == Ok(Progress::Done) {
            if wait.slept {
                pass_on(&control.items.0, waiting);
            }
            open(&control.room.0);
        }
        found
    }

    fn read<P: Piece>(&self, frame: &Frame) -> Result<Message<P>, GetError> {
        let number = |at: u64| {
            let mut word = [0; WORD];
            log::read(self, frame, at, &mut word)
                .then(|| u64::from_le_bytes(word))
                .ok_or(log::Corrupt)
        };
        let count = number(0)?;
        let mut at = count
            .checked_add(1)
            .and_then(|words| words.checked_mul(WORD as u64))
            .filter(|&at| at <= frame.len())
            .ok_or(log::Corrupt)?;
        let lengths = (1..=count)
            .map(|index| number(index * WORD as u64))
            .collect::<Result<Vec<_>, _>>()?;
        let pickle = lengths
            .iter()
            .try_fold(frame.len() - at, |left, &length| left.checked_sub(length))
            .ok_or(log::Corrupt)?;
        let mut piece = |length: u64| {
            let filled = P::filled(length as usize, &mut |into| {
                log::read(self, frame, at, into);
            });
            at += length;
            filled.ok_or(GetError::NoMemory)
        };
        Ok(Message {
            pickle: piece(pickle)?,
            buffers: lengths.into_iter().map(piece).collect::<Result<_, _>>()?,
        })
    }

    /// Sleeps at a gate until `found`, for a moment at most.
    fn sleep(gate: &Gate, wait: &mut Wait, mut found: impl FnMut() -> bool) -> Progress {
        if !wait.patient {
            return Progress::TimedOut;
        }
        if wait.spin(&mut found) {
            return Progress::Look;
        }
        let word = gate.announce();
        if found() {
            return Progress::Look;
        }
        let Some(slice) = wait.slice() else {
            return Progress::TimedOut;
        };
        wait.slept = true;
        futex::wait(gate.word(), word, Some(slice));
        Progress::Look
    }

    /// Whether nothing is there to be read.
    pub fn is_empty(&self) -> bool {
        self.control().log.is_empty()
    }

    /// How many messages are there to be read.
    pub fn len(&self) -> u64 {
        let header = &self.control().log;
        // In this order: a message that comes or goes meanwhile must not make it negative.
        let gets = header.gets();
        header.puts().saturating_sub(gets)
    }

    /// Says that one more of the messages that were put is done; false if all were already.
    pub fn task_done(&self) -> bool {
        let control = self.control();
        let puts = control.log.puts();
        let more = control
            .done
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |done| {
                (done < puts).then_some(done + 1)
            });
        if more.is_ok() && self.is_done() && control.finished.0.open() {
            futex::wake(control.finished.0.word(), i32::MAX.cast_unsigned());
        }
        more.is_ok()
    }

    fn is_done(&self) -> bool {
        let control = self.control();
        control.done.load(Ordering::Acquire) >= control.log.puts()
    }

    /// A step of waiting until all that was put is done.
    pub fn join_step(&self, wait: &mut Wait) -> Progress {
        if self.is_done() {
            return Progress::Done;
        }
        match Self::sleep(&self.control().finished.0, wait, || self.is_done()) {
            Progress::Look if self.is_done() => Progress::Done,
            progress => progress,
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mapping.as_fd()
    }
}

/// Takes a lock of the queue; from a dead owner, too: whatever it was doing, the log is whole. `None`: taken.
fn acquire(lock: &OwnedLock, wait: &mut Wait) -> Option<Progress> {
    let me = identity::of_this_process();
    if lock.try_acquire(me, wait.slept) {
        return None;
    }
    match lock::step(lock, wait) {
        Step::Acquired => None,
        Step::TimedOut => {
            let seen = lock.peek();
            let dead = wait.slept
                && seen != 0
                && !identity::is_alive(seen & !plait_sync::owned_lock::SLEEPERS);
            (!(dead && lock.take_over(seen, me))).then_some(Progress::TimedOut)
        }
        Step::Dead(seen) if lock.take_over(seen, me) => None,
        Step::Dead(_) | Step::Look => Some(Progress::Look),
    }
}

fn open(gate: &Gate) {
    if gate.open() {
        futex::wake_one(gate.word());
    }
}

fn pass_on(gate: &Gate, more: impl FnOnce() -> bool) {
    gate.pass_on();
    if more() {
        open(gate);
    }
}

#[cfg(test)]
mod tests {
    //! A death at each step of README.md's table: a process that has died is one whose identity stands in a lock.

    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    impl Piece for Vec<u8> {
        fn filled(length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Option<Self> {
            let mut bytes = vec![0; length];
            fill(&mut bytes);
            Some(bytes)
        }
    }

    /// The identity of a process that has ended.
    fn dead() -> u64 {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        u64::from(child.id())
    }

    fn patient() -> Wait {
        Wait::until(Some(Instant::now() + Duration::from_secs(30)))
    }

    fn put(queue: &Queue, pickle: &[u8], buffers: &[&[u8]]) {
        let mut wait = patient();
        loop {
            match queue.put_step(pickle, buffers, None, &mut wait).unwrap() {
                Progress::Done => return,
                progress => assert_eq!(progress, Progress::Look),
            }
        }
    }

    fn get(queue: &Queue) -> Message<Vec<u8>> {
        let (mut wait, mut into) = (patient(), None);
        loop {
            let progress = queue.get_step(&mut wait, u64::MAX, &mut into).unwrap();
            if let Some(message) = into {
                return message;
            }
            assert_eq!(progress, Progress::Look);
        }
    }

    fn assert_works(queue: &Queue, expected: &[&[u8]]) {
        put(queue, b"last", &[b"a buffer"]);
        assert_eq!(queue.len(), expected.len() as u64 + 1);
        for pickle in expected {
            assert_eq!(get(queue).pickle, *pickle);
        }
        let last = get(queue);
        assert_eq!(
            (last.pickle, last.buffers),
            (b"last".to_vec(), vec![b"a buffer".to_vec()])
        );
        assert!(queue.is_empty());
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_producer_that_dies_with_the_lock_before_it_publishes() {
        let queue = Queue::create().unwrap();
        put(&queue, b"first", &[]);
        assert!(queue.control().producers.0.try_acquire(dead(), false));
        assert_works(&queue, &[b"first"]);
    }

    #[test]
    fn a_producer_that_dies_with_the_lock_after_it_has_published() {
        let queue = Queue::create().unwrap();
        assert!(queue.control().producers.0.try_acquire(dead(), false));
        queue.append(b"first", &[]).unwrap();
        assert_eq!(queue.len(), 1);
        assert_works(&queue, &[b"first"]);
    }

    #[test]
    fn a_producer_that_dies_before_it_wakes_a_consumer() {
        let queue = Queue::create().unwrap();
        std::thread::scope(|scope| {
            let consumer = scope.spawn(|| get(&queue).pickle);
            while !queue.control().items.0.open() {
                std::thread::yield_now(); // the announcement is taken, and nobody is woken
            }
            queue.append(b"first", &[]).unwrap();
            assert_eq!(consumer.join().unwrap(), b"first");
        });
        assert_works(&queue, &[]);
    }

    #[test]
    fn a_consumer_that_dies_with_the_lock_before_it_takes() {
        let queue = Queue::create().unwrap();
        put(&queue, b"first", &[]);
        assert!(queue.control().consumers.0.try_acquire(dead(), false));
        assert!(log::peek(&queue).unwrap().is_some());
        assert_works(&queue, &[b"first"]);
    }

    #[test]
    fn a_consumer_that_dies_with_the_lock_after_it_has_taken() {
        let queue = Queue::create().unwrap();
        put(&queue, b"taken", &[]);
        put(&queue, b"second", &[]);
        assert!(queue.control().consumers.0.try_acquire(dead(), false));
        let frame = log::peek(&queue).unwrap().unwrap();
        log::take(&queue, &frame);
        assert_works(&queue, &[b"second"]);
    }

    #[test]
    fn a_consumer_that_dies_after_its_pages_went_before_it_says_so() {
        let queue = Queue::create().unwrap();
        let large = vec![7; 2 << 20];
        put(&queue, &large, &[]);
        put(&queue, b"second", &[]);
        assert!(queue.control().consumers.0.try_acquire(dead(), false));
        let frame = log::peek(&queue).unwrap().unwrap();
        log::take(&queue, &frame);
        let spent = log::spent(&queue, 0).unwrap();
        let length = spent.pages.end - spent.pages.start;
        queue
            .mapping
            .discard(CONTROL + spent.pages.start as usize, length as usize)
            .unwrap();
        assert_works(&queue, &[b"second"]);
    }

    #[test]
    fn a_step_that_must_not_wait_does_not() {
        let queue = Queue::create().unwrap();
        let mut into: Option<Message<Vec<u8>>> = None;
        let got = queue.get_step(&mut Wait::brief(), u64::MAX, &mut into);
        assert_eq!(got.unwrap(), Progress::TimedOut);
        put(&queue, b"first", &[]);
        let full = queue.put_step(b"second", &[], Some(1), &mut Wait::brief());
        assert_eq!(full.unwrap(), Progress::TimedOut);
        assert_works(&queue, &[b"first"]);
    }

    #[test]
    fn a_message_that_is_too_long_is_refused() {
        let queue = Queue::create().unwrap();
        let piece = vec![0; 1 << 20];
        let pieces: Vec<&[u8]> = std::iter::repeat_n(piece.as_slice(), 9000).collect();
        let refused = queue.put_step(b"", &pieces, None, &mut patient());
        assert!(matches!(refused, Err(PutError::TooLong)));
        assert_works(&queue, &[]);
    }
}
