//! The veth pair, the bridge and their addresses.

use std::os::fd::BorrowedFd;

use api::cni::{Error, Ip};
use kernel::netlink::{Address, IpNetwork, Kernel, Link, LinkChange, Network, PortVlan, VethEnd};

use super::config::Config;
use crate::interface::{self, find};
use crate::skel::Call;
use crate::veth;

/// One container on the bridge, as it shall be.
pub struct Attachment<'a> {
    pub call: &'a Call,
    pub config: &'a Config,
    pub bridge: &'a Link,
    /// Name of the veth's end on the node.
    pub host: &'a str,
}

impl Attachment<'_> {
    /// Makes the pair: one end on the bridge, the other in the container, both started by their sides.
    pub fn make_veth(
        &self,
        node: &mut dyn Network,
        pod: &mut dyn Network,
        netns: BorrowedFd<'_>,
    ) -> Result<(Link, Link), Error> {
        let near = VethEnd { name: self.host, mac: None, master: Some(self.bridge.index) };
        let far = VethEnd { name: &self.call.ifname, mac: self.config.mac, master: None };
        node.add_veth(near, far, Some(netns), self.config.mtu).map_err(Error::internal)?;
        let outer = find(node, self.host)?;
        veth::own(node, self.call, outer.index, self.host)?;
        if self.config.hairpin {
            node.set_hairpin(outer.index, true).map_err(Error::internal)?;
        }
        Ok((outer, find(pod, &self.call.ifname)?))
    }
}

/// Puts the port into the networks that the configuration names.
pub fn join_networks(node: &mut Kernel, port: u32, config: &Config) -> Result<(), Error> {
    let trunk = config.trunk.as_deref().unwrap_or_default();
    if config.vlan.is_none() && trunk.is_empty() {
        return Ok(());
    }
    if !config.keep_default_vlan {
        for vlan in node.port_vlans(port).map_err(Error::internal)? {
            node.delete_port_vlan(port, vlan.id).map_err(Error::internal)?;
        }
    }
    let native = config.vlan.unwrap_or(1);
    let tagged = trunk.iter().filter(|id| **id != native).map(|id| PortVlan { id: *id, native: false });
    for vlan in [PortVlan { id: native, native: true }].into_iter().chain(tagged) {
        node.add_port_vlan(port, vlan).map_err(Error::internal)?;
    }
    Ok(())
}

/// The node's own link in one network of the bridge, made where it is not there: a veth whose other end is a port.
pub fn network_gateway(node: &mut Kernel, bridge: &Link, config: &Config, vlan: u16) -> Result<Link, Error> {
    let name = format!("{}.{vlan}", bridge.name);
    if let Some(link) = node.link(&name).map_err(Error::internal)? {
        return Ok(link);
    }
    let port = format!("veth{}", veth::hash(&name));
    let near = VethEnd { name: &port, mac: None, master: Some(bridge.index) };
    match node.add_veth(near, VethEnd { name: &name, ..VethEnd::default() }, None, Some(bridge.mtu)) {
        // Another ADD at the same moment.
        Err(error) if error.is_exists() => return find(node, &name),
        done => done.map_err(Error::internal)?,
    }
    let port = find(node, &port)?;
    interface::parameters(&[(format!("net/ipv6/conf/{}/accept_ra", port.name), "0")])?;
    let only = Config { vlan: Some(vlan), trunk: None, ..config.clone() };
    join_networks(node, port.index, &only)?;
    let link = find(node, &name)?;
    for index in [port.index, link.index] {
        interface::start(node, index).map_err(Error::internal)?;
    }
    Ok(link)
}

/// The bridge, made and started where it is not there; and whether it was made.
pub fn ensure_bridge(node: &mut dyn Network, config: &Config) -> Result<(Link, bool), Error> {
    let name = &config.bridge;
    let mut made = false;
    let mut found = node.link(name).map_err(Error::internal)?;
    if found.is_none() {
        match node.add_bridge(name, config.mtu) {
            // Another ADD at the same moment.
            Err(error) if error.is_exists() => {}
            done => {
                done.map_err(Error::internal)?;
                made = true;
                interface::parameters(&[(format!("net/ipv6/conf/{name}/accept_ra"), "0")])?;
            }
        }
        found = node.link(name).map_err(Error::internal)?;
    }
    let link = found.ok_or_else(|| Error::internal(format!("bridge {name} vanished after it was made")))?;
    if link.kind != "bridge" {
        return Err(Error::internal(format!("{name:?} already exists but is not a bridge")));
    }
    let promiscuous = (config.promiscuous && !link.promiscuous).then_some(true);
    if !link.up || promiscuous.is_some() {
        let change = LinkChange { up: Some(true), promiscuous, ..LinkChange::default() };
        node.change_link(link.index, change).map_err(Error::internal)?;
    }
    Ok((link, made))
}

