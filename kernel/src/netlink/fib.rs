//! Routes of the main table by whoever made them: several next hops, hops of another family (RFC 8950), and prefixes
//! that lead nowhere. Source: rtnetlink(7), ip-route(8).

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteScope,
    RouteType, RouteVia,
};

use super::real::{DELROUTE, GETROUTE, NEWROUTE, deleted, failed, malformed, plain};
use super::{Kernel, Result, TABLE_MAIN};

/// `IP6_RT_PRIO_USER`, the metric of a route of IPv6 of which none was said.
const METRIC_V6: u32 = 1024;

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FibRoute {
    pub destination: IpNetwork,
    /// Where packets may go, each way as often as another; without any, the destination is a black hole.
    pub hops: Vec<Hop>,
    /// Source address for what the node itself sends.
    pub source: Option<IpAddr>,
    /// Lower is preferred. `None` is the kernel's default: 0, or 1024 for IPv6.
    pub metric: Option<u32>,
    /// Who made the route (`rtm_protocol`).
    pub protocol: u8,
}

/// One way to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    pub gateway: Option<IpAddr>,
    pub link: u32,
    /// Whether the gateway counts as reachable though no address covers it.
    pub onlink: bool,
}

impl Kernel {
    /// The routes of the main table that `protocol` made.
    ///
    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn routes_of(&mut self, protocol: u8) -> Result<Vec<FibRoute>> {
        // Of a table with all of the world in it, only what is asked for is worth the decoding.
        self.routes_by(|maker| maker == protocol)
    }

    /// The routes of the main table whose makers (`rtm_protocol`) are wanted.
    ///
    /// # Errors
    /// Where the kernel's table cannot be read.
    pub fn routes_by(&mut self, wanted: impl Fn(u8) -> bool) -> Result<Vec<FibRoute>> {
        let read = self.0.dump(GETROUTE, &RouteMessage::default()).and_then(|parts| {
            let mut routes = Vec::new();
            for part in parts.iter().filter(|part| part.get(5).is_some_and(|maker| wanted(*maker))) {
                routes.extend(read(&RouteMessage::parse(part).map_err(malformed)?));
            }
            Ok(routes)
        });
        read.map_err(failed("list", || "routes".into()))
    }

    /// Adds the route, in place of another to the same destination with the same metric.
    ///
    /// # Errors
    /// Where a gateway is out of reach, or a link is gone or down.
    pub fn set_route(&mut self, route: &FibRoute) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let done = self.0.act(NEWROUTE, flags, &message(route));
        done.map_err(failed("set", || about(route)))
    }

    /// Removes the route to that destination with that metric and protocol, whatever its hops are. `false` where there
    /// was none.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn unset_route(&mut self, route: &FibRoute) -> Result<bool> {
        // Without a metric the kernel takes the first of IPv6, a black hole among them.
        let metric = route.metric.or(route.destination.is_ipv6().then_some(METRIC_V6));
        let mut bare = message(&FibRoute { hops: Vec::new(), source: None, metric, ..route.clone() });
        bare.header.kind = if route.hops.is_empty() { RouteType::BlackHole } else { RouteType::Unicast };
        // RT_SCOPE_NOWHERE matches any.
        bare.header.scope = RouteScope::NoWhere;
        deleted(self.0.act(DELROUTE, 0, &bare).map_err(failed("delete", || about(route))))
    }
}

fn about(route: &FibRoute) -> String {
    match route.hops.first().and_then(|hop| hop.gateway) {
        Some(gateway) => format!("route to {} by {gateway}", route.destination),
        None => format!("route to {}", route.destination),
    }
}

fn message(route: &FibRoute) -> RouteMessage {
    let v4 = route.destination.is_ipv4();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 },
        destination_prefix_length: route.destination.prefix(),
        table: TABLE_MAIN as u8,
        protocol: route.protocol.into(),
        kind: if route.hops.is_empty() { RouteType::BlackHole } else { RouteType::Unicast },
        scope: RouteScope::Universe,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if route.destination.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.network())));
    }
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    match &route.hops[..] {
        [] => {}
        [only] => {
            attributes.push(RouteAttribute::Oif(only.link));
            attributes.extend(only.gateway.map(|ip| gateway(ip, v4)));
            if only.onlink {
                message.header.flags = RouteFlags::Onlink;
            }
            if only.gateway.is_none() && v4 {
                message.header.scope = RouteScope::Link;
            }
        }
        several => attributes.push(RouteAttribute::MultiPath(several.iter().map(|hop| next_hop(hop, v4)).collect())),
    }
    message
}

/// A gateway of the other family stands in an attribute of its own.
fn gateway(ip: IpAddr, v4: bool) -> RouteAttribute {
    match ip {
        IpAddr::V6(ip) if v4 => RouteAttribute::Via(RouteVia::Inet6(ip)),
        ip => RouteAttribute::Gateway(ip.into()),
    }
}

fn next_hop(hop: &Hop, v4: bool) -> RouteNextHop {
    let mut next = RouteNextHop::default();
    next.interface_index = hop.link;
    if hop.onlink {
        next.flags = RouteNextHopFlags::Onlink;
    }
    next.attributes.extend(hop.gateway.map(|ip| gateway(ip, v4)));
    next
}

