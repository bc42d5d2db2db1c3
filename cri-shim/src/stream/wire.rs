//! The two protocols of a connection under one face: streams with numbers, what came on them, what goes out. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;
use streams::channel::{Protocol, Received};
use streams::spdy::{Event, Headers, Session, Side, StreamId, status};

/// What a peer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A new stream, to be accepted or refused. Only over SPDY; channels are there from the beginning.
    Opened {
        id: u32,
        headers: Headers,
    },
    Data {
        id: u32,
        data: Bytes,
    },
    /// The peer sends no more on this stream.
    Finished {
        id: u32,
    },
    /// The stream is gone in both directions.
    Reset {
        id: u32,
    },
}

/// A connection's protocol.
pub enum Wire {
    Spdy {
        session: Box<Session>,
        /// Streams that may have something waiting.
        open: BTreeSet<StreamId>,
    },
    Channels {
        protocol: Protocol,
        output: Vec<Bytes>,
    },
}

impl Wire {
    pub fn spdy() -> Self {
        Self::Spdy { session: Box::new(Session::new(Side::Server)), open: BTreeSet::new() }
    }

    pub fn channels(protocol: Protocol) -> Self {
        Self::Channels { protocol, output: Vec::new() }
    }

    /// # Errors
    /// Where the peer breaks the protocol; the connection is over then.
    pub fn receive(&mut self, piece: Bytes) -> Result<Vec<Incoming>, String> {
        match self {
            Self::Spdy { session, open } => {
                let events = session.receive(&piece).map_err(|error| error.to_string())?;
                Ok(events.into_iter().filter_map(|event| incoming(event, open)).collect())
            }
            Self::Channels { protocol, .. } => Ok(match protocol.decode(piece).map_err(|error| error.to_string())? {
                Received::Data { channel, data } => vec![Incoming::Data { id: channel.into(), data }],
                Received::Close { channel } => vec![Incoming::Finished { id: channel.into() }],
                Received::Nothing => Vec::new(),
            }),
        }
    }

    /// Accepts a stream that was opened.
    pub fn accept(&mut self, id: u32) {
        if let Self::Spdy { session, .. } = self {
            // It may be gone already, as its reset says.
            let _ = session.reply(id);
        }
    }

    /// Ends a stream in both directions: it is not wanted.
    pub fn refuse(&mut self, id: u32) {
        if let Self::Spdy { session, open } = self {
            open.remove(&id);
            session.reset(id, status::REFUSED_STREAM);
        }
    }

    /// On a stream that is gone it is lost, as in a broken pipe. Empty data goes out only over channels.
    pub fn send(&mut self, id: u32, data: Bytes) {
        match self {
            Self::Spdy { session, .. } => drop(session.send(id, data)),
            Self::Channels { protocol, output } => {
                if let Ok(channel) = u8::try_from(id) {
                    output.push(protocol.encode(channel, &data));
                }
            }
        }
    }

    /// Sends no more on a stream, where the protocol can say so.
    pub fn finish(&mut self, id: u32) {
        if let Self::Spdy { session, .. } = self {
            session.finish(id);
        }
    }

    /// The user of a stream took so many bytes of what came on it.
    pub fn consumed(&mut self, id: u32, len: usize) {
        if let Self::Spdy { session, .. } = self {
            session.consumed(id, len);
        }
    }

    /// A stream is of no more interest, except for what still waits to go out on it.
    pub fn forget(&mut self, id: u32) {
        if let Self::Spdy { session, open } = self
            && session.queued(id) == 0
        {
            open.remove(&id);
        }
    }

    /// Bytes that wait for the peer's window.
    pub fn queued(&self) -> usize {
        match self {
            Self::Spdy { session, open } => open.iter().map(|id| session.queued(*id)).sum(),
            Self::Channels { .. } => 0,
        }
    }

    /// What is to be sent, in pieces that stay whole.
    pub fn take_output(&mut self) -> Vec<Bytes> {
        match self {
            Self::Spdy { session, .. } if session.has_output() => vec![session.take_output()],
            Self::Spdy { .. } => Vec::new(),
            Self::Channels { output, .. } => std::mem::take(output),
        }
    }
}

fn incoming(event: Event, open: &mut BTreeSet<StreamId>) -> Option<Incoming> {
    match event {
        Event::Opened { id, headers } => {
            open.insert(id);
            Some(Incoming::Opened { id, headers })
        }
        Event::Data { id, data } => Some(Incoming::Data { id, data }),
        Event::Finished(id) => Some(Incoming::Finished { id }),
        Event::Reset { id, .. } => {
            open.remove(&id);
            Some(Incoming::Reset { id })
        }
        // We open no streams, and a client that goes away ends its connection.
        Event::Replied(_) | Event::GoAway => None,
    }
}