/// Gives the bridge the gateways' addresses.
pub fn gateways(node: &mut dyn Network, bridge: &Link, config: &Config, ips: &[Ip]) -> Result<(), Error> {
    let present = node.addresses().map_err(Error::internal)?;
    let mut present: Vec<Address> = present.into_iter().filter(|address| address.link == bridge.index).collect();
    for ip in ips {
        let Some(wanted) = ip.gateway.and_then(|gateway| IpNetwork::new(gateway, ip.address.prefix()).ok()) else {
            continue;
        };
        let wanted = Address { link: bridge.index, net: wanted };
        if present.contains(&wanted) {
            continue;
        }
        let family = |other: &Address| other.net.is_ipv4() == wanted.net.is_ipv4();
        // A bridge has many addresses of IPv6, its link-local one among them; only overlapping ones are in the way.
        let clashes = |other: &Address| {
            family(other)
                && (wanted.net.is_ipv4() || other.net.contains(wanted.net.ip()) || wanted.net.contains(other.net.ip()))
        };
        for other in present.iter().copied().filter(clashes) {
            if !config.force_address {
                let name = &bridge.name;
                return Err(Error::internal(format!(
                    "{name:?} already has an IP address different from {}",
                    wanted.net
                )));
            }
            node.delete_address(other).map_err(Error::internal)?;
        }
        add_gateway(node, bridge, wanted)?;
        present.push(wanted);
    }
    Ok(())
}

fn add_gateway(node: &mut dyn Network, bridge: &Link, wanted: Address) -> Result<(), Error> {
    match node.add_address(wanted) {
        Err(error) if !error.is_exists() => return Err(Error::internal(error)),
        _ => {}
    }
    // Set by hand, the address no longer follows the ports', and what the containers learnt stays true.
    let mac = node.link(&bridge.name).map_err(Error::internal)?.and_then(|link| link.mac);
    node.change_link(bridge.index, LinkChange { mac, ..LinkChange::default() }).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use api::cni::{NetworkConfig, Route};
    use kernel::netlink::fake::Fake;
    use serde_json::json;

    use super::*;

    fn call() -> Call {
        let config: NetworkConfig = serde_json::from_value(
            json!({"cniVersion": "1.0.0", "name": "net", "bridge": "br", "isDefaultGateway": true, "hairpinMode": true}),
        )
        .unwrap();
        Call { container_id: "abc".into(), ifname: "eth0".into(), config, ..Call::default() }
    }

    fn ip() -> Ip {
        Ip { interface: None, address: "10.0.0.2/24".parse().unwrap(), gateway: Some("10.0.0.1".parse().unwrap()) }
    }

    #[test]
    fn the_pair_joins_bridge_and_container_and_goes_again() {
        let (mut node, mut pod) = Fake::pair();
        let call = call();
        let config = Config::of(&call).unwrap();
        let (bridge, made) = ensure_bridge(&mut node, &config).unwrap();
        assert!(made && !ensure_bridge(&mut node, &config).unwrap().1);
        let host = veth::host_name(&mut node, &call).unwrap();
        let (ips, routes) = ([ip()], [Route::new("0.0.0.0/0".parse().unwrap(), None)]);
        let attachment = Attachment { call: &call, config: &config, bridge: &bridge, host: &host };
        let file = std::fs::File::open("/dev/null").unwrap();
        let (outer, inner) = attachment.make_veth(&mut node, &mut pod, file.as_fd()).unwrap();
        interface::add_routes(&mut pod, inner.index, &ips, &routes).unwrap();
        gateways(&mut node, &bridge, &config, &ips).unwrap();

        let port = node.link(&host).unwrap().unwrap();
        assert_eq!((port.master, port.hairpin, port.up), (Some(bridge.index), true, true));
        assert_eq!((port.alias.as_str(), outer.index), ("abc/eth0@net", port.index));
        assert_eq!(pod.state().routes[0].gateway, ips[0].gateway);
        assert_eq!(node.state().addresses[0].net.to_string(), "10.0.0.1/24");

        assert!(veth::detach(&mut node, &call).unwrap());
        assert!(!veth::detach(&mut node, &call).unwrap());
        assert!(pod.state().links.is_empty());
    }

    #[test]
    fn another_address_on_the_bridge_needs_force() {
        let (mut node, _) = Fake::pair();
        let mut config = Config::of(&call()).unwrap();
        let (bridge, _) = ensure_bridge(&mut node, &config).unwrap();
        node.add_address(Address { link: bridge.index, net: "10.9.9.1/24".parse().unwrap() }).unwrap();
        let error = gateways(&mut node, &bridge, &config, &[ip()]).unwrap_err();
        assert_eq!(error.msg, "\"br\" already has an IP address different from 10.0.0.1/24");
        config.force_address = true;
        gateways(&mut node, &bridge, &config, &[ip()]).unwrap();
        assert_eq!(node.state().addresses.len(), 1);
    }
}
