//! [`Network`] over rtnetlink. Message numbers and flags: rtnetlink(7).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteScope, RouteType,
};

use super::socket::Socket;
use super::{Address, Error, Link, LinkChange, Mac, Neighbour, Network, Result, Route, VethEnd};

pub(super) const NEWLINK: u16 = 16;
pub(super) const DELLINK: u16 = 17;
pub(super) const GETLINK: u16 = 18;
pub(super) const NEWADDR: u16 = 20;
pub(super) const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
pub(super) const NEWROUTE: u16 = 24;
pub(super) const DELROUTE: u16 = 25;
pub(super) const GETROUTE: u16 = 26;
pub(super) const NEWNEIGH: u16 = 28;
pub(super) const DELNEIGH: u16 = 29;
pub(super) const GETNEIGH: u16 = 30;

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const TABLE_LOCAL: u32 = 255;

/// The network of the namespace in which [`Kernel::open`] was called, also when used from another thread.
#[derive(Debug)]
pub struct Kernel(pub(super) Socket);

impl Kernel {
    /// # Errors
    /// Where the kernel gives no netlink socket.
    pub fn open() -> Result<Self> {
        Socket::open(netlink_sys::protocols::NETLINK_ROUTE)
            .map(Self)
            .map_err(failed("open", || "a netlink socket".into()))
    }
}

pub(super) fn failed(verb: &'static str, object: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> Error {
    move |source| Error { verb, object: object(), source }
}

pub(super) fn malformed(error: netlink_packet_core::DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Success where the object was there, `false` where it was not.
pub(super) fn deleted(done: Result<()>) -> Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Network for Kernel {
    fn links(&mut self) -> Result<Vec<Link>> {
        let read = self.0.dump(GETLINK, &LinkMessage::default()).and_then(|parts| {
            parts.iter().map(|part| LinkMessage::parse(part).map(|m| read_link(&m)).map_err(malformed)).collect()
        });
        read.map_err(failed("list", || "links".into()))
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let read = self.0.get(GETLINK, &message).and_then(|part| {
            part.map(|part| LinkMessage::parse(&part).map(|m| read_link(&m)).map_err(malformed)).transpose()
        });
        match read.map_err(failed("get", || format!("link {name}"))) {
            Err(error) if error.is_missing() => Ok(None),
            other => other,
        }
    }

    fn add_bridge(&mut self, name: &str, mtu: Option<u32>) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.0.act(NEWLINK, CREATE, &message).map_err(failed("add", || format!("bridge {name}")))
    }

    fn add_dummy(&mut self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
        self.0.act(NEWLINK, CREATE, &message).map_err(failed("add", || format!("dummy {name}")))
    }

    fn add_veth(
        &mut self,
        end: VethEnd<'_>,
        peer: VethEnd<'_>,
        peer_netns: Option<BorrowedFd<'_>>,
        mtu: Option<u32>,
    ) -> Result<()> {
        let mut other = veth_end(peer, mtu);
        other.attributes.extend(peer_netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        let mut message = veth_end(end, mtu);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.0
            .act(NEWLINK, CREATE, &message)
            .map_err(failed("add", || format!("veth {} with peer {}", end.name, peer.name)))
    }

    fn delete_link(&mut self, index: u32) -> Result<bool> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        deleted(self.0.act(DELLINK, 0, &message).map_err(failed("delete", || format!("link {index}"))))
    }

    fn change_link(&mut self, index: u32, change: LinkChange<'_>) -> Result<()> {
        let message = link_change(index, change);
        self.0.act(NEWLINK, 0, &message).map_err(failed("change", || format!("link {index} to {change:?}")))
    }

    fn set_hairpin(&mut self, port: u32, on: bool) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = port;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(on)])),
        ]));
        self.0.act(NEWLINK, 0, &message).map_err(failed("set hairpin on", || format!("bridge port {port}")))
    }

    fn addresses(&mut self) -> Result<Vec<Address>> {
        let read = self.0.dump(GETADDR, &AddressMessage::default()).and_then(|parts| {
            let parsed: io::Result<Vec<_>> =
                parts.iter().map(|part| AddressMessage::parse(part).map_err(malformed)).collect();
            Ok(parsed?.iter().filter_map(read_address).collect())
        });
        read.map_err(failed("list", || "addresses".into()))
    }

    fn add_address(&mut self, address: Address) -> Result<()> {
        let message = address_message(address);
        self.0.act(NEWADDR, CREATE, &message).map_err(failed("add", || about_address(address)))
    }

    fn delete_address(&mut self, address: Address) -> Result<bool> {
        let message = address_message(address);
        deleted(self.0.act(DELADDR, 0, &message).map_err(failed("delete", || about_address(address))))
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        let read = self.0.dump(GETROUTE, &RouteMessage::default()).and_then(|parts| {
            let parsed: io::Result<Vec<_>> =
                parts.iter().map(|part| RouteMessage::parse(part).map_err(malformed)).collect();
            Ok(parsed?.iter().filter_map(read_route).collect())
        });
        read.map_err(failed("list", || "routes".into()))
    }

    fn add_route(&mut self, route: &Route) -> Result<()> {
        let message = route_message(route);
        self.0.act(NEWROUTE, CREATE, &message).map_err(failed("add", || about_route(route)))
    }

    fn delete_route(&mut self, route: &Route) -> Result<bool> {
        let message = route_message(route);
        deleted(self.0.act(DELROUTE, 0, &message).map_err(failed("delete", || about_route(route))))
    }

    fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        let read = self.0.dump(GETNEIGH, &NeighbourMessage::default()).and_then(|parts| {
            let parsed: io::Result<Vec<_>> =
                parts.iter().map(|part| NeighbourMessage::parse(part).map_err(malformed)).collect();
            Ok(parsed?.iter().filter_map(read_neighbour).collect())
        });
        read.map_err(failed("list", || "neighbours".into()))
    }

    fn add_neighbour(&mut self, neighbour: Neighbour) -> Result<()> {
        let message = neighbour_message(neighbour);
        self.0.act(NEWNEIGH, CREATE, &message).map_err(failed("add", || format!("neighbour {}", neighbour.address)))
    }

    fn delete_neighbour(&mut self, neighbour: Neighbour) -> Result<bool> {
        let message = neighbour_message(neighbour);
        deleted(
            self.0.act(DELNEIGH, 0, &message).map_err(failed("delete", || format!("neighbour {}", neighbour.address))),
        )
    }
}

