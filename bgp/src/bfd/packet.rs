//! The control packet (RFC 5880 section 4.1).

use std::fmt;
use std::time::Duration;

use crate::message::Reader;

const VERSION: u8 = 1;
const LENGTH: u8 = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum State {
    AdminDown,
    Down,
    Init,
    Up,
}

/// Why a session last went down, as the packet says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Diagnostic {
    None,
    DetectionTimeExpired,
    EchoFailed,
    NeighbourSignaled,
    ForwardingPlaneReset,
    PathDown,
    ConcatenatedPathDown,
    AdministrativelyDown,
    ReverseConcatenatedPathDown,
    /// Not assigned.
    Other(u8),
}

impl Diagnostic {
    fn from_wire(code: u8) -> Self {
        match code {
            0 => Self::None,
            1 => Self::DetectionTimeExpired,
            2 => Self::EchoFailed,
            3 => Self::NeighbourSignaled,
            4 => Self::ForwardingPlaneReset,
            5 => Self::PathDown,
            6 => Self::ConcatenatedPathDown,
            7 => Self::AdministrativelyDown,
            8 => Self::ReverseConcatenatedPathDown,
            other => Self::Other(other),
        }
    }

    fn to_wire(self) -> u8 {
        match self {
            Self::None => 0,
            Self::DetectionTimeExpired => 1,
            Self::EchoFailed => 2,
            Self::NeighbourSignaled => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
            Self::Other(code) => code & 0x1f,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no diagnostic",
            Self::DetectionTimeExpired => "control detection time expired",
            Self::EchoFailed => "echo function failed",
            Self::NeighbourSignaled => "neighbour signaled session down",
            Self::ForwardingPlaneReset => "forwarding plane reset",
            Self::PathDown => "path down",
            Self::ConcatenatedPathDown => "concatenated path down",
            Self::AdministrativelyDown => "administratively down",
            Self::ReverseConcatenatedPathDown => "reverse concatenated path down",
            Self::Other(code) => return write!(f, "diagnostic {code}"),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub diagnostic: Diagnostic,
    pub state: State,
    /// An answer with `last` is wanted.
    pub poll: bool,
    /// The answer to a poll (the F bit).
    pub last: bool,
    /// The C bit.
    pub independent: bool,
    pub multiplier: u8,
    pub my_discriminator: u32,
    /// 0 where the sender has not heard of this side.
    pub your_discriminator: u32,
    pub desired_transmit: Duration,
    pub required_receive: Duration,
}

/// Why a packet is dropped (RFC 5880 section 6.8.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a packet shorter than it says, or than {LENGTH} bytes")]
    Short,
    #[error("version {0}, not 1")]
    Version(u8),
    #[error("authentication is not configured")]
    Authenticated,
    #[error("multipoint, multiplier 0 or discriminator 0")]
    Impossible,
}

impl Packet {
    /// # Errors
    /// What is wrong with a packet that must be dropped.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let mut byte = || reader.u8().ok_or(Malformed::Short);
        let (first, flags, multiplier, length) = (byte()?, byte()?, byte()?, byte()?);
        if first >> 5 != VERSION {
            return Err(Malformed::Version(first >> 5));
        }
        if length < LENGTH || usize::from(length) > bytes.len() {
            return Err(Malformed::Short);
        }
        if flags & 0x04 != 0 {
            return Err(Malformed::Authenticated);
        }
        let mut word = || reader.u32().ok_or(Malformed::Short);
        let (my_discriminator, your_discriminator) = (word()?, word()?);
        if flags & 0x01 != 0 || multiplier == 0 || my_discriminator == 0 {
            return Err(Malformed::Impossible);
        }
        Ok(Self {
            diagnostic: Diagnostic::from_wire(first & 0x1f),
            state: match flags >> 6 {
                0 => State::AdminDown,
                1 => State::Down,
                2 => State::Init,
                _ => State::Up,
            },
            poll: flags & 0x20 != 0,
            last: flags & 0x10 != 0,
            independent: flags & 0x08 != 0,
            multiplier,
            my_discriminator,
            your_discriminator,
            desired_transmit: Duration::from_micros(word()?.into()),
            required_receive: Duration::from_micros(word()?.into()),
        })
    }

    pub fn encode(&self) -> [u8; LENGTH as usize] {
        let mut out = [0; LENGTH as usize];
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out[0] = (VERSION << 5) | self.diagnostic.to_wire();
        out[1] =
            ((self.state as u8) << 6) | flag(self.poll, 0x20) | flag(self.last, 0x10) | flag(self.independent, 0x08);
        out[2] = self.multiplier;
        out[3] = LENGTH;
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let words = [
            self.my_discriminator,
            self.your_discriminator,
            micros(self.desired_transmit),
            micros(self.required_receive),
            0, // no echo
        ];
        for (place, word) in out[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        out
    }
}