fn read(message: &RouteMessage) -> Option<FibRoute> {
    let header = &message.header;
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        AddressFamily::Inet6 => [0; 16].into(),
        _ => return None,
    };
    let onlink = header.flags.contains(RouteFlags::Onlink);
    let mut only = Hop { gateway: None, link: 0, onlink };
    let (mut destination, mut table) = (any, u32::from(header.table));
    let mut hops = Vec::new();
    let (mut source, mut metric) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = plain(to)?,
            RouteAttribute::Oif(link) => only.link = *link,
            RouteAttribute::PrefSource(from) => source = plain(from),
            RouteAttribute::Priority(value) => metric = Some(*value),
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::MultiPath(several) => hops.extend(several.iter().map(read_hop)),
            other => only.gateway = only.gateway.or(read_gateway(other)),
        }
    }
    match header.kind {
        RouteType::Unicast if hops.is_empty() => hops.push(only),
        RouteType::Unicast => {}
        // IPv6 says that a black hole is on the loopback.
        RouteType::BlackHole => hops.clear(),
        _ => return None,
    }
    let destination = IpNetwork::new(destination, header.destination_prefix_length).ok()?;
    let metric = metric.filter(|metric| destination.is_ipv4() || *metric != METRIC_V6);
    let protocol = header.protocol.into();
    (table == TABLE_MAIN).then_some(FibRoute { destination, hops, source, metric, protocol })
}

fn read_hop(next: &RouteNextHop) -> Hop {
    Hop {
        gateway: next.attributes.iter().find_map(read_gateway),
        link: next.interface_index,
        onlink: next.flags.contains(RouteNextHopFlags::Onlink),
    }
}

fn read_gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(by) => plain(by),
        RouteAttribute::Via(RouteVia::Inet6(by)) => Some(IpAddr::V6(*by)),
        RouteAttribute::Via(RouteVia::Inet(by)) => Some(IpAddr::V4(*by)),
        _ => None,
    }
}

/// For the watch: whose route it is, and where to.
pub(super) fn read_name(part: &[u8]) -> io::Result<Option<(IpNetwork, u8)>> {
    let message = RouteMessage::parse(part).map_err(malformed)?;
    Ok(read(&message).map(|route| (route.destination, route.protocol)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Address, LinkChange, Network, VethEnd};
    use crate::netns::Netns;

    const OURS: u8 = 81;

    fn route(destination: &str, hops: &[(&str, u32)]) -> FibRoute {
        let hop = |(gateway, link): &(&str, u32)| Hop { gateway: gateway.parse().ok(), link: *link, onlink: false };
        FibRoute {
            destination: destination.parse().unwrap(),
            hops: hops.iter().map(hop).collect(),
            source: None,
            metric: None,
            protocol: OURS,
        }
    }

    #[test]
    fn one_hop_several_and_none_are_set_changed_and_removed() {
        if !crate::test::root("routes") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let mut network = netns.run(|| Kernel::open().unwrap()).unwrap();
        let ends = ["up0", "up1"].map(|name| VethEnd { name, ..VethEnd::default() });
        network.add_veth(ends[0], ends[1], None, None).unwrap();
        let links = ["up0", "up1"].map(|name| network.link(name).unwrap().unwrap().index);
        for (number, link) in links.into_iter().enumerate() {
            network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
            for net in [format!("192.0.{number}.1/24"), format!("2001:db8:{number}::1/64")] {
                network.add_address(Address { link, net: net.parse().unwrap() }).unwrap();
            }
        }
        let [zero, one] = links;
        let cases = [
            route("10.1.0.0/24", &[("192.0.0.2", zero)]),
            route("10.1.0.0/24", &[("192.0.0.2", zero), ("192.0.1.2", one)]),
            route("10.1.0.0/24", &[("2001:db8::2", zero)]),
            route("10.1.0.0/24", &[("2001:db8::2", zero), ("192.0.1.2", one)]),
            route("fd00:1::/64", &[("2001:db8::2", zero)]),
            route("fd00:1::/64", &[("2001:db8::2", zero), ("2001:db8:1::2", one)]),
            route("fd00:1::/64", &[("2001:db8::3", zero)]),
        ];
        for wanted in &cases {
            network.set_route(wanted).unwrap();
            let found = network.routes_of(OURS).unwrap();
            let same: Vec<_> = found.iter().filter(|r| r.destination == wanted.destination).collect();
            assert_eq!(same, [wanted]);
        }
        let onlink = FibRoute {
            hops: vec![Hop { gateway: "10.9.9.9".parse().ok(), link: zero, onlink: true }],
            ..route("10.2.0.0/24", &[])
        };
        let holes = ["10.3.0.0/24", "fd00:3::/64"].map(|to| FibRoute { metric: Some(2048), ..route(to, &[]) });
        for wanted in holes.iter().chain([&onlink]) {
            network.set_route(wanted).unwrap();
            assert!(network.routes_of(OURS).unwrap().contains(wanted), "{wanted:?}");
        }
        // A foreign route of the same prefix is neither read nor removed.
        network.set_route(&FibRoute { metric: Some(7), protocol: 4, ..onlink.clone() }).unwrap();
        let beside = route("fd00:3::/64", &[("2001:db8::2", zero)]);
        network.set_route(&beside).unwrap();
        assert!(network.unset_route(&beside).unwrap());
        assert!(network.routes_of(OURS).unwrap().contains(&holes[1]), "the hole has another metric");
        for gone in [&cases[3], &cases[5], &onlink, &holes[0], &holes[1]] {
            assert!(network.unset_route(gone).unwrap(), "{gone:?}");
            assert!(!network.unset_route(gone).unwrap());
        }
        assert_eq!(network.routes_of(OURS).unwrap(), []);
        assert_eq!(network.routes_of(4).unwrap().len(), 1);
    }
}
