//! What the tables hold before any Service: chains that are always there, and the jumps from the kernel's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Chain, Family, Table};
use crate::model::{Facts, NodePorts, PodSource};

/// Every chain of ours begins so; that is how a fresh process knows them.
pub const PREFIX: &str = "BOSUN-";
/// Mark bit that means: masquerade when the packet leaves. The same as kube-proxy's.
const MARK: &str = "0x4000/0x4000";

pub const SERVICES: &str = "BOSUN-SERVICES";
pub const NODE_PORTS: &str = "BOSUN-NODEPORTS";
/// Marks for masquerade.
pub const MASQUERADE: &str = "BOSUN-MASQUERADE";
/// The same, except for what pods send.
pub const MASQUERADE_OUTSIDE: &str = "BOSUN-MASQ-OUTSIDE";
pub const REFUSE: &str = "BOSUN-REFUSE";
/// Of node ports: only where they come in, since what the node refuses itself as it sends is an error of another kind.
pub const REFUSE_PORTS: &str = "BOSUN-REFUSE-PORTS";
pub const GUARD: &str = "BOSUN-GUARD";
const POSTROUTING: &str = "BOSUN-POSTROUTING";
pub const HAIRPIN: &str = "BOSUN-HAIRPIN";
const FORWARD: &str = "BOSUN-FORWARD";
const LOCALNET: &str = "BOSUN-LOCALNET";

/// Rules that the kernel's own chains shall have, as `iptables -S` spells them.
pub fn jumps() -> Vec<(Table, &'static str, String)> {
    let new = "-m conntrack --ctstate NEW -j";
    let plain = |table, from, to: &str| (table, from, format!("-j {to}"));
    vec![
        plain(Table::Nat, "PREROUTING", SERVICES),
        plain(Table::Nat, "OUTPUT", SERVICES),
        plain(Table::Nat, "POSTROUTING", POSTROUTING),
        plain(Table::Filter, "FORWARD", FORWARD),
        plain(Table::Filter, "INPUT", LOCALNET),
        plain(Table::Filter, "OUTPUT", LOCALNET),
        (Table::Filter, "INPUT", format!("{new} {REFUSE}")),
        (Table::Filter, "INPUT", format!("{new} {REFUSE_PORTS}")),
        (Table::Filter, "FORWARD", format!("{new} {REFUSE}")),
        (Table::Filter, "OUTPUT", format!("{new} {REFUSE}")),
        (Table::Mangle, "PREROUTING", format!("{new} {GUARD}")),
        (Table::Mangle, "OUTPUT", format!("{new} {GUARD}")),
    ]
}

/// The match of each kind of pod packet.
pub fn pods(facts: &Facts, family: Family) -> Vec<String> {
    let of_family = facts.pods.iter().filter(|pods| pods.has(family.is_v4()));
    let word = |pods: &PodSource| match pods {
        PodSource::Range(range) => format!("-s {}/{}", range.network(), range.prefix()),
        PodSource::Link(name) => format!("-i {name}"),
        PodSource::LinkPrefix(prefix) => format!("-i {prefix}+"),
    };
    of_family.map(word).collect()
}

/// The chains whose content no Service decides.
pub fn chains(facts: &Facts, family: Family, endpoints: &BTreeSet<IpAddr>) -> BTreeMap<Chain, Vec<String>> {
    let mut chains = BTreeMap::new();
    let mut chain = |table, name: &str, rules: Vec<String>| drop(chains.insert((table, name.to_owned()), rules));
    let mark = format!("-j MARK --set-xmark {MARK}");
    chain(Table::Nat, MASQUERADE, vec![mark.clone()]);
    let mut outside: Vec<String> = pods(facts, family).iter().map(|pods| format!("{pods} -j RETURN")).collect();
    outside.push(mark);
    chain(Table::Nat, MASQUERADE_OUTSIDE, outside);
    chain(
        Table::Nat,
        POSTROUTING,
        vec![
            format!("-j {HAIRPIN}"),
            format!("-m mark ! --mark {MARK} -j RETURN"),
            "-j MARK --set-xmark 0x4000/0x0".into(),
            "-j MASQUERADE --random-fully".into(),
        ],
    );
    chain(Table::Nat, HAIRPIN, hairpin(family, endpoints));
    chain(
        Table::Filter,
        FORWARD,
        vec![
            // A connection whose state the kernel lost would be reset by packets past the translation.
            "-m conntrack --ctstate INVALID -j DROP".into(),
            format!("-m mark --mark {MARK} -j ACCEPT"),
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".into(),
        ],
    );
    let mut localnet = Vec::new();
    if (facts.node_ports, family) == (NodePorts::Localhost, Family::V4) {
        // With route_localnet neighbours could reach what listens on the loopback only.
        localnet
            .push("! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP".into());
    }
    chain(Table::Filter, LOCALNET, localnet);
    chain(Table::Filter, REFUSE_PORTS, Vec::new());
    chains
}

/// What an endpoint sends to a Service and gets back itself must look as if it came from the node.
pub fn hairpin(family: Family, endpoints: &BTreeSet<IpAddr>) -> Vec<String> {
    let own = endpoints.iter().filter(|ip| family.has(**ip));
    let full = if family.is_v4() { 32 } else { 128 };
    own.map(|ip| format!("-s {ip}/{full} -d {ip}/{full} -m conntrack --ctstate DNAT -j MASQUERADE --random-fully"))
        .collect()
}

/// The last rules of [`SERVICES`]: to what listens on the node's own addresses.
pub fn node_ports(facts: &Facts, family: Family) -> Vec<String> {
    let jump = |to: &str| format!("{to} -j {NODE_PORTS}");
    match (facts.node_ports, family) {
        (NodePorts::Listed, _) => {
            let own = facts.node_ips.iter().filter(|ip| family.has(**ip));
            own.map(|ip| jump(&format!("-d {ip}"))).collect()
        }
        (NodePorts::Localhost, Family::V4) => vec![jump("-m addrtype --dst-type LOCAL")],
        (NodePorts::Everywhere, Family::V4) => vec![jump("! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL")],
        // No kernel routes from ::1 to elsewhere.
        (_, Family::V6) => vec![jump("! -d ::1/128 -m addrtype --dst-type LOCAL")],
    }
}
