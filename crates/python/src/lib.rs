//! The extension module `plait._rust`: its list of exports is the table of contents.
use pyo3::prelude::*;

mod aio;
mod callback;
mod choose;
mod event_loop;
mod future;
mod gil;
mod ledger;
mod locks;
mod loop_bell;
mod map_items;
mod plain;
mod plain_calls;
mod process_pool;
mod process_sync;
mod queue;
mod shared_memory;
mod steps;
mod thread_account;
mod thread_pool;
mod waiting;

#[pymodule(gil_used = false)]
mod _rust {
    #[pymodule_export]
    use super::aio::{
        Event as AsyncEvent, Line as WaiterLine, Lock as AsyncLock, Queue as AsyncQueue,
        Ready as ReadyCoroutine, Semaphore as AsyncSemaphore,
    };
    #[pymodule_export]
    use super::choose::choose;
    #[pymodule_export]
    use super::event_loop::{
        EventLoop, LoopCoroutine, LoopWaiter, SocketCalls, StreamTransport, end_stall_watch,
        forget_stall_watch, leave_event_loops, prepare_handles, prepare_stream_transport,
    };
    #[pymodule_export]
    use super::event_loop::{StreamReader, StreamReaderProtocol, StreamWriter, prepare_streams};
    #[pymodule_export]
    use super::event_loop::{TlsBuffer, TlsProtocol, prepare_tls};
    #[pymodule_export]
    use super::future::Future;
    #[pymodule_export]
    use super::gil::GilWatch;
    #[pymodule_export]
    use super::ledger::{Ledger, LedgerSnapshot, job_crossed, job_goes_on};
    #[pymodule_export]
    use super::locks::{
        Barrier, Condition, Event, Lock, RLock, Ready, Semaphore, Waiter, lock_waits, watch_locks,
    };
    #[pymodule_export]
    use super::loop_bell::LoopBell;
    #[pymodule_export]
    use super::map_items::MapItems;
    #[pymodule_export]
    use super::process_pool::{
        Function, Listener, ProcessPool, Worker, before_idle, die_with_parent, go_on_without_parent,
    };
    /// The signal that tells a worker to look at `Worker.interrupted`.
    #[pymodule_export]
    const INTERRUPT: i32 = plait_engine::sys::process::INTERRUPT;
    #[pymodule_export]
    use super::process_sync::{
        ProcessEvent, ProcessQueue, ProcessWaiters, ReceivedBuffer, SemLock, note_fork,
    };
    #[pymodule_export]
    use super::queue::{Queue, QueueWaiter, SimpleQueue, nothing};
    #[pymodule_export]
    use super::shared_memory::{Segment, SegmentPart, SharedBuffer, Ticket, memory_fallback};
    #[pymodule_export]
    use super::steps::Steps;
    #[pymodule_export]
    use super::thread_pool::{ThreadPool, ThreadPoolCore};
    #[pymodule_export]
    use super::waiting::forget_waiting_threads;
    #[pymodule_export]
    const MOST_WIDTH: usize = super::process_pool::MOST_WIDTH;
    #[pymodule_export]
    #[allow(non_upper_case_globals)] // The name that Python's convention gives it.
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
