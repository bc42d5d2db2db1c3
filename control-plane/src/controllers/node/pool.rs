//! How the pods' addresses are divided: a range of the cluster's, in parts of one size.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// A range of pod addresses and how long the prefix of each node's part of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    range: IpNetwork,
    prefix: u8,
}

impl Pool {
    /// # Errors
    /// Where a part would be larger than the range, or smaller than one address.
    pub fn new(range: IpNetwork, prefix: u8) -> anyhow::Result<Self> {
        let range = IpNetwork::new(range.network(), range.prefix())?;
        let longest = bits(range);
        anyhow::ensure!(
            (range.prefix()..=longest).contains(&prefix),
            "a node's part of --cluster-cidr {range} has a prefix of {} to {longest} bits, not {prefix}",
            range.prefix()
        );
        Ok(Self { range, prefix })
    }

    pub fn range(&self) -> IpNetwork {
        self.range
    }

    /// The first part that overlaps none of those taken, which may be of any size and family.
    pub fn first_free(&self, taken: &[IpNetwork]) -> Option<IpNetwork> {
        let of_family = taken.iter().filter(|network| network.is_ipv4() == self.range.is_ipv4());
        let mut taken: Vec<(u128, u128)> = of_family.map(|network| ends(*network)).collect();
        taken.sort_unstable();
        let (mut start, end) = ends(self.range);
        // A shift by all 128 bits is the whole of IPv6.
        let last_of_part = 1u128.checked_shl(u32::from(bits(self.range) - self.prefix)).map_or(u128::MAX, |n| n - 1);
        for (first, last) in taken {
            if last < start {
                continue;
            }
            if start + last_of_part < first {
                break;
            }
            // The part after the one that holds the last address.
            start = (last | last_of_part).checked_add(1)?;
        }
        (start <= end).then(|| self.part(start)).flatten()
    }

    fn part(&self, start: u128) -> Option<IpNetwork> {
        let address = match self.range {
            IpNetwork::V4(_) => IpAddr::V4(u32::try_from(start).ok()?.into()),
            IpNetwork::V6(_) => IpAddr::V6(start.into()),
        };
        IpNetwork::new(address, self.prefix).ok()
    }
}

fn bits(network: IpNetwork) -> u8 {
    if network.is_ipv4() { 32 } else { 128 }
}

/// The first and the last address, as numbers.
fn ends(network: IpNetwork) -> (u128, u128) {
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    (number(network.network()), number(network.broadcast()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn first(range: &str, prefix: u8, taken: &[&str]) -> Option<IpNetwork> {
        let taken: Vec<IpNetwork> = taken.iter().map(|text| net(text)).collect();
        Pool::new(net(range), prefix).unwrap().first_free(&taken)
    }

    #[test]
    fn the_first_free_part() {
        let cluster = "10.244.0.0/22";
        assert_eq!(first(cluster, 24, &[]), Some(net("10.244.0.0/24")));
        assert_eq!(first(cluster, 24, &["10.244.2.0/24", "10.244.0.0/24"]), Some(net("10.244.1.0/24")));
        assert_eq!(first(cluster, 24, &["10.244.0.0/25", "10.244.1.0/24", "fd00::/8"]), Some(net("10.244.2.0/24")));
        assert_eq!(first(cluster, 24, &["10.243.0.0/16", "10.244.3.0/24"]), Some(net("10.244.0.0/24")));
        assert_eq!(first(cluster, 24, &[cluster]), None);
        assert_eq!(first("255.255.255.0/24", 25, &["255.255.255.0/24"]), None);
    }

    #[test]
    fn the_other_family() {
        assert_eq!(first("fd00:1::/48", 64, &["fd00:1::/64", "10.0.0.0/8"]), Some(net("fd00:1:0:1::/64")));
        assert_eq!(first("::/0", 0, &[]), Some(net("::/0")));
        assert_eq!(first("ffff::/16", 16, &["ffff::/16"]), None);
    }

    #[test]
    fn parts_fit_into_the_range() {
        assert!(Pool::new(net("10.244.0.0/16"), 15).is_err() && Pool::new(net("10.244.0.0/16"), 33).is_err());
        assert_eq!(Pool::new(net("10.244.7.7/16"), 24).unwrap().range(), net("10.244.0.0/16"));
    }

    proptest! {
        /// Given one after the other, all parts are there once, whatever was taken before.
        #[test]
        fn each_part_is_given_once(before in proptest::collection::vec((0u8..4, 0u8..=255, 22u8..=32), 0..6)) {
            let pool = Pool::new(net("10.244.0.0/22"), 26).unwrap();
            let foreign = before.into_iter().map(|(c, d, prefix)| {
                let network = IpNetwork::new(IpAddr::from([10, 244, c, d]), prefix).unwrap();
                IpNetwork::new(network.network(), prefix).unwrap()
            });
            let mut taken: Vec<IpNetwork> = foreign.collect();
            let overlap = |a: IpNetwork, b: IpNetwork| a.contains(b.network()) || b.contains(a.network());
            let parts = (0u8..16).map(|n| net(&format!("10.244.{}.{}/26", n / 4, n % 4 * 64)));
            let wanted: Vec<IpNetwork> = parts.filter(|part| !taken.iter().any(|other| overlap(*part, *other))).collect();
            let mut given = Vec::new();
            while let Some(part) = pool.first_free(&taken) {
                given.push(part);
                taken.push(part);
            }
            prop_assert_eq!(given, wanted);
        }
    }
}
