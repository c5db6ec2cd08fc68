//! What happens next: pools, shared memory, the choice of the model. No Python, no GIL; only `sys` talks to the OS.

pub mod thread_pool;
