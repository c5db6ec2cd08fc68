//! The pool's end of one worker's lane: sends calls, takes them back, reads answers, keeps what is lent.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plait_sync::{ring, window};

use super::account::{Origin, Spent};
use super::fault::{Step, reached};
use super::lane::{ARENA, Lane, MOST_WIDTH, Replies, Requests, Returns, Running};
use super::outcome::Note;
use super::protocol::{Piece, Reply, Request, Status};
use super::state::JobId;
use super::worker::Bytes;
use crate::number_map::NumberMap;
use crate::shared_memory::{Block, GiveBack, Lease, Segment};
use crate::sys::{futex, process};

/// A function as it is sent to workers, once to each.
pub struct Function {
    /// Where workers keep it; one without is defined by each call anew.
    pub(super) slot: Option<u64>,
    /// Never used twice in a pool: tells it from an earlier function in the same slot.
    pub(super) generation: u64,
    pub(super) definition: Payload,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// Bytes on their way to a worker: small ones travel in the frame.
#[derive(Debug, Clone)]
pub enum Payload {
    /// In the frame.
    Inline(Vec<u8>),
    /// In the arguments' memory.
    Shared(Arc<Block>),
}

/// One call.
#[derive(Debug)]
pub struct Job {
    /// What to run.
    pub function: Arc<Function>,
    /// Its pickled arguments.
    pub arguments: Payload,
    /// Their out-of-band buffers.
    pub buffers: Vec<Payload>,
    /// How long it may run.
    pub timeout: Option<Duration>,
    /// How often it is run again if it fails.
    pub retries: u32,
    /// The segments whose tickets are among its buffers.
    pub kept: Vec<Arc<Segment>>,
    /// What the ledger wants to know.
    pub origin: Origin,
}

/// How long a process that is being killed is waited for.
const LONGEST_DEATH: Duration = Duration::from_secs(1);
/// How soon a job that does not run yet is looked at again.
pub(super) const SHORTEST_LOOK_NS: u64 = 1_000_000;
/// A job that lets its time pass is given this much more at least, if its worker runs others besides.
const SHORTEST_GRACE_NS: u64 = 100_000_000;
/// What stands for the slot of a function that has none.
const NO_SLOT: u64 = u64::MAX;

/// What one call put into a lane, in case it is taken back.
struct Sent {
    job: JobId,
    /// The slot that this call filled.
    defined: Option<u64>,
    blocks: Vec<u64>,
}

/// Tells a worker which of its results are not used any more.
struct Returner {
    owner: u32,
    ring: Mutex<(ring::Producer<Returns>, VecDeque<u64>)>,
}

impl GiveBack for Returner {
    fn give_back(&self, offset: u64) {
        // A fork of the pool's process shares the ring but must not write to it.
        if process::id() != self.owner {
            return;
        }
        let mut guard = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let (ring, waiting) = &mut *guard;
        waiting.push_back(offset);
        while let Some(offset) = waiting.front() {
            // What does not fit waits for the next one; a corrupt ring belongs to a worker that is being ended.
            if ring.push(&[&offset.to_le_bytes()]).is_err() {
                break;
            }
            waiting.pop_front();
        }
    }
}

/// What a worker has said, with its bytes taken out of the ring.
#[derive(Debug)]
pub(super) enum Said {
    Ready,
    Unusable(String),
    Note(Note),
    Retire {
        resident_bytes: u64,
    },
    Answer {
        job: JobId,
        status: Status,
        run_ns: u64,
        spent: Spent,
        payload: Bytes,
        buffers: Vec<Bytes>,
    },
}

/// A job that was interrupted, or is going to be, and that the worker has not answered.
struct Ghost {
    job: JobId,
    /// The slot that its call filled, perhaps: nobody knows how far it came.
    defined: Option<u64>,
    /// Whether the worker was told.
    told: bool,
    /// How often it has let its time pass.
    unheeded: u32,
    until_ns: u64,
}

/// The worker has written what no correct worker writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Corrupt;

/// The pool's end of one worker's lane.
pub(super) struct Link {
    lane: Lane,
    requests: window::Producer<Requests>,
    replies: ring::Consumer<Replies>,
    returner: Arc<Returner>,
    sent: VecDeque<Sent>,
    ghosts: Vec<Ghost>,
    /// Pieces of the arguments' memory that the worker may be using.
    lent: NumberMap<Arc<Block>>,
    /// Which function each slot of this worker holds once it has done what it was sent.
    known: NumberMap<u64>,
    process: Option<(u32, OwnedFd)>,
    /// Its number in the ledger; 0 as long as it has none.
    pub(super) number: u32,
    /// To be ended, as soon as there is a process to end.
    condemned: bool,
    /// It has said so.
    ready: bool,
    /// How many jobs it may run at once.
    width: usize,
    /// What was found when it was looked at, with the last answer, and since when that is so.
    looked: Option<((Look, Option<JobId>), u64)>,
    /// The last job that was answered.
    answered: Option<JobId>,
    /// The highest number of a job that was sent.
    newest: Option<JobId>,
    /// It has written rubbish: nothing that it says is heard any more.
    corrupt: bool,
}

/// What the collector finds when it looks at a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It has something to do, or is starting.
    Busy,
    /// It has nothing to do.
    Idle,
    /// Its process has ended, and the zygote has not said so.
    Ended,
    /// It is to be ended, and the zygote has not said which process it is.
    Unborn,
}