fn veth_end(end: VethEnd<'_>, mtu: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(end.name.to_owned()));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message.attributes.extend(end.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.extend(end.master.map(LinkAttribute::Controller));
    message
}

fn link_change(index: u32, change: LinkChange<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    for (flag, wanted) in [(LinkFlags::Up, change.up), (LinkFlags::Promisc, change.promiscuous)] {
        if let Some(on) = wanted {
            message.header.change_mask |= flag;
            message.header.flags.set(flag, on);
        }
    }
    let attributes = &mut message.attributes;
    attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    attributes.extend(change.master.map(LinkAttribute::Controller));
    attributes.extend(change.name.map(|name| LinkAttribute::IfName(name.to_owned())));
    attributes.extend(change.alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
    message
}

pub(super) fn read_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        promiscuous: flags.contains(LinkFlags::Promisc),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Promiscuity(count) => link.promiscuous |= *count > 0 && flags.contains(LinkFlags::Promisc),
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| read_link_info(&mut link, info)),
            _ => {}
        }
    }
    link
}

fn read_link_info(link: &mut Link, info: &LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
            link.hairpin = port.contains(&InfoBridgePort::HairpinMode(true));
        }
        _ => {}
    }
}

fn address_message(address: Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    let ip = address.net.ip();
    message.header.family = family(ip);
    message.header.prefix_len = address.net.prefix();
    message.header.index = address.link;
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    match address.net {
        IpNetwork::V4(net) if net.prefix() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()))
        }
        IpNetwork::V4(_) => {}
        // An address that a pod gets is unique by allocation; waiting a second for the kernel to check it helps nobody.
        IpNetwork::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}

pub(super) fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => found = Some(*ip),
            // On a point-to-point link this is the other side; elsewhere IPv6 has only this one.
            AddressAttribute::Address(ip) => found = found.or(Some(*ip)),
            _ => {}
        }
    }
    let net = IpNetwork::new(found?, message.header.prefix_len).ok()?;
    Some(Address { link: message.header.index, net })
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination.ip());
    header.destination_prefix_length = route.destination.prefix();
    header.table = u8::try_from(route.table).unwrap_or(0);
    header.protocol = route.protocol.into();
    header.kind = RouteType::Unicast;
    header.scope = match route.scope {
        Some(scope) => scope.into(),
        None if route.gateway.is_none() && route.destination.is_ipv4() => RouteScope::Link,
        None => RouteScope::Universe,
    };
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    if route.destination.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.network())));
    }
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    attributes.extend(route.link.map(RouteAttribute::Oif));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    let metrics: Vec<RouteMetric> =
        route.mtu.map(RouteMetric::Mtu).into_iter().chain(route.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

pub(super) fn read_route(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let any: IpAddr = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut destination = any;
    let mut route = Route::new(IpNetwork::from(any), None, 0);
    route.link = None;
    route.table = u32::from(message.header.table);
    route.protocol = message.header.protocol.into();
    route.scope = Some(message.header.scope.into());
    route.onlink = message.header.flags.contains(RouteFlags::Onlink);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = plain(to)?,
            RouteAttribute::Gateway(by) => route.gateway = plain(by),
            RouteAttribute::PrefSource(from) => route.source = plain(from),
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Metrics(metrics) => read_metrics(&mut route, metrics),
            _ => {}
        }
    }
    route.destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    (route.table != TABLE_LOCAL).then_some(route)
}

