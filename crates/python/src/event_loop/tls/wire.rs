//! What lies between the socket and OpenSSL: ciphertext that has come in, and ciphertext that is to go out.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A thread keeps so many emptied buffers for the next connection that has something to send.
const MOST_SPARES: usize = 4;
/// One that has become larger than this is not kept.
const LARGEST_SPARE: usize = 512 * 1024;
/// What a new one begins with: a record.
const FIRST_SIZE: usize = 17 * 1024;

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn spare() -> Vec<u8> {
    SPARES
        .try_with(|spares| spares.borrow_mut().pop())
        .ok()
        .flatten()
        .unwrap_or_else(|| Vec::with_capacity(FIRST_SIZE))
}

/// Gives a buffer back to this thread's spares.
pub fn recycle(mut buffer: Vec<u8>) {
    if buffer.capacity() > LARGEST_SPARE || buffer.capacity() < FIRST_SIZE {
        return;
    }
    buffer.clear();
    let _ = SPARES.try_with(|spares| {
        let mut spares = spares.borrow_mut();
        if spares.len() < MOST_SPARES {
            spares.push(buffer);
        }
    });
}

/// Bytes of the caller's, lent for the time of one call.
#[derive(Clone, Copy)]
struct Slice {
    start: *const u8,
    length: usize,
}

// SAFETY: only followed under the lock of `Wire`, while the lender waits.
unsafe impl Send for Slice {}

#[derive(Default)]
struct Incoming {
    /// What came in and had to be kept, and how much of it has been taken.
    kept: Vec<u8>,
    taken: usize,
    /// Lent bytes that come after it.
    lent: Option<Slice>,
}

impl Incoming {
    fn available(&self) -> usize {
        self.kept.len() - self.taken + self.lent.map_or(0, |slice| slice.length)
    }

    fn take(&mut self, into: *mut u8, room: usize) -> usize {
        let kept = &self.kept[self.taken..];
        if !kept.is_empty() {
            let count = kept.len().min(room);
            // SAFETY: `room` bytes at `into` are the caller's promise; `kept` has `count` and is not what is written to.
            unsafe { ptr::copy_nonoverlapping(kept.as_ptr(), into, count) };
            self.taken += count;
            if self.taken == self.kept.len() {
                self.taken = 0;
                // A connection that waits keeps no memory.
                self.kept = Vec::new();
            }
            return count;
        }
        let Some(slice) = self.lent else {
            return 0;
        };
        let count = slice.length.min(room);
        // SAFETY: as above; the lender keeps the slice alive until it takes it back.
        unsafe { ptr::copy_nonoverlapping(slice.start, into, count) };
        self.lent = (slice.length > count).then(|| Slice {
            // SAFETY: inside the slice.
            start: unsafe { slice.start.add(count) },
            length: slice.length - count,
        });
        count
    }

    /// Copies what is lent and not taken.
    fn keep(&mut self) {
        if let Some(slice) = self.lent.take() {
            if self.taken != 0 {
                self.kept.drain(..self.taken);
                self.taken = 0;
            }
            // SAFETY: the lender keeps the slice alive until it takes it back.
            let bytes = unsafe { std::slice::from_raw_parts(slice.start, slice.length) };
            self.kept.extend_from_slice(bytes);
        }
    }
}

/// Both directions of one connection. Its locks are held for a copy, never while anything is called.
#[derive(Default)]
pub struct Wire {
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Vec<u8>>,
    /// How many bytes there are in either, to be read without its lock; written under it.
    incoming_size: AtomicUsize,
    outgoing_size: AtomicUsize,
    /// OpenSSL has asked for bytes that were not there.
    starved: AtomicBool,
}

/// Puts an end to the lending of a slice: what was not taken is copied.
struct Lent<'a>(&'a Wire);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.lock_incoming().keep();
    }
}

impl Wire {
    fn lock_incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_outgoing(&self) -> MutexGuard<'_, Vec<u8>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has bytes that have come in, without a copy of them, while `run` runs.
    pub fn lend<R>(&self, bytes: &[u8], run: impl FnOnce() -> R) -> R {
        let mut incoming = self.lock_incoming();
        incoming.keep();
        if !bytes.is_empty() {
            incoming.lent = Some(Slice {
                start: bytes.as_ptr(),
                length: bytes.len(),
            });
        }
        self.incoming_size
            .store(incoming.available(), Ordering::Relaxed);
        drop(incoming);
        let _lent = Lent(self);
        run()
    }

    /// Copies bytes that have come in.
    pub fn feed(&self, bytes: &[u8]) {
        self.lend(bytes, || ());
    }

    /// Bytes that have come in and that OpenSSL has not taken.
    pub fn incoming(&self) -> usize {
        self.incoming_size.load(Ordering::Relaxed)
    }

    /// Everything that has come in.
    pub fn take_incoming(&self) -> Vec<u8> {
        let mut incoming = self.lock_incoming();
        incoming.keep();
        self.incoming_size.store(0, Ordering::Relaxed);
        let taken = std::mem::take(&mut incoming.taken);
        let mut kept = std::mem::take(&mut incoming.kept);
        kept.drain(..taken);
        kept
    }

    /// Bytes that are to go out.
    pub fn outgoing(&self) -> usize {
        self.outgoing_size.load(Ordering::Relaxed)
    }

    /// Everything that is to go out; give the buffer back by [`recycle`].
    pub fn take_outgoing(&self) -> Vec<u8> {
        if self.outgoing() == 0 {
            return Vec::new();
        }
        let mut outgoing = self.lock_outgoing();
        self.outgoing_size.store(0, Ordering::Relaxed);
        std::mem::take(&mut *outgoing)
    }

    /// Before OpenSSL is called.
    pub(super) fn begin(&self) {
        self.starved.store(false, Ordering::Relaxed);
    }

    /// Whether OpenSSL has asked for more than there was since `begin`.
    pub(super) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed)
    }

    /// OpenSSL wants bytes; 0 if there are none.
    ///
    /// # Safety
    /// `room` bytes at `into` may be written, and are nobody else's.
    pub(super) unsafe fn take_into(&self, into: *mut u8, room: usize) -> usize {
        let mut incoming = self.lock_incoming();
        let count = incoming.take(into, room);
        self.incoming_size
            .store(incoming.available(), Ordering::Relaxed);
        drop(incoming);
        if count == 0 {
            self.starved.store(true, Ordering::Relaxed);
        }
        count
    }

    /// OpenSSL has bytes to send.
    pub(super) fn put(&self, bytes: &[u8]) {
        let mut outgoing = self.lock_outgoing();
        if outgoing.capacity() == 0 {
            *outgoing = spare();
        }
        outgoing.extend_from_slice(bytes);
        self.outgoing_size.store(outgoing.len(), Ordering::Relaxed);
    }
}
