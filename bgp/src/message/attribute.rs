//! The bytes of path attributes, each with its own way of dealing with faults.
//!
//! Source: RFC 4271 section 5, 7606 section 7, 4760 (MP_REACH, MP_UNREACH), 1997, 4360, 8092 (communities), 4456
//! (reflection), 6793 (AS4_PATH), 7607 (AS 0), 2545 and 8950 (next hops).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::notification::{MALFORMED_ATTRIBUTES, Notification, OPTIONAL_ATTRIBUTE, UNRECOGNIZED_WELL_KNOWN};
use super::update::{Fault, Treatment, prefixes};
use super::{Dialect, Reader};
use crate::attributes::{AS_TRANS, AsPath, Attributes, NextHop, Opaque, Origin, Segment};
use crate::prefix::{Family, Prefix};

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const PARTIAL: u8 = 0x20;
const EXTENDED_LENGTH: u8 = 0x10;

const ORIGIN: u8 = 1;
const AS_PATH: u8 = 2;
const NEXT_HOP: u8 = 3;
const MED: u8 = 4;
const LOCAL_PREF: u8 = 5;
const ATOMIC_AGGREGATE: u8 = 6;
const AGGREGATOR: u8 = 7;
const COMMUNITIES: u8 = 8;
const ORIGINATOR_ID: u8 = 9;
const CLUSTER_LIST: u8 = 10;
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;
const EXTENDED_COMMUNITIES: u8 = 16;
const AS4_PATH: u8 = 17;
const AS4_AGGREGATOR: u8 = 18;
const LARGE_COMMUNITIES: u8 = 32;

pub(super) fn name(kind: u8) -> &'static str {
    match kind {
        0 => "path attributes",
        ORIGIN => "ORIGIN",
        AS_PATH => "AS_PATH",
        NEXT_HOP => "NEXT_HOP",
        MED => "MULTI_EXIT_DISC",
        LOCAL_PREF => "LOCAL_PREF",
        ATOMIC_AGGREGATE => "ATOMIC_AGGREGATE",
        AGGREGATOR => "AGGREGATOR",
        COMMUNITIES => "COMMUNITIES",
        ORIGINATOR_ID => "ORIGINATOR_ID",
        CLUSTER_LIST => "CLUSTER_LIST",
        MP_REACH => "MP_REACH_NLRI",
        MP_UNREACH => "MP_UNREACH_NLRI",
        EXTENDED_COMMUNITIES => "EXTENDED COMMUNITIES",
        AS4_PATH => "AS4_PATH",
        AS4_AGGREGATOR => "AS4_AGGREGATOR",
        LARGE_COMMUNITIES => "LARGE_COMMUNITY",
        _ => "unknown attribute",
    }
}

/// The Optional and Transitive bits that a known attribute has.
fn flags(kind: u8) -> Option<u8> {
    match kind {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREF | ATOMIC_AGGREGATE => Some(TRANSITIVE),
        MED | ORIGINATOR_ID | CLUSTER_LIST | MP_REACH | MP_UNREACH => Some(OPTIONAL),
        AGGREGATOR | COMMUNITIES | EXTENDED_COMMUNITIES | AS4_PATH | AS4_AGGREGATOR | LARGE_COMMUNITIES => {
            Some(OPTIONAL | TRANSITIVE)
        }
        _ => None,
    }
}

/// The attributes of an UPDATE as they are read.
#[derive(Default)]
pub(super) struct Collected {
    pub next_hop: Option<NextHop>,
    pub reachable: Option<(NextHop, Vec<Prefix>)>,
    pub unreachable: Option<(Family, Vec<Prefix>)>,
    pub faults: Vec<Fault>,
    /// How many attributes there were.
    pub count: usize,
    seen: Vec<u8>,
    /// MP_REACH is of a family that is not spoken.
    foreign: bool,
    origin: Option<Origin>,
    as_path: Option<AsPath>,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<(u32, Ipv4Addr)>,
    aggregator: Option<(u32, Ipv4Addr)>,
    rest: Rest,
}

/// What has no default but absence.
#[derive(Default)]
struct Rest {
    med: Option<u32>,
    local_pref: Option<u32>,
    atomic_aggregate: bool,
    communities: Box<[u32]>,
    extended_communities: Box<[u64]>,
    large_communities: Box<[[u32; 3]]>,
    originator_id: Option<Ipv4Addr>,
    cluster_list: Box<[Ipv4Addr]>,
    opaque: Vec<Opaque>,
}

