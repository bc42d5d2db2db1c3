//! The veth, and both sides' parameters, addresses, neighbours and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use api::cni::{Error, Interface, Ip, Route, Success};
use kernel::netlink::{self, Address, IpNetwork, Kernel, Link, LinkChange, Mac, Neighbour, Network, VethEnd};
use kernel::sysctl;

use super::{Config, Sides};
use crate::skel::Call;

/// What a container knows the node by; on no link but the container's own.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// One container, as it shall be.
pub struct Attachment<'a> {
    pub call: &'a Call,
    /// Name of the veth's end on the node.
    pub host: &'a str,
    pub ips: &'a [Ip],
    pub routes: &'a [Route],
}

/// Whether there are addresses of IPv4, and of IPv6.
pub fn families(ips: &[Ip]) -> (bool, bool) {
    (ips.iter().any(|ip| ip.address.is_ipv4()), ips.iter().any(|ip| ip.address.is_ipv6()))
}

pub fn gateway(v4: bool) -> IpAddr {
    if v4 { GATEWAY_V4 } else { GATEWAY_V6 }
}

/// Turns what IPAM answered into what this plugin makes of it: each address alone, every route by the gateway, and a
/// default route for each family for which IPAM has none to give.
pub fn complete(result: &mut Success) {
    for ip in &mut result.ips {
        let address = ip.address.ip();
        *ip = Ip { interface: Some(1), address: address.into(), gateway: Some(gateway(address.is_ipv4())) };
    }
    for route in &mut result.routes {
        route.gw = Some(gateway(route.dst.is_ipv4()));
    }
    let (v4, v6) = families(&result.ips);
    for (used, v4) in [(v4, true), (v6, false)] {
        if used && !result.routes.iter().any(|route| route.dst.is_ipv4() == v4) {
            result.routes.push(Route::new(everywhere(v4), Some(gateway(v4))));
        }
    }
}

fn everywhere(v4: bool) -> IpNetwork {
    let any: IpAddr = if v4 { [0; 4].into() } else { [0; 16].into() };
    // A prefix of nothing is valid for every address.
    IpNetwork::new(any, 0).unwrap_or(any.into())
}

impl Attachment<'_> {
    /// Makes the pair and everything on it, from the container outwards: the node's routes come last, so that nobody
    /// is led to a container that cannot answer.
    pub fn make(&self, sides: &mut Sides, config: &Config) -> Result<(Link, Link), Error> {
        let mtu = (config.mtu > 0).then_some(config.mtu);
        let near = VethEnd { name: self.host, ..VethEnd::default() };
        let far = VethEnd { name: &self.call.ifname, ..VethEnd::default() };
        sides.node.add_veth(near, far, Some(sides.netns.as_fd()), mtu).map_err(Error::internal)?;
        let outer = expect(&mut sides.node, self.host)?;
        let inner = expect(&mut sides.pod, &self.call.ifname)?;
        let (Some(outer_mac), Some(inner_mac)) = (outer.mac, inner.mac) else {
            return Err(Error::internal(format!("veth {} has no hardware address", self.host)));
        };
        let owner = self.call.owner();
        let mark = LinkChange { alias: Some(&owner), ..LinkChange::default() };
        sides.node.change_link(outer.index, mark).map_err(Error::internal)?;
        self.prepare(sides)?;
        self.on_node(&mut sides.node, outer.index, inner_mac, true).map_err(Error::internal)?;
        self.in_pod(&mut sides.pod, inner.index, outer_mac).map_err(Error::internal)?;
        self.on_node(&mut sides.node, outer.index, inner_mac, false).map_err(Error::internal)?;
        Ok((outer, inner))
    }

    /// Parameters of both ends that must stand before they are up.
    fn prepare(&self, sides: &Sides) -> Result<(), Error> {
        let (v4, v6) = families(self.ips);
        let host = self.host;
        let mut outer = Vec::new();
        if v4 {
            outer.extend([
                (format!("net/ipv4/conf/{host}/forwarding"), "1"),
                // What comes from the container has to have an address that is routed to it.
                (format!("net/ipv4/conf/{host}/rp_filter"), "1"),
                (format!("net/ipv4/conf/{host}/proxy_arp"), "1"),
                (format!("net/ipv4/neigh/{host}/proxy_delay"), "0"),
            ]);
        }
        if v6 {
            outer.extend([
                (format!("net/ipv6/conf/{host}/disable_ipv6"), "0"),
                (format!("net/ipv6/conf/{host}/forwarding"), "1"),
                // A container is no router of the node.
                (format!("net/ipv6/conf/{host}/accept_ra"), "0"),
                // The gateway's address is the only one that the link needs.
                (format!("net/ipv6/conf/{host}/addr_gen_mode"), "1"),
            ]);
        }
        for (name, value) in outer {
            sysctl::write(&name, value).map_err(Error::internal)?;
        }
        if v6 {
            let name = format!("net/ipv6/conf/{}/disable_ipv6", self.call.ifname);
            sides.netns.run(|| sysctl::write(&name, "0")).map_err(Error::internal)?.map_err(Error::internal)?;
        }
        Ok(())
    }

    /// The node's end, in two steps: `start` makes it a neighbour, and the second leads packets to it.
    fn on_node(&self, node: &mut Kernel, link: u32, pod: Mac, start: bool) -> netlink::Result<()> {
        if start {
            if families(self.ips).1 {
                let net = IpNetwork::new(GATEWAY_V6, 64).unwrap_or(GATEWAY_V6.into());
                node.add_address(Address { link, net })?;
            }
            return node.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() });
        }
        for ip in self.ips {
            let address = ip.address.ip();
            node.set_neighbour(Neighbour { link, address, mac: pod })?;
            node.add_route(&netlink::Route::new(address.into(), None, link))?;
        }
        Ok(())
    }

    /// Addresses before the start, so that they are there when somebody looks; the rest needs the link up.
    fn in_pod(&self, pod: &mut Kernel, link: u32, node: Mac) -> netlink::Result<()> {
        for ip in self.ips {
            pod.add_address(Address { link, net: ip.address })?;
        }
        pod.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() })?;
        let (v4, v6) = families(self.ips);
        for (_, v4) in [(v4, true), (v6, false)].into_iter().filter(|(used, _)| *used) {
            let address = gateway(v4);
            pod.set_neighbour(Neighbour { link, address, mac: node })?;
            if v4 {
                pod.add_route(&netlink::Route::new(address.into(), None, link))?;
            }
        }
        for route in self.routes {
            let mut wanted = netlink::Route::new(route.dst, route.gw, link);
            (wanted.metric, wanted.mtu, wanted.advmss) = (route.priority, route.mtu, route.advmss);
            wanted.table = route.table.unwrap_or(wanted.table);
            pod.add_route(&wanted)?;
        }
        Ok(())
    }
}

