//! What this node's kernel and this node's annotations shall hold, decided from the model alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use kernel::netlink::Mac;

use super::model::{self, BackendData, Interface, Node, on_link};
use super::rules;
use super::state::{ALIAS, HOLE_METRIC, Hop, Hops, State, Tunnel};
use crate::config::{Config, Mode};
use crate::speaker::mesh;

/// Best paths by prefix, as the BGP speaker has them. Many prefixes share one.
pub type Learned = BTreeMap<IpNetwork, Arc<Path>>;

/// Where the speaker says that packets may go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    pub gateways: BTreeSet<IpAddr>,
    /// 0 is the kernel's default.
    pub metric: u32,
}

/// The routers by which peers are reached that are on no link of this node (`reachableBy`).
pub type Gateways = BTreeMap<IpAddr, IpAddr>;

/// How next hops become ways that begin at this node.
#[derive(Clone, Copy)]
pub struct Ways<'a> {
    pub interfaces: &'a [Interface],
    pub gateways: &'a Gateways,
}

impl Ways<'_> {
    /// The ways of a path that begin on a link of this node. A next hop of the other family is as good as any (RFC 8950).
    pub fn hops(&self, path: &Path) -> Hops {
        Arc::new(path.gateways.iter().filter_map(|gateway| self.hop(*gateway)).collect())
    }

    fn hop(&self, next_hop: IpAddr) -> Option<Hop> {
        let gateway = self.gateways.get(&next_hop).copied().unwrap_or(next_hop);
        let interface = on_link(self.interfaces, gateway)?;
        Some(Hop { gateway, device: interface.name.as_str().into(), onlink: false })
    }
}

/// Everything that the decision is made from.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// The name of this node.
    pub me: &'a str,
    pub nodes: &'a BTreeMap<String, Node>,
    pub config: &'a Config,
    pub interfaces: &'a [Interface],
    pub learned: &'a Learned,
}

impl Model<'_> {
    pub fn gateways(&self) -> Gateways {
        let Some(me) = self.nodes.get(self.me).filter(|_| self.config.mode == Mode::Bgp) else {
            return Gateways::new();
        };
        let own = mesh::Node { name: self.me.into(), labels: me.labels.clone(), ..mesh::Node::default() };
        mesh::gateways(&own, &self.config.bgp)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub state: State,
    /// This node's annotations about its tunnels; `None` is one that shall not be there.
    pub annotations: BTreeMap<&'static str, Option<String>>,
    pub pod_cidrs: Vec<IpNetwork>,
    /// MTU of pods.
    pub mtu: u32,
    /// One line for each prefix of another node, also of those to which no way leads.
    pub rows: Vec<Row>,
    pub problems: BTreeSet<Problem>,
}

/// A prefix and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub prefix: IpNetwork,
    /// The node, or the peer, that has it.
    pub source: String,
    pub mtu: u32,
    /// The tunnel's other end, where packets are wrapped.
    pub wrapped_to: Option<IpAddr>,
    pub way: Result<Hops, Problem>,
}

/// Why something cannot be done, in one line with what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    #[error("node {0} has no podCIDRs yet: the controller manager gives them with --allocate-node-cidrs")]
    NoPodCidrs(String),
    #[error("node {0} has not said its addresses yet: does its agent run?")]
    NoAddresses(String),
    #[error("node {0} has no {1} address of type InternalIP, so that its pods of {1} are not reached")]
    NoAddress(String, &'static str),
    #[error("{1} of node {0} is on no interface of this machine: give its agent a --node-ip that is")]
    NotHere(String, IpAddr),
    #[error("node {0} ({1}) is not on a link of this node: choose mode vxlan-cross-subnet, vxlan or bgp")]
    NotOnLink(String, IpAddr),
    #[error("node {0} has not said where its tunnel ends: does a net daemon run there?")]
    NoTunnel(String),
    #[error("node {0} wraps with VNI {1}, this one with {2}: they cannot hear each other")]
    OtherVni(String, u32, u32),
    #[error("the pod range {1} of node {0} holds addresses of interface {2}: its pods are not reached")]
    OverlapsLink(String, IpNetwork, String),
    #[error("the pod range {1} of node {0} overlaps one of node {2}: its pods are not reached")]
    OverlapsNode(String, IpNetwork, String),
    #[error("no link leads to {0}, the next hop to {1}")]
    HopNotOnLink(IpAddr, IpNetwork),
}

