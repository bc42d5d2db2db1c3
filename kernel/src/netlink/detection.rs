//! Duplicate address detection of IPv6 (RFC 4862, section 5.4): addresses that the kernel first asks the link about.

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::real::{failed, malformed};
use super::{Address, Kernel, Network, Result};

const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;

/// How far the kernel is with the addresses of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detection {
    Done,
    Running,
    /// Another station has this address.
    Duplicate(IpAddr),
}

impl Kernel {
    /// As [`Network::add_address`], but IPv6 asks the link whether another station has the address.
    ///
    /// # Errors
    /// As `add_address`.
    pub fn add_detected_address(&mut self, address: Address) -> Result<()> {
        let IpNetwork::V6(net) = address.net else { return self.add_address(address) };
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.prefix_len = net.prefix();
        message.header.index = address.link;
        message.attributes.push(AddressAttribute::Local(net.ip().into()));
        message.attributes.push(AddressAttribute::Address(net.ip().into()));
        self.0
            .act(NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &message)
            .map_err(failed("add", || format!("address {net} on link {}", address.link)))
    }

    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn detection(&mut self, link: u32) -> Result<Detection> {
        let read = self.0.dump(GETADDR, &AddressMessage::default()).and_then(|parts| {
            let parsed: io::Result<Vec<_>> =
                parts.iter().map(|part| AddressMessage::parse(part).map_err(malformed)).collect();
            Ok(judge(parsed?.iter().filter(|message| message.header.index == link)))
        });
        read.map_err(failed("list", || format!("addresses of link {link}")))
    }
}

pub(super) fn judge<'a>(messages: impl Iterator<Item = &'a AddressMessage>) -> Detection {
    let mut state = Detection::Done;
    for message in messages {
        let mut flags = AddressFlags::empty();
        let mut ip = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Flags(set) => flags = *set,
                AddressAttribute::Address(address) => ip = Some(*address),
                _ => {}
            }
        }
        match ip {
            Some(ip) if flags.contains(AddressFlags::Dadfailed) => return Detection::Duplicate(ip),
            _ if flags.contains(AddressFlags::Tentative) => state = Detection::Running,
            _ => {}
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::netlink::{LinkChange, VethEnd};
    use crate::netns::Netns;

    #[test]
    fn the_second_station_with_an_address_is_told() {
        if !crate::test::root("duplicate addresses") {
            return;
        }
        use std::os::fd::AsFd;
        let (one, two) = (Netns::anonymous().unwrap(), Netns::anonymous().unwrap());
        let mut first = one.run(|| Kernel::open().unwrap()).unwrap();
        let mut second = two.run(|| Kernel::open().unwrap()).unwrap();
        let end = |name| VethEnd { name, ..VethEnd::default() };
        first.add_veth(end("eth0"), end("eth0"), Some(two.as_fd()), None).unwrap();
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let settle = |network: &mut Kernel, link: u32| {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                match network.detection(link).unwrap() {
                    Detection::Running if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                    other => return other,
                }
            }
        };
        let (a, b) = (first.link("eth0").unwrap().unwrap().index, second.link("eth0").unwrap().unwrap().index);
        first.change_link(a, up).unwrap();
        second.change_link(b, up).unwrap();
        let net: IpNetwork = "fd00::7/64".parse().unwrap();
        first.add_detected_address(Address { link: a, net }).unwrap();
        assert_eq!(settle(&mut first, a), Detection::Done);
        second.add_detected_address(Address { link: b, net }).unwrap();
        assert_eq!(settle(&mut second, b), Detection::Duplicate(net.ip()));
    }
}
