//! Where locks lie: slots of a nameless piece of shared memory, handed out by the process that made it.
#![allow(unsafe_code)]

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use plait_sync::owned_lock::OwnedLock;
use plait_sync::permits::Permits;

use super::condition::{SLOTS, Waiters};
use super::event::EventWord;
use crate::sys::mapping::Mapping;
use crate::sys::{clock, identity};

const MAGIC: u64 = u64::from_le_bytes(*b"plaitlok");
/// Address space of a board: a million slots.
const BOARD: usize = 64 << 20;
pub(super) const SLOT: usize = size_of::<Slot>();

/// What one object needs, on a cache line of its own. All zero bytes are a free lock, no permits, an event that is not set.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Slot {
    pub(super) lock: OwnedLock,
    pub(super) permits: Permits,
    pub(super) event: EventWord,
    /// When somebody last looked whether the owner lives, in nanoseconds: a failed attempt does so now and then.
    pub(super) looked: AtomicU64,
}

/// The first slot's place: what this memory is.
#[repr(C, align(64))]
struct Title {
    magic: AtomicU64,
    nonce: AtomicU64,
    slots: AtomicU32,
}

/// A piece of memory with slots.
#[derive(Debug)]
struct Board {
    mapping: Mapping,
    nonce: u64,
    maker: u64,
}

impl Board {
    fn create() -> io::Result<Self> {
        let mut length = BOARD;
        let mapping = loop {
            // A limit on address space is no reason to fail.
            match Mapping::create("plait-locks", length) {
                Err(_) if length > 64 << 10 => length /= 2,
                result => break result?,
            }
        };
        let maker = identity::of_this_process();
        let board = Self {
            nonce: new_nonce(),
            mapping,
            maker,
        };
        let title = board.title()?;
        title.slots.store(
            (board.mapping.len() / SLOT).try_into().unwrap_or(u32::MAX),
            Ordering::Relaxed,
        );
        title.nonce.store(board.nonce, Ordering::Relaxed);
        title.magic.store(MAGIC, Ordering::Release);
        Ok(board)
    }

    fn open(fd: OwnedFd, nonce: u64) -> io::Result<Self> {
        let board = Self {
            mapping: Mapping::open(fd)?,
            nonce,
            maker: 0,
        };
        let title = board.title()?;
        if title.magic.load(Ordering::Acquire) != MAGIC
            || title.nonce.load(Ordering::Relaxed) != nonce
        {
            return Err(strange());
        }
        Ok(board)
    }

    fn title(&self) -> io::Result<&Title> {
        let address = self.mapping.address(0, SLOT).ok_or_else(strange)?;
        // SAFETY: inside the mapping, which is aligned to a page and lives as long as `self`; made of atomics only, for which
        // any bytes are valid.
        Ok(unsafe { address.cast::<Title>().as_ref() })
    }

    fn slot(&self, index: u32, count: u32) -> io::Result<NonNull<Slot>> {
        let offset = (index as usize).checked_mul(SLOT).ok_or_else(strange)?;
        let length = (count as usize).checked_mul(SLOT).ok_or_else(strange)?;
        let address = self.mapping.address(offset, length).filter(|_| index > 0);
        Ok(address.ok_or_else(strange)?.cast())
    }
}

/// A number that no other memory of this machine has.
pub(super) fn new_nonce() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(identity::of_this_process());
    hasher.write_u64(clock::monotonic_ns());
    hasher.finish()
}

pub(super) fn strange() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the descriptor does not lead to the shared memory that was sent: its owner has ended or has dropped the object",
    )
}

/// What this process has handed out and knows. Each child of a fork begins with new books.
struct Books {
    process: u64,
    inner: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    filling: Option<Filling>,
    known: Vec<Weak<Board>>,
}

impl Entries {
    fn remember(&mut self, board: &Arc<Board>) {
        self.known.retain(|known| known.strong_count() > 0);
        self.known.push(Arc::downgrade(board));
    }
}

/// The board that new slots come from.
struct Filling {
    board: Arc<Board>,
    next: u32,
    free: Vec<u32>,
    free_tables: Vec<u32>,
}

impl Filling {
    /// Where `count` slots (one, or a table's) are to be had.
    fn take(&mut self, count: u32) -> Option<u32> {
        if let Some(index) = self.free_of(count).pop() {
            return Some(index);
        }
        let index = self.next;
        self.next = index
            .checked_add(count)
            .filter(|&end| end as usize <= self.board.mapping.len() / SLOT)?;
        Some(index)
    }

    fn free_of(&mut self, count: u32) -> &mut Vec<u32> {
        if count == 1 {
            &mut self.free
        } else {
            &mut self.free_tables
        }
    }
}

static BOOKS: AtomicPtr<Books> = AtomicPtr::new(ptr::null_mut());
/// How often this process has been forked.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// This process is about to be forked: what it has made until now, somebody else may have afterwards.
pub fn note_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

