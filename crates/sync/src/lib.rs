//! How threads and processes meet: parking, queues, rings over borrowed memory. std only; also built under loom.
//!
//! | primitive | between | order | cost |
//! | --- | --- | --- | --- |
//! | [`parker`] | one sleeper, any number of wakers | – | one swap to wake a thread that is awake |
//! | [`job_queue`] | any number of pushers, workers that sleep when idle | FIFO | one mutex; one wake-up at a time |
//! | [`wait_queue`] | the owner of a lock or queue, any number of waiters of any kind | FIFO | one compare-and-swap each side |
//! | [`semaphore`], [`event`], [`condition`], [`barrier`], [`rlock`] | any number of threads and coroutines | FIFO, newcomers may be quicker | one mutex, held for a few loads and stores |
//! | [`queue`] | any number of putters and getters, threads and coroutines | FIFO or LIFO | one mutex; wakes only who waits |
//! | [`bell`] | one sleeper, any number of ringers | – | one fence while nobody sleeps |
//! | [`ring`] | one producer, one consumer, byte frames | FIFO | two copies, one store each side |
//! | [`owned_lock`] | any number of processes | whoever comes | one compare-and-swap |
//! | [`permits`] | any number of processes | whoever comes | one compare-and-swap |
//! | [`gate`] | any number of sleepers and publishers | – | one fence while nobody sleeps |
//! | [`log`] | one producer and one consumer at a time, byte frames | FIFO | two copies, four stores each side |
//! | [`window`] | one producer that may take back, one consumer that claims | FIFO | one compare-and-swap each side |

pub mod barrier;
pub mod bell;
pub mod condition;
pub mod event;
pub mod gate;
pub mod job_queue;
pub mod log;
pub mod memory;
pub mod owned_lock;
pub mod parker;
pub mod permits;
mod primitive;
pub mod queue;
pub mod ring;
pub mod rlock;
pub mod semaphore;
pub mod wait_queue;
pub mod window;