/// What became of a call that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    Sent,
    NoRoom,
    Corrupt,
}

impl Link {
    /// A lane of its own for a worker whose results take up to `largest` bytes and that runs up to `width` jobs at once.
    pub(super) fn new(largest: usize, width: usize) -> io::Result<Self> {
        let lane = Lane::create(largest)?;
        let ring = Mutex::new((ring::Producer::new(lane.returns()), VecDeque::new()));
        Ok(Self {
            requests: window::Producer::new(lane.requests()),
            replies: ring::Consumer::new(lane.replies()),
            returner: Arc::new(Returner {
                owner: process::id(),
                ring,
            }),
            sent: VecDeque::new(),
            ghosts: Vec::new(),
            lent: NumberMap::default(),
            known: NumberMap::default(),
            process: None,
            number: 0,
            condemned: false,
            ready: false,
            width: width.clamp(1, MOST_WIDTH),
            looked: None,
            answered: None,
            newest: None,
            corrupt: false,
            lane,
        })
    }

    /// What the worker has to be given to reach the lane.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.lane.mapping().as_fd()
    }

    /// The worker's process id; 0 before it has started.
    pub(super) fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |&(pid, _)| pid)
    }

    /// The worker runs as process `pid`.
    pub(super) fn started(&mut self, pid: u32, pidfd: OwnedFd) {
        self.process = Some((pid, pidfd));
        if self.condemned {
            self.kill();
        }
    }

    /// Ends the worker's process, now or as soon as it is known which.
    pub(super) fn kill(&mut self) {
        self.condemned = true;
        if let Some((_, pidfd)) = &self.process {
            // If the kernel refuses, the worker is not ours to end; its end is still reported by the zygote.
            let _ = process::kill(pidfd);
        }
    }

    fn slots(&self) -> impl Iterator<Item = Running> {
        (0..self.width).map(|slot| self.lane.slot(slot))
    }

    /// The jobs whose functions are running, and since when on the monotonic clock.
    pub(super) fn running(&self) -> impl Iterator<Item = (JobId, u64)> {
        self.slots().filter_map(|slot| match slot {
            Running::Job { job, began_ns } => Some((job, began_ns)),
            Running::Nothing | Running::NothingYet => None,
        })
    }

    /// Whether the job's function is running.
    pub(super) fn is_running(&self, job: JobId) -> bool {
        self.running().any(|(running, _)| running == job)
    }

    /// Whether the worker has the job: it was sent, not taken back and not answered.
    pub(super) fn holds(&self, job: JobId) -> bool {
        self.sent.iter().any(|sent| sent.job == job)
    }

    /// Takes back the job and all that were sent after it, as far as the worker has not claimed them; how many it got.
    pub(super) fn revoke_from(&mut self, job: JobId) -> Result<usize, Corrupt> {
        match self.sent.iter().position(|sent| sent.job == job) {
            Some(at) => self.revoke(self.sent.len() - at),
            None => Ok(0),
        }
    }

    /// Interrupts the job, which the worker has and which is to end by then; if it does not run yet, [`Self::haunt`] does.
    pub(super) fn interrupt(&mut self, job: JobId, until_ns: u64) {
        let sent = self.sent.iter().find(|sent| sent.job == job);
        let defined = sent.and_then(|sent| sent.defined);
        self.ghosts.push(Ghost {
            job,
            defined,
            told: self.tell(job),
            unheeded: 0,
            until_ns,
        });
    }

    /// How many jobs are to end.
    pub(super) fn ghosts(&self) -> usize {
        self.ghosts.len()
    }

    /// Interrupts what is to end and was not told so. When to look again, and whether a job that was told has let its
    /// time pass (which gives it as much again) and how often that was.
    pub(super) fn haunt(&mut self, now_ns: u64, grace_ns: u64) -> (u64, Option<u32>) {
        let (mut next, mut unheeded) = (u64::MAX, None);
        for at in 0..self.ghosts.len() {
            let ghost = &self.ghosts[at];
            if !ghost.told && self.tell(ghost.job) {
                self.ghosts[at].told = true;
            }
            let ghost = &mut self.ghosts[at];
            if ghost.until_ns <= now_ns {
                ghost.unheeded += 1;
                ghost.until_ns = now_ns.saturating_add(grace_ns.max(SHORTEST_GRACE_NS));
                unheeded = unheeded.max(Some(ghost.unheeded));
            }
            next = next.min(ghost.until_ns);
            if !ghost.told {
                next = next.min(now_ns + SHORTEST_LOOK_NS);
            }
        }
        (next, unheeded)
    }

    /// Interrupts the job if it runs; whether that was done.
    fn tell(&self, job: JobId) -> bool {
        let slot = self
            .slots()
            .position(|slot| matches!(slot, Running::Job { job: running, .. } if running == job));
        // What it has said may be the answer.
        let (Some(slot), Some((_, pidfd)), false) = (slot, &self.process, self.has_reply()) else {
            return false;
        };
        self.lane.interrupt(slot, job);
        // If the kernel refuses, it will not be heeded either.
        let _ = process::interrupt(pidfd);
        true
    }

    /// The job was answered.
    fn lay(&mut self, job: JobId) {
        if let Some(at) = self.ghosts.iter().position(|ghost| ghost.job == job) {
            let ghost = self.ghosts.swap_remove(at);
            if let Some(slot) = ghost.defined {
                self.known.remove(&slot);
            }
        }
    }

    /// Of a worker whose process has ended and whose last words were heard: the jobs that it had begun and not
    /// answered, in the order they were sent. If what it left behind makes no sense, the oldest counts as begun, too.
    pub(super) fn begun(&self) -> Vec<JobId> {
        let mut sensible = !self.corrupt;
        for (at, slot) in self.slots().enumerate() {
            sensible &= match slot {
                Running::Nothing => true,
                // Only the first slot is marked when the worker gets ready.
                Running::NothingYet => at > 0 || !self.ready,
                Running::Job { job, .. } => self.may_run(job),
            };
        }
        let begun = |sent: &&Sent| self.is_running(sent.job);
        let oldest = self.sent.iter().take(self.width);
        let mut begun: Vec<_> = oldest.filter(begun).map(|sent| sent.job).collect();
        if !sensible
            && let Some(oldest) = self.sent.front()
            && begun.first() != Some(&oldest.job)
        {
            begun.insert(0, oldest.job);
        }
        begun
    }

    /// Whether a worker that does as it should may have left a note that this job runs.
    fn may_run(&self, job: JobId) -> bool {
        match self.sent.iter().position(|sent| sent.job == job) {
            // It claims calls in order, and no more than it runs at once.
            Some(at) => at < self.width,
            // It ended between an answer and taking the note away. Of several that run at once, any may be the last one.
            None if self.width > 1 => self.newest.is_some_and(|newest| job <= newest),
            None => self.answered == Some(job),
        }
    }

    /// Whether the worker's process has ended; false for one that has none.
    pub(super) fn has_ended(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|(_, pidfd)| process::wait_end(pidfd, Duration::ZERO))
    }

    /// Whether it is to be ended as soon as there is a process to end.
    pub(super) fn is_condemned_unborn(&self) -> bool {
        self.condemned && self.process.is_none()
    }

    /// Looks at the worker every now and then: how long it has been as it is, by that.
    pub(super) fn look(&mut self, look: Look, now_ns: u64) -> Duration {
        let seen = (look, self.answered);
        match self.looked {
            Some((last, since_ns)) if last == seen => {
                Duration::from_nanos(now_ns.saturating_sub(since_ns))
            }
            _ => {
                self.looked = Some((seen, now_ns));
                Duration::ZERO
            }
        }
    }

    /// Waits for a moment until the worker's process, which is being killed, has ended.
    pub(super) fn wait_end(&self) {
        if let Some((_, pidfd)) = &self.process {
            process::wait_end(pidfd, LONGEST_DEATH);
        }
    }

    /// Puts a call into the window.
    pub(super) fn send<'j>(&mut self, id: JobId, job: &'j Job, scratch: &mut Vec<u8>) -> Sending {
        let function = &job.function;
        let defines = function
            .slot
            .is_none_or(|slot| self.known.get(&slot) != Some(&function.generation));
        let Some(blocks) = lend(job, defines) else {
            return Sending::NoRoom;
        };
        let mut lent = blocks.iter();
        let mut piece = |payload: &'j Payload| match payload {
            Payload::Inline(bytes) => Piece::Inline(bytes),
            Payload::Shared(_) => lent
                .next()
                .map_or(Piece::Inline(&[]), |block| Piece::Shared {
                    offset: block.offset(),
                    length: block.len() as u64,
                }),
        };
        let request = Request::Call {
            job: id,
            slot: function.slot.unwrap_or(NO_SLOT),
            definition: defines.then(|| piece(&function.definition)),
            arguments: piece(&job.arguments),
            buffers: job.buffers.iter().map(&mut piece).collect(),
        };
        let sending = self.publish(&request, scratch);
        if sending != Sending::Sent {
            return sending;
        }
        self.newest = self.newest.max(Some(id));
        self.sent.push_back(Sent {
            job: id,
            defined: function.slot.filter(|_| defines),
            blocks: blocks.iter().map(|block| block.offset()).collect(),
        });
        if let Some(slot) = function.slot {
            self.known.insert(slot, function.generation);
        }
        self.lent
            .extend(blocks.into_iter().map(|block| (block.offset(), block)));
        Sending::Sent
    }

    /// Tells the worker to leave when it has done what it was sent; false if there is no room to say so.
    pub(super) fn stop(&mut self, scratch: &mut Vec<u8>) -> bool {
        self.publish(&Request::Stop, scratch) == Sending::Sent
    }

    fn publish(&mut self, request: &Request<'_>, scratch: &mut Vec<u8>) -> Sending {
        scratch.clear();
        request.encode(scratch);
        match self.requests.publish(&[scratch]) {
            Ok(()) => {}
            Err(ring::PushError::Corrupt) => {
                self.corrupt = true;
                return Sending::Corrupt;
            }
            Err(_) => return Sending::NoRoom,
        }
        let bell = &self.lane.control().worker_bell;
        if bell.must_ring() {
            futex::wake_one(bell.word());
        }
        reached(Step::Sent);
        Sending::Sent
    }

    /// Takes back up to `count` calls that the worker has not claimed; how many it got.
    pub(super) fn revoke(&mut self, count: usize) -> Result<usize, Corrupt> {
        let revoked = self.requests.revoke(count).map_err(|window::Corrupt| {
            self.corrupt = true;
            Corrupt
        })?;
        reached(Step::Revoked);
        for _ in 0..revoked {
            let Some(sent) = self.sent.pop_back() else {
                break;
            };
            if let Some(slot) = sent.defined {
                self.known.remove(&slot);
            }
            for offset in sent.blocks {
                self.lent.remove(&offset);
            }
        }
        Ok(revoked)
    }

    /// Whether the worker has said something that was not heard.
    pub(super) fn has_reply(&self) -> bool {
        !self.corrupt && self.replies.has_frame()
    }

    /// Announces that the pool is about to sleep; look at [`Self::has_reply`] once more after this.
    pub(super) fn announce_sleep(&self) {
        self.lane.control().pool_bell.announce();
    }

    /// The pool is awake.
    pub(super) fn withdraw_sleep(&self) {
        self.lane.control().pool_bell.withdraw();
    }

    /// The next thing the worker has said; `None` if there is nothing. After an error it is not heard any more.
    pub(super) fn hear(&mut self, frame: &mut Vec<u8>) -> Result<Option<Said>, Corrupt> {
        let said = self.next_reply(frame);
        self.corrupt = said.is_err();
        said
    }

    fn next_reply(&mut self, frame: &mut Vec<u8>) -> Result<Option<Said>, Corrupt> {
        while self.replies.pop(frame).map_err(|ring::Corrupt| Corrupt)? {
            let room = &self.lane.control().room_bell;
            if room.must_ring() {
                futex::wake_one(room.word());
            }
            match Reply::decode(frame).map_err(|_| Corrupt)? {
                Reply::Ready => {
                    self.ready = true;
                    return Ok(Some(Said::Ready));
                }
                Reply::Unusable { text } => {
                    let text = match text {
                        Piece::Inline(text) => String::from_utf8_lossy(text).into_owned(),
                        Piece::Shared { .. } => return Err(Corrupt),
                    };
                    return Ok(Some(Said::Unusable(text)));
                }
                Reply::Retire { resident_bytes } => {
                    return Ok(Some(Said::Retire { resident_bytes }));
                }
                Reply::Released { released } => self.release(&released),
                Reply::Note { kind, payload } => {
                    let payload = self.bytes(payload)?;
                    return Ok(Some(Said::Note(Note { kind, payload })));
                }
                Reply::Answer {
                    job,
                    status,
                    run_ns,
                    spent,
                    payload,
                    buffers,
                    released,
                } => {
                    self.release(&released);
                    // A worker that runs one job at a time answers in the order they were sent.
                    let sent = self.sent.iter().take(self.width);
                    let at = sent.map(|sent| sent.job).position(|sent| sent == job);
                    let at = at.ok_or(Corrupt)?;
                    let payload = self.bytes(payload)?;
                    let buffers = buffers
                        .into_iter()
                        .map(|piece| self.bytes(piece))
                        .collect::<Result<_, _>>()?;
                    self.sent.remove(at);
                    self.lay(job);
                    self.answered = Some(job);
                    reached(Step::Heard);
                    return Ok(Some(Said::Answer {
                        job,
                        status,
                        run_ns,
                        spent,
                        payload,
                        buffers,
                    }));
                }
            }
        }
        Ok(None)
    }

    fn release(&mut self, released: &[u64]) {
        for offset in released {
            self.lent.remove(offset);
        }
    }

    fn bytes(&self, piece: Piece<'_>) -> Result<Bytes, Corrupt> {
        match piece {
            Piece::Inline(bytes) => Ok(Bytes::Inline(bytes.to_vec())),
            Piece::Shared { offset, length } => {
                let owner = Arc::clone(&self.returner) as Arc<dyn GiveBack>;
                // Only the arena may be leased: the control area and the rings stay ours.
                if offset < ARENA as u64 {
                    return Err(Corrupt);
                }
                Lease::new(self.lane.mapping(), offset, length, owner)
                    .map(Bytes::Shared)
                    .ok_or(Corrupt)
            }
        }
    }
}

/// The blocks that a call takes along, in the order of its pieces; `None` if there is no room for copies.
fn lend(job: &Job, defines: bool) -> Option<Vec<Arc<Block>>> {
    let definition = defines.then_some((&job.function.definition, false));
    // A job that may run again must find its arguments as they were: the worker gets copies to write on.
    let private = job.retries > 0;
    let arguments = std::iter::once(&job.arguments)
        .chain(&job.buffers)
        .map(|payload| (payload, private));
    let pieces = definition.into_iter().chain(arguments);
    pieces
        .filter_map(|(payload, private)| match payload {
            Payload::Inline(_) => None,
            Payload::Shared(block) if private => Some(block.duplicate().map(Arc::new)),
            Payload::Shared(block) => Some(Some(Arc::clone(block))),
        })
        .collect()
}