impl Collected {
    pub(super) fn read(&mut self, bytes: &[u8], dialect: &Dialect) -> Result<(), Notification> {
        let mut reader = Reader(bytes);
        while !reader.0.is_empty() {
            let Some((flags, kind, value)) = header(&mut reader) else {
                self.fault(0, "an attribute is longer than the list", Treatment::Withdrawn);
                return Ok(());
            };
            self.count += 1;
            self.one(flags, kind, value, dialect)?;
        }
        self.merge_as4(dialect);
        Ok(())
    }

    fn fault(&mut self, attribute: u8, what: &'static str, treatment: Treatment) {
        self.faults.push(Fault { attribute, what, treatment });
    }

    fn one(&mut self, given: u8, kind: u8, value: &[u8], dialect: &Dialect) -> Result<(), Notification> {
        if self.seen.contains(&kind) {
            if matches!(kind, MP_REACH | MP_UNREACH) {
                return Err(Notification::new(MALFORMED_ATTRIBUTES));
            }
            self.fault(kind, "given twice", Treatment::AttributeDiscarded);
            return Ok(());
        }
        self.seen.push(kind);
        let Some(expected) = flags(kind) else { return self.unknown(given, kind, value) };
        let wrong = given & (OPTIONAL | TRANSITIVE) != expected;
        if wrong {
            self.fault(kind, "wrong flags", treatment(kind));
        }
        match kind {
            // Their prefixes are read whatever the flags: they are what is then withdrawn.
            MP_REACH => return self.reach(value, dialect),
            MP_UNREACH => return self.unreach(value),
            _ if wrong => return Ok(()),
            _ => {}
        }
        if let Err(what) = self.value(kind, value, dialect) {
            self.fault(kind, what, treatment(kind));
        }
        Ok(())
    }

    fn unknown(&mut self, given: u8, kind: u8, value: &[u8]) -> Result<(), Notification> {
        if given & OPTIONAL == 0 {
            return Err(Notification::with(UNRECOGNIZED_WELL_KNOWN, raw(given, kind, value)));
        }
        if given & TRANSITIVE != 0 {
            // Handed on with the mark that not everybody knew it (RFC 4271 section 5).
            let flags = OPTIONAL | TRANSITIVE | PARTIAL;
            self.rest.opaque.push(Opaque { flags, kind, value: value.into() });
        }
        Ok(())
    }

