//! One end of a SPDY connection: which streams are open, what may be sent, and how much is waiting.
//!
//! Flow control: the implementations that Kubernetes is made of (spdystream) neither keep nor send windows, so a window
//! counts only once the peer has announced one by SETTINGS. What bounds memory either way: the driver reads no more
//! from the peer while `backlog` is high, and takes no more from its sources while `queued` is.

use super::frame::{Codec, Frame};
use super::{Headers, SpdyError, StreamId, status};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};

/// Data is sent in frames of at most this, so that streams take turns.
const CHUNK: usize = 32 * 1024;
/// More streams than this at once are refused.
const MAX_STREAMS: usize = 1024;
const INITIAL_WINDOW_SETTING: u32 = 7;
/// The connection's window before any update (SPDY/3.1).
const CONNECTION_WINDOW: i64 = 64 * 1024;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// What the peer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new stream, to be answered by `reply` or `reset`.
    Opened { id: StreamId, headers: Headers },
    /// A stream that we opened was accepted.
    Replied(StreamId),
    /// Say `consumed` when it is handed on.
    Data { id: StreamId, data: Bytes },
    /// The peer sends no more on this stream.
    Finished(StreamId),
    /// The stream is gone, in both directions.
    Reset { id: StreamId, status: u32 },
    /// The peer accepts no more streams.
    GoAway,
}

/// The stream does not exist (any more), or this end has finished it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stream {0} is closed")]
pub struct Closed(pub StreamId);

#[derive(Default)]
struct Stream {
    /// Data sent before the reply would be dropped by the peer.
    replied: bool,
    local_finished: bool,
    fin_sent: bool,
    remote_finished: bool,
    pending: VecDeque<Bytes>,
    sent: i64,
    /// How much more the peer takes, where it keeps a window.
    window: Option<i64>,
    /// Consumed and not yet granted anew.
    credit: u32,
}

/// One end of a connection.
pub struct Session {
    codec: Codec,
    side: Side,
    streams: BTreeMap<StreamId, Stream>,
    next_id: StreamId,
    last_remote: StreamId,
    going_away: bool,
    initial_window: Option<i64>,
    connection_window: Option<i64>,
    connection_credit: u32,
    sent: i64,
    backlog: usize,
    output: BytesMut,
}

impl Session {
    pub fn new(side: Side) -> Self {
        Self {
            codec: Codec::new(),
            side,
            streams: BTreeMap::new(),
            next_id: if side == Side::Client { 1 } else { 2 },
            last_remote: 0,
            going_away: false,
            initial_window: None,
            connection_window: None,
            connection_credit: 0,
            sent: 0,
            backlog: 0,
            output: BytesMut::new(),
        }
    }

