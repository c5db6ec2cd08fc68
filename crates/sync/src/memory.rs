//! Bytes that two sides may reach at once: a heap block in tests, a mapping shared by two processes in life.

/// A fixed piece of memory that a producer writes and a consumer reads.
///
/// The algorithms of this crate decide *who* may touch *which* bytes *when*; an implementation only copies.
/// Positions grow without bound and are taken modulo the capacity, so a copy may wrap around the end.
///
/// # Safety
/// `capacity` never changes and is a power of two, and the bytes stay reachable for as long as the value lives.
#[allow(unsafe_code)]
pub unsafe trait Memory {
    /// How many bytes there are.
    fn capacity(&self) -> usize;

    /// Copies `from` to the bytes at `at` (not wrapped: `at + from.len() <= capacity`).
    ///
    /// # Safety
    /// Nobody else reads or writes these bytes at the same time.
    unsafe fn write_at(&self, at: usize, from: &[u8]);

    /// Copies the bytes at `at` into `into` (not wrapped: `at + into.len() <= capacity`).
    ///
    /// # Safety
    /// Nobody else writes these bytes at the same time.
    unsafe fn read_at(&self, at: usize, into: &mut [u8]);
}

/// Writes `from` at `position`, in two pieces where it wraps.
///
/// # Safety
/// As for [`Memory::write_at`], for all bytes of both pieces; `from` is no longer than the capacity.
#[allow(unsafe_code)]
pub(crate) unsafe fn write(memory: &impl Memory, position: u64, from: &[u8]) {
    let at = offset(memory, position);
    let first = from.len().min(memory.capacity() - at);
    // SAFETY: the caller owns these bytes; `first` ends at the capacity and the rest starts at 0.
    unsafe {
        memory.write_at(at, &from[..first]);
        memory.write_at(0, &from[first..]);
    }
}

/// Reads `into.len()` bytes from `position`, in two pieces where they wrap.
///
/// # Safety
/// As for [`Memory::read_at`], for all bytes of both pieces; `into` is no longer than the capacity.
#[allow(unsafe_code)]
pub(crate) unsafe fn read(memory: &impl Memory, position: u64, into: &mut [u8]) {
    let at = offset(memory, position);
    let first = into.len().min(memory.capacity() - at);
    let (head, rest) = into.split_at_mut(first);
    // SAFETY: the caller vouches that nobody writes these bytes now.
    unsafe {
        memory.read_at(at, head);
        memory.read_at(0, rest);
    }
}

fn offset(memory: &impl Memory, position: u64) -> usize {
    // The capacity is a power of two, so the mask is a remainder; it fits because the capacity does.
    (position & (memory.capacity() as u64 - 1)) as usize
}
