//! Who has which address in a cluster's network, 172.30.N.0/24.
//!
//! Without racks all of it is one LAN: the host has the first address, the nodes the next ones. With racks it is cut into
//! eight. The first part joins the host (first address) and the racks' routers (the next ones); each further part is a
//! rack, in which the router has the first address and the nodes the next ones.
//!
//! With two families each address 172.30.N.H has one of IPv6 beside it, fd00:172:30:PN::H with P for the part.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

use super::{Cluster, Node, Settings};

/// How many nodes a cluster may have.
pub const MOST_NODES: u8 = 200;
/// How many racks a cluster may have.
pub const MOST_RACKS: u8 = 7;
/// How many nodes a rack may have: its router has an address too, and so do network and broadcast.
const MOST_IN_RACK: u8 = 29;
/// The length of the prefix of a rack.
const RACK: u8 = 27;

/// The nodes behind one router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rack {
    /// Counts from 1.
    pub number: u8,
    pub subnet: Ipv4Network,
    /// The router's address among the nodes.
    pub router: Ipv4Addr,
    /// The router's address among host and routers.
    pub uplink: Ipv4Addr,
}

impl Rack {
    fn of(cluster: u8, number: u8) -> Self {
        let subnet = part(cluster, number);
        Self { number, subnet, router: nth(subnet, 1), uplink: nth(part(cluster, 0), 1 + number) }
    }

    /// The label `topology.kubernetes.io/zone` of its nodes.
    pub fn zone(&self) -> String {
        format!("rack-{}", self.number)
    }
}

/// The whole network of a cluster.
pub fn network(cluster: u8) -> Ipv4Network {
    let length = 24;
    Ipv4Network::new(Ipv4Addr::new(172, 30, cluster, 0), length).expect("24 is a prefix length")
}

fn part(cluster: u8, position: u8) -> Ipv4Network {
    Ipv4Network::new(Ipv4Addr::new(172, 30, cluster, position << (32 - RACK)), RACK).expect("27 is a prefix length")
}

fn nth(subnet: Ipv4Network, n: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + u32::from(n))
}

/// Whether so many nodes fit into so many racks.
///
/// # Errors
/// What to ask for instead.
pub fn check(nodes: u8, racks: u8) -> anyhow::Result<()> {
    anyhow::ensure!(racks <= nodes, "--racks {racks} needs a node for each: --nodes {racks} or more");
    let fit = racks == 0 || nodes.div_ceil(racks) <= MOST_IN_RACK;
    anyhow::ensure!(
        fit,
        "--racks {racks}: a rack has room for {MOST_IN_RACK} nodes, so at most {}",
        racks * MOST_IN_RACK
    );
    Ok(())
}

/// The nodes of a new cluster, dealt to its racks in turn.
pub(super) fn nodes(cluster: u8, name: &str, settings: &Settings) -> Vec<Node> {
    let node = |position: u8| {
        let (rack, address) = match settings.racks {
            0 => (None, nth(network(cluster), 2 + position)),
            racks => {
                let rack = Rack::of(cluster, 1 + position % racks);
                (Some(rack.number), nth(rack.subnet, 2 + position / racks))
            }
        };
        Node { name: format!("{name}-{}", u16::from(position) + 1), address, rack }
    };
    (0..settings.nodes).map(node).collect()
}

impl Cluster {
    pub fn network(&self) -> Ipv4Network {
        network(self.number)
    }

    /// The part of the network that the host is in.
    pub fn host_network(&self) -> Ipv4Network {
        if self.settings.racks == 0 { self.network() } else { part(self.number, 0) }
    }

    pub fn host_address(&self) -> Ipv4Addr {
        nth(self.network(), 1)
    }

    pub fn racks(&self) -> Vec<Rack> {
        (1..=self.settings.racks).map(|number| Rack::of(self.number, number)).collect()
    }

    pub fn rack_of(&self, node: &Node) -> Option<Rack> {
        node.rack.map(|number| Rack::of(self.number, number))
    }

    /// The part of the network that a node is in.
    pub fn network_of(&self, node: &Node) -> Ipv4Network {
        self.rack_of(node).map_or(self.network(), |rack| rack.subnet)
    }

    /// The address of IPv6, with its subnet's length, that belongs to one of this cluster, where there are two families.
    /// RFC 4193: local addresses, with a subnet for each part.
    pub fn ipv6_of(&self, address: Ipv4Addr) -> Option<Ipv6Network> {
        let [.., host] = address.octets();
        let part = if self.settings.racks == 0 { 0 } else { host >> (32 - RACK) };
        let subnet = u16::from_be_bytes([part, self.number]);
        let own = Ipv6Addr::new(0xfd00, 0x172, 0x30, subnet, 0, 0, 0, host.into());
        Ipv6Network::new(own, 64).ok().filter(|_| self.settings.dual_stack)
    }