    /// Takes bytes from the peer. Pings are answered within.
    ///
    /// # Errors
    /// Where the peer does not speak SPDY/3.1; close the connection then.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Vec<Event>, SpdyError> {
        self.codec.feed(bytes);
        let mut events = Vec::new();
        while let Some(frame) = self.codec.next_frame()? {
            self.on_frame(frame, &mut events)?;
        }
        Ok(events)
    }

    /// What to write to the peer, which is handed out once.
    pub fn take_output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Bytes that events carried and `consumed` has not seen yet.
    pub fn backlog(&self) -> usize {
        self.backlog
    }

    /// Bytes of this stream that wait for the peer's reply or window.
    pub fn queued(&self, id: StreamId) -> usize {
        self.streams.get(&id).map_or(0, |stream| stream.pending.iter().map(Bytes::len).sum())
    }

    /// Whether any stream is open in either direction.
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Opens a stream. What is sent before the peer's reply waits for it.
    ///
    /// # Errors
    /// Where the peer is going away or the ids are used up.
    pub fn open(&mut self, headers: Headers) -> Result<StreamId, Closed> {
        let id = self.next_id;
        if self.going_away || id > 0x7fff_ffff {
            return Err(Closed(id));
        }
        self.next_id += 2;
        self.streams.insert(id, Stream { window: self.initial_window, ..Stream::default() });
        self.put(&Frame::SynStream { id, fin: false, headers });
        Ok(id)
    }

    /// Accepts a stream that the peer opened.
    ///
    /// # Errors
    /// Where the peer has reset it meanwhile.
    pub fn reply(&mut self, id: StreamId) -> Result<(), Closed> {
        let stream = self.streams.get_mut(&id).ok_or(Closed(id))?;
        if !stream.replied {
            stream.replied = true;
            self.put(&Frame::SynReply { id, fin: false, headers: Headers::default() });
            self.flush(id);
        }
        Ok(())
    }

    /// # Errors
    /// Where the stream is gone or finished.
    pub fn send(&mut self, id: StreamId, data: Bytes) -> Result<(), Closed> {
        let stream = self.streams.get_mut(&id).filter(|stream| !stream.local_finished).ok_or(Closed(id))?;
        if !data.is_empty() {
            stream.pending.push_back(data);
        }
        self.flush(id);
        Ok(())
    }

    /// Sends no more on this stream, after what is queued. Idempotent.
    pub fn finish(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.local_finished = true;
            self.flush(id);
        }
    }

    /// Ends a stream in both directions. Idempotent.
    pub fn reset(&mut self, id: StreamId, status: u32) {
        if self.streams.remove(&id).is_some() {
            self.put(&Frame::RstStream { id, status });
        }
    }

    /// Asks for an answer, so that a dead connection shows.
    pub fn ping(&mut self, number: u32) {
        let parity = if self.side == Side::Client { 1 } else { 0 };
        self.put(&Frame::Ping((number << 1) | parity));
    }

    /// Says that no more streams are accepted.
    pub fn go_away(&mut self) {
        self.going_away = true;
        self.put(&Frame::GoAway { last_good: self.last_remote, status: 0 });
    }

    /// `len` bytes of an event were handed on; a peer that keeps windows may send as many more.
    pub fn consumed(&mut self, id: StreamId, len: usize) {
        self.backlog = self.backlog.saturating_sub(len);
        if self.initial_window.is_none() {
            return;
        }
        let grant = |credit: &mut u32| {
            *credit = credit.saturating_add(len as u32);
            (*credit as usize >= CHUNK).then(|| std::mem::take(credit))
        };
        let stream_grant = self.streams.get_mut(&id).and_then(|stream| grant(&mut stream.credit));
        let connection_grant = grant(&mut self.connection_credit);
        for (id, granted) in [(id, stream_grant), (0, connection_grant)] {
            if let Some(delta) = granted {
                self.put(&Frame::WindowUpdate { id, delta });
            }
        }
    }

    fn put(&mut self, frame: &Frame) {
        self.codec.encode(frame, &mut self.output);
    }

    /// Sends of a stream's queue what may be sent.
    fn flush(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.replied || stream.fin_sent {
            return;
        }
        while let Some(front) = stream.pending.front_mut() {
            let windows = [stream.window, self.connection_window];
            let room = windows.into_iter().flatten().map(|w| w.max(0) as usize).min().unwrap_or(CHUNK);
            let len = front.len().min(room).min(CHUNK);
            if len == 0 {
                return;
            }
            let data = front.split_to(len);
            if front.is_empty() {
                stream.pending.pop_front();
            }
            stream.sent += len as i64;
            self.sent += len as i64;
            for window in [&mut stream.window, &mut self.connection_window].into_iter().flatten() {
                *window -= len as i64;
            }
            let fin = stream.local_finished && stream.pending.is_empty();
            stream.fin_sent = fin;
            self.codec.encode(&Frame::Data { id, fin, data }, &mut self.output);
        }
        if stream.local_finished && !stream.fin_sent {
            stream.fin_sent = true;
            self.codec.encode(&Frame::Data { id, fin: true, data: Bytes::new() }, &mut self.output);
        }
        self.forget_if_done(id);
    }

    fn forget_if_done(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|stream| stream.fin_sent && stream.remote_finished) {
            self.streams.remove(&id);
        }
    }

    fn on_frame(&mut self, frame: Frame, events: &mut Vec<Event>) -> Result<(), SpdyError> {
        match frame {
            Frame::SynStream { id, fin, headers } => self.on_open(id, fin, headers, events)?,
            Frame::SynReply { id, fin, .. } => {
                if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.replied) {
                    stream.replied = true;
                    events.push(Event::Replied(id));
                    self.flush(id);
                }
                self.on_fin(id, fin, events);
            }
            Frame::Headers { id, fin, .. } => self.on_fin(id, fin, events),
            Frame::Data { id, fin, data } => self.on_data(id, fin, data, events),
            Frame::RstStream { id, status } => {
                if self.streams.remove(&id).is_some() {
                    events.push(Event::Reset { id, status });
                }
            }
            Frame::Ping(id) => {
                let ours = (id & 1 == 1) == (self.side == Side::Client);
                if !ours {
                    self.put(&Frame::Ping(id));
                }
            }
            Frame::GoAway { .. } => {
                self.going_away = true;
                events.push(Event::GoAway);
            }
            Frame::Settings(entries) => self.on_settings(&entries),
            Frame::WindowUpdate { id, delta } => self.on_window_update(id, delta),
        }
        Ok(())
    }

    fn on_open(&mut self, id: StreamId, fin: bool, headers: Headers, events: &mut Vec<Event>) -> Result<(), SpdyError> {
        let from_client = id % 2 == 1;
        if from_client == (self.side == Side::Client) || id <= self.last_remote {
            return Err(SpdyError::StreamId(id));
        }
        self.last_remote = id;
        if self.going_away {
            return Ok(());
        }
        if self.streams.len() >= MAX_STREAMS {
            self.put(&Frame::RstStream { id, status: status::REFUSED_STREAM });
            return Ok(());
        }
        self.streams.insert(id, Stream { window: self.initial_window, ..Stream::default() });
        events.push(Event::Opened { id, headers });
        self.on_fin(id, fin, events);
        Ok(())
    }

    /// Data for a stream that is gone is dropped: it may have crossed our reset.
    fn on_data(&mut self, id: StreamId, fin: bool, data: Bytes, events: &mut Vec<Event>) {
        let listening = self.streams.get(&id).is_some_and(|stream| !stream.remote_finished);
        if listening && !data.is_empty() {
            self.backlog += data.len();
            events.push(Event::Data { id, data });
        }
        self.on_fin(id, fin, events);
    }

    fn on_fin(&mut self, id: StreamId, fin: bool, events: &mut Vec<Event>) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| fin && !stream.remote_finished) {
            stream.remote_finished = true;
            events.push(Event::Finished(id));
            self.forget_if_done(id);
        }
    }

    fn on_settings(&mut self, entries: &[(u32, u32)]) {
        let Some(initial) = entries.iter().find(|(id, _)| *id == INITIAL_WINDOW_SETTING).map(|(_, v)| i64::from(*v))
        else {
            return;
        };
        let change = self.initial_window.map(|before| initial - before);
        self.initial_window = Some(initial);
        self.connection_window.get_or_insert(CONNECTION_WINDOW - self.sent);
        for stream in self.streams.values_mut() {
            stream.window = Some(match (stream.window, change) {
                (Some(window), Some(change)) => window + change,
                _ => initial - stream.sent,
            });
        }
        self.flush_all();
    }

    fn on_window_update(&mut self, id: StreamId, delta: u32) {
        if id == 0 {
            self.connection_window = self.connection_window.map(|window| window + i64::from(delta));
            self.flush_all();
        } else if let Some(stream) = self.streams.get_mut(&id) {
            stream.window = stream.window.map(|window| window + i64::from(delta));
            self.flush(id);
        }
    }

    fn flush_all(&mut self) {
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        ids.into_iter().for_each(|id| self.flush(id));
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::{any_frame, encode};
    use super::*;
    use proptest::prelude::*;

    fn pair() -> (Session, Session) {
        (Session::new(Side::Client), Session::new(Side::Server))
    }

    fn pass(from: &mut Session, to: &mut Session) -> Vec<Event> {
        let bytes = from.take_output();
        to.receive(&bytes).unwrap()
    }

    fn data(id: StreamId, text: &'static str) -> Event {
        Event::Data { id, data: Bytes::from_static(text.as_bytes()) }
    }

    #[test]
    fn data_waits_for_the_reply_and_both_ends_finish() {
        let (mut client, mut server) = pair();
        let headers = Headers::of(&[("streamtype", "stdin")]);
        let id = client.open(headers.clone()).unwrap();
        client.send(id, Bytes::from_static(b"in")).unwrap();
        client.finish(id);
        assert_eq!(client.queued(id), 2);
        assert_eq!(pass(&mut client, &mut server), [Event::Opened { id, headers }]);

        server.reply(id).unwrap();
        assert_eq!(pass(&mut server, &mut client), [Event::Replied(id)]);
        assert_eq!(pass(&mut client, &mut server), [data(id, "in"), Event::Finished(id)]);
        assert_eq!(server.backlog(), 2);
        server.consumed(id, 2);
        assert_eq!(server.backlog(), 0);
        assert_eq!(client.send(id, Bytes::new()), Err(Closed(id)));

        server.send(id, Bytes::from_static(b"out")).unwrap();
        server.finish(id);
        assert_eq!(pass(&mut server, &mut client), [data(id, "out"), Event::Finished(id)]);
        assert!(client.is_idle() && server.is_idle());
    }

    #[test]
    fn a_reset_ends_a_stream_on_both_sides_and_late_data_is_dropped() {
        let (mut client, mut server) = pair();
        let id = client.open(Headers::default()).unwrap();
        pass(&mut client, &mut server);
        server.reply(id).unwrap();
        pass(&mut server, &mut client);
        client.send(id, Bytes::from_static(b"late")).unwrap();
        server.reset(id, status::CANCEL);
        assert_eq!(pass(&mut client, &mut server), []);
        assert_eq!(pass(&mut server, &mut client), [Event::Reset { id, status: status::CANCEL }]);
        assert!(client.is_idle() && server.is_idle());
    }

    #[test]
    fn pings_are_answered_and_own_answers_are_not() {
        let (mut client, mut server) = pair();
        client.ping(4);
        assert_eq!(pass(&mut client, &mut server), []);
        assert!(server.has_output());
        assert_eq!(pass(&mut server, &mut client), []);
        assert!(!client.has_output());
    }

    #[test]
    fn streams_keep_their_order_and_their_side() {
        let (mut client, mut server) = pair();
        let id = client.open(Headers::default()).unwrap();
        let opening = client.take_output();
        server.receive(&opening).unwrap();
        let mut replay = Session::new(Side::Client);
        assert_eq!(replay.receive(&opening), Err(SpdyError::StreamId(id)));
    }

    #[test]
    fn windows_count_once_the_peer_announces_them() {
        let (mut client, mut server) = pair();
        let id = client.open(Headers::default()).unwrap();
        pass(&mut client, &mut server);
        server.reply(id).unwrap();
        pass(&mut server, &mut client);
        client.send(id, Bytes::from(vec![0; 200_000])).unwrap();
        assert_eq!(client.queued(id), 0, "a peer without windows takes all");

        server.put(&Frame::Settings(vec![(INITIAL_WINDOW_SETTING, 200_010)]));
        server.put(&Frame::WindowUpdate { id: 0, delta: 200_000 });
        pass(&mut server, &mut client);
        client.send(id, Bytes::from(vec![0; 100])).unwrap();
        assert_eq!(client.queued(id), 90);
        server.put(&Frame::WindowUpdate { id, delta: 90 });
        pass(&mut server, &mut client);
        assert_eq!(client.queued(id), 0);
    }

    #[test]
    fn no_streams_after_going_away() {
        let (mut client, mut server) = pair();
        server.go_away();
        assert_eq!(pass(&mut server, &mut client), [Event::GoAway]);
        assert_eq!(client.open(Headers::default()), Err(Closed(1)));
    }

    proptest! {
        /// Whatever frames come, in whatever order: the session answers or refuses, and counts right.
        #[test]
        fn any_frames_leave_a_session_whole(
            frames in proptest::collection::vec(any_frame(), 0..20),
            opened in 0u32..4,
        ) {
            let mut session = Session::new(Side::Server);
            let mut opening: Vec<Frame> = (0..opened)
                .map(|n| Frame::SynStream { id: 2 * n + 1, fin: false, headers: Headers::default() })
                .collect();
            opening.extend(frames);
            for piece in encode(&opening).chunks(61) {
                let Ok(events) = session.receive(piece) else { return Ok(()) };
                for event in events {
                    match event {
                        Event::Opened { id, .. } => {
                            let _ = session.reply(id);
                            let _ = session.send(id, Bytes::from_static(b"answer"));
                        }
                        Event::Data { id, data } => session.consumed(id, data.len()),
                        Event::Finished(id) => session.finish(id),
                        _ => {}
                    }
                }
                prop_assert_eq!(session.backlog(), 0);
                session.take_output();
            }
        }
    }
}
