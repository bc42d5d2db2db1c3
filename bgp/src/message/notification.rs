//! NOTIFICATION: why a session ends, in numbers for the peer and in words for the operator.
//!
//! Source: RFC 4271 section 4.5 and 6, 4486 (cease), 5492, 6608 (state machine errors), 7313 (route refresh), 8538 (hard
//! reset), 9003 (shutdown communication), 9384 (BFD down), IANA "BGP Error Codes".

use std::fmt;

use crate::prefix::Family;

/// The longest shutdown communication, in bytes of UTF-8.
const COMMUNICATION: usize = 255;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notification {
    pub code: u8,
    pub subcode: u8,
    pub data: Vec<u8>,
}

macro_rules! errors {
    ($($name:ident = $code:literal / $subcode:literal;)*) => {
        $(pub const $name: (u8, u8) = ($code, $subcode);)*
    };
}

errors! {
    NOT_SYNCHRONIZED = 1 / 1;
    BAD_LENGTH = 1 / 2;
    BAD_TYPE = 1 / 3;
    OPEN_MALFORMED = 2 / 0;
    UNSUPPORTED_VERSION = 2 / 1;
    BAD_PEER_AS = 2 / 2;
    BAD_IDENTIFIER = 2 / 3;
    UNSUPPORTED_PARAMETER = 2 / 4;
    UNACCEPTABLE_HOLD_TIME = 2 / 6;
    UNSUPPORTED_CAPABILITY = 2 / 7;
    MALFORMED_ATTRIBUTES = 3 / 1;
    UNRECOGNIZED_WELL_KNOWN = 3 / 2;
    OPTIONAL_ATTRIBUTE = 3 / 9;
    INVALID_NETWORK = 3 / 10;
    HOLD_TIMER_EXPIRED = 4 / 0;
    UNEXPECTED_IN_OPEN_SENT = 5 / 1;
    UNEXPECTED_IN_OPEN_CONFIRM = 5 / 2;
    UNEXPECTED_IN_ESTABLISHED = 5 / 3;
    MAXIMUM_PREFIXES = 6 / 1;
    ADMINISTRATIVE_SHUTDOWN = 6 / 2;
    DECONFIGURED = 6 / 3;
    ADMINISTRATIVE_RESET = 6 / 4;
    REJECTED = 6 / 5;
    CONFIGURATION_CHANGE = 6 / 6;
    COLLISION = 6 / 7;
    OUT_OF_RESOURCES = 6 / 8;
    HARD_RESET = 6 / 9;
    BFD_DOWN = 6 / 10;
    REFRESH_LENGTH = 7 / 1;
}

impl Notification {
    pub fn new((code, subcode): (u8, u8)) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    pub fn with(kind: (u8, u8), data: impl Into<Vec<u8>>) -> Self {
        Self { data: data.into(), ..Self::new(kind) }
    }

    pub fn kind(&self) -> (u8, u8) {
        (self.code, self.subcode)
    }

    /// A shutdown or reset that says why (RFC 9003). The words are cut at 255 bytes.
    pub fn saying(kind: (u8, u8), words: &str) -> Self {
        let mut end = words.len().min(COMMUNICATION);
        while !words.is_char_boundary(end) {
            end -= 1;
        }
        let length = u8::try_from(end).unwrap_or(u8::MAX);
        Self::with(kind, [&[length][..], &words.as_bytes()[..end]].concat())
    }

    /// The peer told more prefixes of a family than it may (RFC 4486 section 4).
    pub fn maximum_prefixes(family: Family, bound: u32) -> Self {
        let [high, low] = family.afi().to_be_bytes();
        Self::with(MAXIMUM_PREFIXES, [&[high, low, 1][..], &bound.to_be_bytes()].concat())
    }

    /// Of which family, and how many at most, where that is said.
    fn bound(&self) -> Option<(Family, u32)> {
        let (MAXIMUM_PREFIXES, [high, low, safi, bound @ ..]) = (self.kind(), &self.data[..]) else { return None };
        let family = Family::from_wire(u16::from_be_bytes([*high, *low]), *safi)?;
        Some((family, u32::from_be_bytes(bound.try_into().ok()?)))
    }

    /// What the peer said in its own words (RFC 9003); none where it said nothing, or not as UTF-8.
    pub fn communication(&self) -> Option<&str> {
        if !matches!(self.kind(), ADMINISTRATIVE_SHUTDOWN | ADMINISTRATIVE_RESET) {
            return None;
        }
        let (&length, rest) = self.data.split_first()?;
        let said = rest.get(..usize::from(length))?;
        std::str::from_utf8(said).ok().filter(|text| !text.is_empty())
    }

    /// The same, so that a peer which would keep our routes drops them (RFC 8538 section 3).
    #[must_use]
    pub fn hard(self) -> Self {
        if self.kind() == HARD_RESET {
            return self;
        }
        Self::with(HARD_RESET, [&[self.code, self.subcode][..], &self.data].concat())
    }

    /// What a hard reset carries; itself otherwise.
    pub fn inner(&self) -> Self {
        match (self.kind(), &self.data[..]) {
            (HARD_RESET, [code, subcode, data @ ..]) => Self { code: *code, subcode: *subcode, data: data.to_vec() },
            _ => self.clone(),
        }
    }