    fn value(&mut self, kind: u8, value: &[u8], dialect: &Dialect) -> Result<(), &'static str> {
        let rest = &mut self.rest;
        match kind {
            ORIGIN => {
                self.origin = Some(match value {
                    [0] => Origin::Igp,
                    [1] => Origin::Egp,
                    [2] => Origin::Incomplete,
                    _ => return Err("no such origin"),
                });
            }
            AS_PATH => self.as_path = Some(path(value, dialect.four_octet_as)?),
            NEXT_HOP => {
                let address = Ipv4Addr::from(exact(value)?);
                if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
                    return Err("no address of a host");
                }
                self.next_hop = Some(NextHop::of(address.into()));
            }
            MED => rest.med = Some(u32::from_be_bytes(exact(value)?)),
            LOCAL_PREF | ORIGINATOR_ID | CLUSTER_LIST if dialect.external => {
                self.fault(kind, "from another AS", Treatment::AttributeDiscarded);
            }
            LOCAL_PREF => rest.local_pref = Some(u32::from_be_bytes(exact(value)?)),
            ORIGINATOR_ID => rest.originator_id = Some(exact::<4>(value)?.into()),
            CLUSTER_LIST => rest.cluster_list = list(value)?.into_iter().map(|id: [u8; 4]| id.into()).collect(),
            ATOMIC_AGGREGATE => {
                exact::<0>(value)?;
                rest.atomic_aggregate = true;
            }
            AGGREGATOR => self.aggregator = Some(aggregator(value, dialect.four_octet_as)?),
            COMMUNITIES => rest.communities = list(value)?.into_iter().map(u32::from_be_bytes).collect(),
            EXTENDED_COMMUNITIES => {
                rest.extended_communities = list(value)?.into_iter().map(u64::from_be_bytes).collect();
            }
            LARGE_COMMUNITIES => rest.large_communities = list(value)?.into_iter().map(large).collect(),
            AS4_PATH => self.as4_path = Some(path(value, true)?),
            _ => self.as4_aggregator = Some(aggregator(value, true)?),
        }
        Ok(())
    }

    fn reach(&mut self, value: &[u8], dialect: &Dialect) -> Result<(), Notification> {
        let broken = || Notification::with(OPTIONAL_ATTRIBUTE, raw(OPTIONAL, MP_REACH, value));
        let mut reader = Reader(value);
        let (Some(afi), Some(safi), Some(length)) = (reader.u16(), reader.u8(), reader.u8()) else {
            return Err(broken());
        };
        let address = reader.take(length.into()).ok_or_else(broken)?;
        reader.u8().ok_or_else(broken)?;
        let Some(family) = Family::from_wire(afi, safi) else {
            self.foreign = true;
            return Ok(());
        };
        let next_hop = next_hop(family, address, dialect).ok_or_else(broken)?;
        if next_hop.address.is_unspecified() || next_hop.address.is_multicast() {
            self.fault(MP_REACH, "the next hop is no address of a host", Treatment::Withdrawn);
        }
        self.reachable = Some((next_hop, prefixes(family, reader.0)?));
        Ok(())
    }

    fn unreach(&mut self, value: &[u8]) -> Result<(), Notification> {
        let mut reader = Reader(value);
        let (Some(afi), Some(safi)) = (reader.u16(), reader.u8()) else {
            return Err(Notification::with(OPTIONAL_ATTRIBUTE, raw(OPTIONAL, MP_UNREACH, value)));
        };
        if let Some(family) = Family::from_wire(afi, safi) {
            self.unreachable = Some((family, prefixes(family, reader.0)?));
        }
        Ok(())
    }

    /// Whether no prefixes are meant but those that were read: MP_UNREACH is alone, or MP_REACH is of a family that is
    /// not spoken.
    pub(super) fn means_no_routes(&self) -> bool {
        self.foreign || self.seen == [MP_UNREACH] && self.faults.iter().all(|fault| fault.attribute == MP_UNREACH)
    }

    /// What a route must have (RFC 7606 section 3 d).
    pub(super) fn miss_mandatory(&mut self, plain: bool) {
        let missing = [
            (ORIGIN, self.origin.is_none()),
            (AS_PATH, self.as_path.is_none()),
            (NEXT_HOP, plain && self.next_hop.is_none()),
        ];
        for (kind, missing) in missing {
            if missing && !self.faults.iter().any(|fault| fault.attribute == kind) {
                self.fault(kind, "missing", Treatment::Withdrawn);
            }
        }
    }

    /// The true path behind AS_TRANS (RFC 6793 section 4.2.3).
    fn merge_as4(&mut self, dialect: &Dialect) {
        if dialect.four_octet_as {
            return;
        }
        if self.aggregator.is_some_and(|(asn, _)| asn != AS_TRANS) && self.as4_aggregator.is_some() {
            return;
        }
        self.aggregator = self.as4_aggregator.or(self.aggregator);
        if let (Some(short), Some(long)) = (&self.as_path, &self.as4_path)
            && let Some(lead) = short.hops().checked_sub(long.hops())
        {
            let numbers: Vec<u32> = short.numbers().take(lead).collect();
            self.as_path = Some(if numbers.is_empty() { long.clone() } else { long.prepended(&numbers) });
        }
    }

    pub(super) fn attributes(&self, next_hop: NextHop) -> Attributes {
        let rest = &self.rest;
        Attributes {
            origin: self.origin.unwrap_or_default(),
            as_path: self.as_path.clone().unwrap_or_default(),
            next_hop,
            med: rest.med,
            local_pref: rest.local_pref,
            atomic_aggregate: rest.atomic_aggregate,
            aggregator: self.aggregator,
            communities: rest.communities.clone(),
            extended_communities: rest.extended_communities.clone(),
            large_communities: rest.large_communities.clone(),
            originator_id: rest.originator_id,
            cluster_list: rest.cluster_list.clone(),
            opaque: rest.opaque.clone().into(),
        }
    }
}

/// How a fault of this attribute is dealt with (RFC 7606 section 7, 6793 section 6).
fn treatment(kind: u8) -> Treatment {
    match kind {
        ATOMIC_AGGREGATE | AGGREGATOR | AS4_PATH | AS4_AGGREGATOR => Treatment::AttributeDiscarded,
        _ => Treatment::Withdrawn,
    }
}

