//! `ProcessPool`: what a program holds of a pool.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::books::{Entry, Plumbing, Shared, State};
use super::helper::Helper;
use super::lane::{INLINE_MOST, MOST_WIDTH};
use super::link::{Function, Job, Payload};
use super::listener::Listener;
use super::outcome::{Deliver, Handle, Outcome, Refused, Settings, Statistics};
use super::state::{Event, JobId};
use super::stream::{Owner, Stream};
use super::zygote::{Launch, Zygote};
use crate::sys::clock::monotonic_ns;
use crate::sys::process;

/// A pool of worker processes. Dropping it lets running jobs end and then ends the workers.
pub struct ProcessPool<H: Handle> {
    shared: Arc<Shared<H>>,
}

impl<H: Handle> fmt::Debug for ProcessPool<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessPool")
            .field("owner", &self.shared.owner)
            .finish_non_exhaustive()
    }
}

impl<H: Handle> ProcessPool<H> {
    /// The most jobs that a worker can run at once.
    pub const MOST_WIDTH: usize = MOST_WIDTH;

    /// A pool none of whose processes is started before there is a job.
    pub fn new(mut settings: Settings, launch: Launch, sink: impl Deliver<H>) -> io::Result<Self> {
        settings.width = settings.width.clamp(1, MOST_WIDTH);
        let plumbing = Arc::new(Plumbing::new()?);
        let shared = Shared::new(&settings, launch, Arc::clone(&plumbing));
        let shared = Arc::new(shared);
        let collected = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("plait-collector".into())
            .spawn(move || collected.collect(plumbing, sink))?;
        Ok(Self { shared })
    }

    /// Bytes for a job: in shared memory if they are large. `None` if there is no room for them.
    pub fn payload(&self, bytes: &[u8], inline_room: &mut usize) -> Option<Payload> {
        if bytes.len() <= *inline_room {
            *inline_room -= bytes.len();
            return Some(Payload::Inline(bytes.to_vec()));
        }
        // After a fork the books are a copy, but the memory is not: nothing may be written to it.
        if self.forked().is_some() {
            return None;
        }
        // A closed pool has no such memory, and takes no jobs.
        let plumbing = self.shared.lock().plumbing.clone()?;
        plumbing
            .arguments
            .store(bytes)
            .map(Arc::new)
            .map(Payload::Shared)
    }

    /// How many bytes of a job's payloads may travel in its frame.
    pub const INLINE_ROOM: usize = INLINE_MOST;

    /// A function that jobs can name; `None` if there is no room for its definition. Workers keep it in `slot`, in the
    /// place of what was there; without a slot, its definition goes along with every job.
    pub fn function(&self, slot: Option<u64>, definition: &[u8]) -> Option<Arc<Function>> {
        let generation = self.shared.next_function.fetch_add(1, Ordering::Relaxed);
        let definition = self.payload(definition, &mut (INLINE_MOST / 2))?;
        Some(Arc::new(Function {
            slot,
            generation,
            definition,
        }))
    }

    /// Zygotes that are started from now on are handed this.
    pub fn configure(&self, configuration: Vec<u8>) {
        if self.forked().is_none() {
            self.shared.lock().launch.configuration = configuration;
        }
    }

    /// Has workers started by a zygote that the program has forked, for them to inherit its memory. Another one, should it
    /// end, is started as usual. To be called before the first job; later it changes nothing.
    pub fn adopt_zygote(&self, link: OwnedFd, pid: u32) -> io::Result<()> {
        let mut state = self.shared.lock();
        if state.zygote.is_none() {
            let zygote = Zygote::adopt(link, pid, &state.launch.configuration)?;
            state.zygote = Some(Arc::new(zygote));
            state.wake_collector();
        }
        Ok(())
    }

    /// Queues a job. Its outcome is delivered with `handle`; if it is refused, the handle comes back.
    pub fn submit(&self, handle: H, job: Job) -> Result<JobId, (H, Refused)> {
        let shared = &self.shared;
        if let Some(refused) = self.forked() {
            return Err((handle, refused));
        }
        let mut state = shared.lock();
        if let Err(refused) = Self::check_open(&state) {
            return Err((handle, refused));
        }
        let id = shared.enter(&mut state, Owner::Handle(handle), job);
        // The collector has to know of jobs that ended here.
        if state.has_news() {
            state.wake_collector();
        }
        Ok(id)
    }

    /// No more jobs, and every one that has not ended is cancelled: those that run are interrupted, and their workers ended if
    /// they do not heed that.
    pub fn cancel_all(&self) {
        self.signal(Event::ShutDown { cancel: true });
        if self.forked().is_none() {
            let mut state = self.shared.lock();
            let mut jobs: Vec<_> = state.entries.keys().copied().collect();
            // The newest first: none of them gets to begin because of this.
            jobs.sort_unstable_by(|one, other| other.cmp(one));
            for job in jobs {
                if let Some(owner) = self.shared.cancel(&mut state, job) {
                    state.give(owner, Outcome::Cancelled);
                }
            }
            state.wake_collector();
        }
    }