impl Problem {
    /// Whether it passes by itself while a cluster begins, so that it is told only to who asks.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::NoPodCidrs(_) | Self::NoAddresses(_) | Self::NoTunnel(_))
    }
}

/// The plan.
///
/// # Errors
/// Why there cannot be one yet; what the kernel has stays as it is.
pub fn plan(model: &Model<'_>) -> Result<Plan, Problem> {
    let waiting = || Problem::NoPodCidrs(model.me.to_owned());
    let me = model.nodes.get(model.me).filter(|me| !me.pod_cidrs.is_empty()).ok_or_else(waiting)?;
    if me.addresses.is_empty() {
        return Err(Problem::NoAddresses(model.me.to_owned()));
    }
    let families: Vec<Family<'_>> = [true, false].into_iter().filter_map(|v4| Family::of(model, me, v4)).collect();
    let mut plan = Plan { pod_cidrs: me.pod_cidrs.clone(), ..Plan::default() };
    plan.state.forwards = (families.iter().any(|f| f.v4), families.iter().any(|f| !f.v4));
    for family in &families {
        plan.problems.extend(family.problem(model.me));
        for cidr in me.pod_cidrs.iter().filter(|cidr| cidr.is_ipv4() == family.v4) {
            // Without it a packet to a pod that is gone would go the default way, and come back.
            plan.state.routes.insert((*cidr, HOLE_METRIC), Hops::default());
        }
        if let Some(tunnel) = &family.tunnel {
            plan.state.tunnels.insert(tunnel.0.clone(), tunnel.1.clone());
        }
        peers(model, family, &mut plan);
    }
    if model.config.mode == Mode::Bgp {
        let gateways = model.gateways();
        let ways = Ways { interfaces: model.interfaces, gateways: &gateways };
        plan.state.routes.extend(learned(model, ways, &own(me, &gateways)));
        for (peer, by) in &gateways {
            let prefix = IpNetwork::from(*peer);
            match ways.hop(*peer) {
                Some(hop) => drop(plan.state.routes.insert((prefix, 0), only(hop))),
                None => drop(plan.problems.insert(Problem::HopNotOnLink(*by, prefix))),
            }
        }
    }
    plan.mtu = model.config.mtu.unwrap_or_else(|| families.iter().map(Family::pod_mtu).min().unwrap_or(1500));
    plan.annotations = annotations(me, model.config, &families);
    plan.state.rules = Some(rules::plan(model, me));
    plan.problems.extend(plan.rows.iter().filter_map(|row| row.way.as_ref().err().cloned()));
    Ok(plan)
}

/// This node in one family of addresses.
struct Family<'a> {
    v4: bool,
    address: Option<IpAddr>,
    interface: Option<&'a Interface>,
    tunnel: Option<(String, Tunnel)>,
}

impl<'a> Family<'a> {
    /// `None` where the node has no pods of the family.
    fn of(model: &Model<'a>, me: &Node, v4: bool) -> Option<Self> {
        let cidr = me.pod_cidrs.iter().find(|cidr| cidr.is_ipv4() == v4)?;
        let address = me.address(v4);
        let interface = address.and_then(|address| model::holder(model.interfaces, address));
        let mut family = Self { v4, address, interface, tunnel: None };
        if model.config.mode.tunnels()
            && let (Some(address), Some(interface)) = (address, interface)
        {
            family.tunnel = Some(tunnel(model, address, interface, *cidr));
        }
        Some(family)
    }

    fn name(&self) -> &'static str {
        if self.v4 { "IPv4" } else { "IPv6" }
    }

    fn problem(&self, me: &str) -> Option<Problem> {
        match (self.address, self.interface) {
            (None, _) => Some(Problem::NoAddress(me.into(), self.name())),
            (Some(address), None) => Some(Problem::NotHere(me.into(), address)),
            _ => None,
        }
    }

    fn pod_mtu(&self) -> u32 {
        let link = self.interface.map_or(1500, |interface| interface.mtu);
        self.tunnel.as_ref().map_or(link, |(_, tunnel)| tunnel.mtu.min(link))
    }
}

/// What VXLAN takes of a packet: the outer headers of IP and UDP, its own, and the inner Ethernet's (RFC 7348 section 5).
const fn overhead(v4: bool) -> u32 {
    if v4 { 50 } else { 70 }
}

