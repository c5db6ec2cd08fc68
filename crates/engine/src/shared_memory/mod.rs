//! Memory that jobs' large buffers travel in: who may use which piece of a mapping, and for how long.

mod arena;
mod extents;
mod lease;
mod segment;

pub(crate) use arena::map_largest;
pub use arena::{Arena, Block};
pub use extents::Extents;
pub use lease::{GiveBack, Lease};
pub use segment::{Segment, Ticket};
