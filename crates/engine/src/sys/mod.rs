//! The only place that talks to the operating system. What a platform has to supply, one file each:
//!
//! | file | what |
//! | --- | --- |
//! | [`channel`] | a pair of connected sockets that keep message boundaries and carry descriptors |
//! | [`clock`] | a monotonic clock that all processes of the machine share |
//! | [`doorbell`] | a descriptor that one side rings and the other polls together with others |
//! | [`futex`] | sleeping on a word of shared memory |
//! | [`heap`] | what becomes of memory that is freed |
//! | [`identity`] | telling a process from any other, and the living from the dead |
//! | [`mapping`] | nameless shared memory |
//! | [`poller`] | waiting for many descriptors at once |
//! | [`memory`] | how much of it is left |
//! | [`usage`] | CPU time and memory of this thread, this process and its children |
//! | [`process`] | starting the zygote, signalling a worker, dying with one's parent |
//! | [`socket`] | receiving and sending without blocking |

pub mod channel;
pub mod clock;
mod copy;
pub mod doorbell;
pub mod futex;
pub mod heap;
pub mod identity;
pub mod mapping;
pub mod memory;
pub mod poller;
pub mod process;
pub mod socket;
pub mod usage;