fn read_metrics(route: &mut Route, metrics: &[RouteMetric]) {
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
            RouteMetric::Advmss(mss) => route.advmss = Some(*mss),
            _ => {}
        }
    }
}

pub(super) fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

pub(super) fn neighbour_message(neighbour: Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.address);
    message.header.ifindex = neighbour.link;
    message.header.state = NeighbourState::Permanent;
    let address = match neighbour.address {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message.attributes.push(NeighbourAttribute::Destination(address));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()));
    message
}

pub(super) fn read_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    (message.header.state == NeighbourState::Permanent).then_some(Neighbour {
        link: message.header.ifindex,
        address: address?,
        mac: mac?,
    })
}

fn about_address(address: Address) -> String {
    format!("address {} on link {}", address.net, address.link)
}

fn about_route(route: &Route) -> String {
    match route.gateway {
        Some(gateway) => format!("route to {} by {gateway}", route.destination),
        None => format!("route to {}", route.destination),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Netns;

    #[test]
    fn a_veth_reaches_into_another_namespace() {
        if !crate::test::root("netlink") {
            return;
        }
        let (node, pod) = (Netns::anonymous().unwrap(), Netns::anonymous().unwrap());
        let mut on_node = node.run(|| Kernel::open().unwrap()).unwrap();
        let mut in_pod = pod.run(|| Kernel::open().unwrap()).unwrap();

        on_node.add_bridge("br0", Some(1400)).unwrap();
        assert!(on_node.add_bridge("br0", None).unwrap_err().is_exists());
        let bridge = on_node.link("br0").unwrap().unwrap();
        assert_eq!((bridge.kind.as_str(), bridge.mtu), ("bridge", 1400));

        let mac: Mac = "0a:58:0a:01:02:03".parse().unwrap();
        let host = VethEnd { name: "veth0", master: Some(bridge.index), ..VethEnd::default() };
        let eth0 = VethEnd { name: "eth0", mac: Some(mac), ..VethEnd::default() };
        use std::os::fd::AsFd;
        on_node.add_veth(host, eth0, Some(pod.as_fd()), Some(1400)).unwrap();
        let port = on_node.link("veth0").unwrap().unwrap();
        let mark = LinkChange { up: Some(true), alias: Some("ours"), ..LinkChange::default() };
        on_node.change_link(port.index, mark).unwrap();
        let port = on_node.link("veth0").unwrap().unwrap();
        assert_eq!((port.master, port.alias.as_str(), port.up), (Some(bridge.index), "ours", true));
        on_node.set_hairpin(port.index, true).unwrap();
        assert!(on_node.link("veth0").unwrap().unwrap().hairpin);

        let inside = in_pod.link("eth0").unwrap().unwrap();
        in_pod.change_link(inside.index, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        let inside = in_pod.link("eth0").unwrap().unwrap();
        assert_eq!((inside.mac, inside.mtu, inside.peer, inside.up), (Some(mac), 1400, Some(port.index), true));
        let address = Address { link: inside.index, net: "10.1.2.3/24".parse().unwrap() };
        in_pod.add_address(address).unwrap();
        assert!(in_pod.addresses().unwrap().contains(&address));
        let default = Route::new("0.0.0.0/0".parse().unwrap(), Some("10.1.2.1".parse().unwrap()), inside.index);
        in_pod.add_route(&default).unwrap();
        assert!(
            in_pod
                .routes()
                .unwrap()
                .iter()
                .any(|r| r.destination == default.destination && r.gateway == default.gateway)
        );
        assert!(in_pod.delete_route(&default).unwrap());
        assert!(!in_pod.delete_route(&default).unwrap(), "gone is not an error");

        let neighbour = Neighbour { link: inside.index, address: "10.1.2.9".parse().unwrap(), mac };
        in_pod.add_neighbour(neighbour).unwrap();
        assert!(in_pod.neighbours().unwrap().contains(&neighbour));
        assert!(in_pod.delete_neighbour(neighbour).unwrap());
        assert!(in_pod.delete_address(address).unwrap());

        on_node
            .change_link(port.index, LinkChange { up: Some(false), master: Some(0), ..LinkChange::default() })
            .unwrap();
        let port = on_node.link("veth0").unwrap().unwrap();
        assert_eq!((port.up, port.master), (false, None));
        assert!(on_node.delete_link(port.index).unwrap());
        assert!(!on_node.delete_link(port.index).unwrap());
        assert_eq!(in_pod.link("eth0").unwrap(), None);
        let error = on_node.add_address(Address { link: 99, net: "10.0.0.1/8".parse().unwrap() }).unwrap_err();
        assert!(error.is_missing());
        assert!(error.to_string().starts_with("cannot add address 10.0.0.1/8 on link 99: "), "{error}");
    }
}
