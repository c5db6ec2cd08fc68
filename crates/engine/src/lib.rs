//! What happens next: pools, shared memory, the event loop and its streams, the choice of the model. No Python, no GIL; only `sys` talks to the OS.

pub mod choose;
pub mod event_loop;
pub mod ledger;
mod number_map;
pub mod process_pool;
pub mod process_sync;
pub mod shared_memory;
pub mod stream_buffer;
pub mod sys;
pub mod thread_pool;
pub mod width;
