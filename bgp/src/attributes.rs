//! Path attributes as values. Routes with equal attributes share one copy (see [`crate::rib`]).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What stands for a number over 65535 where a peer knows only two octets (RFC 6793).
pub const AS_TRANS: u32 = 23456;

/// Well-known communities (RFC 1997).
pub const NO_EXPORT: u32 = 0xffff_ff01;
pub const NO_ADVERTISE: u32 = 0xffff_ff02;
pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Origin {
    #[default]
    Igp,
    Egp,
    Incomplete,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Segment {
    /// An unordered set, which counts as one hop.
    pub set: bool,
    pub numbers: Box<[u32]>,
}

/// AS_PATH, the nearest AS first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct AsPath(pub Box<[Segment]>);

impl AsPath {
    pub fn sequence(numbers: &[u32]) -> Self {
        if numbers.is_empty() {
            return Self::default();
        }
        Self(Box::new([Segment { set: false, numbers: numbers.into() }]))
    }

    /// Hops as the decision process counts them (RFC 4271 section 9.1.2.2 a).
    pub fn hops(&self) -> usize {
        self.0.iter().map(|segment| if segment.set { 1 } else { segment.numbers.len() }).sum()
    }

    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|segment| segment.numbers.iter().copied())
    }

    /// The AS that the route came from: none where the path is empty or begins with a set.
    pub fn neighbour(&self) -> Option<u32> {
        self.0.first().filter(|segment| !segment.set).and_then(|segment| segment.numbers.first().copied())
    }

    /// With these in front, the first of them nearest.
    #[must_use]
    pub fn prepended(&self, numbers: &[u32]) -> Self {
        let mut segments = self.0.to_vec();
        match segments.first_mut() {
            Some(first) if !first.set && first.numbers.len() + numbers.len() <= 255 => {
                first.numbers = numbers.iter().chain(first.numbers.iter()).copied().collect();
            }
            _ => segments.insert(0, Segment { set: false, numbers: numbers.into() }),
        }
        Self(segments.into())
    }
}

impl fmt::Display for AsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            let numbers: Vec<String> = segment.numbers.iter().map(u32::to_string).collect();
            let text = if segment.set { format!("{{{}}}", numbers.join(",")) } else { numbers.join(" ") };
            write!(f, "{}{text}", if index > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

/// Where packets go. A peer on the link may give its link-local address too (RFC 2545).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    pub address: IpAddr,
    pub link_local: Option<Ipv6Addr>,
}

impl NextHop {
    pub fn of(address: IpAddr) -> Self {
        Self { address, link_local: None }
    }
}

/// A community, `AA:NN`, or a large one, `AA:NN:MM` (RFC 8092).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    Standard(u32),
    Large([u32; 3]),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a community such as 64512:100 or 64512:1:2")]
pub struct NotACommunity(pub String);

impl FromStr for Community {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        let parts: Vec<&str> = text.split(':').collect();
        let parsed = match parts[..] {
            [a, n] => a
                .parse::<u16>()
                .ok()
                .zip(n.parse::<u16>().ok())
                .map(|(a, n)| Self::Standard((u32::from(a) << 16) | u32::from(n))),
            [a, n, m] => match (a.parse(), n.parse(), m.parse()) {
                (Ok(a), Ok(n), Ok(m)) => Some(Self::Large([a, n, m])),
                _ => None,
            },
            _ => None,
        };
        parsed.ok_or_else(|| NotACommunity(text.to_owned()))
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(value) => write!(f, "{}:{}", value >> 16, value & 0xffff),
            Self::Large([a, n, m]) => write!(f, "{a}:{n}:{m}"),
        }
    }
}

impl Serialize for Community {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Community {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An optional transitive attribute that is not known here, handed on as it came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Opaque {
    pub flags: u8,
    pub kind: u8,
    pub value: Box<[u8]>,
}

/// What a route says beside its prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    pub origin: Origin,
    pub as_path: AsPath,
    pub next_hop: NextHop,
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    pub atomic_aggregate: bool,
    pub aggregator: Option<(u32, Ipv4Addr)>,
    pub communities: Box<[u32]>,
    pub extended_communities: Box<[u64]>,
    pub large_communities: Box<[[u32; 3]]>,
    pub originator_id: Option<Ipv4Addr>,
    pub cluster_list: Box<[Ipv4Addr]>,
    pub opaque: Box<[Opaque]>,
}

/// By what sets of attributes commonly differ in: each set is hashed when it comes, and again when the table of them grows.
impl Hash for Attributes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut word = |high: u32, low: u32| state.write_u64(u64::from(high) << 32 | u64::from(low));
        for segment in &self.as_path.0 {
            let (pairs, rest) = segment.numbers.as_chunks::<2>();
            pairs.iter().for_each(|[high, low]| word(*high, *low));
            rest.iter().for_each(|last| word(1, *last));
        }
        word(self.med.unwrap_or(0), self.local_pref.unwrap_or(0));
        match self.next_hop.address {
            IpAddr::V4(address) => word(0, address.into()),
            IpAddr::V6(address) => state.write_u128(address.into()),
        }
        self.communities.hash(state);
        self.large_communities.hash(state);
    }
}

impl Attributes {
    pub fn new(next_hop: NextHop) -> Self {
        Self {
            origin: Origin::Igp,
            as_path: AsPath::default(),
            next_hop,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Box::default(),
            extended_communities: Box::default(),
            large_communities: Box::default(),
            originator_id: None,
            cluster_list: Box::default(),
            opaque: Box::default(),
        }
    }

    pub fn has(&self, community: Community) -> bool {
        match community {
            Community::Standard(value) => self.communities.contains(&value),
            Community::Large(value) => self.large_communities.contains(&value),
        }
    }

    /// Adds it, where it is not there.
    pub fn add(&mut self, community: Community) {
        if self.has(community) {
            return;
        }
        match community {
            Community::Standard(value) => push(&mut self.communities, value),
            Community::Large(value) => push(&mut self.large_communities, value),
        }
    }
}

fn push<T: Copy>(list: &mut Box<[T]>, value: T) {
    *list = list.iter().copied().chain([value]).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_counts_a_set_as_one_hop_and_grows_at_the_front() {
        let set = Segment { set: true, numbers: [7, 8].into() };
        let path = AsPath([Segment { set: false, numbers: [1, 2].into() }, set.clone()].into());
        assert_eq!((path.hops(), path.neighbour()), (3, Some(1)));
        assert_eq!(path.prepended(&[9, 9]).to_string(), "9 9 1 2 {7,8}");
        assert_eq!(AsPath([set].into()).neighbour(), None);
        let long = AsPath::sequence(&[5; 255]).prepended(&[6]);
        assert_eq!((long.0.len(), long.hops()), (2, 256));
    }

    #[test]
    fn communities_are_read_as_the_field_writes_them() {
        assert_eq!("65535:1".parse(), Ok(Community::Standard(0xffff_0001)));
        assert_eq!("4200000000:1:2".parse(), Ok(Community::Large([4_200_000_000, 1, 2])));
        for wrong in ["65536:1", "1", "1:2:3:4", "a:b", ""] {
            assert_eq!(wrong.parse::<Community>(), Err(NotACommunity(wrong.into())));
        }
    }
}
