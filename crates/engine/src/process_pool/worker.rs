//! A worker's end of its lane: waits for calls, answers them, and tells which memory it does not use any more.
#![allow(missing_docs, reason = "each variant's own comment names its fields")]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plait_sync::bell::ASLEEP;
use plait_sync::{ring, window};

use super::account::Spent;
use super::fault::{Step, reached};
use super::lane::{ARENA, INLINE_MOST, Lane, MOST_WIDTH, Replies, Requests, Returns, Running};
use super::protocol::{Piece, Reply, Request, Status};
use super::state::JobId;
use crate::ledger::meter::{Begun, Cost, begin_here, end_here};
use crate::shared_memory::{Arena, GiveBack, Lease};
use crate::sys::clock::monotonic_ns;
use crate::sys::doorbell::Doorbell;
use crate::sys::futex;
use crate::sys::heap;
use crate::sys::mapping::Mapping;
use crate::sys::process;
use crate::sys::usage;

/// How often a worker without work looks again before it sleeps: about as long as a wake-up would take.
const SPINS: u32 = 1 << 9;

/// A worker looks this often at most at the memory it uses, which takes about 20 µs: a thousandth of its time.
const MEMORY_LOOK: Duration = Duration::from_millis(20);

/// A worker that has had nothing to do for so long gives back memory that it keeps for the next job, if it has more than
/// `MOST_KEPT` bytes of its own.
const KEPT_FOR: Duration = Duration::from_secs(1);
const MOST_KEPT: u64 = 32 << 20;
const KEEPS_NOTHING: u64 = 0;
const BUSY: u64 = 1;

/// Bytes of a call: in the frame, or in memory that is given back when the lease is dropped.
#[derive(Debug)]
pub enum Bytes {
    /// From the frame.
    Inline(Vec<u8>),
    /// In shared memory, to be used in place.
    Shared(Lease),
}

/// What a worker is to do.
#[derive(Debug)]
pub enum Call {
    /// Run a function.
    Run {
        job: JobId,
        slot: u64,
        definition: Option<Bytes>,
        arguments: Bytes,
        buffers: Vec<Bytes>,
    },
    /// Leave.
    Stop,
}

/// Pieces of the arguments' memory that this worker does not use any more, until the pool is told.
#[derive(Debug, Default)]
struct Released(Mutex<Vec<u64>>);

impl GiveBack for Released {
    fn give_back(&self, offset: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(offset);
    }
}

