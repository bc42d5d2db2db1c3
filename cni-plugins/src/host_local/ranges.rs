//! Which address comes next, decided without looking at the disk.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::cni::{Ip, IpRange};
use ipnetwork::IpNetwork;

/// Ranges of one family, of which an attachment gets one address.
#[derive(Debug, Clone, PartialEq)]
pub struct RangeSet(Vec<Range>);

#[derive(Debug, Clone, PartialEq)]
struct Range {
    subnet: IpNetwork,
    start: u128,
    end: u128,
    gateway: IpAddr,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl Range {
    fn new(range: &IpRange) -> Result<Self, String> {
        let subnet = range.subnet;
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        if subnet.prefix() + 2 > bits {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.ip() != subnet.network() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix(),
                subnet.network()
            ));
        }
        let first = number(subnet.network());
        // The last address of an IPv4 network is its broadcast address.
        let last = number(subnet.broadcast()) - u128::from(subnet.is_ipv4());
        let gateway = range.gateway.unwrap_or_else(|| address(first + 1, subnet.ip()));
        let bound = |given: Option<IpAddr>, what: &str, otherwise: u128| match given {
            Some(ip) if !subnet.contains(ip) => Err(format!("{what} {ip} not in network {subnet}")),
            Some(ip) => Ok(number(ip)),
            None => Ok(otherwise),
        };
        let start = bound(range.range_start, "RangeStart", first + 1)?;
        let end = bound(range.range_end, "RangeEnd", last)?;
        if start > end {
            return Err(format!("RangeStart is after RangeEnd in {subnet}"));
        }
        Ok(Self { subnet, start, end, gateway })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.subnet.is_ipv4() && (self.start..=self.end).contains(&number(ip))
    }
}

impl RangeSet {
    /// # Errors
    /// Says what is wrong with the ranges: too small, of two families, overlapping, bounds outside of the subnet.
    pub fn new(ranges: &[IpRange]) -> Result<Self, String> {
        let ranges = ranges.iter().map(Range::new).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = ranges.first() else { return Err("empty range set".into()) };
        if ranges.iter().any(|range| range.subnet.is_ipv4() != first.subnet.is_ipv4()) {
            return Err("mixed address families".into());
        }
        let set = Self(ranges);
        for (at, range) in set.0.iter().enumerate() {
            if let Some(other) = set.0[at + 1..].iter().find(|other| overlap(range, other)) {
                return Err(format!("subnets {} and {} overlap", range.subnet, other.subnet));
            }
        }
        Ok(set)
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(ip))
    }

    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == ip)
    }

    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.iter().map(|range| range.gateway)
    }

    /// The result's entry for an address of this set.
    pub fn answer(&self, ip: IpAddr) -> Option<Ip> {
        let range = self.0.iter().find(|range| range.contains(ip))?;
        let address = IpNetwork::new(ip, range.subnet.prefix()).ok()?;
        Some(Ip { interface: None, address, gateway: Some(range.gateway) })
    }

    /// Every address once, gateways left out, beginning after `last` so that a freed address rests for a while.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let start = last.and_then(|ip| Some((self.0.iter().position(|range| range.contains(ip))?, number(ip))));
        let count = self.0.len();
        let (first, from) = start.map_or((0, self.0[0].start), |(at, number)| (at, number + 1));
        // The first range from there on, the others, and the first again up to there.
        (0..=count)
            .flat_map(move |step| {
                let range = &self.0[(first + step) % count];
                let begin = if step == 0 { from } else { range.start };
                let end = if step == count { from } else { range.end.saturating_add(1) };
                (begin..end).map(move |number| address(number, range.subnet.ip()))
            })
            .filter(|ip| !self.is_gateway(*ip))
    }
}

fn overlap(one: &Range, other: &Range) -> bool {
    one.subnet.is_ipv4() == other.subnet.is_ipv4() && one.start <= other.end && other.start <= one.end
}

/// # Errors
/// Names two range sets that share addresses.
pub fn disjoint(sets: &[RangeSet]) -> Result<(), String> {
    for (at, set) in sets.iter().enumerate() {
        for (next, other) in sets.iter().enumerate().skip(at + 1) {
            if set.0.iter().any(|range| other.0.iter().any(|second| overlap(range, second))) {
                return Err(format!("range set {at} overlaps with {next}"));
            }
        }
    }
    Ok(())
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.0.iter().enumerate() {
            let like = range.subnet.ip();
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{}-{}", address(range.start, like), address(range.end, like))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, start: Option<&str>, end: Option<&str>) -> IpRange {
        let ip = |text: &str| text.parse().unwrap();
        IpRange { subnet: subnet.parse().unwrap(), range_start: start.map(ip), range_end: end.map(ip), gateway: None }
    }

    #[test]
    fn the_walk_goes_round_once() {
        let set = RangeSet::new(&[
            range("10.0.0.0/24", None, Some("10.0.0.3")),
            range("10.0.1.0/24", Some("10.0.1.8"), Some("10.0.1.9")),
        ])
        .unwrap();
        let walk = |last: Option<&str>| -> Vec<String> {
            set.after(last.map(|ip| ip.parse().unwrap())).map(|ip| ip.to_string()).collect()
        };
        assert_eq!(walk(None), ["10.0.0.2", "10.0.0.3", "10.0.1.8", "10.0.1.9"]);
        assert_eq!(walk(Some("10.0.1.8")), ["10.0.1.9", "10.0.0.2", "10.0.0.3", "10.0.1.8"]);
        assert_eq!(walk(Some("10.0.1.9")), ["10.0.0.2", "10.0.0.3", "10.0.1.8", "10.0.1.9"]);
        assert_eq!(walk(Some("192.168.0.1")).len(), 4);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |list: &[IpRange]| RangeSet::new(list).unwrap_err();
        assert_eq!(error(&[range("10.0.0.0/31", None, None)]), "Network 10.0.0.0/31 too small to allocate from");
        assert_eq!(
            error(&[range("10.0.0.0/24", Some("10.1.0.1"), None)]),
            "RangeStart 10.1.0.1 not in network 10.0.0.0/24"
        );
        assert_eq!(
            error(&[range("10.0.0.0/24", None, None), range("fd00::/64", None, None)]),
            "mixed address families"
        );
        let one = || RangeSet::new(&[range("10.0.0.0/24", None, None)]).unwrap();
        assert!(disjoint(&[one(), one()]).is_err());
    }
}
