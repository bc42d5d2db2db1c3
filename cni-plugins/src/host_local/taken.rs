//! Which addresses of a range set are in use: a bit for each, so that the next free one of many thousands is found
//! without asking the disk for every other.
//!
//! It is a memory, not the truth. A bit that is wrongly clear shows when the address's file is there already; where no
//! clear bit is left, all files are counted anew before anyone is told that the set is full.

use std::net::IpAddr;

use super::ranges::RangeSet;

/// Sets with more addresses have no bits: one that is nearly full is not to be expected.
const LARGEST: u128 = 1 << 20;

/// In its file: the ranges in words, a line break, the bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    ranges: Vec<(IpAddr, IpAddr)>,
    head: Vec<u8>,
    bits: Vec<u8>,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn size((start, end): &(IpAddr, IpAddr)) -> u128 {
    number(*end).saturating_sub(number(*start)).saturating_add(1)
}

impl Taken {
    /// All free but the gateways. `None` where the set is too large.
    pub fn new(set: &RangeSet) -> Option<Self> {
        let mut taken = Self::empty(set.to_string())?;
        for gateway in set.gateways() {
            taken.set(gateway, true);
        }
        Some(taken)
    }

    fn empty(text: String) -> Option<Self> {
        let range = |text: &str| text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let ranges: Vec<(IpAddr, IpAddr)> = text.split(',').map(range).collect::<Option<_>>()?;
        let count = ranges.iter().fold(0_u128, |sum, range| sum.saturating_add(size(range)));
        let bytes = usize::try_from(count).ok().filter(|_| count <= LARGEST)?.div_ceil(8);
        Some(Self { ranges, head: (text + "\n").into_bytes(), bits: vec![0; bytes] })
    }

    pub fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let mut taken = Self::empty(String::from_utf8(bytes[..end].to_vec()).ok()?)?;
        let bits = &bytes[end + 1..];
        (bits.len() == taken.bits.len()).then(|| taken.bits.copy_from_slice(bits))?;
        Some(taken)
    }

    pub fn bytes(&self) -> Vec<u8> {
        [&self.head[..], &self.bits].concat()
    }

    /// Whether both are of the same ranges.
    pub fn describes_same(&self, other: &Self) -> bool {
        self.head == other.head
    }

    fn position(&self, ip: IpAddr) -> Option<usize> {
        let mut before = 0;
        for range in &self.ranges {
            if ip.is_ipv4() == range.0.is_ipv4() && (number(range.0)..=number(range.1)).contains(&number(ip)) {
                return usize::try_from(before + number(ip) - number(range.0)).ok();
            }
            before += size(range);
        }
        None
    }

    fn at(&self, position: usize) -> Option<IpAddr> {
        let mut left = position as u128;
        for range in &self.ranges {
            if left < size(range) {
                return Some(match range.0 {
                    IpAddr::V4(start) => IpAddr::V4((u32::from(start) + left as u32).into()),
                    IpAddr::V6(start) => IpAddr::V6((u128::from(start) + left).into()),
                });
            }
            left -= size(range);
        }
        None
    }

    /// Notes whether an address of the set is in use; tells which byte of the file is then what.
    pub fn set(&mut self, ip: IpAddr, used: bool) -> Option<(usize, u8)> {
        let position = self.position(ip)?;
        let byte = self.bits.get_mut(position / 8)?;
        let bit = 1 << (position % 8);
        *byte = if used { *byte | bit } else { *byte & !bit };
        Some((self.head.len() + position / 8, *byte))
    }

    /// The first free address after `last`, round the whole set.
    pub fn next_after(&self, last: Option<IpAddr>) -> Option<IpAddr> {
        let start = last.and_then(|ip| self.position(ip)).map_or(0, |position| position + 1);
        let first = start / 8;
        let count = self.bits.len();
        // The first byte comes twice: from `start` on at the beginning, and up to it at the end.
        (0..=count).find_map(|step| {
            let index = (first + step) % count.max(1);
            let skipped = if step == 0 { (1_u16 << (start % 8)) as u8 - 1 } else { 0 };
            let mut free = !(self.bits.get(index)? | skipped);
            while free != 0 {
                let position = index * 8 + free.trailing_zeros() as usize;
                if let Some(ip) = self.at(position) {
                    return Some(ip);
                }
                // Bits beyond the last address.
                free &= free - 1;
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use api::cni::IpRange;
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(&str, &str, &str)]) -> RangeSet {
        let range = |(subnet, start, end): &(&str, &str, &str)| IpRange {
            subnet: subnet.parse().unwrap(),
            range_start: start.parse().ok(),
            range_end: end.parse().ok(),
            gateway: None,
        };
        RangeSet::new(&ranges.iter().map(range).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_next_free_address_comes_round_the_set() {
        let set = set(&[("10.0.0.0/24", "", "10.0.0.3"), ("10.0.1.0/24", "10.0.1.8", "10.0.1.9")]);
        let mut taken = Taken::new(&set).unwrap();
        let next = |taken: &Taken, last: &str| taken.next_after(last.parse().ok()).map(|ip| ip.to_string());
        assert_eq!(next(&taken, "").as_deref(), Some("10.0.0.2"), "the first is the gateway");
        assert_eq!(next(&taken, "10.0.0.3").as_deref(), Some("10.0.1.8"));
        assert_eq!(next(&taken, "10.0.1.9").as_deref(), Some("10.0.0.2"));
        for ip in ["10.0.0.2", "10.0.1.8", "10.0.1.9"] {
            taken.set(ip.parse().unwrap(), true).unwrap();
        }
        assert_eq!(next(&taken, "10.0.0.3").as_deref(), Some("10.0.0.3"));
        taken.set("10.0.0.3".parse().unwrap(), true).unwrap();
        assert_eq!(next(&taken, ""), None);
        assert_eq!(taken.set("10.0.2.1".parse().unwrap(), true), None);
        assert_eq!(Taken::read(&taken.bytes()), Some(taken.clone()));
        let (at, byte) = taken.set("10.0.1.9".parse().unwrap(), false).unwrap();
        assert_eq!(taken.bytes()[at], byte);
    }

    #[test]
    fn a_large_set_has_no_bits() {
        assert_eq!(Taken::new(&set(&[("fd00::/64", "", "")])), None);
        assert_eq!(Taken::read(b"10.0.0.1-10.0.0.6\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>(), head in "[0-9.:,-]{0,30}") {
            let _ = Taken::read(&bytes);
            let _ = Taken::read(&[head.as_bytes(), b"\n", &bytes].concat()).map(|taken| taken.next_after(None));
        }

        #[test]
        fn every_free_address_is_found_once(used in proptest::collection::vec(2_u8..30, 0..40)) {
            let set = set(&[("10.0.0.0/27", "", "")]);
            let mut taken = Taken::new(&set).unwrap();
            for byte in &used {
                taken.set([10, 0, 0, *byte].into(), true);
            }
            let (mut last, mut found) = (None, std::collections::BTreeSet::new());
            while let Some(ip) = taken.next_after(last) {
                prop_assert!(found.insert(ip));
                taken.set(ip, true);
                last = Some(ip);
            }
            let distinct: std::collections::BTreeSet<_> = used.iter().collect();
            prop_assert_eq!(found.len() + distinct.len(), 29);
        }
    }
}