fn header<'a>(reader: &mut Reader<'a>) -> Option<(u8, u8, &'a [u8])> {
    let (flags, kind) = (reader.u8()?, reader.u8()?);
    let length = match flags & EXTENDED_LENGTH != 0 {
        true => usize::from(reader.u16()?),
        false => usize::from(reader.u8()?),
    };
    Some((flags, kind, reader.take(length)?))
}

fn exact<const N: usize>(value: &[u8]) -> Result<[u8; N], &'static str> {
    value.try_into().map_err(|_| "wrong length")
}

fn list<const N: usize>(value: &[u8]) -> Result<Vec<[u8; N]>, &'static str> {
    let (items, rest) = value.as_chunks::<N>();
    if items.is_empty() || !rest.is_empty() {
        return Err("wrong length");
    }
    Ok(items.to_vec())
}

fn large(bytes: [u8; 12]) -> [u32; 3] {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [word(0), word(4), word(8)]
}

fn path(value: &[u8], four: bool) -> Result<AsPath, &'static str> {
    let mut reader = Reader(value);
    let mut segments = Vec::new();
    while let Some(kind) = reader.u8() {
        let count = reader.u8().ok_or("cut short")?;
        let set = match kind {
            1 => true,
            2 => false,
            3 | 4 => return Err("a confederation's segment from outside"),
            _ => return Err("no such segment"),
        };
        if count == 0 {
            return Err("an empty segment");
        }
        let number = |reader: &mut Reader<'_>| if four { reader.u32() } else { reader.u16().map(u32::from) };
        let numbers: Box<[u32]> = (0..count).map(|_| number(&mut reader)).collect::<Option<_>>().ok_or("cut short")?;
        if numbers.contains(&0) {
            return Err("AS 0");
        }
        segments.push(Segment { set, numbers });
    }
    Ok(AsPath(segments.into()))
}

fn aggregator(value: &[u8], four: bool) -> Result<(u32, Ipv4Addr), &'static str> {
    let (asn, address) = match four {
        true => {
            let [a, b, c, d, address @ ..] = exact::<8>(value)?;
            (u32::from_be_bytes([a, b, c, d]), address)
        }
        false => {
            let [a, b, address @ ..] = exact::<6>(value)?;
            (u32::from(u16::from_be_bytes([a, b])), address)
        }
    };
    if asn == 0 {
        return Err("AS 0");
    }
    Ok((asn, address.into()))
}

fn next_hop(family: Family, bytes: &[u8], dialect: &Dialect) -> Option<NextHop> {
    let six = |bytes: &[u8]| bytes.try_into().ok().map(|octets: [u8; 16]| Ipv6Addr::from(octets));
    match (family, bytes.len()) {
        (Family::Ipv4, 4) => {
            let octets: [u8; 4] = bytes.try_into().ok()?;
            Some(NextHop::of(Ipv4Addr::from(octets).into()))
        }
        (Family::Ipv4, 16 | 32) if !dialect.extended_next_hop => None,
        (_, 16) => Some(NextHop::of(six(bytes)?.into())),
        (_, 32) => {
            let (global, local) = (six(&bytes[..16])?, six(&bytes[16..])?);
            // Some send the link-local address in both places, or no global one.
            let address = if global.is_unspecified() { local } else { global };
            Some(NextHop { address: address.into(), link_local: local.is_unicast_link_local().then_some(local) })
        }
        _ => None,
    }
}

/// An attribute as it stands on the wire.
fn raw(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 4);
    put(&mut out, flags & !EXTENDED_LENGTH, kind, value);
    out
}

fn put(out: &mut Vec<u8>, flags: u8, kind: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, kind, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | EXTENDED_LENGTH, kind]);
            super::put16(out, u16::try_from(value.len()).unwrap_or(u16::MAX));
        }
    }
    out.extend_from_slice(value);
}

fn put_known(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    put(out, flags(kind).unwrap_or(OPTIONAL), kind, value);
}