/// The tunnel as flannel would make it, so that flannel's nodes find nothing strange.
fn tunnel(model: &Model<'_>, local: IpAddr, interface: &Interface, cidr: IpNetwork) -> (String, Tunnel) {
    let (v4, config) = (local.is_ipv4(), model.config);
    let name = format!("flannel{}.{}", if v4 { "" } else { "-v6" }, config.vni);
    let tunnel = Tunnel {
        vni: config.vni,
        port: config.port,
        local: Some(local),
        learning: false,
        mac: mac(model.me, &name),
        mtu: config.vxlan_mtu.unwrap_or_else(|| interface.mtu.saturating_sub(overhead(v4)).max(1280)),
        up: true,
        alias: ALIAS.into(),
        addresses: BTreeSet::from([cidr.network().into()]),
    };
    (name, tunnel)
}

/// A hardware address that is the same after every start, so that other nodes need not learn another.
fn mac(node: &str, link: &str) -> Mac {
    let text = format!("{node}\0{link}");
    // FNV-1a, 64 bits.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let [_, _, a, b, c, d, e, f] = (hash ^ hash >> 48).to_be_bytes();
    // Locally administered, and of one machine.
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}

/// The ways to all other nodes' pods of the family.
fn peers(model: &Model<'_>, family: &Family<'_>, plan: &mut Plan) {
    if model.config.mode == Mode::Bgp {
        return;
    }
    let mut taken: Vec<(&str, IpNetwork)> = Vec::new();
    let of_family = |cidr: &&IpNetwork| cidr.is_ipv4() == family.v4;
    taken.extend(plan.pod_cidrs.iter().filter(of_family).map(|cidr| (model.me, *cidr)));
    for (name, node) in model.nodes.iter().filter(|(name, _)| *name != model.me) {
        for cidr in node.pod_cidrs.iter().filter(of_family) {
            let mut row = Row {
                prefix: *cidr,
                source: name.clone(),
                mtu: family.pod_mtu(),
                wrapped_to: None,
                way: Err(Problem::NoTunnel(name.clone())),
            };
            let clash = clash(model, &taken, (name, *cidr));
            row.way = clash.map_or_else(|| way(model, family, (name, node, *cidr), &mut row), Err);
            if let Ok(hops) = &row.way {
                taken.push((name, *cidr));
                install(&row, hops, node.tunnel(family.v4).map(|end| end.mac), &mut plan.state);
            }
            plan.rows.push(row);
        }
    }
}

/// Why a pod range must not be routed: it would lead astray what is here, or another node's.
fn clash(model: &Model<'_>, taken: &[(&str, IpNetwork)], (name, cidr): (&str, IpNetwork)) -> Option<Problem> {
    let overlaps = |other: IpNetwork| other.contains(cidr.network()) || cidr.contains(other.network());
    for interface in model.interfaces {
        if interface.addresses.iter().any(|net| cidr.contains(net.ip())) {
            return Some(Problem::OverlapsLink(name.into(), cidr, interface.name.clone()));
        }
    }
    let other = taken.iter().find(|(_, other)| overlaps(*other))?;
    Some(Problem::OverlapsNode(name.into(), cidr, other.0.into()))
}

fn way(
    model: &Model<'_>,
    family: &Family<'_>,
    (name, node, cidr): (&str, &Node, IpNetwork),
    row: &mut Row,
) -> Result<Hops, Problem> {
    let address = node.address(family.v4);
    let plain = address.and_then(|address| Some((address, on_link(model.interfaces, address)?)));
    match (model.config.mode, plain) {
        (Mode::HostGw | Mode::VxlanCrossSubnet, Some((gateway, interface))) => {
            return Ok(only(Hop { gateway, device: interface.name.as_str().into(), onlink: false }));
        }
        (Mode::HostGw, None) => {
            let none = || match node.addresses.is_empty() {
                true => Problem::NoAddresses(name.into()),
                false => Problem::NoAddress(name.into(), family.name()),
            };
            return Err(address.map_or_else(none, |address| Problem::NotOnLink(name.into(), address)));
        }
        _ => {}
    }
    let Some((device, _)) = &family.tunnel else {
        return Err(family.problem(model.me).unwrap_or_else(|| Problem::NoTunnel(model.me.into())));
    };
    let end = node.tunnel(family.v4).ok_or_else(|| Problem::NoTunnel(name.into()))?;
    match end.vni {
        Some(vni) if vni != model.config.vni => return Err(Problem::OtherVni(name.into(), vni, model.config.vni)),
        _ => {}
    }
    row.wrapped_to = Some(end.address);
    Ok(only(Hop { gateway: inner(cidr, end.mac), device: device.as_str().into(), onlink: family.v4 }))
}