impl Released {
    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A worker's end of its lane. One thread takes calls, and any may answer them, meanwhile, in any order.
///
/// Of the two locks, `answering` may be taken while `taking` is held, and whoever holds it never waits for the other or
/// for the interpreter.
#[derive(Debug)]
pub struct Worker {
    lane: Lane,
    arguments: Arc<Mapping>,
    results: Arc<Arena>,
    doorbell: Doorbell,
    released: Arc<Released>,
    /// What the slots of the lane hold, in memory that no job reaches by writing past the end of its own.
    slots: Box<[Slot]>,
    /// How many of them have been in use at once.
    used: AtomicUsize,
    memory: Memory,
    /// Whether somebody wants to know what jobs cost.
    counts: AtomicBool,
    /// Held while the thread that takes calls waits for one.
    taking: Mutex<Taking>,
    /// Held for a moment, or until there is room for an answer.
    answering: Mutex<Answering>,
}

#[derive(Debug)]
struct Taking {
    requests: window::Consumer<Requests>,
    frame: Vec<u8>,
    /// It has slept since it last took a call.
    rested: bool,
}

#[derive(Debug)]
struct Answering {
    replies: ring::Producer<Replies>,
    returns: ring::Consumer<Returns>,
    frame: Vec<u8>,
}

/// What this process may use of memory, and when it looked last.
#[derive(Debug, Default)]
struct Memory {
    /// In bytes; 0 for no limit, or if the pool was told.
    limit: AtomicU64,
    looked_ns: AtomicU64,
    /// Whether there was an answer since.
    unlooked: AtomicBool,
    /// Since when there is nothing to do, while memory is kept for the next job: else [`BUSY`] or [`KEEPS_NOTHING`].
    idle_since_ns: AtomicU64,
    /// The most it has had so far, and when it looked at that.
    peak_bytes: AtomicU64,
    peak_at_ns: AtomicU64,
}

/// A job that runs. Filled by the thread that takes calls, emptied by the one that answers.
#[derive(Debug, Default)]
struct Slot {
    /// Its number plus one; 0 while there is none.
    job: AtomicU64,
    began_ns: AtomicU64,
    /// When its function was called, and when that had returned; 0 before that.
    called_ns: AtomicU64,
    returned_ns: AtomicU64,
    /// What that cost.
    cpu_ns: AtomicU64,
    children_ns: AtomicU64,
    delayed_ns: AtomicU64,
}

/// A note that was published will be heard, at the latest with this worker's last words, even if nobody could be woken.
fn said(pushed: io::Result<()>) -> io::Result<()> {
    match pushed {
        Err(error) if error.kind() != io::ErrorKind::InvalidData => Ok(()),
        said => said,
    }
}

impl Slot {
    fn job(&self) -> Option<JobId> {
        // Acquire: whoever emptied the slot has also said so in the lane.
        self.job.load(Ordering::Acquire).checked_sub(1)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// The worker's end of `lane`; calls' large buffers lie in `arguments`, and `doorbell` wakes the pool.
    pub fn new(lane: Mapping, arguments: Mapping, doorbell: Doorbell) -> io::Result<Self> {
        let lane = Lane::of(lane)?;
        reached(Step::Opened);
        Ok(Self {
            taking: Mutex::new(Taking {
                requests: window::Consumer::new(lane.requests()),
                frame: Vec::new(),
                rested: true,
            }),
            answering: Mutex::new(Answering {
                replies: ring::Producer::new(lane.replies()),
                returns: ring::Consumer::new(lane.returns()),
                frame: Vec::new(),
            }),
            results: Arc::new(Arena::new(Arc::clone(lane.mapping()), ARENA as u64)),
            arguments: Arc::new(arguments),
            doorbell,
            released: Arc::default(),
            slots: (0..MOST_WIDTH).map(|_| Slot::default()).collect(),
            used: AtomicUsize::new(0),
            memory: Memory::default(),
            counts: AtomicBool::new(true),
            lane,
        })
    }

    /// Waits for a call: looks again for a moment, then sleeps, for no longer than `limit`. May return without one, after
    /// a signal for instance.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let mut taking = locked(&self.taking);
        for _ in 0..SPINS {
            if taking.requests.has_frame() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let released = self.released.take();
        if !released.is_empty() {
            self.push(&mut locked(&self.answering), &Reply::Released { released })?;
            reached(Step::Released);
        }
        let mut limit = limit;
        if self.memory.unlooked.load(Ordering::Relaxed) {
            self.look_at_memory(monotonic_ns())?;
            if self.memory.unlooked.load(Ordering::Relaxed) {
                limit = Some(limit.map_or(MEMORY_LOOK, |limit| limit.min(MEMORY_LOOK)));
            }
        }
        if self.keep_or_give_back() {
            limit = Some(limit.map_or(KEPT_FOR, |limit| limit.min(KEPT_FOR)));
        }
        let bell = &self.lane.control().worker_bell;
        bell.announce();
        reached(Step::Asleep);
        if !taking.requests.has_frame() {
            taking.rested = true;
            futex::wait(bell.word(), ASLEEP, limit);
        }
        bell.withdraw();
        reached(Step::Awake);
        Ok(())
    }

    /// Before this worker sleeps: gives back the memory that it keeps, if it has been idle for long; whether it keeps any.
    fn keep_or_give_back(&self) -> bool {
        let idle_since_ns = &self.memory.idle_since_ns;
        let now_ns = monotonic_ns();
        match idle_since_ns.load(Ordering::Relaxed) {
            KEEPS_NOTHING => return false,
            BUSY => idle_since_ns.store(now_ns, Ordering::Relaxed),
            since_ns if now_ns.saturating_sub(since_ns) >= KEPT_FOR.as_nanos() as u64 => {
                idle_since_ns.store(KEEPS_NOTHING, Ordering::Relaxed);
                if process::own_bytes().unwrap_or(0) > MOST_KEPT {
                    heap::give_back();
                }
                return false;
            }
            _ => {}
        }
        true
    }

    /// Claims the oldest call and marks it as begun; `None` if there is none.
    pub fn take(&self) -> io::Result<Option<Call>> {
        let mut taking = locked(&self.taking);
        let Taking {
            requests,
            frame,
            rested,
        } = &mut *taking;
        let rested = std::mem::take(rested);
        let claim = requests.claim();
        let Some(claim) = claim.map_err(|_| io::ErrorKind::InvalidData)? else {
            return Ok(None);
        };
        reached(Step::Claimed);
        claim.read(frame).map_err(|_| io::ErrorKind::InvalidData)?;
        reached(Step::Read);
        let request = Request::decode(frame).map_err(|_| io::ErrorKind::InvalidData)?;
        let Request::Call {
            job,
            slot,
            definition,
            arguments,
            buffers,
        } = request
        else {
            reached(Step::Told);
            return Ok(Some(Call::Stop));
        };
        let bytes = |piece: Piece<'_>| match piece {
            Piece::Inline(bytes) => Ok(Bytes::Inline(bytes.to_vec())),
            Piece::Shared { offset, length } => {
                let owner = Arc::clone(&self.released) as Arc<dyn GiveBack>;
                Lease::new(&self.arguments, offset, length, owner)
                    .map(Bytes::Shared)
                    .ok_or(io::Error::from(io::ErrorKind::InvalidData))
            }
        };
        let call = Call::Run {
            job,
            slot,
            definition: definition.map(bytes).transpose()?,
            arguments: bytes(arguments)?,
            buffers: buffers.into_iter().map(bytes).collect::<io::Result<_>>()?,
        };
        self.begin(job, rested)?;
        reached(Step::Begun);
        Ok(Some(call))
    }

