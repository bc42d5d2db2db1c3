//! The network between the host and the nodes of a cluster: a bridge in a namespace of its own, and one veth pair
//! to the host. The nodes are ports of that bridge, or of a rack's, whose router is. Nothing else of the host's network
//! changes, unless `--egress` asks for it.

pub mod egress;
mod racks;
mod switch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use ipnetwork::{IpNetwork, Ipv4Network};
use kernel::netlink::{Address, Kernel, Link, LinkChange, Mac, Network, Route, VethEnd};
use kernel::netns::{self, Netns};

use crate::cluster::{Cluster, Node, Paths};
use switch::Switch;

/// The underlay's end of the pair to the host.
const HOST_PORT: &str = "host";
/// A node's own interface.
pub const NODE_LINK: &str = "eth0";
const IP_FORWARD: &str = "net/ipv4/ip_forward";

/// Whose a link on the host is: written on the link, so that it is found without any file.
pub fn alias(cluster: &str) -> String {
    format!("bosun cluster {cluster}")
}

/// IPv4 networks that the host has routes to, the default route aside.
///
/// # Errors
/// Where the kernel does not list them.
pub fn host_routes() -> anyhow::Result<Vec<Ipv4Network>> {
    let routes = Kernel::open()?.routes()?;
    let networks = routes.into_iter().filter_map(|route| match route.destination {
        IpNetwork::V4(network) if network.prefix() > 0 => Some(network),
        _ => None,
    });
    Ok(networks.collect())
}

/// Makes what is missing of the network, but for the nodes' own interfaces.
///
/// # Errors
/// Where the kernel refuses, or a link of that name is somebody else's.
pub fn ensure(cluster: &Cluster) -> anyhow::Result<()> {
    let underlay = Switch::ensure(&cluster.paths().underlay())?;
    ensure_host_link(cluster, &underlay)?;
    racks::ensure(cluster, &underlay)
}

fn ensure_host_link(cluster: &Cluster, underlay: &Switch) -> anyhow::Result<()> {
    let name = cluster.host_link();
    let is_joined = underlay.has_port(HOST_PORT)?;
    let mut network = Kernel::open()?;
    if let Some(link) = network.link(&name)? {
        anyhow::ensure!(is_ours(&link, cluster), "the host has a link {name} that is not bosun's: rename or remove it");
        if !is_joined {
            network.delete_link(link.index)?;
        }
    }
    if !is_joined {
        underlay.plug(HOST_PORT, VethEnd { name: &name, ..VethEnd::default() }, &Netns::current()?)?;
    }
    let link = network.link(&name)?.with_context(|| format!("link {name} is gone as soon as it was made"))?.index;
    let mark = alias(&cluster.name);
    network.change_link(link, LinkChange { up: Some(true), alias: Some(&mark), ..LinkChange::default() })?;
    address(cluster, &mut network, link, cluster.host_address(), cluster.host_network())?;
    for rack in cluster.racks() {
        route(cluster, &mut network, rack.subnet, rack.uplink, link)?;
    }
    Ok(())
}

/// By its mark; or by its name, where we died between making and marking it.
fn is_ours(link: &Link, cluster: &Cluster) -> bool {
    let unmarked = link.name == cluster.host_link() && link.kind == "veth" && link.alias.is_empty();
    link.alias == alias(&cluster.name) || unmarked
}

/// The index of the link, which is up.
fn set_up(network: &mut Kernel, name: &str) -> anyhow::Result<u32> {
    let link = network.link(name)?.with_context(|| format!("there is no link {name}"))?.index;
    network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() })?;
    Ok(link)
}

