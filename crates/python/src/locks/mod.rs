//! `_rust.Lock`, `RLock`, `Semaphore`, `Event`, `Condition`, `Barrier`: what is hot of the locks in `plait.threading`.
//! The Python classes derive from these; what is cold (constructors, `repr`, the coroutines' side) is theirs.
//!
//! A method that may block is: try, and only then stand in line, let go of the interpreter, sleep. The mutexes of `plait_sync`'s
//! locks are only ever held by attached threads, for a few loads and stores, under which no Python code runs: so no
//! fork and no collection finds one of them held, and none can deadlock with the GIL.

mod barrier;
mod condition;
mod event;
mod line;
mod lock;
mod patience;
mod rlock;
mod semaphore;
mod watched;

pub use barrier::Barrier;
pub use condition::Condition;
pub use event::Event;
pub use line::{Ready, Waiter};
pub use lock::Lock;
pub use rlock::RLock;
pub use semaphore::Semaphore;
pub use watched::{lock_waits, watch_locks};
