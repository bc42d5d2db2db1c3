//! VXLAN links and where their frames go: rtnetlink(7), RFC 7348, and the kernel's Documentation/networking/vxlan.rst.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::real::{
    DELNEIGH, GETLINK, GETNEIGH, NEWLINK, NEWNEIGH, deleted, failed, malformed, neighbour_message, read_link,
};
use super::{Kernel, Link, Mac, Neighbour, Result};

/// The outer side of a VXLAN link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vxlan {
    pub vni: u32,
    /// The UDP port at which every end of the tunnel listens.
    pub port: u16,
    /// The source of the outer packets; its family is theirs.
    pub local: Option<IpAddr>,
    /// Whether the link learns from frames where others are.
    pub learning: bool,
}

/// Frames to `mac` go to the tunnel's end at `remote`: an entry of the link's forwarding database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardingEntry {
    pub link: u32,
    pub mac: Mac,
    pub remote: IpAddr,
}

impl Kernel {
    /// The VXLAN links of the namespace.
    ///
    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn vxlans(&mut self) -> Result<Vec<(Link, Vxlan)>> {
        let read = self.0.dump(GETLINK, &LinkMessage::default()).and_then(|parts| {
            let parsed: io::Result<Vec<_>> = parts.iter().map(|p| LinkMessage::parse(p).map_err(malformed)).collect();
            Ok(parsed?.iter().filter_map(|message| Some((read_link(message), read(message)?))).collect())
        });
        read.map_err(failed("list", || "VXLAN links".into()))
    }

    /// Makes a VXLAN link, up at once.
    ///
    /// # Errors
    /// Where a link has that name, another VXLAN link that VNI and port, or the kernel lacks VXLAN.
    pub fn add_vxlan(&mut self, name: &str, mac: Mac, mtu: u32, vxlan: &Vxlan) -> Result<()> {
        let mut data = vec![
            InfoVxlan::Id(vxlan.vni),
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(vxlan.learning),
            InfoVxlan::Ttl(0),
        ];
        data.extend(vxlan.local.map(|ip| match ip {
            IpAddr::V4(ip) => InfoVxlan::Local(ip),
            IpAddr::V6(ip) => InfoVxlan::Local6(ip),
        }));
        let mut message = LinkMessage::default();
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
        ];
        let create = NLM_F_CREATE | NLM_F_EXCL;
        self.0.act(NEWLINK, create, &message).map_err(failed("add", || format!("VXLAN link {name}")))
    }

    /// The permanent entries of all forwarding databases that lead to another machine.
    ///
    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn forwarding_entries(&mut self) -> Result<Vec<ForwardingEntry>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let read = self.0.dump(GETNEIGH, &message).and_then(|parts| {
            let parsed: io::Result<Vec<_>> =
                parts.iter().map(|part| NeighbourMessage::parse(part).map_err(malformed)).collect();
            Ok(parsed?.iter().filter_map(read_entry).collect())
        });
        read.map_err(failed("list", || "forwarding entries".into()))
    }

    /// Adds the entry, in place of another for the same hardware address.
    ///
    /// # Errors
    /// Where the link is no VXLAN link.
    pub fn set_forwarding_entry(&mut self, entry: ForwardingEntry) -> Result<()> {
        let message = entry_message(entry);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.0.act(NEWNEIGH, flags, &message).map_err(failed("set", || about(entry)))
    }

    /// `false` where it was not there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete_forwarding_entry(&mut self, entry: ForwardingEntry) -> Result<bool> {
        deleted(self.0.act(DELNEIGH, 0, &entry_message(entry)).map_err(failed("delete", || about(entry))))
    }

    /// Adds a permanent neighbour, in place of what was known of its address.
    ///
    /// # Errors
    /// Where the link is gone or down.
    pub fn set_neighbour(&mut self, neighbour: Neighbour) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let done = self.0.act(NEWNEIGH, flags, &neighbour_message(neighbour));
        done.map_err(failed("set", || format!("neighbour {}", neighbour.address)))
    }
}

fn about(entry: ForwardingEntry) -> String {
    format!("forwarding of {} to {} on link {}", entry.mac, entry.remote, entry.link)
}

fn read(message: &LinkMessage) -> Option<Vxlan> {
    let infos = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    let mut vxlan = Vxlan::default();
    for value in data {
        match value {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(ip) => vxlan.local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => vxlan.local = Some(IpAddr::V6(*ip)),
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            _ => {}
        }
    }
    Some(vxlan)
}

fn entry_message(entry: ForwardingEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.link;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::Destination(entry.remote.into()));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message
}

fn read_entry(message: &NeighbourMessage) -> Option<ForwardingEntry> {
    let (mut remote, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => remote = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => remote = Some(IpAddr::V6(*ip)),
            // The family of the message is that of bridges, so that the address comes as plain bytes.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => remote = address(bytes),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    (message.header.state == NeighbourState::Permanent).then_some(ForwardingEntry {
        link: message.header.ifindex,
        mac: mac?,
        remote: remote?,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Address, LinkChange, Network};
    use crate::netns::Netns;

    #[test]
    fn tunnels_of_both_families_and_their_entries_are_read_back() {
        if !crate::test::root("vxlan") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let mut network = netns.run(|| Kernel::open().unwrap()).unwrap();
        let lo = network.link("lo").unwrap().unwrap().index;
        network.change_link(lo, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        for (name, local, remote) in [("vx4", "192.0.2.1", "192.0.2.2"), ("vx6", "2001:db8::1", "2001:db8::2")] {
            let local: IpAddr = local.parse().unwrap();
            network.add_address(Address { link: lo, net: local.into() }).unwrap();
            let mac: Mac = "02:00:00:00:00:01".parse().unwrap();
            let wanted = Vxlan { vni: 1, port: 8472, local: Some(local), learning: false };
            network.add_vxlan(name, mac, 1400, &wanted).unwrap();
            assert!(network.add_vxlan(name, mac, 1400, &wanted).unwrap_err().is_exists());
            let (link, read) = network.vxlans().unwrap().into_iter().find(|(link, _)| link.name == name).unwrap();
            assert_eq!((link.mac, link.mtu, link.up, read), (Some(mac), 1400, true, wanted));

            let other: Mac = "02:00:00:00:00:02".parse().unwrap();
            let mut entry = ForwardingEntry { link: link.index, mac: other, remote: remote.parse().unwrap() };
            network.set_forwarding_entry(entry).unwrap();
            assert_eq!(network.forwarding_entries().unwrap().iter().filter(|e| e.link == link.index).count(), 1);
            entry.remote = local;
            network.set_forwarding_entry(entry).unwrap();
            assert!(network.forwarding_entries().unwrap().contains(&entry), "the new remote takes the old one's place");
            assert!(network.delete_forwarding_entry(entry).unwrap());
            assert!(!network.delete_forwarding_entry(entry).unwrap());

            let mut neighbour = Neighbour { link: link.index, address: remote.parse().unwrap(), mac };
            network.set_neighbour(neighbour).unwrap();
            neighbour.mac = other;
            network.set_neighbour(neighbour).unwrap();
            assert!(network.neighbours().unwrap().contains(&neighbour));
        }
    }
}
