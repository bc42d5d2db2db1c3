//! BGP-4 and BFD as values: bytes to messages and back, sessions that take inputs and give outputs, and the table of
//! routes. No socket, no clock, no task: those are the caller's.
//!
//! Begin with [`message`] (the wire), then [`session`] (one peer's state machine, RFC 4271 section 8), then [`rib`] (what
//! peers told, which route is best, what each peer is to be told). [`filter`] decides what comes in and goes out,
//! [`bfd`] is the quick hello beside a session.

pub mod attributes;
pub mod bfd;
pub mod filter;
pub mod message;
pub mod prefix;
pub mod rib;
pub mod session;

pub use attributes::Attributes;
pub use message::{Message, Notification};
pub use prefix::{Family, Prefix};