    fn begin(&self, job: JobId, rested: bool) -> io::Result<()> {
        let at = self.slots.iter().position(|slot| slot.job().is_none());
        // No pool sends more than it knows to fit.
        let at = at.ok_or(io::ErrorKind::InvalidData)?;
        let now_ns = monotonic_ns();
        let slot = &self.slots[at];
        if self.counts.load(Ordering::Relaxed) {
            begin_here(now_ns, rested);
        }
        slot.began_ns.store(now_ns, Ordering::Relaxed);
        slot.called_ns.store(0, Ordering::Relaxed);
        slot.returned_ns.store(0, Ordering::Relaxed);
        slot.job.store(job.wrapping_add(1), Ordering::Release);
        if at >= self.used.load(Ordering::Relaxed) {
            self.used.store(at + 1, Ordering::Release);
        }
        self.memory.idle_since_ns.store(BUSY, Ordering::Relaxed);
        self.lane.begin(at, job, now_ns);
        Ok(())
    }

    /// From now on the pool is told, once, when this process uses more than `limit` bytes of memory of its own.
    pub fn limit_memory(&self, limit: u64) {
        self.memory.limit.store(limit, Ordering::Relaxed);
    }

    /// After an answer, or before this worker sleeps: looks at the memory it uses, if it has not done so just now.
    fn look_at_memory(&self, now_ns: u64) -> io::Result<()> {
        let memory = &self.memory;
        let limit = memory.limit.load(Ordering::Relaxed);
        if limit == 0 {
            return Ok(());
        }
        let looked_ns = memory.looked_ns.load(Ordering::Relaxed);
        let too_soon = now_ns.saturating_sub(looked_ns) < MEMORY_LOOK.as_nanos() as u64;
        memory.unlooked.store(too_soon, Ordering::Relaxed);
        if too_soon {
            return Ok(());
        }
        memory.looked_ns.store(now_ns, Ordering::Relaxed);
        // A process that cannot look (a job has used up all descriptors, say) looks again later.
        let mut resident_bytes = process::own_bytes().unwrap_or(0);
        if resident_bytes > limit {
            // What is only kept for the next job does not count.
            heap::give_back();
            resident_bytes = process::own_bytes().unwrap_or(0);
        }
        if resident_bytes > limit && memory.limit.swap(0, Ordering::Relaxed) != 0 {
            self.push(
                &mut locked(&self.answering),
                &Reply::Retire { resident_bytes },
            )?;
        }
        Ok(())
    }

