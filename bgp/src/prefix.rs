//! Address prefixes, five bytes for IPv4 and seventeen for IPv6, because a table holds a million of them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address families that are spoken: unicast of IPv4 and IPv6 (RFC 4760).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    #[serde(rename = "IPv4")]
    Ipv4,
    #[serde(rename = "IPv6")]
    Ipv6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The address family identifier.
    pub fn afi(self) -> u16 {
        match self {
            Self::Ipv4 => 1,
            Self::Ipv6 => 2,
        }
    }

    /// `None` for what is not spoken here.
    pub fn from_wire(afi: u16, safi: u8) -> Option<Self> {
        match (afi, safi) {
            (1, 1) => Some(Self::Ipv4),
            (2, 1) => Some(Self::Ipv6),
            _ => None,
        }
    }

    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// The longest prefix.
    pub fn bits(self) -> u8 {
        match self {
            Self::Ipv4 => 32,
            Self::Ipv6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Ipv4 { "IPv4" } else { "IPv6" })
    }
}

/// A prefix of one family, the host bits being zero. `N` is the number of bytes of an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Net<const N: usize> {
    address: [u8; N],
    length: u8,
}

/// What sixteen neighbours have in common, then which of them it is.
impl<const N: usize> Hash for Net<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let address = self.address.iter().fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
        let bits = address.checked_shr((N * 8) as u32 - u32::from(self.length)).unwrap_or(0);
        let common = bits >> 4;
        if N > 4 {
            state.write_u64((common >> 64) as u64);
        }
        state.write_u64((common as u64).rotate_left(8) ^ u64::from(self.length));
        state.write_u8(bits as u8 & 15);
    }
}

pub type Net4 = Net<4>;
pub type Net6 = Net<16>;

impl<const N: usize> Net<N> {
    /// Host bits are cleared. `None` where the length is more than the address has.
    pub fn new(mut address: [u8; N], length: u8) -> Option<Self> {
        if usize::from(length) > N * 8 {
            return None;
        }
        let whole = usize::from(length / 8);
        if whole < N {
            address[whole] &= !(0xff_u8.checked_shr(u32::from(length % 8)).unwrap_or(0));
            address[whole + 1..].fill(0);
        }
        Some(Self { address, length })
    }

    /// The bytes that go on the wire after the length.
    pub fn significant(&self) -> &[u8] {
        &self.address[..usize::from(self.length).div_ceil(8)]
    }

    pub fn address(&self) -> [u8; N] {
        self.address
    }

    pub fn length(&self) -> u8 {
        self.length
    }
}

/// A prefix of either family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    V4(Net4),
    V6(Net6),
}

impl Prefix {
    /// Host bits are cleared. `None` where the length is more than the address has.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Net::new(address.octets(), length).map(Self::V4),
            IpAddr::V6(address) => Net::new(address.octets(), length).map(Self::V6),
        }
    }

    pub fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::Ipv4,
            Self::V6(_) => Family::Ipv6,
        }
    }

    pub fn address(&self) -> IpAddr {
        match self {
            Self::V4(net) => Ipv4Addr::from(net.address).into(),
            Self::V6(net) => Ipv6Addr::from(net.address).into(),
        }
    }

    pub fn length(&self) -> u8 {
        match self {
            Self::V4(net) => net.length,
            Self::V6(net) => net.length,
        }
    }

    /// Whether `other` is this prefix or lies within.
    pub fn contains(&self, other: &Self) -> bool {
        self.family() == other.family()
            && self.length() <= other.length()
            && Self::new(other.address(), self.length()) == Some(*self)
    }

    /// Appends it as NLRI (RFC 4271 section 4.3).
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.length());
        match self {
            Self::V4(net) => out.extend_from_slice(net.significant()),
            Self::V6(net) => out.extend_from_slice(net.significant()),
        }
    }

    /// Bytes on the wire.
    pub fn encoded(&self) -> usize {
        1 + usize::from(self.length()).div_ceil(8)
    }

    /// Takes one prefix off the front of `bytes`. `None` where it is malformed. Bits past the length are ignored, as the
    /// RFC says.
    pub fn decode(family: Family, bytes: &mut &[u8]) -> Option<Self> {
        let (&length, rest) = bytes.split_first()?;
        if length > family.bits() {
            return None;
        }
        let (significant, rest) = rest.split_at_checked(usize::from(length).div_ceil(8))?;
        *bytes = rest;
        match family {
            Family::Ipv4 => Net::new(padded(significant), length).map(Self::V4),
            Family::Ipv6 => Net::new(padded(significant), length).map(Self::V6),
        }
    }
}

fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut whole = [0; N];
    whole[..bytes.len()].copy_from_slice(bytes);
    whole
}

/// Which prefixes a table of one family is keyed by.
pub trait Key: Copy + Eq + Hash + Ord {
    fn prefix(self) -> Prefix;
}

impl Key for Net4 {
    fn prefix(self) -> Prefix {
        Prefix::V4(self)
    }
}

impl Key for Net6 {
    fn prefix(self) -> Prefix {
        Prefix::V6(self)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.length())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> fmt::Debug for Net<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.address, self.length)
    }
}

/// A text that is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a prefix such as 10.0.0.0/8 or fd00::/64")]
pub struct NotAPrefix(pub String);

impl FromStr for Prefix {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let parsed = || {
            let (address, length) = text.split_once('/')?;
            Self::new(address.parse().ok()?, length.parse().ok()?)
        };
        parsed().ok_or_else(|| NotAPrefix(text.to_owned()))
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(prefix("10.1.2.3/22").to_string(), "10.1.0.0/22");
        assert_eq!(prefix("255.255.255.255/32").to_string(), "255.255.255.255/32");
        assert_eq!(prefix("1.2.3.4/0").to_string(), "0.0.0.0/0");
        assert_eq!(prefix("fd00:1:2:3:4::/65").to_string(), "fd00:1:2:3::/65");
        assert_eq!("10.0.0.0/33".parse::<Prefix>(), Err(NotAPrefix("10.0.0.0/33".into())));
    }

    #[test]
    fn containment_is_by_family_length_and_bits() {
        assert!(prefix("10.0.0.0/8").contains(&prefix("10.9.0.0/16")));
        assert!(prefix("0.0.0.0/0").contains(&prefix("10.9.0.0/16")));
        assert!(!prefix("10.9.0.0/16").contains(&prefix("10.0.0.0/8")));
        assert!(!prefix("::/0").contains(&prefix("10.0.0.0/8")));
        assert!(!prefix("10.9.0.0/16").contains(&prefix("10.8.0.0/24")));
    }

    #[test]
    fn the_wire_carries_significant_bytes_only() {
        let mut out = Vec::new();
        prefix("10.1.128.0/17").encode(&mut out);
        assert_eq!(out, [17, 10, 1, 128]);
        let mut rest = &[17, 10, 1, 0xff, 9][..];
        assert_eq!(Prefix::decode(Family::Ipv4, &mut rest), Some(prefix("10.1.128.0/17")));
        assert_eq!(rest, [9]);
        for malformed in [&[33, 1, 2, 3, 4, 5][..], &[24, 1, 2], &[]] {
            assert_eq!(Prefix::decode(Family::Ipv4, &mut { malformed }), None);
        }
    }

    #[test]
    fn keys_are_compact() {
        assert_eq!((size_of::<Net4>(), size_of::<Net6>()), (5, 17));
    }
}
