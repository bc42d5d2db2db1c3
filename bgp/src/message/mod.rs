//! The messages of BGP-4 and their bytes (RFC 4271 section 4).

mod attribute;
pub mod notification;
pub mod open;
pub mod update;

pub use notification::Notification;
pub use open::{Capabilities, GracefulRestart, Open};
pub use update::{Announced, Update};

use notification::{BAD_LENGTH, BAD_TYPE, NOT_SYNCHRONIZED, REFRESH_LENGTH};

use crate::prefix::Family;

const MARKER: [u8; 16] = [0xff; 16];
pub const HEADER: usize = 19;
/// The longest message without RFC 8654.
pub const LONGEST: usize = 4096;
/// The longest with it.
pub const LONGEST_EXTENDED: usize = 65535;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const REFRESH: u8 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Open(Open),
    Update(Update),
    Notification(Notification),
    Keepalive,
    /// The peer's routes are asked for anew (RFC 2918).
    RouteRefresh(Family),
    /// A refresh of a family or kind that is not spoken here: to be ignored.
    OtherRefresh,
}

/// What both sides agreed on that changes how bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// AS numbers have four octets (RFC 6793).
    pub four_octet_as: bool,
    pub extended_next_hop: bool,
    pub extended_message: bool,
    /// The peer is of another AS, so LOCAL_PREF and reflection attributes from it count for nothing.
    pub external: bool,
}

impl Dialect {
    /// Before an OPEN was seen.
    pub const BEFORE: Self =
        Self { four_octet_as: false, extended_next_hop: false, extended_message: false, external: true };

    pub fn longest(&self) -> usize {
        if self.extended_message { LONGEST_EXTENDED } else { LONGEST }
    }
}

/// The length of the message at the front of `bytes`, once its header is there.
///
/// # Errors
/// What to tell the peer where this is no header (RFC 4271 section 6.1).
pub fn frame(bytes: &[u8], dialect: &Dialect) -> Result<Option<usize>, Notification> {
    let present = bytes.len().min(MARKER.len());
    if bytes[..present] != MARKER[..present] {
        return Err(Notification::new(NOT_SYNCHRONIZED));
    }
    let Some(&[high, low, kind]) = bytes.get(16..HEADER) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // OPEN and KEEPALIVE stay short (RFC 8654 section 4).
    let (least, most) = match kind {
        OPEN => (29, LONGEST),
        UPDATE => (23, dialect.longest()),
        NOTIFICATION => (21, dialect.longest()),
        KEEPALIVE => (19, 19),
        REFRESH => (19, dialect.longest()),
        _ => return Err(Notification::with(BAD_TYPE, [kind])),
    };
    if length < least || length > most {
        return Err(Notification::with(BAD_LENGTH, [high, low]));
    }
    Ok(Some(length))
}

impl Message {
    /// Reads one whole message, its header included, of the length that [`frame`] gave.
    ///
    /// # Errors
    /// What to tell the peer before closing. Errors of an UPDATE that do not end the session are in the [`Update`].
    pub fn decode(bytes: &[u8], dialect: &Dialect) -> Result<Self, Notification> {
        let (Some(kind), Some(body)) = (bytes.get(18), bytes.get(HEADER..)) else {
            return Err(Notification::new(BAD_LENGTH));
        };
        match *kind {
            OPEN => Open::decode(body).map(Self::Open),
            UPDATE => Update::decode(body, dialect).map(Self::Update),
            NOTIFICATION => match body {
                [code, subcode, data @ ..] => Ok(Self::Notification(Notification::with((*code, *subcode), data))),
                _ => Err(Notification::new(BAD_LENGTH)),
            },
            KEEPALIVE => Ok(Self::Keepalive),
            REFRESH => match body {
                [high, low, 0, safi] => Ok(Family::from_wire(u16::from_be_bytes([*high, *low]), *safi)
                    .map_or(Self::OtherRefresh, Self::RouteRefresh)),
                [_, _, _, _] => Ok(Self::OtherRefresh),
                _ => Err(Notification::with(REFRESH_LENGTH, bytes)),
            },
            other => Err(Notification::with(BAD_TYPE, [other])),
        }
    }

    /// The type code.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Open(_) => OPEN,
            Self::Update(_) => UPDATE,
            Self::Notification(_) => NOTIFICATION,
            Self::Keepalive => KEEPALIVE,
            Self::RouteRefresh(_) | Self::OtherRefresh => REFRESH,
        }
    }

    /// The bytes; an UPDATE becomes as many messages as it needs.
    pub fn encode(&self, dialect: &Dialect) -> Vec<u8> {
        if let Self::Update(update) = self {
            return update.encode(dialect);
        }
        let mut out = Vec::new();
        begin(self.kind(), &mut out);
        match self {
            Self::Open(open) => open.encode(&mut out),
            Self::Notification(notification) => {
                out.extend_from_slice(&[notification.code, notification.subcode]);
                let room = LONGEST - out.len();
                out.extend_from_slice(&notification.data[..notification.data.len().min(room)]);
            }
            Self::Update(_) | Self::Keepalive => {}
            Self::RouteRefresh(family) => {
                put16(&mut out, family.afi());
                out.extend_from_slice(&[0, 1]);
            }
            Self::OtherRefresh => out.extend_from_slice(&[0, 0, 0, 0]),
        }
        finish(&mut out);
        out
    }
}

fn begin(kind: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[0, 0, kind]);
}

/// Writes the length of the message that `out` is.
fn finish(out: &mut [u8]) {
    let length = u16::try_from(out.len()).unwrap_or(u16::MAX);
    out[16..18].copy_from_slice(&length.to_be_bytes());
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Takes values off the front of bytes; `None` where there are too few.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N).and_then(|bytes| bytes.try_into().ok())
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
}

#[cfg(test)]
mod tests;
