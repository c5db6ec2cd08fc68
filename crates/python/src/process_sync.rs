//! Locks, semaphores, events and queues between processes: `_rust.SemLock`, `ProcessEvent`, `ProcessQueue`.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use plait_engine::process_sync::{
    self as engine, Enrolled, GetError, MOST_PERMITS, MOST_WAITERS, Message, Piece, Place,
    Progress, PutError, Wait,
};
use plait_engine::sys::identity::of_this_process as this_process;
use pyo3::exceptions::{
    PyAssertionError, PyMemoryError, PyOSError, PyOverflowError, PyRuntimeError, PyValueError,
};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyTuple, PyType};

use crate::shared_memory::Contiguous;
use crate::waiting::to_deadline;

/// Messages up to this size are copied without letting go of the interpreter.
const SMALL: u64 = 64 << 10;
/// Blocks from this size on are used again for the next message.
const LARGE: usize = 1 << 20;
/// How many bytes of such blocks a process keeps.
const KEPT: usize = 256 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An `RLock`.
    Recursive,
    /// A `Semaphore` or `BoundedSemaphore`: nobody owns it.
    Semaphore,
    /// A `Lock`: a semaphore of one permit, to the standard library.
    Lock,
}

/// What a `Lock`, `RLock`, `Semaphore` or `BoundedSemaphore` is made of, with the interface of `_multiprocessing.SemLock`.
#[pyclass(frozen, module = "plait._rust")]
pub struct SemLock {
    place: Place,
    kind: Kind,
    most: u32,
    /// How much more often than released it was acquired by this process (and not by the one that this one is a fork of),
    /// and which thread was the last to acquire it.
    count: AtomicI32,
    process: AtomicU64,
    thread: AtomicUsize,
}

#[pymethods]
impl SemLock {
    #[new]
    #[pyo3(signature = (kind, value, maxvalue, *, owned = false))]
    fn new(kind: i64, value: i64, maxvalue: i64, owned: bool) -> PyResult<Self> {
        let kind = match (kind, owned) {
            (0, _) => Kind::Recursive,
            (1, true) => Kind::Lock,
            (1, false) => Kind::Semaphore,
            _ => return Err(PyValueError::new_err("unrecognized kind")),
        };
        let (count, most) = (permits(value)?, permits(maxvalue)?);
        if count > most {
            return Err(PyValueError::new_err(format!(
                "a semaphore of at most {most} cannot begin with {count}"
            )));
        }
        let place = Place::new()?;
        if kind == Kind::Semaphore {
            place.make_semaphore(count);
        } else {
            place.make_lock();
        }
        Ok(Self::of(place, kind, most))
    }

    #[pyo3(signature = (block = true, timeout = None))]
    fn acquire(
        &self,
        py: Python<'_>,
        block: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        if self.kind == Kind::Recursive && self.is_mine() {
            self.add_to_count(1);
            return Ok(true);
        }
        let owned = self.kind != Kind::Semaphore;
        let done = if owned {
            self.place.try_lock()
        } else {
            self.place.try_acquire()
        };
        if done {
            self.acquired();
            return Ok(true);
        }
        if !block {
            return match owned.then(|| self.place.look_at_owner()).flatten() {
                Some(pid) => Err(owner_died(py, pid)),
                None => Ok(false),
            };
        }
        let mut wait = Wait::until(to_deadline(timeout)?);
        loop {
            let progress = py.detach(|| {
                if owned {
                    self.place.lock_step(&mut wait)
                } else {
                    self.place.acquire_step(&mut wait)
                }
            });
            match progress {
                Progress::Done => {
                    self.acquired();
                    return Ok(true);
                }
                Progress::TimedOut => return Ok(false),
                Progress::OwnerDied(pid) => return Err(owner_died(py, pid)),
                Progress::Look => py.check_signals()?,
            }
        }
    }

    fn release(&self) -> PyResult<()> {
        if self.kind == Kind::Recursive {
            if !self.is_mine() {
                return Err(PyAssertionError::new_err(
                    "attempt to release recursive lock not owned by thread",
                ));
            }
            if self.count() > 1 {
                self.add_to_count(-1);
                return Ok(());
            }
        }
        // Before the lock is free: the next owner in this process counts from here.
        self.add_to_count(-1);
        let released = if self.kind == Kind::Semaphore {
            self.place.release(self.most)
        } else {
            self.place.unlock()
        };
        if released {
            return Ok(());
        }
        self.add_to_count(1);
        Err(PyValueError::new_err(
            "semaphore or lock released too many times",
        ))
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.acquire(py, true, None)
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release()
    }

    fn _count(&self) -> i32 {
        self.count()
    }