/// All attributes but MP_REACH; NEXT_HOP only where the prefixes stand behind it.
pub(super) fn encode(attributes: &Attributes, dialect: &Dialect, plain: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_known(&mut out, ORIGIN, &[attributes.origin as u8]);
    put_known(&mut out, AS_PATH, &path_bytes(&attributes.as_path, dialect.four_octet_as));
    if let (true, IpAddr::V4(address)) = (plain, attributes.next_hop.address) {
        put_known(&mut out, NEXT_HOP, &address.octets());
    }
    let number = |out: &mut Vec<u8>, kind, value: Option<u32>| {
        if let Some(value) = value {
            put_known(out, kind, &value.to_be_bytes());
        }
    };
    number(&mut out, MED, attributes.med);
    number(&mut out, LOCAL_PREF, attributes.local_pref);
    if attributes.atomic_aggregate {
        put_known(&mut out, ATOMIC_AGGREGATE, &[]);
    }
    if let Some((asn, address)) = attributes.aggregator {
        let mut value = Vec::with_capacity(8);
        put_as(&mut value, asn, dialect.four_octet_as);
        value.extend_from_slice(&address.octets());
        put_known(&mut out, AGGREGATOR, &value);
    }
    put_list(&mut out, COMMUNITIES, attributes.communities.iter().flat_map(|value| value.to_be_bytes()));
    number(&mut out, ORIGINATOR_ID, attributes.originator_id.map(u32::from));
    put_list(&mut out, CLUSTER_LIST, attributes.cluster_list.iter().flat_map(|id| id.octets()));
    put_list(&mut out, EXTENDED_COMMUNITIES, attributes.extended_communities.iter().flat_map(|c| c.to_be_bytes()));
    if !dialect.four_octet_as {
        encode_as4(attributes, &mut out);
    }
    let large = attributes.large_communities.iter().flatten().flat_map(|word| word.to_be_bytes());
    put_list(&mut out, LARGE_COMMUNITIES, large);
    for opaque in &attributes.opaque {
        put(&mut out, opaque.flags, opaque.kind, &opaque.value);
    }
    out
}

/// The true numbers, for those behind a peer that knows two octets only (RFC 6793 section 4.2.2).
fn encode_as4(attributes: &Attributes, out: &mut Vec<u8>) {
    let long = |asn: u32| asn > u32::from(u16::MAX);
    if attributes.as_path.numbers().any(long) {
        put_known(out, AS4_PATH, &path_bytes(&attributes.as_path, true));
    }
    if let Some((asn, address)) = attributes.aggregator.filter(|(asn, _)| long(*asn)) {
        put_known(out, AS4_AGGREGATOR, &[&asn.to_be_bytes()[..], &address.octets()].concat());
    }
}

fn put_list(out: &mut Vec<u8>, kind: u8, bytes: impl Iterator<Item = u8>) {
    let value: Vec<u8> = bytes.collect();
    if !value.is_empty() {
        put_known(out, kind, &value);
    }
}

fn put_as(out: &mut Vec<u8>, asn: u32, four: bool) {
    match four {
        true => out.extend_from_slice(&asn.to_be_bytes()),
        false => super::put16(out, u16::try_from(asn).unwrap_or(AS_TRANS as u16)),
    }
}

fn path_bytes(path: &AsPath, four: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    for segment in &path.0 {
        for chunk in segment.numbers.chunks(255) {
            out.extend_from_slice(&[if segment.set { 1 } else { 2 }, u8::try_from(chunk.len()).unwrap_or(u8::MAX)]);
            chunk.iter().for_each(|asn| put_as(&mut out, *asn, four));
        }
    }
    out
}

/// MP_REACH_NLRI.
pub(super) fn reach(family: Family, next_hop: &NextHop, nlri: &[u8]) -> Vec<u8> {
    let mut value = family.afi().to_be_bytes().to_vec();
    value.push(1);
    match (next_hop.address, next_hop.link_local) {
        (IpAddr::V4(address), _) => {
            value.push(4);
            value.extend_from_slice(&address.octets());
        }
        (IpAddr::V6(address), Some(local)) => {
            value.push(32);
            value.extend_from_slice(&[address.octets(), local.octets()].concat());
        }
        (IpAddr::V6(address), None) => {
            value.push(16);
            value.extend_from_slice(&address.octets());
        }
    }
    value.push(0);
    value.extend_from_slice(nlri);
    let mut out = Vec::with_capacity(value.len() + 4);
    put_known(&mut out, MP_REACH, &value);
    out
}

/// MP_UNREACH_NLRI.
pub(super) fn unreach(family: Family, nlri: &[u8]) -> Vec<u8> {
    let [high, low] = family.afi().to_be_bytes();
    let mut out = Vec::with_capacity(nlri.len() + 7);
    put_known(&mut out, MP_UNREACH, &[&[high, low, 1][..], nlri].concat());
    out
}
