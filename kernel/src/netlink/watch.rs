//! What changes in the network of a namespace, told as it happens: the multicast groups of rtnetlink(7).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use ipnetwork::IpNetwork;
use netlink_packet_core::Parseable;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_sys::Socket as RawSocket;

use super::real::{
    DELADDR, DELLINK, DELNEIGH, DELROUTE, NEWADDR, NEWLINK, NEWROUTE, failed, malformed, read_address, read_link,
};
use super::socket::split;
use super::{Link, Result, fib};
use crate::poll;

/// `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
const BUFFER: usize = 64 * 1024;

/// A change, whoever made it. `gone` tells whether the object was removed, else it is new or other than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Link {
        link: Box<Link>,
        gone: bool,
    },
    Address {
        link: u32,
        net: IpNetwork,
        gone: bool,
    },
    /// A unicast route or a black hole of the main table.
    Route {
        destination: IpNetwork,
        protocol: u8,
        gone: bool,
    },
    /// A neighbour or forwarding entry (`address` is the tunnel's end then) is gone.
    NeighbourGone {
        link: u32,
        address: Option<IpAddr>,
    },
    /// There was more than the socket could hold: what is known has to be read anew.
    Lost,
}

/// A socket that hears of every change in the namespace where it was opened.
#[derive(Debug)]
pub struct Watch {
    raw: RawSocket,
    buffer: Vec<u8>,
}

impl Watch {
    /// # Errors
    /// Where the kernel gives no netlink socket.
    pub fn open() -> Result<Self> {
        let open = || {
            let mut raw = RawSocket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
            raw.bind_auto()?;
            raw.set_non_blocking(true)?;
            GROUPS.iter().try_for_each(|group| raw.add_membership(*group))?;
            Ok(Self { raw, buffer: Vec::with_capacity(BUFFER) })
        };
        open().map_err(failed("open", || "a netlink socket to watch by".into()))
    }

