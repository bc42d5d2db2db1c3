//! UPDATE: routes withdrawn and announced.
//!
//! Errors are handled as RFC 7606 says: most turn the announced routes into withdrawn ones, some drop the attribute, and
//! only where the prefixes themselves cannot be told does the session end.
//!
//! Source: RFC 4271 section 4.3 and 6.3, 4760, 7606, 8950.

use std::fmt;

use super::attribute::{self, Collected};
use super::notification::{INVALID_NETWORK, MALFORMED_ATTRIBUTES, Notification};
use super::{Dialect, HEADER, Reader, UPDATE, begin, finish, put16};
use crate::attributes::Attributes;
use crate::prefix::{Family, Prefix};

/// Prefixes of one family that share their attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    pub attributes: Attributes,
    pub prefixes: Vec<Prefix>,
}

/// How a fault of an attribute was dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Treatment {
    AttributeDiscarded,
    Withdrawn,
}

/// A fault that did not end the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The attribute's type code; 0 where it is the list of attributes.
    pub attribute: u8,
    pub what: &'static str,
    pub treatment: Treatment,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let treatment = match self.treatment {
            Treatment::AttributeDiscarded => "attribute discarded",
            Treatment::Withdrawn => "routes treated as withdrawn",
        };
        write!(f, "{}: {}; {treatment}", attribute::name(self.attribute), self.what)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Update {
    pub withdrawn: Vec<Prefix>,
    /// At most one entry for each family.
    pub announced: Vec<Announced>,
    /// The peer has told all it knew of this family (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    pub faults: Vec<Fault>,
}

impl Update {
    /// Whether a fault turned announcements into withdrawals.
    pub fn is_treated_as_withdraw(&self) -> bool {
        self.faults.iter().any(|fault| fault.treatment == Treatment::Withdrawn)
    }

    pub(super) fn decode(body: &[u8], dialect: &Dialect) -> Result<Self, Notification> {
        let malformed = || Notification::new(MALFORMED_ATTRIBUTES);
        let mut reader = Reader(body);
        let length = reader.u16().ok_or_else(malformed)?;
        let withdrawn = reader.take(length.into()).ok_or_else(malformed)?;
        let length = reader.u16().ok_or_else(malformed)?;
        let attributes = reader.take(length.into()).ok_or_else(malformed)?;
        let nlri = reader.0;
        if withdrawn.is_empty() && attributes.is_empty() && nlri.is_empty() {
            return Ok(Self { end_of_rib: Some(Family::Ipv4), ..Self::default() });
        }
        let mut update = Self { withdrawn: prefixes(Family::Ipv4, withdrawn)?, ..Self::default() };
        let nlri = prefixes(Family::Ipv4, nlri)?;
        let mut collected = Collected::default();
        collected.read(attributes, dialect)?;
        if let Some((family, gone)) = collected.unreachable.take() {
            if update.withdrawn.is_empty() && gone.is_empty() && nlri.is_empty() && collected.count == 1 {
                update.end_of_rib = Some(family);
            }
            update.withdrawn.extend(gone);
        }
        update.settle(nlri, collected)?;
        Ok(update)
    }

    /// Puts prefixes and attributes together, or withdraws them.
    ///
    /// # Errors
    /// Where routes are to be withdrawn and none is told: which ones the peer meant stands in what could not be read, and
    /// its session ends (RFC 7606 section 5.2).
    fn settle(&mut self, nlri: Vec<Prefix>, mut collected: Collected) -> Result<(), Notification> {
        let reachable = collected.reachable.take();
        let multiprotocol = reachable.as_ref().map_or(&[][..], |(_, prefixes)| &prefixes[..]);
        if !nlri.is_empty() || !multiprotocol.is_empty() {
            collected.miss_mandatory(!nlri.is_empty());
        }
        if collected.faults.iter().any(|fault| fault.treatment == Treatment::Withdrawn) {
            if nlri.is_empty() && multiprotocol.is_empty() && !collected.means_no_routes() {
                return Err(Notification::new(MALFORMED_ATTRIBUTES));
            }
            self.withdrawn.extend(nlri.iter().chain(multiprotocol));
            self.faults = collected.faults;
            return Ok(());
        }
        self.faults = std::mem::take(&mut collected.faults);
        if let (false, Some(next_hop)) = (nlri.is_empty(), collected.next_hop) {
            self.announced.push(Announced { attributes: collected.attributes(next_hop), prefixes: nlri });
        }
        if let Some((next_hop, prefixes)) = reachable.filter(|(_, prefixes)| !prefixes.is_empty()) {
            self.announced.push(Announced { attributes: collected.attributes(next_hop), prefixes });
        }
        Ok(())
    }

