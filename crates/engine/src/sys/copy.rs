//! Copying large blocks into memory that another process reads: past the caches, and by two threads.
//!
//! An ordinary copy reads every line of the target before it overwrites it, and drives out of the caches what this process was
//! working with. A copy that streams does neither, which is about twice as fast for what does not fit into a cache anyway.
#![allow(unsafe_code)]

use std::ptr;
use std::thread;

/// From this length on a copy streams: less may still be in a cache when the other side reads it.
const STREAMS: usize = 4 << 20;
/// From this length on a second thread takes half of it: starting one takes as long as copying half a megabyte.
const SPLITS: usize = 16 << 20;

/// Where the second half is.
#[derive(Clone, Copy)]
struct Places {
    from: *const u8,
    to: *mut u8,
}

// SAFETY: they are addresses; whoever copies between them has the promise that it may.
unsafe impl Send for Places {}

/// Copies `length` bytes.
///
/// # Safety
/// As for [`ptr::copy_nonoverlapping`] of bytes.
pub unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    if length < STREAMS {
        // SAFETY: the caller's promise.
        unsafe { ptr::copy_nonoverlapping(from, to, length) };
        return;
    }
    if length < SPLITS {
        // SAFETY: the caller's promise.
        unsafe { stream(from, to, length) };
        return;
    }
    let half = length / 2;
    let places = Places {
        // SAFETY: the caller's promise: both have `length` bytes.
        from: unsafe { from.add(half) },
        // SAFETY: as above.
        to: unsafe { to.add(half) },
    };
    let copy_rest = move || {
        let Places { from, to } = { places };
        // SAFETY: the caller's promise, for the second half; the scope below ends after this.
        unsafe { stream(from, to, length - half) };
    };
    thread::scope(|scope| {
        let helper = thread::Builder::new().spawn_scoped(scope, copy_rest);
        // SAFETY: the caller's promise, for the first half.
        unsafe { stream(from, to, half) };
        if helper.is_err() {
            copy_rest();
        }
    });
}

#[cfg(target_arch = "x86_64")]
unsafe fn stream(from: *const u8, to: *mut u8, length: usize) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const STEP: usize = 64;
    const LANE: usize = 16;
    let head = to.align_offset(STEP).min(length);
    let steps = (length - head) / STEP;
    let tail = head + steps * STEP;
    // SAFETY: `head`, the steps and the rest are `length` bytes together, which the caller has promised; the target of each
    // step is aligned to it, and every processor of this kind has these instructions.
    unsafe {
        ptr::copy_nonoverlapping(from, to, head);
        for at in (head..tail).step_by(STEP) {
            let (from, to) = (from.add(at), to.add(at));
            let lane = |at| _mm_loadu_si128(from.add(at * LANE).cast());
            let lanes = [lane(0), lane(1), lane(2), lane(3)];
            for (at, lane) in lanes.into_iter().enumerate() {
                _mm_stream_si128(to.add(at * LANE).cast(), lane);
            }
        }
        ptr::copy_nonoverlapping(from.add(tail), to.add(tail), length - tail);
        // Streamed stores are ordered with what is stored after this, by which the other side learns of the block.
        _mm_sfence();
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: the caller's promise.
    unsafe { ptr::copy_nonoverlapping(from, to, length) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_and_no_other_is_touched() {
        for length in [0, 1, 63, STREAMS - 1, STREAMS, STREAMS + 77, SPLITS + 1] {
            for shift in [0, 1, 40] {
                let from: Vec<u8> = (0..length + shift)
                    .map(|at| (at * 31 % 251) as u8)
                    .collect();
                let mut to = vec![255_u8; length + shift + 1];
                let source = &from[shift..];
                let target = &mut to[shift..shift + length];
                // SAFETY: both are `length` bytes long.
                unsafe { copy(source.as_ptr(), target.as_mut_ptr(), length) };
                assert!(to[shift..shift + length] == *source, "{length} at {shift}");
                assert!(to[..shift].iter().all(|&byte| byte == 255) && to[shift + length] == 255);
            }
        }
    }
}