    /// Waits until something happened, at most for `timeout`, and returns all that is there.
    ///
    /// # Errors
    /// Where the socket fails. What cannot be decoded is a [`Change::Lost`].
    pub fn changes(&mut self, timeout: Duration) -> io::Result<Vec<Change>> {
        // SAFETY: the descriptor is that of `self.raw`, which lives for the whole call.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.raw.as_raw_fd()) };
        if poll::readable(&[descriptor], timeout)? != [true] {
            return Ok(Vec::new());
        }
        let mut told = Vec::new();
        loop {
            self.buffer.clear();
            self.buffer.reserve(BUFFER);
            match self.raw.recv(&mut self.buffer, 0) {
                Ok(_) => told.extend(decode(&self.buffer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(told),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told.push(Change::Lost),
                Err(error) => return Err(error),
            }
        }
    }
}

/// What a datagram of these groups tells. What cannot be decoded is a [`Change::Lost`], and ends it.
pub fn decode(datagram: &[u8]) -> Vec<Change> {
    let mut told = Vec::new();
    let mut rest = datagram;
    while rest.len() >= 16 {
        let Ok((header, payload, next)) = split(rest) else {
            told.push(Change::Lost);
            return told;
        };
        rest = next;
        match message(header.message_type, payload) {
            Ok(change) => told.extend(change),
            Err(_) => told.push(Change::Lost),
        }
    }
    told
}

fn message(kind: u16, payload: &[u8]) -> io::Result<Option<Change>> {
    Ok(match kind {
        NEWLINK | DELLINK => {
            let message = LinkMessage::parse(payload).map_err(malformed)?;
            Some(Change::Link { link: Box::new(read_link(&message)), gone: kind == DELLINK })
        }
        NEWADDR | DELADDR => {
            let message = AddressMessage::parse(payload).map_err(malformed)?;
            let gone = kind == DELADDR;
            read_address(&message).map(|address| Change::Address { link: address.link, net: address.net, gone })
        }
        NEWROUTE | DELROUTE => {
            let gone = kind == DELROUTE;
            fib::read_name(payload)?.map(|(destination, protocol)| Change::Route { destination, protocol, gone })
        }
        DELNEIGH => {
            let message = NeighbourMessage::parse(payload).map_err(malformed)?;
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                _ => None,
            });
            Some(Change::NeighbourGone { link: message.header.ifindex, address })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Address, FibRoute, Hop, Kernel, LinkChange, Network, VethEnd};
    use crate::netns::Netns;

    #[test]
    fn links_addresses_and_routes_are_told_as_they_come_and_go() {
        if !crate::test::root("watch") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let (mut network, mut watch) = netns.run(|| (Kernel::open().unwrap(), Watch::open().unwrap())).unwrap();
        assert_eq!(watch.changes(Duration::ZERO).unwrap(), []);
        let ends = ["a", "b"].map(|name| VethEnd { name, ..VethEnd::default() });
        network.add_veth(ends[0], ends[1], None, None).unwrap();
        let links = ["a", "b"].map(|name| network.link(name).unwrap().unwrap().index);
        for link in links {
            network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        }
        let link = links[0];
        let told = watch.changes(Duration::from_secs(5)).unwrap();
        let named =
            |change: &Change| matches!(change, Change::Link { link, gone: false } if link.name == "a" && link.up);
        assert!(told.iter().any(named), "{told:?}");

        let net = "192.0.2.1/24".parse().unwrap();
        network.add_address(Address { link, net }).unwrap();
        let destination = "10.1.0.0/24".parse().unwrap();
        let hop = Hop { gateway: "192.0.2.2".parse().ok(), link, onlink: false };
        let route = FibRoute { destination, hops: vec![hop], source: None, metric: None, protocol: 81 };
        network.set_route(&route).unwrap();
        network.unset_route(&route).unwrap();
        network.delete_link(link).unwrap();
        let told = watch.changes(Duration::from_secs(5)).unwrap();
        for wanted in [
            Change::Address { link, net, gone: false },
            Change::Route { destination, protocol: 81, gone: false },
            Change::Route { destination, protocol: 81, gone: true },
        ] {
            assert!(told.contains(&wanted), "{wanted:?} in {told:?}");
        }
        assert!(told.iter().any(|change| matches!(change, Change::Link { link, gone: true } if link.name == "a")));
    }

    /// Messages as the kernel makes them, with every byte in turn made another: none of them ends the reader.
    #[test]
    fn garbage_is_lost_and_no_more() {
        if !crate::test::root("watch, mangled") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let (mut network, watch) = netns.run(|| (Kernel::open().unwrap(), Watch::open().unwrap())).unwrap();
        let ends = ["a", "b"].map(|name| VethEnd { name, ..VethEnd::default() });
        network.add_veth(ends[0], ends[1], None, None).unwrap();
        let link = network.link("a").unwrap().unwrap().index;
        network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        network.add_address(Address { link, net: "192.0.2.1/24".parse().unwrap() }).unwrap();
        let hops = ["192.0.2.2", "192.0.2.3"].map(|ip| Hop { gateway: ip.parse().ok(), link, onlink: true });
        let destination = "10.1.0.0/24".parse().unwrap();
        let route = FibRoute { destination, hops: hops.to_vec(), source: None, metric: None, protocol: 81 };
        network.set_route(&route).unwrap();
        let mut datagrams = 0;
        loop {
            let mut bytes = Vec::with_capacity(BUFFER);
            let Ok(_) = watch.raw.recv(&mut bytes, 0) else { break };
            assert!(!decode(&bytes).contains(&Change::Lost));
            for at in 0..bytes.len() {
                for value in [0, 1, 4, 0x7f, 0xff] {
                    let mut mangled = bytes.clone();
                    mangled[at] = value;
                    decode(&mangled);
                    decode(&mangled[..at]);
                }
            }
            datagrams += 1;
        }
        assert!(datagrams > 5, "{datagrams} datagrams");
    }
}