pub fn interface(link: &Link, sandbox: &str) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    Interface { name: link.name.clone(), mac, mtu: Some(link.mtu), sandbox: sandbox.into(), ..Interface::default() }
}

fn expect(network: &mut dyn Network, name: &str) -> Result<Link, Error> {
    let link = network.link(name).map_err(Error::internal)?;
    link.ok_or_else(|| Error::internal(format!("link {name} vanished after it was made")))
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

/// Whether the link is the attachment's; an ADD that was killed before it wrote the alias leaves it empty.
fn is_ours(link: &Link, call: &Call) -> bool {
    link.alias == call.owner() || link.alias.is_empty()
}

/// A name that is free. What an ADD that was killed left under ours is removed.
pub fn host_name(node: &mut dyn Network, call: &Call) -> Result<String, Error> {
    for name in names(call) {
        match node.link(&name).map_err(Error::internal)? {
            None => return Ok(name),
            Some(link) if is_ours(&link, call) => {
                node.delete_link(link.index).map_err(Error::internal)?;
                return Ok(name);
            }
            Some(_) => {}
        }
    }
    Err(Error::internal("no free name for the veth"))
}

/// The attachment's veth on the node.
pub fn find(node: &mut dyn Network, call: &Call) -> netlink::Result<Option<Link>> {
    for name in names(call) {
        if let Some(link) = node.link(&name)?.filter(|link| is_ours(link, call)) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Removes the attachment's veth, and with it routes and neighbours on both sides. Not there is success.
pub fn detach(node: &mut dyn Network, call: &Call) -> netlink::Result<()> {
    match find(node, call)? {
        Some(link) => node.delete_link(link.index).map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_stands_alone_and_every_route_goes_by_the_gateway() {
        let ip = |address: &str| Ip { interface: None, address: address.parse().unwrap(), gateway: None };
        let mut result = Success {
            ips: vec![ip("10.244.1.5/24"), ip("fd00:1::5/64")],
            routes: vec![Route::new("10.0.0.0/8".parse().unwrap(), "10.244.1.1".parse().ok())],
            ..Success::default()
        };
        complete(&mut result);
        assert_eq!(
            result.ips.iter().map(|ip| ip.address.to_string()).collect::<Vec<_>>(),
            ["10.244.1.5/32", "fd00:1::5/128"]
        );
        let routes: Vec<_> = result.routes.iter().map(|route| (route.dst.to_string(), route.gw)).collect();
        assert_eq!(routes, [("10.0.0.0/8".into(), Some(GATEWAY_V4)), ("::/0".into(), Some(GATEWAY_V6))]);
    }
}
