//! Frames and their bytes (section 2.2).

use super::headers::{Deflater, Headers, Inflater};
use super::{SpdyError, StreamId};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest control frame that is read. Data frames have no bound: they are handed on as they arrive.
pub const MAX_CONTROL: usize = 64 * 1024;

const HEAD: usize = 8;
const VERSION: u16 = 3;
const FIN: u8 = 1;

mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const SETTINGS: u16 = 4;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
    pub const WINDOW_UPDATE: u16 = 9;
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: StreamId,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: StreamId,
        fin: bool,
        headers: Headers,
    },
    Headers {
        id: StreamId,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        id: StreamId,
        status: u32,
    },
    /// Ids and values; 7 is the initial window of a stream.
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway {
        last_good: StreamId,
        status: u32,
    },
    /// Stream 0 is the connection.
    WindowUpdate {
        id: StreamId,
        delta: u32,
    },
    /// A data frame, or a part of one: a long frame is read in pieces, and the last of them carries its `fin`.
    Data {
        id: StreamId,
        fin: bool,
        data: Bytes,
    },
}

/// Both directions of one connection's framing.
pub struct Codec {
    inflater: Inflater,
    deflater: Deflater,
    input: BytesMut,
    /// The data frame whose bytes are arriving.
    open: Option<OpenData>,
}

#[derive(Clone, Copy)]
struct OpenData {
    id: StreamId,
    fin: bool,
    left: usize,
}

impl Default for Codec {
    fn default() -> Self {
        Self::new()
    }
}

impl Codec {
    pub fn new() -> Self {
        Self { inflater: Inflater::new(), deflater: Deflater::new(), input: BytesMut::new(), open: None }
    }

    /// Takes bytes from the peer; `next_frame` yields what they complete.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next frame, or none until more bytes come. Frames of unknown type are skipped, as the specification asks.
    ///
    /// # Errors
    /// Where the bytes are no SPDY/3; the connection is lost then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some(open) = self.open {
                return Ok(self.next_piece(open));
            }
            let Some(head) = self.input.get(..HEAD) else { return Ok(None) };
            let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let (flags, len) = (head[4], u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize);
            if first & 0x8000_0000 == 0 {
                self.input.advance(HEAD);
                self.open = Some(OpenData { id: first, fin: flags & FIN != 0, left: len });
                continue;
            }
            if len > MAX_CONTROL {
                return Err(SpdyError::TooLong(len));
            }
            if self.input.len() < HEAD + len {
                return Ok(None);
            }
            self.input.advance(HEAD);
            let body = self.input.split_to(len).freeze();
            let version = (first >> 16) as u16 & 0x7fff;
            if version != VERSION {
                return Err(SpdyError::Version(version));
            }
            if let Some(frame) = self.control((first & 0xffff) as u16, flags, body)? {
                return Ok(Some(frame));
            }
        }
    }

    fn next_piece(&mut self, mut open: OpenData) -> Option<Frame> {
        let len = open.left.min(self.input.len());
        if len == 0 && open.left > 0 {
            return None;
        }
        open.left -= len;
        let done = open.left == 0;
        self.open = (!done).then_some(open);
        Some(Frame::Data { id: open.id, fin: open.fin && done, data: self.input.split_to(len).freeze() })
    }

    fn control(&mut self, kind: u16, flags: u8, body: Bytes) -> Result<Option<Frame>, SpdyError> {
        let (fin, len) = (flags & FIN != 0, body.len());
        let mut rest = &body[..];
        let mut word = || rest.try_get_u32().map_err(|_| SpdyError::TooShort { kind, len });
        let frame = match kind {
            kind::SYN_STREAM => {
                let (id, _associated) = (word()? & 0x7fff_ffff, word()?);
                // Priority and credential slot say nothing to us.
                let block = rest.get(2..).ok_or(SpdyError::TooShort { kind, len })?;
                Frame::SynStream { id, fin, headers: self.inflater.inflate(block)? }
            }
            kind::SYN_REPLY => {
                let id = word()? & 0x7fff_ffff;
                Frame::SynReply { id, fin, headers: self.inflater.inflate(rest)? }
            }
            kind::HEADERS => {
                let id = word()? & 0x7fff_ffff;
                Frame::Headers { id, fin, headers: self.inflater.inflate(rest)? }
            }
            kind::RST_STREAM => Frame::RstStream { id: word()? & 0x7fff_ffff, status: word()? },
            kind::SETTINGS => {
                let count = word()?;
                let entries = (0..count).map(|_| Ok((word()? & 0x00ff_ffff, word()?))).collect::<Result<_, _>>()?;
                Frame::Settings(entries)
            }
            kind::PING => Frame::Ping(word()?),
            kind::GOAWAY => Frame::GoAway { last_good: word()? & 0x7fff_ffff, status: word()? },
            kind::WINDOW_UPDATE => Frame::WindowUpdate { id: word()? & 0x7fff_ffff, delta: word()? & 0x7fff_ffff },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }

    /// Appends the frame's bytes to `out`.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.deflater.deflate(headers);
                head(out, kind::SYN_STREAM, *fin, 10 + block.len());
                out.put_u32(*id);
                out.put_bytes(0, 6);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.encode_headers(kind::SYN_REPLY, (*id, *fin), headers, out),
            Frame::Headers { id, fin, headers } => self.encode_headers(kind::HEADERS, (*id, *fin), headers, out),
            Frame::RstStream { id, status } => words(out, kind::RST_STREAM, &[*id, *status]),
            Frame::Settings(entries) => {
                let mut all = vec![entries.len() as u32];
                all.extend(entries.iter().flat_map(|(id, value)| [*id, *value]));
                words(out, kind::SETTINGS, &all);
            }
            Frame::Ping(id) => words(out, kind::PING, &[*id]),
            Frame::GoAway { last_good, status } => words(out, kind::GOAWAY, &[*last_good, *status]),
            Frame::WindowUpdate { id, delta } => words(out, kind::WINDOW_UPDATE, &[*id, *delta]),
            Frame::Data { id, fin, data } => {
                out.put_u32(*id);
                flags_and_length(out, *fin, data.len());
                out.put_slice(data);
            }
        }
    }

    fn encode_headers(&mut self, kind: u16, (id, fin): (StreamId, bool), headers: &Headers, out: &mut BytesMut) {
        let block = self.deflater.deflate(headers);
        head(out, kind, fin, 4 + block.len());
        out.put_u32(id);
        out.put_slice(&block);
    }
}