    /// As many messages as it needs. Routes whose attributes fit into none are left out.
    pub(super) fn encode(&self, dialect: &Dialect) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(family) = self.end_of_rib {
            end_of_rib(family, &mut out);
        }
        for family in Family::ALL {
            let of_family: Vec<Prefix> = self.withdrawn.iter().filter(|p| p.family() == family).copied().collect();
            withdraw(family, &of_family, dialect, &mut out);
        }
        for announced in &self.announced {
            let _fits = announce(&announced.attributes, &announced.prefixes, dialect, &mut out);
        }
        out
    }
}

/// # Errors
/// RFC 4271 section 6.3: what cannot be parsed ends the session (RFC 7606 section 5.3).
pub(super) fn prefixes(family: Family, mut bytes: &[u8]) -> Result<Vec<Prefix>, Notification> {
    let mut prefixes = Vec::with_capacity(bytes.len() / 4);
    while !bytes.is_empty() {
        prefixes.push(Prefix::decode(family, &mut bytes).ok_or_else(|| Notification::new(INVALID_NETWORK))?);
    }
    Ok(prefixes)
}

/// Appends UPDATEs that announce `prefixes`, all of one family, with these attributes; whether the attributes fit into
/// a message at all.
#[must_use]
pub fn announce(attributes: &Attributes, prefixes: &[Prefix], dialect: &Dialect, out: &mut Vec<u8>) -> bool {
    let Some(family) = prefixes.first().map(Prefix::family) else { return true };
    let plain = family == Family::Ipv4 && attributes.next_hop.address.is_ipv4();
    let shared = attribute::encode(attributes, dialect, plain);
    // Withdrawn length, attributes' length, MP_REACH with the longest next hop.
    let overhead = HEADER + 4 + shared.len() + if plain { 0 } else { 4 + 5 + 32 };
    let mut rest = prefixes;
    while !rest.is_empty() {
        let Some(room) = dialect.longest().checked_sub(overhead + 17) else { return false };
        let start = out.len();
        begin(UPDATE, out);
        put16(out, 0);
        let count = if plain {
            put16(out, u16::try_from(shared.len()).unwrap_or(u16::MAX));
            out.extend_from_slice(&shared);
            pack(rest, room, out)
        } else {
            let mut nlri = Vec::with_capacity(room.min(rest.len() * 17));
            let count = pack(rest, room, &mut nlri);
            let reach = attribute::reach(family, &attributes.next_hop, &nlri);
            put16(out, u16::try_from(shared.len() + reach.len()).unwrap_or(u16::MAX));
            out.extend_from_slice(&reach);
            out.extend_from_slice(&shared);
            count
        };
        rest = &rest[count..];
        finish(&mut out[start..]);
        debug_assert!(out.len() - start <= dialect.longest());
    }
    true
}

/// Appends UPDATEs that withdraw `prefixes`, all of this family.
pub fn withdraw(family: Family, prefixes: &[Prefix], dialect: &Dialect, out: &mut Vec<u8>) {
    let mut rest = prefixes;
    while !rest.is_empty() {
        let mut nlri = Vec::with_capacity(rest.len().min(1024) * 5);
        let count = pack(rest, dialect.longest() - HEADER - 32, &mut nlri);
        rest = &rest[count..];
        let start = out.len();
        begin(UPDATE, out);
        match family {
            Family::Ipv4 => {
                put16(out, u16::try_from(nlri.len()).unwrap_or(u16::MAX));
                out.extend_from_slice(&nlri);
                put16(out, 0);
            }
            Family::Ipv6 => put_unreach(family, &nlri, out),
        }
        finish(&mut out[start..]);
    }
}

/// Appends the marker that all of a family has been told.
pub fn end_of_rib(family: Family, out: &mut Vec<u8>) {
    let start = out.len();
    begin(UPDATE, out);
    match family {
        Family::Ipv4 => out.extend_from_slice(&[0; 4]),
        Family::Ipv6 => put_unreach(family, &[], out),
    }
    finish(&mut out[start..]);
}

fn put_unreach(family: Family, nlri: &[u8], message: &mut Vec<u8>) {
    let attribute = attribute::unreach(family, nlri);
    put16(message, 0);
    put16(message, u16::try_from(attribute.len()).unwrap_or(u16::MAX));
    message.extend_from_slice(&attribute);
}

/// Appends as many of the prefixes as fit into `room`, at least one; how many.
fn pack(prefixes: &[Prefix], room: usize, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    let mut count = 0;
    for prefix in prefixes {
        if count > 0 && out.len() - start + prefix.encoded() > room {
            break;
        }
        prefix.encode(out);
        count += 1;
    }
    count
}