    fn code_words(&self) -> &'static str {
        match self.code {
            1 => "message header error",
            2 => "OPEN message error",
            3 => "UPDATE message error",
            4 => "hold timer expired",
            5 => "state machine error",
            6 => "cease",
            7 => "ROUTE-REFRESH message error",
            8 => "send hold timer expired",
            _ => "unknown error",
        }
    }

    fn subcode_words(&self) -> Option<&'static str> {
        Some(match self.kind() {
            NOT_SYNCHRONIZED => "connection not synchronized",
            BAD_LENGTH => "bad message length",
            BAD_TYPE => "bad message type",
            UNSUPPORTED_VERSION => "unsupported version number",
            BAD_PEER_AS => "bad peer AS",
            BAD_IDENTIFIER => "bad BGP identifier",
            UNSUPPORTED_PARAMETER => "unsupported optional parameter",
            (2, 5) => "authentication failure",
            UNACCEPTABLE_HOLD_TIME => "unacceptable hold time",
            UNSUPPORTED_CAPABILITY => "unsupported capability",
            (2, 11) => "role mismatch",
            MALFORMED_ATTRIBUTES => "malformed attribute list",
            UNRECOGNIZED_WELL_KNOWN => "unrecognized well-known attribute",
            (3, 3) => "missing well-known attribute",
            (3, 4) => "attribute flags error",
            (3, 5) => "attribute length error",
            (3, 6) => "invalid ORIGIN attribute",
            (3, 7) => "AS routing loop",
            (3, 8) => "invalid NEXT_HOP attribute",
            OPTIONAL_ATTRIBUTE => "optional attribute error",
            INVALID_NETWORK => "invalid network field",
            (3, 11) => "malformed AS_PATH",
            UNEXPECTED_IN_OPEN_SENT => "unexpected message in OpenSent state",
            UNEXPECTED_IN_OPEN_CONFIRM => "unexpected message in OpenConfirm state",
            UNEXPECTED_IN_ESTABLISHED => "unexpected message in Established state",
            MAXIMUM_PREFIXES => "maximum number of prefixes reached",
            ADMINISTRATIVE_SHUTDOWN => "administrative shutdown",
            DECONFIGURED => "peer de-configured",
            ADMINISTRATIVE_RESET => "administrative reset",
            REJECTED => "connection rejected",
            CONFIGURATION_CHANGE => "other configuration change",
            COLLISION => "connection collision resolution",
            OUT_OF_RESOURCES => "out of resources",
            HARD_RESET => "hard reset",
            BFD_DOWN => "BFD down",
            REFRESH_LENGTH => "invalid message length",
            (_, 0) => return None,
            _ => "unknown subcode",
        })
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code_words())?;
        if let Some(words) = self.subcode_words() {
            write!(f, ": {words}")?;
        }
        write!(f, " ({}/{})", self.code, self.subcode)?;
        if self.kind() == HARD_RESET && self.data.len() >= 2 {
            return write!(f, ": {}", self.inner());
        }
        if let Some((family, bound)) = self.bound() {
            return write!(f, ": more than {bound} of {family}");
        }
        match (self.communication(), self.data.len()) {
            // Escaped: what a peer says goes to logs and terminals.
            (Some(words), _) => write!(f, ": {:?}", words),
            (None, 0) => Ok(()),
            (None, _) => {
                f.write_str(", data")?;
                self.data.iter().take(16).try_for_each(|byte| write!(f, " {byte:02x}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_operator() {
        let says = |notification: &Notification| notification.to_string();
        assert_eq!(says(&Notification::new(HOLD_TIMER_EXPIRED)), "hold timer expired (4/0)");
        assert_eq!(
            says(&Notification::with(BAD_PEER_AS, [0xfe, 0x4c])),
            "OPEN message error: bad peer AS (2/2), data fe 4c"
        );
        assert_eq!(says(&Notification::new((6, 77))), "cease: unknown subcode (6/77)");
        assert_eq!(says(&Notification::new((99, 0))), "unknown error (99/0)");
        let told = Notification::saying(ADMINISTRATIVE_SHUTDOWN, "upgrade \x1b[31m at 7");
        assert_eq!(says(&told), "cease: administrative shutdown (6/2): \"upgrade \\u{1b}[31m at 7\"");
        assert_eq!(
            says(&told.clone().hard()),
            "cease: hard reset (6/9): cease: administrative shutdown (6/2): \"upgrade \\u{1b}[31m at 7\""
        );
        assert_eq!(told.clone().hard().hard().inner(), told);
        let many = Notification::maximum_prefixes(Family::Ipv6, 1000);
        assert_eq!(many.data, [0, 2, 1, 0, 0, 3, 0xe8]);
        assert_eq!(says(&many), "cease: maximum number of prefixes reached (6/1): more than 1000 of IPv6");
    }

    #[test]
    fn a_communication_is_cut_at_a_character() {
        let long = Notification::saying(ADMINISTRATIVE_RESET, &"ß".repeat(200));
        assert_eq!((long.data[0], long.data.len()), (254, 255));
        assert_eq!(long.communication().unwrap().chars().count(), 127);
        assert_eq!(Notification::with(ADMINISTRATIVE_RESET, [9, b'x']).communication(), None);
    }
}
