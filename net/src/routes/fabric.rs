//! The kernel's side: reads what is, and does one action after another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use kernel::netlink::{
    self, Address, Change, FibRoute, ForwardingEntry, Kernel, Link, LinkChange, Neighbour, Network, Vxlan,
};
use kernel::nftables::{self, Nft, Nftables};
use kernel::{forwarding, sysctl};

use super::diff::Action;
use super::model::Interface;
use super::rules;
use super::state::{ALIAS, Hop, Hops, PROTOCOL, State, Tunnel};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(transparent)]
    Nftables(#[from] nftables::Error),
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    #[error("there is no link {0}")]
    NoLink(String),
}

/// The network of the namespace in which it was opened, and the rules of the calling thread's.
pub struct Fabric {
    network: Kernel,
    /// By name, as of the last look.
    links: BTreeMap<String, u32>,
    /// Prefix and metric of each route that is somebody else's, as of the last look.
    foreign: BTreeSet<(IpNetwork, u32)>,
}

impl Fabric {
    /// # Errors
    /// Where the kernel gives no netlink socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { network: Kernel::open()?, links: BTreeMap::new(), foreign: BTreeSet::new() })
    }

    /// The interfaces that have an address of more than their own link, without the tunnels.
    ///
    /// # Errors
    /// Where the kernel's tables cannot be read.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        let mut addresses: BTreeMap<u32, Vec<IpNetwork>> = BTreeMap::new();
        for address in self.network.addresses()?.into_iter().filter(|address| is_global(address.net.ip())) {
            addresses.entry(address.link).or_default().push(address.net);
        }
        let links = self.network.links()?;
        self.note(&links);
        let interface = |link: Link| {
            let mut addresses = addresses.remove(&link.index).filter(|_| !is_tunnel(&link))?;
            addresses.sort();
            Some(Interface { name: link.name, index: link.index, mtu: link.mtu, up: link.up, addresses })
        };
        Ok(links.into_iter().filter_map(interface).collect())
    }

    fn note(&mut self, links: &[Link]) {
        self.links = links.iter().map(|link| (link.name.clone(), link.index)).collect();
    }

    /// What there is of all that the daemon keeps.
    ///
    /// # Errors
    /// Where the kernel's tables cannot be read.
    pub fn read(&mut self) -> Result<State, Error> {
        let links = self.network.links()?;
        self.note(&links);
        let names: BTreeMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
        let name = |index: u32| names.get(&index).map_or_else(|| format!("link {index}"), |name| (*name).to_owned());
        let mut state = State { forwards: forwards(), rules: read_rules()?, ..State::default() };
        let addresses = self.network.addresses()?;
        for (link, vxlan) in self.network.vxlans()?.into_iter().filter(|(link, _)| is_tunnel(link)) {
            state.tunnels.insert(link.name.clone(), tunnel(&link, &vxlan, &addresses));
        }
        state.routes = self.own_routes(&name)?;
        if !state.tunnels.is_empty() {
            for neighbour in self.network.neighbours()? {
                let link = name(neighbour.link);
                if state.tunnels.contains_key(&link) {
                    state.neighbours.insert((link, neighbour.address), neighbour.mac);
                }
            }
            for entry in self.network.forwarding_entries()? {
                let link = name(entry.link);
                if state.tunnels.contains_key(&link) {
                    state.forwarding.insert((link, entry.mac), entry.remote);
                }
            }
        }
        Ok(state)
    }

    /// The daemon's routes. Hops that many have are held once.
    fn own_routes(&mut self, name: &dyn Fn(u32) -> String) -> Result<BTreeMap<(IpNetwork, u32), Hops>, Error> {
        let mut shared: BTreeMap<Vec<netlink::Hop>, Hops> = BTreeMap::new();
        let mut devices: BTreeMap<u32, Arc<str>> = BTreeMap::new();
        let (own, others): (Vec<FibRoute>, Vec<FibRoute>) =
            self.network.routes_by(|_| true)?.into_iter().partition(|route| route.protocol == PROTOCOL);
        self.foreign = others.into_iter().map(|route| (route.destination, route.metric.unwrap_or(0))).collect();
        let routes = own.into_iter().map(|route| {
            let mut hop = |hop: &netlink::Hop| {
                let device = devices.entry(hop.link).or_insert_with(|| name(hop.link).into());
                Some(Hop { gateway: hop.gateway?, device: Arc::clone(device), onlink: hop.onlink })
            };
            let hops = match shared.get(&route.hops) {
                Some(hops) => Arc::clone(hops),
                None => {
                    let hops: Hops = Arc::new(route.hops.iter().filter_map(&mut hop).collect());
                    shared.insert(route.hops, Arc::clone(&hops));
                    hops
                }
            };
            ((route.destination, route.metric.unwrap_or(0)), hops)
        });
        Ok(routes.collect())
    }

    /// The prefixes to which the daemon has routes, those that lead nowhere aside.
    ///
    /// # Errors
    /// Where the kernel's tables cannot be read.
    pub fn routes(&mut self) -> Result<BTreeSet<IpNetwork>, Error> {
        let routes = self.network.routes_of(PROTOCOL)?;
        Ok(routes.into_iter().filter(|route| !route.hops.is_empty()).map(|route| route.destination).collect())
    }

    /// Whether the kernel, the administrator or another program has a route to that prefix with that metric, which one of
    /// ours would replace.
    pub fn is_foreign(&self, prefix: IpNetwork, metric: u32) -> bool {
        self.foreign.contains(&(prefix, metric))
    }

    fn link(&self, name: &str) -> Result<u32, Error> {
        self.links.get(name).copied().ok_or_else(|| Error::NoLink(name.to_owned()))
    }

    /// Does it. What is done already, by whomever, is success.
    ///
    /// # Errors
    /// The kernel's refusal; what was before may then stand or not.
    pub fn apply(&mut self, action: &Action) -> Result<(), Error> {
        match action {
            Action::Forward { v4, v6 } => forwarding::enable(*v4, *v6)?,
            Action::AddTunnel(name, tunnel) => self.add_tunnel(name, tunnel)?,
            Action::ChangeTunnel(name, tunnel) => self.change_tunnel(name, tunnel)?,
            Action::DeleteLink(name) => {
                self.network.delete_link(self.link(name)?)?;
            }
            Action::AddAddress(name, net) => {
                match self.network.add_address(Address { link: self.link(name)?, net: *net }) {
                    Err(error) if !error.is_exists() => return Err(error.into()),
                    _ => {}
                }
            }
            Action::DeleteAddress(name, net) => {
                self.network.delete_address(Address { link: self.link(name)?, net: *net })?;
            }
            Action::SetForwarding(name, mac, remote) => {
                let entry = ForwardingEntry { link: self.link(name)?, mac: *mac, remote: *remote };
                self.network.set_forwarding_entry(entry)?;
            }
            Action::DeleteForwarding(name, mac, remote) => {
                let entry = ForwardingEntry { link: self.link(name)?, mac: *mac, remote: *remote };
                self.network.delete_forwarding_entry(entry)?;
            }
            Action::SetNeighbour(name, address, mac) => {
                self.network.set_neighbour(Neighbour { link: self.link(name)?, address: *address, mac: *mac })?;
            }
            Action::DeleteNeighbour(name, address, mac) => {
                let neighbour = Neighbour { link: self.link(name)?, address: *address, mac: *mac };
                self.network.delete_neighbour(neighbour)?;
            }
            Action::SetRoute(prefix, metric, hops) => self.network.set_route(&self.fib(*prefix, *metric, hops)?)?,
            Action::DeleteRoute(prefix, metric, hops) => {
                // Its links may be gone, and with them the route; prefix, metric and kind say which it is.
                let any = netlink::Hop { gateway: None, link: 0, onlink: false };
                let hops = if hops.is_empty() { Vec::new() } else { vec![any] };
                self.network.unset_route(&fib_route(*prefix, *metric, hops))?;
            }
            Action::ChangeRules(script, whole) => {
                // Somebody else changed the sets, or this version of nft does not take that change of intervals.
                if let Err(error) = Nft.apply(script) {
                    tracing::debug!("writing the table bosun-net whole: {error}");
                    Nft.apply(&rules::whole(whole))?;
                }
            }
            Action::WriteRules(whole) => Nft.apply(&rules::whole(whole))?,
        }
        Ok(())
    }

    fn add_tunnel(&mut self, name: &str, tunnel: &Tunnel) -> Result<(), Error> {
        let Tunnel { vni, port, local, learning, mac, mtu, .. } = *tunnel;
        self.network.add_vxlan(name, mac, mtu, &Vxlan { vni, port, local, learning })?;
        let link = self.network.link(name)?.ok_or_else(|| Error::NoLink(name.to_owned()))?;
        self.links.insert(name.to_owned(), link.index);
        self.network.change_link(link.index, LinkChange { alias: Some(&tunnel.alias), ..LinkChange::default() })?;
        // Nobody inside the tunnel is a router or is asked for an address. A node of another mode may wrap what this one
        // sends plain, and its packets then come by another way than answers go.
        for (parameter, value) in [
            (format!("net/ipv4/conf/{name}/rp_filter"), "2"),
            (format!("net/ipv6/conf/{name}/accept_ra"), "0"),
            (format!("net/ipv6/conf/{name}/addr_gen_mode"), "1"),
        ] {
            if let Err(error) = sysctl::write(&parameter, value) {
                tracing::debug!("{error}");
            }
        }
        Ok(())
    }

    fn change_tunnel(&mut self, name: &str, tunnel: &Tunnel) -> Result<(), Error> {
        let change = LinkChange {
            up: Some(tunnel.up),
            mtu: Some(tunnel.mtu),
            alias: Some(&tunnel.alias),
            ..LinkChange::default()
        };
        Ok(self.network.change_link(self.link(name)?, change)?)
    }

    fn fib(&self, prefix: IpNetwork, metric: u32, hops: &Hops) -> Result<FibRoute, Error> {
        let hop = |hop: &Hop| {
            let link = self.link(&hop.device)?;
            Ok(netlink::Hop { gateway: Some(hop.gateway), link, onlink: hop.onlink })
        };
        let hops: Result<Vec<_>, Error> = hops.iter().map(hop).collect();
        Ok(fib_route(prefix, metric, hops?))
    }

    /// Whether somebody else changed what the daemon keeps or goes by: its own changes are told to it, too.
    pub fn matters(&self, change: &Change, known: &State, interfaces: &[Interface]) -> bool {
        let tunnel = |index: u32| known.tunnels.keys().any(|name| self.links.get(name) == Some(&index));
        match change {
            Change::Lost => true,
            Change::Link { link, gone } => match interfaces.iter().find(|interface| interface.index == link.index) {
                Some(interface) => {
                    *gone || (&link.name, link.mtu, link.up) != (&interface.name, interface.mtu, interface.up)
                }
                None => match known.tunnels.get(&link.name) {
                    Some(tunnel) => *gone || (link.mtu, link.up) != (tunnel.mtu, tunnel.up),
                    None => false,
                },
            },
            Change::Address { link, net, gone } if is_global(net.ip()) => {
                let own = known.tunnels.iter().any(|(_, tunnel)| tunnel.addresses.contains(net));
                let there = interfaces.iter().any(|i| i.index == *link && i.addresses.contains(net)) || own;
                there == *gone
            }
            Change::Address { .. } => false,
            Change::Route { destination, protocol, gone } => {
                let mut same = known.routes.range((*destination, 0)..=(*destination, u32::MAX));
                *protocol == PROTOCOL && same.next().is_some() == *gone
            }
            Change::NeighbourGone { link, address } => {
                let at = |(name, other): &(String, IpAddr)| {
                    self.links.get(name) == Some(link) && address.is_none_or(|address| address == *other)
                };
                tunnel(*link) && known.neighbours.keys().any(at)
            }
        }
    }
}

