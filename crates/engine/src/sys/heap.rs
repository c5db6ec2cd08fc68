//! What becomes of large pieces of memory that a worker's functions free: kept for the next job, given back when there is none.
#![allow(unsafe_code)]

/// At most so much free memory is kept at the end of the heap, in bytes.
#[cfg(target_env = "gnu")]
const MOST_KEPT: i32 = 256 << 20;

/// From now on large pieces that this process frees stay with it for the next ones, until [`give_back`].
///
/// The C library would map each anew, and the kernel would have to find and zero its pages one by one: about 2 GB/s, where
/// pages that are there already are written several times as fast. Does nothing where the C library is not glibc.
pub fn keep() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: plain settings of the C library; it takes its own locks. A setting it does not know is refused.
        unsafe {
            mallopt(M_MMAP_MAX, 0);
            mallopt(M_TRIM_THRESHOLD, MOST_KEPT);
        }
    }
}

/// Gives all pages that hold nothing back to the kernel.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: any thread may, at any time; it takes the C library's own locks.
    unsafe {
        malloc_trim(0);
    }
}

#[cfg(target_env = "gnu")]
const M_TRIM_THRESHOLD: i32 = -1;
#[cfg(target_env = "gnu")]
const M_MMAP_MAX: i32 = -4;

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    fn mallopt(parameter: i32, value: i32) -> i32;
    fn malloc_trim(left: usize) -> i32;
}