fn words(out: &mut BytesMut, kind: u16, words: &[u32]) {
    head(out, kind, false, words.len() * 4);
    words.iter().for_each(|word| out.put_u32(*word));
}

fn head(out: &mut BytesMut, kind: u16, fin: bool, len: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    flags_and_length(out, fin, len);
}

fn flags_and_length(out: &mut BytesMut, fin: bool, len: usize) {
    out.put_u8(if fin { FIN } else { 0 });
    out.put_uint(len as u64, 3);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn encode(frames: &[Frame]) -> BytesMut {
        let (mut codec, mut out) = (Codec::new(), BytesMut::new());
        frames.iter().for_each(|frame| codec.encode(frame, &mut out));
        out
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, SpdyError> {
        let (mut codec, mut frames) = (Codec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            codec.feed(piece);
            while let Some(frame) = codec.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    /// Puts the pieces of data frames together again, up to what cannot be told apart: where a frame ended.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut out: Vec<Frame> = Vec::new();
        for frame in frames {
            match (out.last_mut(), frame) {
                (Some(Frame::Data { id, fin, data }), Frame::Data { id: next, fin: end, data: more })
                    if *id == next && !*fin =>
                {
                    *data = [&data[..], &more[..]].concat().into();
                    *fin = end;
                }
                (_, frame) => out.push(frame),
            }
        }
        out
    }

    #[test]
    fn frames_have_the_bytes_of_the_specification() {
        let ping = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9];
        assert_eq!(&encode(&[Frame::Ping(9)])[..], ping);
        assert_eq!(decode(&ping, 64), Ok(vec![Frame::Ping(9)]));

        let data = [0, 0, 0, 5, 1, 0, 0, 2, b'h', b'i'];
        let frame = Frame::Data { id: 5, fin: true, data: Bytes::from_static(b"hi") };
        assert_eq!(&encode(std::slice::from_ref(&frame))[..], data);
        assert_eq!(decode(&data, 64), Ok(vec![frame]));

        let settings = [0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 1, 0, 0, 7, 0, 1, 0, 0];
        assert_eq!(decode(&settings, 64), Ok(vec![Frame::Settings(vec![(7, 0x1_0000)])]));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(decode(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9], 64), Err(SpdyError::Version(2)));
        assert_eq!(decode(&[0x80, 3, 0, 6, 0, 0xff, 0, 0], 64), Err(SpdyError::TooLong(0xff_0000)));
        assert_eq!(decode(&[0x80, 3, 0, 3, 0, 0, 0, 1, 0], 64), Err(SpdyError::TooShort { kind: 3, len: 1 }));
        let unknown = [0x80, 3, 0, 99, 0, 0, 0, 1, 0, 0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9];
        assert_eq!(decode(&unknown, 64), Ok(vec![Frame::Ping(9)]));
    }

    pub fn any_frame() -> impl Strategy<Value = Frame> {
        let id = 1u32..0x7fff_ffff;
        let headers = proptest::collection::vec(("[a-z-]{1,12}", ".{0,20}"), 0..6).prop_map(Headers);
        prop_oneof![
            (id.clone(), any::<bool>(), headers.clone()).prop_map(|(id, fin, headers)| Frame::SynStream {
                id,
                fin,
                headers
            }),
            (id.clone(), any::<bool>(), headers.clone()).prop_map(|(id, fin, headers)| Frame::SynReply {
                id,
                fin,
                headers
            }),
            (id.clone(), any::<bool>(), headers).prop_map(|(id, fin, headers)| Frame::Headers { id, fin, headers }),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::RstStream { id, status }),
            proptest::collection::vec((0u32..0xff_ffff, any::<u32>()), 0..4).prop_map(Frame::Settings),
            any::<u32>().prop_map(Frame::Ping),
            (id.clone(), any::<u32>()).prop_map(|(last_good, status)| Frame::GoAway { last_good, status }),
            (id.clone(), 0u32..0x7fff_ffff).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            (id, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(id, fin, data)| Frame::Data { id, fin, data: data.into() }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_is_decoded(frames in proptest::collection::vec(any_frame(), 0..12), piece in 1usize..400) {
            prop_assert_eq!(joined(decode(&encode(&frames), piece).unwrap()), joined(frames));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), piece in 1usize..50) {
            let _ = decode(&bytes, piece);
        }
    }
}
