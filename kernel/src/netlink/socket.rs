//! One netlink socket: a request and its answers, with the kernel's interruptions retried.
//!
//! Source: netlink(7), and the kernel's Documentation/userspace-api/netlink/intro.rst.

use std::io;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NetlinkHeader,
};
use netlink_sys::{Socket as RawSocket, SocketAddr};

pub(super) const HEADER: usize = 16;
/// The kernel fills at most 32 KiB a datagram for a reader that offers as much.
const BUFFER: usize = 32 * 1024;
/// A dump that a change interrupts so often is a machine in trouble.
const DUMP_ATTEMPTS: usize = 10;

/// A socket to one netlink family, in the namespace where it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    raw: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One message of a batch.
pub(crate) struct Message<B> {
    pub kind: u16,
    pub flags: u16,
    pub body: B,
}

/// What one datagram's message means to the request that waits.
pub(super) enum Answer {
    Part(Vec<u8>),
    End,
}

impl Socket {
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = RawSocket::new(protocol)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { raw, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends one request and waits until the kernel says that it is done.
    pub(crate) fn act(&mut self, kind: u16, flags: u16, body: &impl Emitable) -> io::Result<()> {
        self.exchange(kind, flags | NLM_F_ACK, body).map(|_| ())
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, kind: u16, body: &impl Emitable) -> io::Result<Option<Vec<u8>>> {
        Ok(self.exchange(kind, NLM_F_ACK, body)?.0.into_iter().next())
    }

    /// Reads a whole table; a table that changed meanwhile is read again.
    pub(crate) fn dump(&mut self, kind: u16, body: &impl Emitable) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_ATTEMPTS {
            let (parts, interrupted) = self.exchange(kind, NLM_F_DUMP, body)?;
            if !interrupted {
                return Ok(parts);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the table kept changing while it was read"))
    }

    /// Sends a batch of nfnetlink, from its beginning to its end: the kernel takes all of it or nothing, before the call that
    /// sends it returns. An error comes with the place of the message that was refused.
    pub(crate) fn batch(&mut self, messages: &[Message<impl Emitable>]) -> Result<(), (usize, io::Error)> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (at, message) in messages.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            // One answer is enough to know that there is one; refusals come without being asked for.
            let acknowledged = if at + 2 == messages.len() { NLM_F_ACK } else { 0 };
            self.put(&mut bytes, message.kind, NLM_F_REQUEST | acknowledged | message.flags, &message.body);
        }
        let untold = |error| (0, error);
        self.transmit(&bytes).map_err(untold)?;
        let mut answered = false;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && answered => return Ok(()),
                done => done.map_err(untold)?,
            }
            let mut rest = &self.buffer[..];
            while rest.len() >= HEADER {
                let (header, payload, next) = split(rest).map_err(untold)?;
                rest = next;
                let at = header.sequence_number.wrapping_sub(first) as usize;
                answer(&header, payload).map_err(|error| (at, error))?;
                answered = true;
            }
        }
    }

    fn exchange(&mut self, kind: u16, flags: u16, body: &impl Emitable) -> io::Result<(Vec<Vec<u8>>, bool)> {
        self.send(kind, flags | NLM_F_REQUEST, body)?;
        let (mut parts, mut interrupted) = (Vec::new(), false);
        loop {
            self.receive(0)?;
            let datagram = std::mem::take(&mut self.buffer);
            let mut rest = &datagram[..];
            let mut ended = Ok(false);
            while rest.len() >= HEADER {
                let (header, payload, next) = split(rest)?;
                rest = next;
                if header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match answer(&header, payload) {
                    Ok(Answer::Part(part)) => parts.push(part),
                    Ok(Answer::End) => ended = Ok(true),
                    Err(error) => ended = Err(error),
                }
            }
            self.buffer = datagram;
            if ended? {
                return Ok((parts, interrupted));
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &impl Emitable) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        self.put(&mut bytes, kind, flags, body);
        self.transmit(&bytes)
    }

    /// Appends a message with the present number.
    fn put(&self, bytes: &mut Vec<u8>, kind: u16, flags: u16, body: &impl Emitable) {
        let (begin, length) = (bytes.len(), HEADER + body.buffer_len());
        bytes.resize(begin + length.next_multiple_of(4), 0);
        let mut header = NetlinkHeader::default();
        header.length = length as u32;
        header.message_type = kind;
        header.flags = flags;
        header.sequence_number = self.sequence;
        header.emit(&mut bytes[begin..]);
        body.emit(&mut bytes[begin + HEADER..begin + length]);
    }

    fn transmit(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.raw.send(bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done.map(|_| ()),
            }
        }
    }

    fn receive(&mut self, flags: i32) -> io::Result<()> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(BUFFER);
            match self.raw.recv(&mut self.buffer, libc::MSG_TRUNC | flags) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(size) if size > self.buffer.len() => {
                    return Err(io::Error::other(format!("an answer of {size} bytes does not fit the buffer")));
                }
                Ok(_) => return Ok(()),
            }
        }
    }
}

pub(super) fn split(bytes: &[u8]) -> io::Result<(NetlinkHeader, &[u8], &[u8])> {
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let length = word(0) as usize;
    if length < HEADER || length > bytes.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer's length field is wrong"));
    }
    let mut header = NetlinkHeader::default();
    header.length = length as u32;
    header.message_type = half(4);
    header.flags = half(6);
    header.sequence_number = word(8);
    let next = length.next_multiple_of(4).min(bytes.len());
    Ok((header, &bytes[HEADER..length], &bytes[next..]))
}

pub(super) fn answer(header: &NetlinkHeader, payload: &[u8]) -> io::Result<Answer> {
    let code = || payload.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    match header.message_type {
        // The smallest number has no positive counterpart, and is no error of any kernel.
        NLMSG_ERROR | NLMSG_DONE if code() < 0 => Err(io::Error::from_raw_os_error(code().wrapping_neg())),
        NLMSG_ERROR | NLMSG_DONE => Ok(Answer::End),
        NLMSG_NOOP => Ok(Answer::Part(Vec::new())),
        _ => Ok(Answer::Part(payload.to_vec())),
    }
}