    /// From now on nobody wants to know what jobs cost.
    pub fn forgo_accounts(&self) {
        self.counts.store(false, Ordering::Relaxed);
    }

    /// The jobs that run here and that the pool has asked to end. Takes no lock: for a handler of signals.
    pub fn interrupted(&self) -> Vec<JobId> {
        let used = self.used.load(Ordering::Acquire);
        (0..used)
            .filter_map(|slot| Some((slot, self.slots[slot].job()?)))
            .filter(|&(slot, job)| self.lane.is_interrupted(slot, job))
            .map(|(_, job)| job)
            .collect()
    }

    /// Whether the job, which runs here, is one of [`Self::interrupted`].
    pub fn is_interrupted(&self, job: JobId) -> bool {
        self.slot_of(job)
            .is_some_and(|slot| self.lane.is_interrupted(slot, job))
    }

    fn slot_of(&self, job: JobId) -> Option<usize> {
        let used = self.used.load(Ordering::Acquire);
        (0..used).find(|&slot| self.slots[slot].job() == Some(job))
    }

    /// Tells the pool that this worker takes jobs.
    pub fn ready(&self) -> io::Result<()> {
        self.lane.end(0);
        self.push(&mut locked(&self.answering), &Reply::Ready)?;
        reached(Step::Ready);
        Ok(())
    }

    /// Tells the pool that no worker can be used; `text` is the traceback of the initializer.
    pub fn unusable(&self, text: &[u8]) -> io::Result<()> {
        let text = Piece::Inline(&text[..text.len().min(INLINE_MOST)]);
        self.push(&mut locked(&self.answering), &Reply::Unusable { text })
    }

    /// The job's function, or what is left of it, is called now in this thread.
    pub fn calls(&self, job: JobId) -> Begun {
        if !self.counts.load(Ordering::Relaxed) {
            return Begun::at(0);
        }
        let now_ns = monotonic_ns();
        if let Some(slot) = self.slot_of(job).map(|at| &self.slots[at])
            && slot.called_ns.load(Ordering::Relaxed) == 0
        {
            slot.called_ns.store(now_ns, Ordering::Relaxed);
            for sum in [&slot.cpu_ns, &slot.children_ns, &slot.delayed_ns] {
                sum.store(0, Ordering::Relaxed);
            }
        }
        begin_here(now_ns, false)
    }

    /// It has returned, or come to where it goes on later.
    pub fn returned(&self, job: JobId, begun: Begun) {
        if !self.counts.load(Ordering::Relaxed) {
            return;
        }
        let now_ns = monotonic_ns();
        self.add_cost(job, now_ns, &end_here(begun, now_ns));
    }

    /// The job's function was called right after the call was taken, in this thread, and has returned.
    pub fn ran_at_once(&self, job: JobId) {
        if let Some(slot) = self.slot_of(job).map(|at| &self.slots[at]) {
            let began_ns = slot.began_ns.load(Ordering::Relaxed);
            slot.called_ns.store(began_ns, Ordering::Relaxed);
            for sum in [&slot.cpu_ns, &slot.children_ns, &slot.delayed_ns] {
                sum.store(0, Ordering::Relaxed);
            }
            self.returned(job, Begun::at(began_ns));
        }
    }

