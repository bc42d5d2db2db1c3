//! SPDY/3.1, as far as Kubernetes uses it: <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>.
//!
//! `Session` is one end of a connection. Behind it, `Codec` turns bytes into frames and back, and `headers` is the
//! compressed list of names and values within them.

mod frame;
mod headers;
mod session;

pub use frame::{Codec, Frame};
pub use headers::Headers;
pub use session::{Closed, Event, Session, Side};

/// A stream within a connection: odd from the client, even from the server, 31 bits.
pub type StreamId = u32;

/// `Upgrade` header of a connection that becomes SPDY.
pub const UPGRADE: &str = "SPDY/3.1";

/// `RST_STREAM` status codes (section 2.6.3).
pub mod status {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INVALID_STREAM: u32 = 2;
    pub const REFUSED_STREAM: u32 = 3;
    pub const CANCEL: u32 = 5;
    pub const STREAM_IN_USE: u32 = 8;
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    #[error("control frame of version {0}, expected 3")]
    Version(u16),
    #[error("control frame of {0} bytes, more than {max}", max = frame::MAX_CONTROL)]
    TooLong(usize),
    #[error("control frame of type {kind} with {len} bytes, which is too short")]
    TooShort { kind: u16, len: usize },
    #[error("header block cannot be decompressed")]
    Compression,
    #[error("header block of more than {max} bytes", max = headers::MAX_BLOCK)]
    HeadersTooLong,
    #[error("header block ends early or holds text that is not UTF-8")]
    Headers,
    #[error("stream id {0} where another was due")]
    StreamId(StreamId),
}
