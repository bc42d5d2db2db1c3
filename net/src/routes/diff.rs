//! From what is to what shall be, in an order in which no packet is led astray on the way.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use kernel::netlink::Mac;

use super::rules;
use super::state::{ALIAS, Hops, Rules, State, Tunnel};

/// One change of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Forward {
        v4: bool,
        v6: bool,
    },
    AddTunnel(String, Box<Tunnel>),
    /// Of a link that stays: MTU, alias, up.
    ChangeTunnel(String, Box<Tunnel>),
    DeleteLink(String),
    AddAddress(String, IpNetwork),
    DeleteAddress(String, IpNetwork),
    SetForwarding(String, Mac, IpAddr),
    DeleteForwarding(String, Mac, IpAddr),
    SetNeighbour(String, IpAddr, Mac),
    DeleteNeighbour(String, IpAddr, Mac),
    /// Prefix, metric, hops.
    SetRoute(IpNetwork, u32, Hops),
    DeleteRoute(IpNetwork, u32, Hops),
    /// A script of elements; where it is refused, the table is written whole.
    ChangeRules(String, Box<Rules>),
    WriteRules(Box<Rules>),
}

/// What to do. Nothing where `is` is as `shall`.
pub fn diff(is: &State, shall: &State) -> Vec<Action> {
    let mut actions = Vec::new();
    let forward = (shall.forwards.0 && !is.forwards.0, shall.forwards.1 && !is.forwards.1);
    if forward.0 || forward.1 {
        actions.push(Action::Forward { v4: forward.0, v6: forward.1 });
    }
    // Who is a node is known before its wrapped packets come, and pods' addresses are hidden before they go.
    if let Some(wanted) = &shall.rules {
        match rules::change(is.rules.as_ref(), wanted) {
            None => actions.push(Action::WriteRules(Box::new(wanted.clone()))),
            Some(script) if !script.is_empty() => actions.push(Action::ChangeRules(script, Box::new(wanted.clone()))),
            Some(_) => {}
        }
    }
    // What stands on a link that is replaced goes with it.
    let gone = replaced(is, shall);
    tunnels(is, shall, &gone, &mut actions);
    let stays = |link: &String| !gone.contains(link);
    // A way is complete before packets are sent on it, and unused before it is taken apart.
    for ((link, mac), remote) in &shall.forwarding {
        if is.forwarding.get(&(link.clone(), *mac)).filter(|_| stays(link)) != Some(remote) {
            actions.push(Action::SetForwarding(link.clone(), *mac, *remote));
        }
    }
    for ((link, address), mac) in &shall.neighbours {
        if is.neighbours.get(&(link.clone(), *address)).filter(|_| stays(link)) != Some(mac) {
            actions.push(Action::SetNeighbour(link.clone(), *address, *mac));
        }
    }
    routes(is, shall, &gone, &mut actions);
    let kept = |link: &String| stays(link) && shall.tunnels.contains_key(link);
    for ((link, address), mac) in &is.neighbours {
        if kept(link) && !shall.neighbours.contains_key(&(link.clone(), *address)) {
            actions.push(Action::DeleteNeighbour(link.clone(), *address, *mac));
        }
    }
    for ((link, mac), remote) in &is.forwarding {
        if kept(link) && !shall.forwarding.contains_key(&(link.clone(), *mac)) {
            actions.push(Action::DeleteForwarding(link.clone(), *mac, *remote));
        }
    }
    for (name, tunnel) in &is.tunnels {
        if stays(name) && !shall.tunnels.contains_key(name) && tunnel.alias == ALIAS {
            actions.push(Action::DeleteLink(name.clone()));
        }
    }
    actions
}

/// The links that have to go before others are made: they have the name or, being ours, the VNI and port of one.
fn replaced(is: &State, shall: &State) -> BTreeSet<String> {
    let in_the_way = |(name, tunnel): &(&String, &Tunnel)| match shall.tunnels.get(*name) {
        Some(wanted) => !same_link(tunnel, wanted),
        None => {
            let same = |wanted: &Tunnel| (wanted.vni, wanted.port) == (tunnel.vni, tunnel.port);
            tunnel.alias == ALIAS && shall.tunnels.values().any(same)
        }
    };
    is.tunnels.iter().filter(in_the_way).map(|(name, _)| name.clone()).collect()
}

fn tunnels(is: &State, shall: &State, gone: &BTreeSet<String>, actions: &mut Vec<Action>) {
    actions.extend(gone.iter().map(|name| Action::DeleteLink(name.clone())));
    for (name, wanted) in &shall.tunnels {
        let present = is.tunnels.get(name).filter(|_| !gone.contains(name));
        match present {
            None => actions.push(Action::AddTunnel(name.clone(), Box::new(wanted.clone()))),
            Some(is) if (is.mtu, is.up, &is.alias) != (wanted.mtu, wanted.up, &wanted.alias) => {
                actions.push(Action::ChangeTunnel(name.clone(), Box::new(wanted.clone())));
            }
            Some(_) => {}
        }
        let none = BTreeSet::new();
        let there = present.map_or(&none, |tunnel| &tunnel.addresses);
        actions.extend((there - &wanted.addresses).into_iter().map(|net| Action::DeleteAddress(name.clone(), net)));
        actions.extend((&wanted.addresses - there).into_iter().map(|net| Action::AddAddress(name.clone(), net)));
    }
}

/// Whether nothing differs that the kernel cannot change on a link.
fn same_link(is: &Tunnel, wanted: &Tunnel) -> bool {
    (is.vni, is.port, is.local, is.learning, is.mac)
        == (wanted.vni, wanted.port, wanted.local, wanted.learning, wanted.mac)
}

fn routes(is: &State, shall: &State, gone: &BTreeSet<String>, actions: &mut Vec<Action>) {
    let stays = |hops: &Hops| gone.is_empty() || !hops.iter().any(|hop| gone.contains(&*hop.device));
    for ((prefix, metric), wanted) in &shall.routes {
        if is.routes.get(&(*prefix, *metric)).filter(|hops| stays(hops)) != Some(wanted) {
            actions.push(Action::SetRoute(*prefix, *metric, Arc::clone(wanted)));
        }
    }
    for ((prefix, metric), present) in &is.routes {
        if stays(present) && !shall.routes.contains_key(&(*prefix, *metric)) {
            actions.push(Action::DeleteRoute(*prefix, *metric, Arc::clone(present)));
        }
    }
}

#[cfg(test)]
mod tests;