fn only(hop: Hop) -> Hops {
    Arc::new(BTreeSet::from([hop]))
}

/// What the other end is called inside the tunnel; only a neighbour entry of this node knows it. flannel takes the
/// range's own address for both families. But the kernel refuses a gateway of IPv6 that another route leads to by
/// another link, were it a wide one that an administrator made, and never a link-local one.
fn inner(cidr: IpNetwork, mac: Mac) -> IpAddr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    match cidr {
        IpNetwork::V4(_) => cidr.network(),
        // RFC 4291, appendix A.
        IpNetwork::V6(_) => [0xfe80, 0, 0, 0, (a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f].into(),
    }
}

fn install(row: &Row, hops: &Hops, mac: Option<Mac>, state: &mut State) {
    state.routes.insert((row.prefix, 0), Arc::clone(hops));
    if let (Some(remote), Some(mac)) = (row.wrapped_to, mac) {
        for hop in hops.iter() {
            state.neighbours.insert((hop.device.to_string(), hop.gateway), mac);
            state.forwarding.insert((hop.device.to_string(), mac), remote);
        }
    }
}

/// What this node knows better than any peer: its own ranges, and the ways to peers.
pub fn own(me: &Node, gateways: &Gateways) -> Vec<IpNetwork> {
    me.pod_cidrs.iter().copied().chain(gateways.keys().map(|peer| IpNetwork::from(*peer))).collect()
}

/// The routes of what the speaker learnt, without this node's own, whatever others say of them.
fn learned(model: &Model<'_>, ways: Ways<'_>, own: &[IpNetwork]) -> impl Iterator<Item = ((IpNetwork, u32), Hops)> {
    let mut known: BTreeMap<&Arc<Path>, Hops> = BTreeMap::new();
    let foreign = model.learned.iter().filter(|(prefix, _)| !own.contains(prefix));
    foreign.filter_map(move |(prefix, path)| {
        let hops = known.entry(path).or_insert_with(|| ways.hops(path));
        (!hops.is_empty()).then(|| ((*prefix, path.metric), Arc::clone(hops)))
    })
}

/// What there is to say of a learnt prefix.
pub fn learned_row(model: &Model<'_>, gateways: &Gateways, prefix: IpNetwork, path: &Path) -> Row {
    let hops = Ways { interfaces: model.interfaces, gateways }.hops(path);
    let of_node = |(_, node): &(&String, &Node)| path.gateways.iter().any(|gateway| node.addresses.contains(gateway));
    let first = path.gateways.first().copied();
    let source = match (model.nodes.iter().find(of_node), first) {
        (Some((name, _)), _) => name.clone(),
        (None, first) => first.map(|gateway| gateway.to_string()).unwrap_or_default(),
    };
    let mtu = |hop: &Hop| model.interfaces.iter().find(|interface| *interface.name == *hop.device).map(|i| i.mtu);
    let mtu = hops.iter().filter_map(mtu).min().unwrap_or(0);
    let way = match first {
        Some(gateway) if hops.is_empty() => Err(Problem::HopNotOnLink(gateway, prefix)),
        _ => Ok(hops),
    };
    Row { prefix, source, mtu, wrapped_to: None, way }
}

fn annotations(me: &Node, config: &Config, families: &[Family<'_>]) -> BTreeMap<&'static str, Option<String>> {
    let of = |v4: bool| families.iter().find(|family| family.v4 == v4).and_then(|family| family.tunnel.as_ref());
    let data = |v4: bool| {
        let data = BackendData { vni: Some(config.vni), mac: of(v4)?.1.mac.to_string() };
        serde_json::to_string(&data).ok()
    };
    let local = |v4: bool| of(v4)?.1.local.map(|local| local.to_string());
    let any = of(true).or(of(false)).is_some();
    let wanted = BTreeMap::from([
        (model::BACKEND_TYPE, any.then(|| "vxlan".to_owned())),
        (model::BACKEND_V4, data(true)),
        (model::BACKEND_V6, data(false)),
        (model::PUBLIC_V4, local(true)),
        (model::PUBLIC_V6, local(false)),
        (model::MANAGED, any.then(|| "true".to_owned())),
    ]);
    wanted.into_iter().filter(|(key, value)| me.annotations.get(*key) != value.as_ref()).collect()
}

#[cfg(test)]
pub mod tests;
