//! Worker processes fed through shared memory. `README.md` beside this file has the picture, who owns what, and what
//! happens when somebody dies at which step.

mod account;
mod books;
mod collector;
#[cfg(feature = "fault-hooks")]
pub mod fault;
#[cfg(not(feature = "fault-hooks"))]
mod fault;
mod helper;
mod lane;
mod link;
mod listener;
mod outcome;
mod pool;
pub mod protocol;
pub mod state;
mod stream;
#[cfg(test)]
mod tests;
mod worker;
mod zygote;

pub use account::{Origin, Spent};
pub use helper::Helper;
pub use link::{Function, Job, Payload};
pub use listener::Listener;
pub use outcome::{Deliver, Handle, Note, Outcome, ProcessEnd, Refused, Settings, Statistics};
pub use pool::ProcessPool;
pub use stream::Stream;
pub use worker::{Bytes, Call, Worker};
pub use zygote::Launch;