    fn _is_mine(&self) -> bool {
        self.is_mine()
    }

    fn _get_value(&self) -> u32 {
        self.value()
    }

    fn _is_zero(&self) -> bool {
        self.value() == 0
    }

    fn _after_fork(&self) {
        self.count.store(0, Ordering::Relaxed);
    }

    /// What another process needs for `_rebuild`: a descriptor (its number in this process), and the rest.
    fn _locate(&self) -> (RawFd, (u64, u32, i64, u32, bool)) {
        let (fd, nonce, index) = self.place.locate();
        let owned = self.kind == Kind::Lock;
        (fd, (nonce, index, self.kind(), self.most, owned))
    }

    /// The object behind what `_locate` has told in another process. Keeps a duplicate of the descriptor, if any.
    #[staticmethod]
    fn _rebuild(
        fd: RawFd,
        nonce: u64,
        index: u32,
        kind: i64,
        most: u32,
        owned: bool,
    ) -> PyResult<Self> {
        let kind = match (kind, owned) {
            (0, _) => Kind::Recursive,
            (_, true) => Kind::Lock,
            (_, false) => Kind::Semaphore,
        };
        Ok(Self::of(
            Place::open(borrow(&fd)?, nonce, index)?,
            kind,
            most,
        ))
    }

    #[getter]
    fn handle(&self) -> u32 {
        self.place.index()
    }

    #[getter]
    fn kind(&self) -> i64 {
        i64::from(self.kind != Kind::Recursive)
    }

    #[getter]
    fn maxvalue(&self) -> u32 {
        self.most
    }

    /// It has none.
    #[getter]
    fn name(&self) -> Option<&str> {
        let _ = self;
        None
    }

    #[classattr]
    #[allow(non_upper_case_globals, non_snake_case)] // The name that the standard library gives it.
    fn SEM_VALUE_MAX() -> u32 {
        MOST_PERMITS
    }
}

impl SemLock {
    fn of(place: Place, kind: Kind, most: u32) -> Self {
        Self {
            place,
            kind,
            most,
            count: AtomicI32::new(0),
            process: AtomicU64::new(0),
            thread: AtomicUsize::new(0),
        }
    }

    fn count(&self) -> i32 {
        self.forget_if_forked();
        self.count.load(Ordering::Relaxed)
    }

    /// What was acquired before a fork was acquired by the parent.
    fn forget_if_forked(&self) {
        let process = this_process();
        if self.process.load(Ordering::Relaxed) != process {
            self.count.store(0, Ordering::Relaxed);
            self.process.store(process, Ordering::Relaxed);
        }
    }

    fn value(&self) -> u32 {
        if self.kind == Kind::Semaphore {
            self.place.permits()
        } else {
            u32::from(!self.place.is_locked())
        }
    }

    fn acquired(&self) {
        self.forget_if_forked();
        if self.kind != Kind::Semaphore {
            // It was free until now; a release too many by another thread may have spoilt the count.
            self.count.store(0, Ordering::Relaxed);
        }
        self.thread.store(this_thread(), Ordering::Relaxed);
        self.add_to_count(1);
    }

    /// By whoever holds the lock, so a load and a store do; for a semaphore, which may be held many times, the count is
    /// rough, and nothing rests on it.
    fn add_to_count(&self, one: i32) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count + one, Ordering::Relaxed);
    }

    fn is_mine(&self) -> bool {
        self.count() > 0 && self.thread.load(Ordering::Relaxed) == this_thread()
    }
}

/// A number that no other living thread of this process has.
fn this_thread() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

/// A descriptor that Python keeps open during the call.
fn borrow(fd: &RawFd) -> PyResult<BorrowedFd<'_>> {
    if *fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is not a descriptor")));
    }
    // SAFETY: not negative. If it is not open, or not what it is said to be, the system calls or the check of the memory's
    // nonce say so.
    Ok(unsafe { BorrowedFd::borrow_raw(*fd) })
}

fn permits(value: i64) -> PyResult<u32> {
    u32::try_from(value)
        .ok()
        .filter(|&count| count <= MOST_PERMITS)
        .ok_or_else(|| {
            PyValueError::new_err(format!(
                "a semaphore counts from 0 to {MOST_PERMITS}, not {value}"
            ))
        })
}

