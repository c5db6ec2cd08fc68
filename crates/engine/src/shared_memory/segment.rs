//! A value put into memory once, for any number of processes to read. `README.md` beside this file has the rules.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sys::mapping::{Identity, Mapping};
use crate::sys::process;

const MAGIC: u64 = u64::from_le_bytes(*b"plaitseg");
const MAGIC_AT: usize = 0;
const NONCE_AT: usize = 8;
const LIVE_AT: usize = 16;
const COUNT_AT: usize = 24;
const TABLE_AT: usize = 64;
const ENTRY: usize = 16;
const PAGE: usize = 4096;

/// What another process needs to find a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The process that made it.
    pub origin: u32,
    /// Whether others may write to it.
    pub writable: bool,
    descriptor: u64,
    device: u64,
    inode: u64,
    nonce: u64,
}

impl Ticket {
    /// How many bytes a ticket has.
    pub const LENGTH: usize = 48;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let numbers = [
            u64::from(self.origin),
            u64::from(self.writable),
            self.descriptor,
            self.device,
            self.inode,
            self.nonce,
        ];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// From bytes; `None` if they are no ticket's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::LENGTH {
            return None;
        }
        let mut numbers = bytes
            .chunks_exact(8)
            .filter_map(|chunk| chunk.try_into().ok().map(u64::from_le_bytes));
        Some(Self {
            origin: u32::try_from(numbers.next()?).ok()?,
            writable: numbers.next()? != 0,
            descriptor: numbers.next()?,
            device: numbers.next()?,
            inode: numbers.next()?,
            nonce: numbers.next()?,
        })
    }
}

/// A segment that this process has mapped.
#[derive(Debug)]
pub struct Segment {
    mapping: Mapping,
    ticket: Ticket,
    /// Offset and length of each part, checked.
    parts: Vec<(usize, usize)>,
    /// Made by this process, or by one that it is a fork of.
    made_here: bool,
    /// Those whose tickets are among the parts.
    _kept: Vec<Arc<Segment>>,
}

impl Segment {
    /// Puts `parts` into memory of their own; those of `kept` are held for as long as this one.
    pub fn create(parts: &[&[u8]], writable: bool, kept: Vec<Arc<Segment>>) -> io::Result<Self> {
        let mut end = TABLE_AT + ENTRY * parts.len();
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            let start = end.next_multiple_of(PAGE);
            places.push((start, part.len()));
            end = start + part.len();
        }
        let mapping = Mapping::create("plait-shared", end)?;
        // Before it is touched: a page that cannot be had is an error here and a signal there.
        mapping.provide(0, end)?;
        let nonce = RandomState::new().build_hasher().finish();
        let number = |at, number: u64| mapping.copy_in(at, &number.to_le_bytes());
        number(MAGIC_AT, MAGIC);
        number(NONCE_AT, nonce);
        number(LIVE_AT, 1);
        number(COUNT_AT, parts.len() as u64);
        for (at, (&(start, length), part)) in places.iter().zip(parts).enumerate() {
            number(TABLE_AT + ENTRY * at, start as u64);
            number(TABLE_AT + ENTRY * at + 8, length as u64);
            mapping.copy_in(start, part);
        }
        mapping.seal_size();
        let Identity { device, inode } = mapping.identity()?;
        let ticket = Ticket {
            origin: process::id(),
            writable,
            descriptor: mapping.as_fd().as_raw_fd().unsigned_abs().into(),
            device,
            inode,
            nonce,
        };
        Ok(Self {
            mapping,
            ticket,
            parts: places,
            made_here: true,
            _kept: kept,
        })
    }

    /// Maps the segment that the ticket is for. An error of kind `NotFound` means that its origin has let go of it, or is
    /// gone itself.
    pub fn attach(ticket: Ticket) -> io::Result<Self> {
        let identity = Identity {
            device: ticket.device,
            inode: ticket.inode,
        };
        let mapping =
            Mapping::of_process(ticket.origin, ticket.descriptor, identity, ticket.writable)?;
        let number = |at| {
            let mut bytes = [0; 8];
            let inside = mapping.copy_out(at, &mut bytes);
            inside.then(|| u64::from_le_bytes(bytes))
        };
        if number(MAGIC_AT) != Some(MAGIC) || number(NONCE_AT) != Some(ticket.nonce) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let count = number(COUNT_AT).and_then(|count| usize::try_from(count).ok());
        let most = mapping.len() / ENTRY;
        let count = count.filter(|&count| count <= most);
        let part = |at: usize| {
            let start = usize::try_from(number(TABLE_AT + ENTRY * at)?).ok()?;
            let length = usize::try_from(number(TABLE_AT + ENTRY * at + 8)?).ok()?;
            mapping.address(start, length).map(|_| (start, length))
        };
        let parts: Option<Vec<_>> = (0..count.ok_or(io::ErrorKind::InvalidData)?)
            .map(part)
            .collect();
        let parts = parts.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            mapping,
            ticket,
            parts,
            made_here: false,
            _kept: Vec::new(),
        })
    }

    /// What another process needs to find it.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Whether the origin still holds it; true in the origin itself.
    pub fn is_live(&self) -> bool {
        self.mapping
            .word(LIVE_AT)
            .is_some_and(|word| word.load(Ordering::Acquire) != 0)
    }

    /// How many parts there are.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        self.mapping.len()
    }

    /// Address and length of a part, for as long as the segment lives.
    pub fn part(&self, at: usize) -> Option<(*mut u8, usize)> {
        let &(start, length) = self.parts.get(at)?;
        let address = self.mapping.address(start, length)?;
        Some((address.as_ptr(), length))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Neither a process that has attached it nor a fork of its origin says that it is over.
        if self.made_here
            && self.ticket.origin == process::id()
            && let Some(word) = self.mapping.word(LIVE_AT)
        {
            word.store(0, Ordering::Release);
        }
    }
}