fn fib_route(destination: IpNetwork, metric: u32, hops: Vec<netlink::Hop>) -> FibRoute {
    FibRoute { destination, hops, source: None, metric: (metric > 0).then_some(metric), protocol: PROTOCOL }
}

fn is_global(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !local && !ip.is_loopback() && !ip.is_unspecified()
}

/// Ours by its alias, or one that flannel made and that may be taken over.
fn is_tunnel(link: &Link) -> bool {
    link.kind == "vxlan" && (link.alias == ALIAS || link.name.starts_with("flannel"))
}

fn tunnel(link: &Link, vxlan: &Vxlan, addresses: &[Address]) -> Tunnel {
    let own = addresses.iter().filter(|address| address.link == link.index && is_global(address.net.ip()));
    Tunnel {
        vni: vxlan.vni,
        port: vxlan.port,
        local: vxlan.local,
        learning: vxlan.learning,
        mac: link.mac.unwrap_or_default(),
        mtu: link.mtu,
        up: link.up,
        alias: link.alias.clone(),
        addresses: own.map(|address| address.net).collect(),
    }
}

/// A kernel without a family passes nothing of it on.
fn forwards() -> (bool, bool) {
    let on = |name| sysctl::read(name).is_ok_and(|value| value != "0");
    (on(forwarding::V4), on(forwarding::V6))
}

fn read_rules() -> Result<Option<super::state::Rules>, Error> {
    match Nft.list(rules::LIST) {
        Ok(text) => Ok(rules::read(&text)),
        Err(nftables::Error::Missing(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
