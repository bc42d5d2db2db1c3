//! The veth pair, the bridge and their addresses.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use api::cni::{Error, Ip, Route};
use kernel::netlink::{self, Address, IpNetwork, Link, LinkChange, Network, VethEnd};

use super::config::Config;
use crate::skel::Call;

/// One container on the bridge, as it shall be.
pub struct Attachment<'a> {
    pub call: &'a Call,
    pub config: &'a Config,
    pub bridge: &'a Link,
    /// Name of the veth's end on the node.
    pub host: &'a str,
    pub ips: &'a [Ip],
    pub routes: &'a [Route],
}

impl Attachment<'_> {
    /// Makes the pair: one end on the bridge, the other in the container, both started by their sides.
    pub fn make_veth(
        &self,
        node: &mut dyn Network,
        pod: &mut dyn Network,
        netns: BorrowedFd<'_>,
    ) -> netlink::Result<(Link, Link)> {
        let near = VethEnd { name: self.host, mac: None, master: Some(self.bridge.index) };
        let far = VethEnd { name: &self.call.ifname, mac: self.config.mac, master: None };
        node.add_veth(near, far, Some(netns), self.config.mtu)?;
        let outer = expect(node, self.host)?;
        let owner = self.call.owner();
        let change = LinkChange { up: Some(true), alias: Some(&owner), ..LinkChange::default() };
        node.change_link(outer.index, change)?;
        if self.config.hairpin {
            node.set_hairpin(outer.index, true)?;
        }
        Ok((outer, expect(pod, &self.call.ifname)?))
    }

    /// Addresses before the start, so that the start announces them; routes after it, because they need it.
    pub fn configure(&self, pod: &mut dyn Network, link: u32) -> netlink::Result<()> {
        for ip in self.ips {
            pod.add_address(Address { link, net: ip.address })?;
        }
        pod.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() })?;
        for route in self.routes {
            let gateway = route.gw.or_else(|| self.gateway_for(route.dst));
            let mut wanted = netlink::Route::new(route.dst, gateway, link);
            (wanted.metric, wanted.mtu, wanted.advmss) = (route.priority, route.mtu, route.advmss);
            wanted.table = route.table.unwrap_or(wanted.table);
            wanted.scope = route.scope;
            match pod.add_route(&wanted) {
                Err(error) if !error.is_exists() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A route without a gateway goes by the gateway of an address of its family.
    fn gateway_for(&self, destination: IpNetwork) -> Option<IpAddr> {
        self.ips.iter().find(|ip| ip.address.is_ipv4() == destination.is_ipv4()).and_then(|ip| ip.gateway)
    }
}

fn expect(network: &mut dyn Network, name: &str) -> netlink::Result<Link> {
    let missing = || netlink::Error {
        verb: "find",
        object: format!("link {name}"),
        source: std::io::Error::new(std::io::ErrorKind::NotFound, "it vanished after it was made"),
    };
    network.link(name)?.ok_or_else(missing)
}

/// The bridge, made and started where it is not there.
pub fn ensure_bridge(node: &mut dyn Network, config: &Config) -> Result<Link, Error> {
    let name = &config.bridge;
    let mut found = node.link(name).map_err(Error::internal)?;
    if found.is_none() {
        match node.add_bridge(name, config.mtu) {
            // Another ADD at the same moment.
            Err(error) if error.is_exists() => {}
            done => done.map_err(Error::internal)?,
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
    Ok(link)
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

/// Candidates for the name of an attachment's end on the node: a function of the attachment, so that DEL finds it
/// without any record, and so that a crash between two steps leaves nothing unknown.
fn names(call: &Call) -> impl Iterator<Item = String> + '_ {
    (0..4).map(|salt: u32| {
        let text = format!("{}\0{}\0{}\0{salt}", call.config.name, call.container_id, call.ifname);
        // FNV-1a, 64 bits, folded.
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("veth{:08x}", (hash >> 32) as u32 ^ hash as u32)
    })
}

/// A name that is free. What an ADD that was killed left under ours is removed.
pub fn host_name(node: &mut dyn Network, call: &Call) -> Result<String, Error> {
    for name in names(call) {
        match node.link(&name).map_err(Error::internal)? {
            None => return Ok(name),
            Some(link) if link.alias == call.owner() || link.alias.is_empty() => {
                node.delete_link(link.index).map_err(Error::internal)?;
                return Ok(name);
            }
            Some(_) => {}
        }
    }
    Err(Error::internal("no free name for the veth"))
}

/// Removes the attachment's veth. `false` where there was none.
pub fn detach(node: &mut dyn Network, call: &Call) -> netlink::Result<bool> {
    for name in names(call) {
        let Some(link) = node.link(&name)? else { continue };
        // An ADD that was killed before it wrote the alias leaves it empty.
        if link.alias == call.owner() || link.alias.is_empty() {
            return node.delete_link(link.index);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use api::cni::NetworkConfig;
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
        let bridge = ensure_bridge(&mut node, &config).unwrap();
        let host = host_name(&mut node, &call).unwrap();
        let (ips, routes) = ([ip()], [Route::new("0.0.0.0/0".parse().unwrap(), None)]);
        let attachment =
            Attachment { call: &call, config: &config, bridge: &bridge, host: &host, ips: &ips, routes: &routes };
        let file = std::fs::File::open("/dev/null").unwrap();
        let (outer, inner) = attachment.make_veth(&mut node, &mut pod, file.as_fd()).unwrap();
        attachment.configure(&mut pod, inner.index).unwrap();
        gateways(&mut node, &bridge, &config, &ips).unwrap();

        let port = node.link(&host).unwrap().unwrap();
        assert_eq!((port.master, port.hairpin, port.up), (Some(bridge.index), true, true));
        assert_eq!((port.alias.as_str(), outer.index), ("abc/eth0@net", port.index));
        assert_eq!(pod.state().addresses, [Address { link: inner.index, net: ips[0].address }]);
        assert_eq!(pod.state().routes[0].gateway, ips[0].gateway);
        assert_eq!(node.state().addresses[0].net.to_string(), "10.0.0.1/24");

        assert!(detach(&mut node, &call).unwrap());
        assert!(!detach(&mut node, &call).unwrap());
        assert!(pod.state().links.is_empty() && pod.state().addresses.is_empty());
    }

    #[test]
    fn another_address_on_the_bridge_needs_force() {
        let (mut node, _) = Fake::pair();
        let mut config = Config::of(&call()).unwrap();
        let bridge = ensure_bridge(&mut node, &config).unwrap();
        node.add_address(Address { link: bridge.index, net: "10.9.9.1/24".parse().unwrap() }).unwrap();
        let error = gateways(&mut node, &bridge, &config, &[ip()]).unwrap_err();
        assert_eq!(error.msg, "\"br\" already has an IP address different from 10.0.0.1/24");
        config.force_address = true;
        gateways(&mut node, &bridge, &config, &[ip()]).unwrap();
        assert_eq!(node.state().addresses.len(), 1);
    }
}