/// Gives a link an address, and with two families the one of IPv6 that belongs to it.
fn address(
    cluster: &Cluster,
    network: &mut Kernel,
    link: u32,
    own: Ipv4Addr,
    subnet: Ipv4Network,
) -> anyhow::Result<()> {
    let four = IpNetwork::new(IpAddr::V4(own), subnet.prefix())?;
    for net in [Some(four), cluster.ipv6_of(own).map(IpNetwork::V6)].into_iter().flatten() {
        match network.add_address(Address { link, net }) {
            Err(error) if !error.is_exists() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// A route, and with two families the one of IPv6 beside it.
fn route(cluster: &Cluster, network: &mut Kernel, to: Ipv4Network, gateway: Ipv4Addr, link: u32) -> anyhow::Result<()> {
    let four = (IpNetwork::V4(to), IpAddr::V4(gateway));
    let six = cluster.ipv6_of(gateway).and_then(|gateway| {
        let (to, length) =
            if to == anywhere() { (Ipv6Addr::UNSPECIFIED, 0) } else { (cluster.ipv6_of(to.ip())?.network(), 64) };
        Some((IpNetwork::new(to.into(), length).ok()?, IpAddr::V6(gateway.ip())))
    });
    for (to, gateway) in [Some(four), six].into_iter().flatten() {
        match network.add_route(&Route::new(to, Some(gateway), link)) {
            Err(error) if !error.is_exists() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Lets this namespace pass packets on.
fn forward(cluster: &Cluster) -> anyhow::Result<()> {
    kernel::sysctl::write(IP_FORWARD, "1")?;
    if cluster.settings.dual_stack {
        kernel::sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn anywhere() -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).expect("0 is a prefix length")
}

/// The same for a machine that comes back: the others still hold it for their neighbour.
fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    // Locally administered, unicast.
    Mac([0x02, 0xb0, a, b, c, d])
}

/// Gives a node, whose PID 1 is `pid`, its interface. `position` counts the cluster's nodes from 0.
///
/// # Errors
/// Where the kernel refuses.
pub fn attach(cluster: &Cluster, position: usize, pid: u32) -> anyhow::Result<()> {
    let node = cluster.nodes.get(position).context("the cluster has no such node")?;
    let paths = cluster.paths();
    let switch = cluster.rack_of(node).map_or_else(|| paths.underlay(), |rack| racks::path(&paths, &rack));
    let inner = VethEnd { name: NODE_LINK, mac: Some(mac_of(node.address)), ..VethEnd::default() };
    let netns = Netns::open(format!("/proc/{pid}/ns/net"))?;
    Switch::open(&switch)?.plug(&format!("node{}", position + 1), inner, &netns)
}

/// What a node's PID 1 does to its own network, once it has its interface.
///
/// # Errors
/// Where the kernel refuses.
pub fn configure_node(cluster: &Cluster, node: &Node) -> anyhow::Result<()> {
    let mut network = Kernel::open()?;
    set_up(&mut network, "lo")?;
    let link = set_up(&mut network, NODE_LINK)?;
    address(cluster, &mut network, link, node.address, cluster.network_of(node))?;
    route(cluster, &mut network, anywhere(), cluster.gateway_of(node), link)?;
    forward(cluster)?;
    kernel::sysctl::write("net/bridge/bridge-nf-call-iptables", "1")?;
    Ok(())
}

/// Removes all of the cluster's network; each failure is said and the rest goes on.
pub fn remove(name: &str, cluster: Option<&Cluster>) -> Vec<anyhow::Error> {
    let paths = Paths::of(name);
    let steps = [
        egress::remove_rules(name),
        egress::restore_forwarding(name, cluster),
        remove_host_link(name, cluster),
        netns::remove(paths.underlay()).map_err(anyhow::Error::from),
    ];
    steps.into_iter().filter_map(Result::err).chain(racks::remove(&paths)).collect()
}

fn remove_host_link(name: &str, cluster: Option<&Cluster>) -> anyhow::Result<()> {
    let mut network = Kernel::open()?;
    let mark = alias(name);
    let is_ours = |link: &Link| link.alias == mark || cluster.is_some_and(|cluster| is_ours(link, cluster));
    for link in network.links()?.into_iter().filter(is_ours) {
        network.delete_link(link.index)?;
    }
    Ok(())
}
