//! OPEN and its capabilities.
//!
//! Source: RFC 4271 section 4.2 and 6.2, 5492 (capabilities), 9072 (long parameters), 4760, 6793, 2918, 4724, 8538, 8950,
//! 8654.

use std::net::Ipv4Addr;

use super::notification::{
    BAD_IDENTIFIER, BAD_PEER_AS, Notification, OPEN_MALFORMED, UNACCEPTABLE_HOLD_TIME, UNSUPPORTED_PARAMETER,
    UNSUPPORTED_VERSION,
};
use super::{Reader, put16};
use crate::attributes::AS_TRANS;
use crate::prefix::Family;

const VERSION: u8 = 4;
const PARAMETER_CAPABILITIES: u8 = 2;
const PARAMETER_EXTENDED: u8 = 255;

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const EXTENDED_NEXT_HOP: u8 = 5;
const EXTENDED_MESSAGE: u8 = 6;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;

/// Graceful restart as one side says it (RFC 4724 section 3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GracefulRestart {
    /// The sender has just restarted.
    pub restarting: bool,
    /// NOTIFICATIONs and the hold timer do not end forwarding either (RFC 8538).
    pub notifications: bool,
    /// Seconds, at most 4095.
    pub time: u16,
    /// Families it keeps, and whether it kept forwarding.
    pub families: Vec<(Family, bool)>,
}

/// What a speaker can do. Unknown capabilities are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    pub families: Vec<Family>,
    pub route_refresh: bool,
    /// IPv4 prefixes may have an IPv6 next hop.
    pub extended_next_hop: bool,
    /// Messages up to 65535 bytes.
    pub extended_message: bool,
    pub graceful_restart: Option<GracefulRestart>,
    pub four_octet_as: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The two-octet field; the true number is [`Open::asn`].
    pub my_as: u16,
    /// Seconds; 0 is without keepalives.
    pub hold_time: u16,
    pub identifier: Ipv4Addr,
    pub capabilities: Capabilities,
}

impl Open {
    pub fn new(asn: u32, hold_time: u16, identifier: Ipv4Addr, mut capabilities: Capabilities) -> Self {
        capabilities.four_octet_as = Some(asn);
        let my_as = u16::try_from(asn).unwrap_or(AS_TRANS as u16);
        Self { my_as, hold_time, identifier, capabilities }
    }

    pub fn asn(&self) -> u32 {
        self.capabilities.four_octet_as.unwrap_or(u32::from(self.my_as))
    }

