//! The streams behind exec, attach and port-forward, as pure state: bytes in; events and bytes out.
//!
//! Two wires carry them. `spdy` is SPDY/3.1, whose streams say in their headers what they are; `channel` is WebSocket
//! messages, whose first byte is the channel's number. `remote` and `forward` are what both carry.

pub mod channel;
pub mod forward;
pub mod remote;
pub mod spdy;