fn owner_died(py: Python<'_>, pid: u32) -> PyErr {
    static OWNER_DIED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match OWNER_DIED
        .import(py, "plait.errors", "OwnerDied")
        .and_then(|exception| exception.call1((pid,)))
    {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// This process is about to be forked: nothing that it has made until now is used again for something else.
#[pyfunction]
pub fn note_fork() {
    engine::note_fork();
}

/// An event between processes.
#[pyclass(frozen, module = "plait._rust")]
pub struct ProcessEvent {
    place: Place,
}

#[pymethods]
impl ProcessEvent {
    #[new]
    fn new() -> PyResult<Self> {
        let place = Place::new()?;
        place.make_event();
        Ok(Self { place })
    }

    fn is_set(&self) -> bool {
        self.place.is_set()
    }

    fn set(&self) {
        self.place.set();
    }

    fn clear(&self) {
        self.place.clear();
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        if self.place.is_set() {
            return Ok(true);
        }
        let settings = self.place.settings();
        let mut wait = Wait::until(to_deadline(timeout)?);
        loop {
            match py.detach(|| self.place.wait_step(settings, &mut wait)) {
                Progress::Done => return Ok(true),
                Progress::Look => py.check_signals()?,
                Progress::TimedOut | Progress::OwnerDied(_) => return Ok(false),
            }
        }
    }

    /// What another process needs for `_rebuild`: a descriptor (its number in this process), and the rest.
    fn _locate(&self) -> (RawFd, (u64, u32)) {
        let (fd, nonce, index) = self.place.locate();
        (fd, (nonce, index))
    }

    /// The event behind what `_locate` has told in another process. Keeps a duplicate of the descriptor, if any.
    #[staticmethod]
    fn _rebuild(fd: RawFd, nonce: u64, index: u32) -> PyResult<Self> {
        let place = Place::open(borrow(&fd)?, nonce, index)?;
        Ok(Self { place })
    }
}

/// Who waits for a condition between processes. The condition's lock guards `enroll` and `notify`.
#[pyclass(frozen, module = "plait._rust")]
pub struct ProcessWaiters {
    place: Place,
}

#[pymethods]
impl ProcessWaiters {
    #[new]
    fn new() -> PyResult<Self> {
        let place = Place::new_table()?;
        Ok(Self { place })
    }

    /// Joins those that wait; what it returns is for `wait`.
    fn enroll(&self) -> PyResult<u32> {
        self.place.enroll().map(Enrolled::into).ok_or_else(|| {
            PyRuntimeError::new_err(format!(
                "{MOST_WAITERS} threads wait for this condition already, which is the limit"
            ))
        })
    }

    /// Waits for a notification; False if none came for `timeout` seconds. Whatever it raises, the wait is over then.
    #[pyo3(signature = (enrolled, timeout = None))]
    fn wait(
        &self,
        py: Python<'_>,
        enrolled: u32,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let enrolled = Enrolled::try_from(enrolled).map_err(PyValueError::new_err)?;
        let mut wait = match to_deadline(timeout) {
            Ok(deadline) => Wait::until(deadline),
            Err(error) => {
                self.place.leave(enrolled);
                return Err(error);
            }
        };
        loop {
            match py.detach(|| self.place.notified_step(enrolled, &mut wait)) {
                Progress::Done => return Ok(true),
                Progress::TimedOut | Progress::OwnerDied(_) => return Ok(false),
                Progress::Look => {
                    if let Err(error) = py.check_signals() {
                        // A notification that has come meanwhile goes to the next. Without the lock: two that notify at a time
                        // cannot give the same cell twice.
                        if self.place.leave(enrolled) == Progress::Done {
                            self.place.notify(1);
                        }
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Notifies up to `most` of those that wait, in the order they came.
    fn notify(&self, most: usize) {
        self.place.notify(most);
    }

    fn __len__(&self) -> usize {
        self.place.waiting()
    }

    /// What another process needs for `_rebuild`: a descriptor (its number in this process), and the rest.
    fn _locate(&self) -> (RawFd, (u64, u32)) {
        let (fd, nonce, index) = self.place.locate();
        (fd, (nonce, index))
    }

    /// The table behind what `_locate` has told in another process. Keeps a duplicate of the descriptor, if any.
    #[staticmethod]
    fn _rebuild(fd: RawFd, nonce: u64, index: u32) -> PyResult<Self> {
        let place = Place::open_table(borrow(&fd)?, nonce, index)?;
        Ok(Self { place })
    }
}

/// A queue of pickles between processes.
#[pyclass(frozen, module = "plait._rust")]
pub struct ProcessQueue {
    queue: engine::Queue,
}

#[pymethods]
impl ProcessQueue {
    #[new]
    fn new() -> PyResult<Self> {
        let queue = engine::Queue::create()?;
        Ok(Self { queue })
    }

    /// Puts a pickle and the buffers that it refers to. False if, for `timeout` seconds, there were `most` already.
    #[pyo3(signature = (pickle, buffers, most, block = true, timeout = None))]
    fn put(
        &self,
        py: Python<'_>,
        pickle: &Bound<'_, PyAny>,
        buffers: Option<Vec<Bound<'_, PyAny>>>,
        most: Option<u64>,
        block: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let held;
        let bytes = if let Ok(bytes) = pickle.cast::<PyBytes>() {
            bytes.as_bytes()
        } else {
            held = Contiguous::get(pickle)?;
            held.bytes()
        };
        let views = buffers
            .iter()
            .flatten()
            .map(Contiguous::get)
            .collect::<PyResult<Vec<_>>>()?;
        let parts: Vec<&[u8]> = views.iter().map(Contiguous::bytes).collect();
        if views.is_empty() && bytes.len() as u64 <= SMALL {
            let mut attempt = Wait::not();
            if put_step(&self.queue, bytes, &parts, most, &mut attempt)? == Progress::Done {
                return Ok(true);
            }
        }
        let mut wait = patience(block, timeout)?;
        loop {
            match py.detach(|| put_step(&self.queue, bytes, &parts, most, &mut wait))? {
                Progress::Done => return Ok(true),
                Progress::Look => py.check_signals()?,
                Progress::TimedOut | Progress::OwnerDied(_) => return Ok(false),
            }
        }
    }

    /// The oldest pickle, or a tuple of it and a list of its buffers; None if there was none for `timeout` seconds.
    #[pyo3(signature = (block = true, timeout = None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        block: bool,
        timeout: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let mut small = None;
        if !self.queue.is_empty()
            && self
                .queue
                .get_step(&mut Wait::not(), SMALL, &mut small)
                .map_err(get_error)?
                == Progress::Done
            && let Some(message) = small.take()
        {
            return Small::into_python(py, message).map(Some);
        }
        let mut wait = patience(block, timeout)?;
        let mut large: Option<Message<Landed>> = None;
        loop {
            let progress = py
                .detach(|| self.queue.get_step(&mut wait, u64::MAX, &mut large))
                .map_err(get_error)?;
            if let Some(message) = large.take() {
                return Landed::into_python(py, message).map(Some);
            }
            match progress {
                Progress::Done | Progress::Look => py.check_signals()?,
                Progress::TimedOut | Progress::OwnerDied(_) => return Ok(None),
            }
        }
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.queue.len()).unwrap_or(usize::MAX)
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// One more of what was put is done; false if all was already.
    fn task_done(&self) -> bool {
        self.queue.task_done()
    }

    /// Waits until all that was put is done.
    fn join(&self, py: Python<'_>) -> PyResult<()> {
        let mut wait = Wait::until(None);
        while py.detach(|| self.queue.join_step(&mut wait)) != Progress::Done {
            py.check_signals()?;
        }
        Ok(())
    }

    /// What another process needs for `_rebuild`: a descriptor (its number in this process), and the rest.
    fn _locate(&self) -> (RawFd, (u64,)) {
        let (fd, nonce) = self.queue.locate();
        (fd, (nonce,))
    }

    /// The queue behind what `_locate` has told in another process. Keeps a duplicate of the descriptor, if any.
    #[staticmethod]
    fn _rebuild(fd: RawFd, nonce: u64) -> PyResult<Self> {
        let queue = engine::Queue::open(borrow(&fd)?, nonce)?;
        Ok(Self { queue })
    }
}

fn patience(block: bool, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Wait> {
    if !block {
        return Ok(Wait::brief());
    }
    let deadline = to_deadline(timeout)?;
    let over = deadline.is_some_and(|deadline| deadline <= Instant::now());
    Ok(if over {
        Wait::brief()
    } else {
        Wait::until(deadline)
    })
}

fn put_step(
    queue: &engine::Queue,
    pickle: &[u8],
    buffers: &[&[u8]],
    most: Option<u64>,
    wait: &mut Wait,
) -> PyResult<Progress> {
    queue
        .put_step(pickle, buffers, most, wait)
        .map_err(|error| match error {
            PutError::TooLong => PyOverflowError::new_err(
                "the message is longer than half of the queue's address space",
            ),
            PutError::Corrupt => corrupt(),
        })
}

fn get_error(error: GetError) -> PyErr {
    match error {
        GetError::NoMemory => {
            PyMemoryError::new_err("no memory for the next message of the queue; it stays there")
        }
        GetError::Corrupt => corrupt(),
    }
}

fn corrupt() -> PyErr {
    PyOSError::new_err("the queue is unusable: a process has written over its shared memory")
}

/// A small piece: a `bytes` object.
struct Small(Py<PyBytes>);

impl Piece for Small {
    fn filled(length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Option<Self> {
        Python::attach(|py| {
            let bytes = PyBytes::new_with(py, length, |into| {
                fill(into);
                Ok(())
            });
            bytes.ok().map(|bytes| Self(bytes.unbind()))
        })
    }
}

impl Small {
    fn into_python(py: Python<'_>, message: Message<Self>) -> PyResult<Bound<'_, PyAny>> {
        let pickle = message.pickle.0.into_bound(py);
        if message.buffers.is_empty() {
            return Ok(pickle.into_any());
        }
        let buffers = PyList::empty(py);
        for buffer in message.buffers {
            // What is rebuilt from it may be written to.
            buffers.append(pyo3::types::PyByteArray::new(py, buffer.0.as_bytes(py)))?;
        }
        Ok((pickle, buffers).into_pyobject(py)?.into_any())
    }
}

/// A piece in memory that no interpreter was needed for.
struct Landed(Vec<u8>);

impl Piece for Landed {
    fn filled(length: usize, fill: &mut dyn FnMut(&mut [u8])) -> Option<Self> {
        let mut bytes = used_before(length);
        if bytes.capacity() < length {
            bytes = Vec::new();
            bytes.try_reserve_exact(length).ok()?;
        }
        bytes.resize(length, 0);
        fill(&mut bytes);
        Some(Self(bytes))
    }
}

impl Landed {
    fn into_python(py: Python<'_>, message: Message<Self>) -> PyResult<Bound<'_, PyAny>> {
        let piece = |piece: Landed| Bound::new(py, ReceivedBuffer::of(piece.0));
        if message.buffers.is_empty() {
            if message.pickle.0.len() as u64 <= SMALL {
                return Ok(PyBytes::new(py, &message.pickle.0).into_any());
            }
            return Ok(piece(message.pickle)?.into_any());
        }
        let buffers = PyList::empty(py);
        for buffer in message.buffers {
            buffers.append(piece(buffer)?)?;
        }
        let pickle = piece(message.pickle)?;
        Ok((pickle, buffers).into_pyobject(py)?.into_any())
    }
}

/// Blocks that messages lay in before. Fresh memory costs more than the copy into it.
static USED_BEFORE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A block for `length` bytes, if one fits; else an empty one.
fn used_before(length: usize) -> Vec<u8> {
    if length < LARGE {
        return Vec::new();
    }
    // Not waited for: in the child of a fork, the thread that holds it may not exist.
    let Ok(mut blocks) = USED_BEFORE.try_lock() else {
        return Vec::new();
    };
    let fits = |block: &Vec<u8>| block.capacity() >= length && block.capacity() / 2 <= length;
    match blocks.iter().position(fits) {
        Some(index) => blocks.swap_remove(index),
        None => Vec::new(),
    }
}

/// Memory of a received message, as a buffer.
#[pyclass(frozen, module = "plait._rust")]
pub struct ReceivedBuffer {
    start: NonNull<u8>,
    length: usize,
    capacity: usize,
}

// SAFETY: plain memory that the object owns. Whoever reaches it through a buffer answers for races, as with a bytearray.
unsafe impl Send for ReceivedBuffer {}
// SAFETY: as above.
unsafe impl Sync for ReceivedBuffer {}

impl ReceivedBuffer {
    fn of(bytes: Vec<u8>) -> Self {
        let mut bytes = ManuallyDrop::new(bytes);
        Self {
            start: NonNull::new(bytes.as_mut_ptr()).unwrap_or(NonNull::dangling()),
            length: bytes.len(),
            capacity: bytes.capacity(),
        }
    }
}

#[pymethods]
impl ReceivedBuffer {
    fn __len__(&self) -> usize {
        self.length
    }

    /// # Safety
    /// Called by the interpreter, with a `view` it has allocated.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let buffer = slf.get();
        let length = isize::try_from(buffer.length).unwrap_or(isize::MAX);
        let start = buffer.start.as_ptr().cast();
        // SAFETY: the memory stays where it is for as long as the object lives, and the view holds a reference to it.
        let status = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, length, 0, flags) };
        if status == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

impl Drop for ReceivedBuffer {
    fn drop(&mut self) {
        // SAFETY: taken apart by `of`, and put together again only here.
        let bytes = unsafe { Vec::from_raw_parts(self.start.as_ptr(), self.length, self.capacity) };
        if bytes.capacity() >= LARGE
            && let Ok(mut blocks) = USED_BEFORE.try_lock()
            && blocks.iter().map(Vec::capacity).sum::<usize>() + bytes.capacity() <= KEPT
        {
            blocks.push(bytes);
        }
    }
}
