//! The network between the host and the nodes of a cluster: a bridge in a namespace of its own, and one veth pair
//! to the host. Nothing else of the host's network changes, unless `--egress` asks for it.

use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::Context;
use ipnetwork::{IpNetwork, Ipv4Network};
use kernel::netlink::{Address, Kernel, Link, LinkChange, Mac, Network, VethEnd};
use kernel::netns::{self, Netns};
use kernel::nftables::{self, Nft, Nftables};

use crate::cluster::{Cluster, Node, all};

/// The bridge that the nodes are ports of, in the underlay.
const BRIDGE: &str = "nodes";
/// The underlay's end of the pair to the host.
const HOST_PORT: &str = "host";
/// A node's own interface.
pub const NODE_LINK: &str = "eth0";
const IP_FORWARD: &str = "net/ipv4/ip_forward";

/// Whose a link on the host is: written on the link, so that it is found without any file.
pub fn alias(cluster: &str) -> String {
    format!("bosun cluster {cluster}")
}

/// The host's nftables table of a cluster. A cluster's name has no underscore.
pub fn table(cluster: &str) -> String {
    format!("bosun_{}", cluster.replace('-', "_"))
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

/// Makes what is missing of the underlay and the pair to the host.
///
/// # Errors
/// Where the kernel refuses, or a link of that name is somebody else's.
pub fn ensure_underlay(cluster: &Cluster) -> anyhow::Result<()> {
    let path = cluster.paths().underlay();
    let underlay = match Netns::open(&path) {
        Ok(underlay) => underlay,
        Err(error) if error.is_gone() => {
            netns::remove(&path)?;
            netns::create(&path)?
        }
        Err(error) => return Err(error.into()),
    };
    let bridge = underlay.run(ensure_bridge)??;
    let has_host_port = underlay.run(|| anyhow::Ok(Kernel::open()?.link(HOST_PORT)?.is_some()))??;
    ensure_host_link(cluster, &underlay, bridge, has_host_port)
}

fn ensure_bridge() -> anyhow::Result<u32> {
    let mut network = Kernel::open()?;
    if network.link(BRIDGE)?.is_none() {
        network.add_bridge(BRIDGE, None)?;
    }
    set_up(&mut network, BRIDGE)?;
    Ok(network.link(BRIDGE)?.context("the bridge is gone as soon as it was made")?.index)
}

fn ensure_host_link(cluster: &Cluster, underlay: &Netns, bridge: u32, is_joined: bool) -> anyhow::Result<()> {
    let name = cluster.host_link();
    let mut network = Kernel::open()?;
    if let Some(link) = network.link(&name)? {
        anyhow::ensure!(is_ours(&link, cluster), "the host has a link {name} that is not bosun's: rename or remove it");
        if !is_joined {
            network.delete_link(link.index)?;
        }
    }
    if !is_joined {
        let host = Netns::current()?;
        underlay.run(|| {
            let mut network = Kernel::open()?;
            let port = VethEnd { name: HOST_PORT, master: Some(bridge), ..VethEnd::default() };
            network.add_veth(port, VethEnd { name: &name, ..VethEnd::default() }, Some(host.as_fd()), None)?;
            set_up(&mut network, HOST_PORT)
        })??;
    }
    let link = network.link(&name)?.with_context(|| format!("link {name} is gone as soon as it was made"))?;
    let mark = alias(&cluster.name);
    network.change_link(link.index, LinkChange { up: Some(true), alias: Some(&mark), ..LinkChange::default() })?;
    let net = IpNetwork::new(IpAddr::V4(cluster.host_address()), cluster.network().prefix())?;
    match network.add_address(Address { link: link.index, net }) {
        Err(error) if !error.is_exists() => Err(error.into()),
        _ => Ok(()),
    }
}

/// By its mark; or by its name, where we died between making and marking it.
fn is_ours(link: &Link, cluster: &Cluster) -> bool {
    let unmarked = link.name == cluster.host_link() && link.kind == "veth" && link.alias.is_empty();
    link.alias == alias(&cluster.name) || unmarked
}

fn set_up(network: &mut Kernel, name: &str) -> anyhow::Result<()> {
    let link = network.link(name)?.with_context(|| format!("there is no link {name}"))?;
    Ok(network.change_link(link.index, LinkChange { up: Some(true), ..LinkChange::default() })?)
}

/// Gives a node, whose PID 1 is `pid`, its interface. `position` counts the cluster's nodes from 0.
///
/// # Errors
/// Where the kernel refuses.
pub fn attach(cluster: &Cluster, position: usize, pid: u32) -> anyhow::Result<()> {
    let underlay = Netns::open(cluster.paths().underlay())?;
    let node = Netns::open(format!("/proc/{pid}/ns/net"))?;
    let port = format!("node{}", position + 1);
    let address = cluster.nodes.get(position).context("the cluster has no such node")?.address;
    underlay.run(|| {
        let mut network = Kernel::open()?;
        let bridge = network.link(BRIDGE)?.context("the underlay has no bridge")?.index;
        if let Some(stale) = network.link(&port)? {
            network.delete_link(stale.index)?;
        }
        let end = VethEnd { name: &port, master: Some(bridge), ..VethEnd::default() };
        let inner = VethEnd { name: NODE_LINK, mac: Some(mac(address)), ..VethEnd::default() };
        network.add_veth(end, inner, Some(node.as_fd()), None)?;
        set_up(&mut network, &port)
    })?
}

/// The same for a node that comes back: the host and the other nodes still hold it for its neighbour.
fn mac(address: std::net::Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    // Locally administered, unicast.
    Mac([0x02, 0xb0, a, b, c, d])
}

/// What a node's PID 1 does to its own network, once it has its interface.
///
/// # Errors
/// Where the kernel refuses.
pub fn configure_node(cluster: &Cluster, node: &Node) -> anyhow::Result<()> {
    let mut network = Kernel::open()?;
    set_up(&mut network, "lo")?;
    set_up(&mut network, NODE_LINK)?;
    let link = network.link(NODE_LINK)?.context("the node lost its link")?.index;
    let net = IpNetwork::new(IpAddr::V4(node.address), cluster.network().prefix())?;
    network.add_address(Address { link, net })?;
    let anywhere = IpNetwork::V4(Ipv4Network::new(std::net::Ipv4Addr::UNSPECIFIED, 0)?);
    network.add_route(&kernel::netlink::Route::new(anywhere, Some(IpAddr::V4(cluster.gateway())), link))?;
    kernel::sysctl::write(IP_FORWARD, "1")?;
    kernel::sysctl::write("net/bridge/bridge-nf-call-iptables", "1")?;
    Ok(())
}

/// Lets the cluster's nodes reach what the host reaches: a table of its own, and forwarding. Returns what
/// forwarding was before.
///
/// # Errors
/// Where nft or the kernel refuses.
pub fn open_egress(cluster: &Cluster) -> anyhow::Result<()> {
    Nft.apply(&egress_rules(cluster))?;
    kernel::sysctl::write(IP_FORWARD, "1")?;
    Ok(())
}

pub fn forwarding() -> anyhow::Result<String> {
    Ok(kernel::sysctl::read(IP_FORWARD)?)
}

fn egress_rules(cluster: &Cluster) -> String {
    let (table, link, network) = (table(&cluster.name), cluster.host_link(), cluster.network());
    format!(
        "add table ip {table}
delete table ip {table}
add table ip {table}
add chain ip {table} forward {{ type filter hook forward priority 0; }}
add rule ip {table} forward iifname \"{link}\" accept
add rule ip {table} forward oifname \"{link}\" ct state established,related accept
add chain ip {table} postrouting {{ type nat hook postrouting priority 100; }}
add rule ip {table} postrouting ip saddr {network} oifname != \"{link}\" masquerade
"
    )
}

/// Removes all of the cluster's network; each failure is said and the rest goes on.
pub fn remove(name: &str, cluster: Option<&Cluster>) -> Vec<anyhow::Error> {
    let table = table(name);
    let rules = match Nft.apply(&format!("delete table ip {table}")) {
        Err(nftables::Error::Missing(_)) => Ok(()),
        done => done.map_err(anyhow::Error::from),
    };
    let steps = [
        rules,
        restore_forwarding(name, cluster),
        remove_host_link(name, cluster),
        netns::remove(crate::cluster::Paths::of(name).underlay()).map_err(anyhow::Error::from),
    ];
    steps.into_iter().filter_map(Result::err).collect()
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

/// The last cluster with egress restores what the first one found.
fn restore_forwarding(name: &str, cluster: Option<&Cluster>) -> anyhow::Result<()> {
    let Some(before) = cluster.and_then(|cluster| cluster.ip_forward_before.clone()) else { return Ok(()) };
    let mut others = all()?;
    if let Some(heir) = others.iter_mut().find(|other| other.name != name && other.ip_forward_before.is_some()) {
        if before == "0" {
            heir.ip_forward_before = Some(before);
            heir.save()?;
        }
        return Ok(());
    }
    kernel::sysctl::write(IP_FORWARD, &before)?;
    Ok(())
}