fn books() -> MutexGuard<'static, Entries> {
    let process = identity::of_this_process();
    let mut seen = BOOKS.load(Ordering::Acquire);
    loop {
        // SAFETY: null, or a box that was leaked below and is never freed.
        if let Some(books) = unsafe { seen.as_ref() }
            && books.process == process
        {
            return books.inner.lock().unwrap_or_else(PoisonError::into_inner);
        }
        // The parent's books may have been locked by a thread that does not exist here: they are left as they are.
        let new = Box::into_raw(Box::new(Books {
            process,
            inner: Mutex::default(),
        }));
        match BOOKS.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => seen = new,
            Err(now) => {
                // SAFETY: made above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
                seen = now;
            }
        }
    }
}

/// An object's right to a slot.
#[derive(Debug)]
pub struct Place {
    board: Arc<Board>,
    index: u32,
    /// One, or as many as a table of waiters takes.
    count: u32,
    slot: NonNull<Slot>,
    /// Whether the slot is used again after this, and how often the process had been forked when it was made.
    mine: AtomicBool,
    forks: u64,
}

// SAFETY: the slot is made of atomics and lives in the board, which is kept alive.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl Place {
    /// A slot for a new object, as it was left by the one before.
    pub fn new() -> io::Result<Self> {
        Self::take(1)
    }

    /// A place for a table of waiters, with nobody in it.
    pub fn new_table() -> io::Result<Self> {
        let place = Self::take(SLOTS)?;
        if let Some(table) = place.waiters() {
            table.reset();
        }
        Ok(place)
    }

    fn take(count: u32) -> io::Result<Self> {
        let mut books = books();
        let taken = books
            .filling
            .as_mut()
            .and_then(|filling| Some((filling.take(count)?, Arc::clone(&filling.board))));
        let (index, board) = if let Some(taken) = taken {
            taken
        } else {
            let board = Arc::new(Board::create()?);
            let mut filling = Filling {
                board: Arc::clone(&board),
                next: 1,
                free: Vec::new(),
                free_tables: Vec::new(),
            };
            let index = filling.take(count).ok_or_else(strange)?;
            books.filling = Some(filling);
            books.remember(&board);
            (index, board)
        };
        drop(books);
        Ok(Self {
            slot: board.slot(index, count)?,
            board,
            index,
            count,
            mine: AtomicBool::new(true),
            forks: FORKS.load(Ordering::Relaxed),
        })
    }

    /// The table behind a place that was made by [`Place::new_table`], here or elsewhere.
    pub(super) fn waiters(&self) -> Option<&Waiters> {
        // SAFETY: that many slots lie inside the board's mapping (`Board::slot` has looked), aligned, and made of atomics only.
        (self.count == SLOTS).then(|| unsafe { self.slot.cast::<Waiters>().as_ref() })
    }

    /// The slot that another process has sent, with a descriptor for the board. A duplicate of it is kept, if the board was
    /// not known here.
    pub fn open(fd: BorrowedFd<'_>, nonce: u64, index: u32) -> io::Result<Self> {
        Self::find(fd, nonce, index, 1)
    }

    /// The same for a table of waiters.
    pub fn open_table(fd: BorrowedFd<'_>, nonce: u64, index: u32) -> io::Result<Self> {
        Self::find(fd, nonce, index, SLOTS)
    }

    fn find(fd: BorrowedFd<'_>, nonce: u64, index: u32, count: u32) -> io::Result<Self> {
        let mut books = books();
        let mut known = books.known.iter().filter_map(Weak::upgrade);
        let board = if let Some(board) = known.find(|board| board.nonce == nonce) {
            board
        } else {
            let board = Arc::new(Board::open(fd.try_clone_to_owned()?, nonce)?);
            books.remember(&board);
            board
        };
        drop(books);
        Ok(Self {
            slot: board.slot(index, count)?,
            board,
            index,
            count,
            mine: AtomicBool::new(false),
            forks: 0,
        })
    }

    /// What another process needs to open the slot: a descriptor of the board, its nonce, and the slot's number. From now on
    /// the slot is not used again.
    pub fn locate(&self) -> (RawFd, u64, u32) {
        self.mine.store(false, Ordering::Relaxed);
        (
            self.board.mapping.as_fd().as_raw_fd(),
            self.board.nonce,
            self.index,
        )
    }

    /// The number of the slot.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Deref for Place {
    type Target = Slot;

    #[inline]
    fn deref(&self) -> &Slot {
        // SAFETY: inside the board's mapping (`Board::slot` has looked), aligned, and made of atomics only.
        unsafe { self.slot.as_ref() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !*self.mine.get_mut()
            || self.forks != FORKS.load(Ordering::Relaxed)
            || self.board.maker != identity::of_this_process()
        {
            return;
        }
        let mut books = books();
        if let Some(filling) = &mut books.filling
            && Arc::ptr_eq(&filling.board, &self.board)
        {
            filling.free_of(self.count).push(self.index);
        }
    }
}
