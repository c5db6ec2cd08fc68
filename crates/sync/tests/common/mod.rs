//! Memory on the heap for the tests of `ring` and `window`; under loom every byte is watched for races.
#![allow(unsafe_code, dead_code)]

use std::sync::Arc;

use plait_sync::memory::Memory;
use plait_sync::{ring, window};

#[cfg(plait_loom)]
use loom::cell::UnsafeCell;

#[cfg(not(plait_loom))]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(plait_loom))]
impl<T> UnsafeCell<T> {
    pub fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }
    pub fn with<R>(&self, body: impl FnOnce(*const T) -> R) -> R {
        body(self.0.get())
    }
    pub fn with_mut<R>(&self, body: impl FnOnce(*mut T) -> R) -> R {
        body(self.0.get())
    }
}

pub struct Heap<H> {
    pub header: H,
    bytes: Vec<UnsafeCell<u8>>,
}

// SAFETY: access to the bytes is what the algorithms under test arrange; loom checks that they do.
unsafe impl<H: Sync> Sync for Heap<H> {}
// SAFETY: as above; nothing here belongs to a thread.
unsafe impl<H: Send> Send for Heap<H> {}

pub struct Shared<H>(pub Arc<Heap<H>>);

impl<H> Clone for Shared<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H> Shared<H> {
    pub fn new(header: H, capacity: usize) -> Self {
        let bytes = (0..capacity).map(|_| UnsafeCell::new(0)).collect();
        Self(Arc::new(Heap { header, bytes }))
    }
}

// SAFETY: the vector never changes its length, which is a power of two in every test.
unsafe impl<H> Memory for Shared<H> {
    fn capacity(&self) -> usize {
        self.0.bytes.len()
    }
    unsafe fn write_at(&self, at: usize, from: &[u8]) {
        for (cell, &byte) in self.0.bytes[at..at + from.len()].iter().zip(from) {
            // SAFETY: the caller has these bytes to itself.
            cell.with_mut(|pointer| unsafe { *pointer = byte });
        }
    }
    unsafe fn read_at(&self, at: usize, into: &mut [u8]) {
        for (cell, byte) in self.0.bytes[at..at + into.len()].iter().zip(into) {
            // SAFETY: nobody writes these bytes now, says the caller.
            *byte = cell.with(|pointer| unsafe { *pointer });
        }
    }
}

impl ring::Ring for Shared<ring::Header> {
    fn header(&self) -> &ring::Header {
        &self.0.header
    }
}

impl window::Window for Shared<window::Header> {
    fn header(&self) -> &window::Header {
        &self.0.header
    }
}
