//! A bridge's ports: which networks (802.1Q) they are in, and whether they reach one another.
//!
//! Source: bridge(8), linux/if_bridge.h.

use std::io;

use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
};

use super::real::{GETLINK, failed, malformed};
use super::{Kernel, Result};

const NEWLINK: u16 = 16;
const SETLINK: u16 = 19;
const DELLINK: u16 = 17;

/// One network of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortVlan {
    pub id: u16,
    /// Whether frames without a tag that come in belong to it, and leave without one: the port's own network.
    pub native: bool,
}

impl Kernel {
    /// Makes a bridge look at the networks of its ports.
    ///
    /// # Errors
    /// Where the link is no bridge or the kernel was built without 802.1Q on bridges.
    pub fn filter_vlans(&mut self, bridge: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = bridge;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ]));
        self.0.act(NEWLINK, 0, &message).map_err(failed("filter networks on", || format!("bridge {bridge}")))
    }

    /// Lets a port reach no other isolated port of its bridge.
    ///
    /// # Errors
    /// Where the link is no port of a bridge.
    pub fn isolate_port(&mut self, port: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = port;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)])),
        ]));
        self.0.act(NEWLINK, 0, &message).map_err(failed("isolate", || format!("bridge port {port}")))
    }

    /// Puts a port into a network.
    ///
    /// # Errors
    /// Where the link is no port of a bridge.
    pub fn add_port_vlan(&mut self, port: u32, vlan: PortVlan) -> Result<()> {
        let about = || format!("bridge port {port} to network {}", vlan.id);
        self.0.act(SETLINK, 0, &vlan_message(port, vlan)).map_err(failed("add", about))
    }

    /// # Errors
    /// Where the link is no port of a bridge.
    pub fn delete_port_vlan(&mut self, port: u32, id: u16) -> Result<()> {
        let message = vlan_message(port, PortVlan { id, native: false });
        self.0.act(DELLINK, 0, &message).map_err(failed("remove", || format!("bridge port {port} from network {id}")))
    }

    /// The networks of a port.
    ///
    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn port_vlans(&mut self, port: u32) -> Result<Vec<PortVlan>> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
        let read = self.0.dump(GETLINK, &message).and_then(|parts| {
            let parsed: io::Result<Vec<_>> =
                parts.iter().map(|part| LinkMessage::parse(part).map_err(malformed)).collect();
            Ok(parsed?.iter().filter(|link| link.header.index == port).flat_map(read_vlans).collect())
        });
        read.map_err(failed("list", || format!("networks of bridge port {port}")))
    }
}

fn vlan_message(port: u32, vlan: PortVlan) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    let flags = match vlan.native {
        true => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
        false => BridgeVlanInfoFlags::empty(),
    };
    let info = BridgeVlanInfo { flags, vid: vlan.id };
    message.attributes.push(LinkAttribute::AfSpecBridge(vec![AfSpecBridge::VlanInfo(info)]));
    message
}

pub(super) fn read_vlans(message: &LinkMessage) -> Vec<PortVlan> {
    let specs = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecBridge(spec) => Some(spec),
        _ => None,
    });
    let vlans = specs.flatten().filter_map(|item| match item {
        AfSpecBridge::VlanInfo(info) => {
            Some(PortVlan { id: info.vid, native: info.flags.contains(BridgeVlanInfoFlags::Pvid) })
        }
        _ => None,
    });
    vlans.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Network, VethEnd};
    use crate::netns::Netns;

    #[test]
    fn a_port_has_networks() {
        if !crate::test::root("bridge ports") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let mut network = netns.run(|| Kernel::open().unwrap()).unwrap();
        network.add_bridge("br0", None).unwrap();
        let bridge = network.link("br0").unwrap().unwrap().index;
        if let Err(error) = network.filter_vlans(bridge) {
            eprintln!("SKIPPED a_port_has_networks: {error}");
            return;
        }
        let near = VethEnd { name: "port0", master: Some(bridge), ..VethEnd::default() };
        network.add_veth(near, VethEnd { name: "eth0", ..VethEnd::default() }, None, None).unwrap();
        let port = network.link("port0").unwrap().unwrap().index;
        network.isolate_port(port).unwrap();
        assert_eq!(network.port_vlans(port).unwrap(), [PortVlan { id: 1, native: true }]);
        network.delete_port_vlan(port, 1).unwrap();
        let wanted = [PortVlan { id: 100, native: true }, PortVlan { id: 101, native: false }];
        wanted.iter().for_each(|vlan| network.add_port_vlan(port, *vlan).unwrap());
        assert_eq!(network.port_vlans(port).unwrap(), wanted);
    }
}