    /// A part of the job has ended, at that time, and cost this.
    pub fn add_cost(&self, job: JobId, now_ns: u64, cost: &Cost) {
        if let Some(slot) = self.slot_of(job).map(|at| &self.slots[at]) {
            slot.returned_ns.store(now_ns, Ordering::Relaxed);
            slot.cpu_ns.fetch_add(cost.cpu_ns, Ordering::Relaxed);
            slot.children_ns
                .fetch_add(cost.children_ns, Ordering::Relaxed);
            slot.delayed_ns
                .fetch_add(cost.delayed_ns, Ordering::Relaxed);
        }
    }

    /// What is known of the job in a slot, which ends now.
    fn spent(&self, slot: &Slot, now_ns: u64, at_once: bool) -> Spent {
        if !self.counts.load(Ordering::Relaxed) {
            return Spent::default();
        }
        let began_ns = slot.began_ns.load(Ordering::Relaxed);
        let memory = &self.memory;
        let looked_ns = memory.peak_at_ns.load(Ordering::Relaxed);
        if now_ns.saturating_sub(looked_ns) >= MEMORY_LOOK.as_nanos() as u64 {
            memory.peak_at_ns.store(now_ns, Ordering::Relaxed);
            let peak_bytes = usage::peak_bytes();
            memory.peak_bytes.store(peak_bytes, Ordering::Relaxed);
        }
        let spent = Spent {
            began_ns,
            peak_bytes: memory.peak_bytes.load(Ordering::Relaxed),
            ..Spent::default()
        };
        if at_once {
            return spent.with(&end_here(Begun::at(began_ns), now_ns));
        }
        let called_ns = slot.called_ns.load(Ordering::Relaxed);
        let returned_ns = slot.returned_ns.load(Ordering::Relaxed);
        if called_ns == 0 || returned_ns == 0 {
            // It never came to be called: all of it was for the arguments.
            return Spent {
                arguments_ns: now_ns.saturating_sub(began_ns),
                ..spent
            };
        }
        Spent {
            arguments_ns: called_ns.saturating_sub(began_ns),
            result_ns: now_ns.saturating_sub(returned_ns),
            cpu_ns: slot.cpu_ns.load(Ordering::Relaxed),
            children_ns: slot.children_ns.load(Ordering::Relaxed),
            delayed_ns: slot.delayed_ns.load(Ordering::Relaxed),
            ..spent
        }
    }

    /// Publishes the answer of `job`, whose function was called right after the call was taken, in the same thread, and has
    /// returned just now; otherwise as [`Self::answer`].
    pub fn answer_at_once(&self, job: JobId, status: Status, payload: &[u8]) -> io::Result<()> {
        self.publish(job, status, payload, &[], true)
    }

    /// Publishes the answer of `job`. An error of kind `OutOfMemory` means that it was not published for lack of room
    /// in shared memory; every other one that the pool cannot be reached.
    pub fn answer(
        &self,
        job: JobId,
        status: Status,
        payload: &[u8],
        buffers: &[&[u8]],
    ) -> io::Result<()> {
        self.publish(job, status, payload, buffers, false)
    }