    /// A stream for the items of a map, whose outcomes it gives in their order, or as they come.
    pub fn open_stream(&self, ordered: bool) -> Arc<Stream> {
        let stream = Arc::new(Stream::new(ordered));
        if self.forked().is_none() {
            self.shared.lock().streams.push(Arc::clone(&stream));
        }
        stream
    }

    /// One more item of a map. It is queued now, or soon, together with those that follow it.
    pub fn feed(&self, stream: &Arc<Stream>, job: Job) -> Result<(), Refused> {
        if let Some(refused) = self.forked() {
            return Err(refused);
        }
        if stream.add(job) {
            return self.flush(stream);
        }
        Ok(())
    }

    /// Queues all items that were fed; to be called when no more come for now.
    pub fn flush(&self, stream: &Arc<Stream>) -> Result<(), Refused> {
        if let Some(refused) = self.forked() {
            return Err(refused);
        }
        let mut state = self.shared.lock();
        Self::check_open(&state)?;
        self.shared.pull(&mut state, stream);
        if state.has_news() {
            state.wake_collector();
        }
        Ok(())
    }

    /// Ends a stream: items that do not run never will, those that do are interrupted, and what comes of them is dropped.
    pub fn close_stream(&self, stream: &Arc<Stream>) {
        stream.close();
        if self.forked().is_some() {
            return;
        }
        let mut state = self.shared.lock();
        state.streams.retain(|other| !Arc::ptr_eq(other, stream));
        let sent = |entry: &Entry<H>| match &entry.owner {
            Owner::Item { stream: other, .. } => entry.started && Arc::ptr_eq(other, stream),
            Owner::Handle(_) => false,
        };
        let sent = state.entries.iter().filter(|(_, entry)| sent(entry));
        let mut sent: Vec<_> = sent.map(|(&job, _)| job).collect();
        // The newest first: none of them gets to begin because of this.
        sent.sort_unstable_by(|one, other| other.cmp(one));
        for job in sent {
            self.shared.cancel(&mut state, job);
        }
        if state.has_news() {
            state.wake_collector();
        }
    }

    fn check_open(state: &State<H>) -> Result<(), Refused> {
        if state.supervisor.is_open() {
            Ok(())
        } else if state.supervisor.is_unusable() {
            Err(Refused::Unusable(state.unusable.clone()))
        } else {
            Err(Refused::ShutDown)
        }
    }

    /// Why nothing can be submitted here, if this process is a fork of the pool's.
    pub fn forked(&self) -> Option<Refused> {
        let owner = self.shared.owner;
        (process::id() != owner).then_some(Refused::Forked { owner })
    }

    /// No more jobs. With `cancel`, those that were not sent are cancelled.
    pub fn shut_down(&self, cancel: bool) {
        self.signal(Event::ShutDown { cancel });
    }

    /// Ends every worker now, whatever it is doing. Running jobs are lost, the others cancelled.
    pub fn terminate(&self) {
        self.signal(Event::Terminate);
    }

    fn signal(&self, event: Event) {
        if process::id() == self.shared.owner {
            let mut state = self.shared.lock();
            // What maps have been given was submitted before this.
            self.shared.pull_streams(&mut state);
            self.shared.drive(&mut state, event);
            state.wake_collector();
        }
    }

    /// Waits until every job has ended and everything is given back; false if that takes longer than `limit`.
    pub fn wait_closed(&self, limit: Duration) -> bool {
        if process::id() != self.shared.owner {
            return true;
        }
        let state = self.shared.lock();
        let (state, _) = self
            .shared
            .closed
            .wait_timeout_while(state, limit, |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.closed
    }

    /// For threads that wait for jobs.
    pub fn helper(&self) -> Helper<H> {
        Helper::new(&self.shared)
    }

    /// For an event loop that waits for jobs.
    pub fn listener(&self) -> Listener<H> {
        Listener::new(&self.shared)
    }

    /// What the pool is doing at the moment.
    pub fn statistics(&self) -> Statistics {
        if self.forked().is_some() {
            // The mutex may have been held by a thread that the fork left behind.
            return Statistics::default();
        }
        let state = self.shared.lock();
        let mut workers: Vec<_> = state
            .links
            .iter()
            .map(|(&id, link)| (id, link.pid()))
            .collect();
        workers.sort_unstable();
        let first = state.supervisor.first_pending();
        let entry = first.and_then(|job| state.entries.get(&job));
        let queued_ns = entry.map(|entry| entry.queued_ns);
        Statistics {
            jobs: state.supervisor.jobs(),
            pending: state.supervisor.pending(),
            workers: workers.into_iter().map(|(_, pid)| pid).collect(),
            blocks: state
                .plumbing
                .as_ref()
                .map_or(0, |plumbing| plumbing.arguments.in_use()),
            width: state.supervisor.width(),
            waited_ns: queued_ns.map_or(0, |since| monotonic_ns().saturating_sub(since)),
        }
    }
}

impl<H: Handle> Drop for ProcessPool<H> {
    fn drop(&mut self) {
        self.shut_down(false);
    }
}
