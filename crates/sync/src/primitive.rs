//! The one switch between std's atomics and loom's: everything else in this crate imports from here.

#[cfg(not(plait_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(plait_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
