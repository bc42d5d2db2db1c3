//! The WebSocket channel protocols: each message begins with the number of the channel that it belongs to.
//!
//! Versions 1 to 4 differ in what the error channel carries; version 5 (KEP-4006) adds the half-close of a channel. The
//! base64 protocols send text: the number as a digit, and base64.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// First byte of a v5 message that closes the channel in its second byte.
const CLOSE: u8 = 255;

/// A subprotocol of WebSocket for exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// As in `Sec-WebSocket-Protocol`; empty where the client asked for none.
    pub name: &'static str,
    pub base64: bool,
    /// The error channel carries a `Status`; a plain message otherwise.
    pub status: bool,
    /// Channels can be closed one by one.
    pub closes: bool,
}

const fn protocol(name: &'static str, base64: bool, status: bool, closes: bool) -> Protocol {
    Protocol { name, base64, status, closes }
}

const PROTOCOLS: &[Protocol] = &[
    protocol("v5.channel.k8s.io", false, true, true),
    protocol("v4.channel.k8s.io", false, true, false),
    protocol("v4.base64.channel.k8s.io", true, true, false),
    protocol("v3.channel.k8s.io", false, false, false),
    protocol("v2.channel.k8s.io", false, false, false),
    protocol("channel.k8s.io", false, false, false),
    protocol("base64.channel.k8s.io", true, false, false),
    protocol("", false, false, false),
];

impl Protocol {
    /// The first of the client's protocols that is known. `offered` are the values of its `Sec-WebSocket-Protocol`
    /// headers; without any, the one without a name.
    pub fn negotiate<'a>(offered: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut wanted: Vec<&str> =
            offered.into_iter().flat_map(|value| value.split(',')).map(str::trim).filter(|p| !p.is_empty()).collect();
        if wanted.is_empty() {
            wanted.push("");
        }
        wanted.iter().find_map(|name| PROTOCOLS.iter().find(|p| p.name == *name)).copied()
    }

    /// What a message from the client says.
    ///
    /// # Errors
    /// Where it breaks the protocol.
    pub fn decode(&self, mut message: Bytes) -> Result<Received, ChannelError> {
        let Some(first) = message.first().copied() else { return Ok(Received::Nothing) };
        message.advance(1);
        if self.closes && first == CLOSE {
            return match message[..] {
                [channel] => Ok(Received::Close { channel }),
                _ => Err(ChannelError::Close),
            };
        }
        if self.base64 {
            let channel = first.checked_sub(b'0').ok_or(ChannelError::Number)?;
            return Ok(Received::Data { channel, data: STANDARD.decode(&message)?.into() });
        }
        Ok(Received::Data { channel: first, data: message })
    }

    /// The message that carries `data`: text for the base64 protocols, binary for the others.
    pub fn encode(&self, channel: u8, data: &[u8]) -> Bytes {
        let mut message = BytesMut::with_capacity(1 + data.len());
        if self.base64 {
            message.put_u8(b'0' + channel);
            message.put_slice(STANDARD.encode(data).as_bytes());
        } else {
            message.put_u8(channel);
            message.put_slice(data);
        }
        message.freeze()
    }
}

/// What a message was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    Data {
        channel: u8,
        data: Bytes,
    },
    /// The client sends no more on this channel.
    Close {
        channel: u8,
    },
    /// An empty message, which keeps a connection alive.
    Nothing,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChannelError {
    #[error("a close signal names exactly one channel")]
    Close,
    #[error("a channel's number is a digit")]
    Number,
    #[error("the channel's data is no base64: {0}")]
    Base64(#[from] base64::DecodeError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Protocol {
        Protocol::negotiate([name]).unwrap()
    }

    #[test]
    fn the_clients_first_choice_that_is_known_wins() {
        assert_eq!(
            Protocol::negotiate(["v6.channel.k8s.io, v4.channel.k8s.io", "channel.k8s.io"]).unwrap().name,
            "v4.channel.k8s.io"
        );
        assert_eq!(Protocol::negotiate([]).unwrap().name, "");
        assert_eq!(Protocol::negotiate(["soap"]), None);
    }

    #[test]
    fn messages_as_on_the_wire() {
        let v5 = named("v5.channel.k8s.io");
        assert_eq!(&v5.encode(1, b"hi")[..], b"\x01hi");
        assert_eq!(v5.decode(Bytes::from_static(b"\x00in")), Ok(Received::Data { channel: 0, data: "in".into() }));
        assert_eq!(v5.decode(Bytes::from_static(b"\xff\x00")), Ok(Received::Close { channel: 0 }));
        assert_eq!(v5.decode(Bytes::from_static(b"\xff")), Err(ChannelError::Close));
        assert_eq!(v5.decode(Bytes::new()), Ok(Received::Nothing));

        let v4 = named("v4.channel.k8s.io");
        assert_eq!(v4.decode(Bytes::from_static(b"\xff\x00")), Ok(Received::Data { channel: 255, data: "\0".into() }));

        let base64 = named("base64.channel.k8s.io");
        assert_eq!(&base64.encode(1, b"hi")[..], b"1aGk=");
        assert_eq!(base64.decode(Bytes::from_static(b"0aGk=")), Ok(Received::Data { channel: 0, data: "hi".into() }));
        assert!(base64.decode(Bytes::from_static(b"0!")).is_err());
    }
}
