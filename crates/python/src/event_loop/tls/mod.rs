//! TLS: the hot paths of asyncio's `SSLProtocol`. `plait._tls` puts asyncio's own behind them.

mod buffer;
mod engine;
mod library;
mod methods;
mod protocol;
mod wire;

pub use buffer::TlsBuffer;
pub use protocol::{TlsProtocol, prepare_tls};