    fn publish(
        &self,
        job: JobId,
        status: Status,
        payload: &[u8],
        buffers: &[&[u8]],
        at_once: bool,
    ) -> io::Result<()> {
        let at = self.slot_of(job).ok_or(io::ErrorKind::InvalidInput)?;
        let slot = &self.slots[at];
        // A job that wrote over the lane may have written over the bells, too: better to leave than not to be heard.
        if !matches!(self.lane.slot(at), Running::Job { job: running, .. } if running == job) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        reached(Step::Ran);
        let now_ns = monotonic_ns();
        let run_ns = now_ns.saturating_sub(slot.began_ns.load(Ordering::Relaxed));
        let mut answering = locked(&self.answering);
        self.collect_returns(&mut answering)?;
        let mut room = INLINE_MOST;
        let mut stored = Vec::new();
        let results = Arc::clone(&self.results);
        let mut place = |bytes: &[u8]| -> io::Result<Option<(u64, u64)>> {
            if bytes.len() <= room {
                room -= bytes.len();
                return Ok(None);
            }
            let offset = results
                .allocate(bytes.len())
                .ok_or(io::ErrorKind::OutOfMemory)?;
            stored.push(offset);
            results.mapping().copy_in(offset as usize, bytes);
            Ok(Some((offset, bytes.len() as u64)))
        };
        let placed: io::Result<Vec<_>> = std::iter::once(payload)
            .chain(buffers.iter().copied())
            .map(&mut place)
            .collect();
        let placed = match placed {
            Ok(placed) => placed,
            Err(error) => {
                for offset in stored {
                    self.results.release(offset);
                }
                return Err(error);
            }
        };
        if !stored.is_empty() {
            reached(Step::Written);
        }
        let piece = |bytes, place: &Option<(u64, u64)>| match *place {
            None => Piece::Inline(bytes),
            Some((offset, length)) => Piece::Shared { offset, length },
        };
        let reply = Reply::Answer {
            job,
            status,
            run_ns,
            spent: self.spent(slot, now_ns, at_once),
            payload: piece(payload, &placed[0]),
            buffers: buffers
                .iter()
                .zip(&placed[1..])
                .map(|(bytes, place)| piece(bytes, place))
                .collect(),
            released: self.released.take(),
        };
        self.push(&mut answering, &reply)?;
        reached(Step::Rung);
        drop(answering);
        self.lane.end(at);
        slot.job.store(0, Ordering::Release);
        reached(Step::Ended);
        self.look_at_memory(now_ns)
    }

    /// Says something besides answers. An error of kind `OutOfMemory` means that there is no room for so much; every
    /// other one that the pool cannot be reached.
    pub fn note(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let mut answering = locked(&self.answering);
        self.collect_returns(&mut answering)?;
        if payload.len() <= INLINE_MOST {
            let payload = Piece::Inline(payload);
            return said(self.push(&mut answering, &Reply::Note { kind, payload }));
        }
        let offset = self
            .results
            .allocate(payload.len())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        self.results.mapping().copy_in(offset as usize, payload);
        let payload = Piece::Shared {
            offset,
            length: payload.len() as u64,
        };
        said(self.push(&mut answering, &Reply::Note { kind, payload }))
    }

    /// Frees the pieces of results that the pool does not use any more.
    fn collect_returns(&self, answering: &mut Answering) -> io::Result<()> {
        let Answering { returns, frame, .. } = answering;
        while returns.has_frame() {
            if !returns.pop(frame).map_err(|_| io::ErrorKind::InvalidData)? {
                break;
            }
            if let Ok(offset) = frame[..].try_into() {
                self.results.release(u64::from_le_bytes(offset));
            }
        }
        Ok(())
    }

    /// Publishes one frame, waiting for room, and wakes the pool if it sleeps.
    fn push(&self, answering: &mut Answering, reply: &Reply<'_>) -> io::Result<()> {
        let Answering { replies, frame, .. } = answering;
        frame.clear();
        reply.encode(frame);
        loop {
            match replies.push(&[frame]) {
                Ok(()) => break,
                Err(ring::PushError::Full) => {
                    let bell = &self.lane.control().room_bell;
                    bell.announce();
                    // A second look, after the announcement: the pool may have made room just before.
                    let pushed = replies.push(&[frame]);
                    if pushed == Err(ring::PushError::Full) {
                        futex::wait(bell.word(), ASLEEP, None);
                    }
                    bell.withdraw();
                    if pushed.is_ok() {
                        break;
                    }
                }
                Err(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        reached(Step::Published);
        if self.lane.control().pool_bell.must_ring() {
            self.doorbell.ring()?;
        }
        Ok(())
    }
}