    /// The families of a peer: one that does not say speaks IPv4 (RFC 4760 section 8).
    pub fn families(&self) -> Vec<Family> {
        match self.capabilities.families.is_empty() {
            true => vec![Family::Ipv4],
            false => self.capabilities.families.clone(),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        put16(out, self.my_as);
        put16(out, self.hold_time);
        out.extend_from_slice(&self.identifier.octets());
        let capabilities = self.capabilities.encode();
        if capabilities.is_empty() {
            out.push(0);
            return;
        }
        // Ours are far below 250 bytes: two families are all there are.
        let length = u8::try_from(capabilities.len()).unwrap_or(u8::MAX);
        out.extend_from_slice(&[length + 2, PARAMETER_CAPABILITIES, length]);
        out.extend_from_slice(&capabilities);
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, Notification> {
        let malformed = || Notification::new(OPEN_MALFORMED);
        let mut reader = Reader(body);
        let version = reader.u8().ok_or_else(malformed)?;
        if version != VERSION {
            return Err(Notification::with(UNSUPPORTED_VERSION, [0, VERSION]));
        }
        let my_as = reader.u16().ok_or_else(malformed)?;
        let hold_time = reader.u16().ok_or_else(malformed)?;
        let identifier = Ipv4Addr::from(reader.u32().ok_or_else(malformed)?);
        let capabilities = parameters(&mut reader)?;
        let open = Self { my_as, hold_time, identifier, capabilities };
        if open.asn() == 0 {
            return Err(Notification::new(BAD_PEER_AS));
        }
        if identifier.is_unspecified() {
            return Err(Notification::with(BAD_IDENTIFIER, identifier.octets()));
        }
        if matches!(hold_time, 1 | 2) {
            return Err(Notification::with(UNACCEPTABLE_HOLD_TIME, hold_time.to_be_bytes()));
        }
        Ok(open)
    }
}

/// The optional parameters, with short or long lengths (RFC 9072).
fn parameters(reader: &mut Reader<'_>) -> Result<Capabilities, Notification> {
    let malformed = || Notification::new(OPEN_MALFORMED);
    let mut length = usize::from(reader.u8().ok_or_else(malformed)?);
    let extended = length != 0 && reader.0.first() == Some(&PARAMETER_EXTENDED);
    if extended {
        reader.u8();
        length = usize::from(reader.u16().ok_or_else(malformed)?);
    }
    if reader.0.len() != length {
        return Err(malformed());
    }
    let mut capabilities = Capabilities::default();
    while let Some(kind) = reader.u8() {
        let length = if extended { reader.u16().map(usize::from) } else { reader.u8().map(usize::from) };
        let value = length.and_then(|length| reader.take(length)).ok_or_else(malformed)?;
        if kind != PARAMETER_CAPABILITIES {
            return Err(Notification::with(UNSUPPORTED_PARAMETER, [kind]));
        }
        capabilities.read(value)?;
    }
    Ok(capabilities)
}

impl Capabilities {
    fn read(&mut self, bytes: &[u8]) -> Result<(), Notification> {
        let malformed = || Notification::new(OPEN_MALFORMED);
        let mut reader = Reader(bytes);
        while let Some(code) = reader.u8() {
            let length = reader.u8().ok_or_else(malformed)?;
            let value = reader.take(usize::from(length)).ok_or_else(malformed)?;
            self.read_one(code, value).ok_or_else(malformed)?;
        }
        Ok(())
    }

    /// `None` where a known capability has a length that it cannot have.
    fn read_one(&mut self, code: u8, value: &[u8]) -> Option<()> {
        let mut reader = Reader(value);
        match code {
            MULTIPROTOCOL => {
                let (afi, _, safi) = (reader.u16()?, reader.u8()?, reader.u8()?);
                if let Some(family) = Family::from_wire(afi, safi).filter(|family| !self.families.contains(family)) {
                    self.families.push(family);
                }
            }
            ROUTE_REFRESH => self.route_refresh = true,
            EXTENDED_NEXT_HOP => {
                while !reader.0.is_empty() {
                    let triple = (reader.u16()?, reader.u16()?, reader.u16()?);
                    self.extended_next_hop |= triple == (1, 1, 2);
                }
            }
            EXTENDED_MESSAGE => self.extended_message = true,
            GRACEFUL_RESTART => {
                let head = reader.u16()?;
                let mut restart = GracefulRestart {
                    restarting: head & 0x8000 != 0,
                    notifications: head & 0x4000 != 0,
                    time: head & 0x0fff,
                    families: Vec::new(),
                };
                while !reader.0.is_empty() {
                    let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
                    restart.families.extend(Family::from_wire(afi, safi).map(|family| (family, flags & 0x80 != 0)));
                }
                self.graceful_restart = Some(restart);
            }
            FOUR_OCTET_AS => self.four_octet_as = Some(reader.u32()?),
            _ => {}
        }
        Some(())
    }

    /// The list of capabilities, as an OPEN and "unsupported capability" carry it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |code: u8, value: &[u8]| {
            out.extend_from_slice(&[code, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
            out.extend_from_slice(value);
        };
        for family in &self.families {
            let [high, low] = family.afi().to_be_bytes();
            put(MULTIPROTOCOL, &[high, low, 0, 1]);
        }
        if self.route_refresh {
            put(ROUTE_REFRESH, &[]);
        }
        if self.extended_next_hop {
            put(EXTENDED_NEXT_HOP, &[0, 1, 0, 1, 0, 2]);
        }
        if self.extended_message {
            put(EXTENDED_MESSAGE, &[]);
        }
        if let Some(restart) = &self.graceful_restart {
            let flags = (u16::from(restart.restarting) << 15) | (u16::from(restart.notifications) << 14);
            let mut value = (flags | restart.time.min(0x0fff)).to_be_bytes().to_vec();
            for (family, forwarding) in &restart.families {
                let [high, low] = family.afi().to_be_bytes();
                value.extend_from_slice(&[high, low, 1, u8::from(*forwarding) << 7]);
            }
            put(GRACEFUL_RESTART, &value);
        }
        if let Some(asn) = self.four_octet_as {
            put(FOUR_OCTET_AS, &asn.to_be_bytes());
        }
        out
    }
}