    /// A node's addresses, the primary first.
    pub fn addresses_of(&self, node: &Node) -> Vec<IpAddr> {
        let six = self.ipv6_of(node.address).map(|net| IpAddr::V6(net.ip()));
        std::iter::once(IpAddr::V4(node.address)).chain(six).collect()
    }

    /// Where a node sends what is not of its part: to its rack's router. Without racks to nobody, so that it can reach
    /// service addresses (the kernel routes before it translates) and nothing else; or with egress to the host.
    pub fn gateway_of(&self, node: &Node) -> Ipv4Addr {
        match self.rack_of(node) {
            Some(rack) => rack.router,
            None if self.settings.egress => self.host_address(),
            None => nth(self.network(), 254),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Cri;

    fn cluster(nodes: u8, racks: u8) -> Cluster {
        let settings = Settings {
            kubeconfig: "/k".into(),
            registry_config: None,
            cri: Cri::Bosun,
            egress: false,
            nodes,
            racks,
            dual_stack: true,
        };
        Cluster::new("dev", 3, settings)
    }

    #[test]
    fn each_address_has_one_of_ipv6_beside_it() {
        let addresses = |cluster: &Cluster| -> Vec<String> {
            let nodes = cluster.nodes.iter().flat_map(|node| cluster.addresses_of(node));
            nodes.map(|address| address.to_string()).collect()
        };
        assert_eq!(addresses(&cluster(2, 0)), ["172.30.3.2", "fd00:172:30:3::2", "172.30.3.3", "fd00:172:30:3::3"]);
        let racks = cluster(2, 2);
        assert_eq!(addresses(&racks), ["172.30.3.34", "fd00:172:30:103::22", "172.30.3.66", "fd00:172:30:203::42"]);
        let router = racks.ipv6_of(racks.racks()[1].router).unwrap();
        assert_eq!(router.to_string(), "fd00:172:30:203::41/64");
        let one = Settings { dual_stack: false, ..racks.settings.clone() };
        assert_eq!(addresses(&Cluster { settings: one, ..racks }), ["172.30.3.34", "172.30.3.66"]);
    }

    #[test]
    fn one_lan() {
        let cluster = cluster(3, 0);
        let said: Vec<String> = cluster.nodes.iter().map(|node| format!("{} {}", node.name, node.address)).collect();
        assert_eq!(said, ["dev-1 172.30.3.2", "dev-2 172.30.3.3", "dev-3 172.30.3.4"]);
        let last = &cluster.nodes[2];
        assert_eq!(cluster.network_of(last).to_string(), "172.30.3.0/24");
        assert_eq!(cluster.gateway_of(last).to_string(), "172.30.3.254");
        assert_eq!(cluster.host_network().to_string(), "172.30.3.0/24");
    }

    #[test]
    fn racks_are_subnets_of_their_own() {
        let cluster = cluster(3, 2);
        let said: Vec<String> = cluster.nodes.iter().map(|node| format!("{} {}", node.name, node.address)).collect();
        assert_eq!(said, ["dev-1 172.30.3.34", "dev-2 172.30.3.66", "dev-3 172.30.3.35"]);
        let [one, two] = cluster.racks()[..] else { panic!("two racks") };
        assert_eq!(
            (one.subnet.to_string().as_str(), one.router.to_string().as_str()),
            ("172.30.3.32/27", "172.30.3.33")
        );
        assert_eq!(
            (two.subnet.to_string().as_str(), two.uplink.to_string().as_str()),
            ("172.30.3.64/27", "172.30.3.3")
        );
        assert_eq!(cluster.rack_of(&cluster.nodes[2]), Some(one));
        assert_eq!(cluster.gateway_of(&cluster.nodes[1]), two.router);
        assert_eq!(cluster.host_network().to_string(), "172.30.3.0/27");
    }

    #[test]
    fn nobody_has_two_addresses_and_all_are_in_their_subnet() {
        for (nodes, racks) in [(MOST_NODES, 0), (200, MOST_RACKS), (29, 1), (5, 4)] {
            check(nodes, racks).unwrap();
            let cluster = cluster(nodes, racks);
            let mut all: Vec<Ipv4Addr> = cluster.nodes.iter().map(|node| node.address).collect();
            let routers = cluster.racks();
            all.extend(routers.iter().flat_map(|rack| [rack.router, rack.uplink]));
            all.push(cluster.host_address());
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
            for node in &cluster.nodes {
                let subnet = cluster.network_of(node);
                assert!(subnet.contains(node.address) && node.address != subnet.broadcast(), "{node:?}");
            }
        }
        assert!(check(1, 2).is_err() && check(59, 2).is_err() && check(58, 2).is_ok());
    }
}
