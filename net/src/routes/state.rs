//! What the daemon keeps in the kernel, in the same terms for what shall be and what is. Links go by name, because an
//! index is only known of a link that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use kernel::netlink::Mac;

/// `rtm_protocol` of the daemon's routes: a number that rtnetlink.h gives to nobody.
pub const PROTOCOL: u8 = 81;
/// The alias of the daemon's links.
pub const ALIAS: &str = "bosun net";
/// The metric of a black hole: any other route to the same prefix goes before it.
pub const HOLE_METRIC: u32 = 2048;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Whether packets are passed on, for IPv4 and for IPv6.
    pub forwards: (bool, bool),
    pub tunnels: BTreeMap<String, Tunnel>,
    /// By prefix and metric; a metric of 0 is the kernel's default.
    pub routes: BTreeMap<(IpNetwork, u32), Hops>,
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// At which other end of the tunnel a hardware address is.
    pub forwarding: BTreeMap<(String, Mac), IpAddr>,
    /// `None` where there is no table.
    pub rules: Option<Rules>,
}

/// A VXLAN link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    pub vni: u32,
    pub port: u16,
    pub local: Option<IpAddr>,
    pub learning: bool,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    pub alias: String,
    pub addresses: BTreeSet<IpNetwork>,
}

/// Where packets to a prefix may go; without a hop, nowhere. Many prefixes share one.
pub type Hops = Arc<BTreeSet<Hop>>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    pub gateway: IpAddr,
    pub device: Arc<str>,
    pub onlink: bool,
}

/// The nftables table `bosun-net`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// Whether what leaves the cluster gets the node's address.
    pub nat: bool,
    /// The UDP port at which only nodes are heard.
    pub port: Option<u16>,
    /// Elements by the name of their set.
    pub sets: BTreeMap<String, BTreeSet<IpNetwork>>,
}
