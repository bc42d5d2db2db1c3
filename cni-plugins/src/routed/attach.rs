//! The veth, and both sides' parameters, addresses, neighbours and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use api::cni::{Error, Ip, Route, Success};
use kernel::netlink::{self, Address, IpNetwork, Kernel, Link, LinkChange, Mac, Neighbour, Network, VethEnd};
use kernel::sysctl;

use super::{Config, Sides};
use crate::interface;
use crate::skel::Call;
use crate::veth;

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
        sides.node.add_veth(near, far, Some(sides.container.netns.as_fd()), mtu).map_err(Error::internal)?;
        let outer = interface::find(&mut sides.node, self.host)?;
        let inner = sides.container.link(&self.call.ifname)?;
        let (Some(outer_mac), Some(inner_mac)) = (outer.mac, inner.mac) else {
            return Err(Error::internal(format!("veth {} has no hardware address", self.host)));
        };
        let owner = self.call.owner();
        let mark = LinkChange { alias: Some(&owner), ..LinkChange::default() };
        sides.node.change_link(outer.index, mark).map_err(Error::internal)?;
        self.prepare(sides)?;
        self.on_node(&mut sides.node, outer.index, inner_mac, true).map_err(Error::internal)?;
        self.in_pod(&mut sides.container.network, inner.index, outer_mac).map_err(Error::internal)?;
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
        sides.container.admit_ipv6(&self.call.ifname, self.ips)?;
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

/// The attachment's veth on the node.
pub fn find(node: &mut dyn Network, call: &Call) -> netlink::Result<Option<Link>> {
    for name in veth::names(call) {
        if let Some(link) = node.link(&name)?.filter(|link| link.alias == call.owner()) {
            return Ok(Some(link));
        }
    }
    Ok(None)
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
