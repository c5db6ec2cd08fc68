//! Worker processes fed through shared memory. `README.md` beside this file has the picture, who owns what, and what
//! happens when somebody dies at which step.

mod lane;
mod link;
mod pool;
pub mod protocol;
pub mod state;
mod worker;
mod zygote;

pub use link::{Function, Job, Payload};
pub use pool::{Deliver, Handle, Helper, Outcome, ProcessEnd, ProcessPool, Refused, Statistics};
pub use worker::{Bytes, Call, Worker};
pub use zygote::Launch;
