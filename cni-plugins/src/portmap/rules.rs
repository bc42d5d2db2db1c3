//! The table `bosun-portmap`, one for each family, and its elements.
//!
//! A packet to one of the node's own addresses is looked up with its address in `exact`, then without in `any`. What
//! would otherwise be answered past the node, from the container's own network or from the loopback, is in `masq`
//! and gets mark 0x2000, which the last chain turns into a masquerade. Every element's comment is its owner.

use std::net::IpAddr;

use kernel::netlink::IpNetwork;

use crate::listing::Family;

/// Bit 13, the reference's default `markMasqBit`.
const MARK: &str = "0x2000";

/// One port of the node that leads to one port of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub protocol: &'static str,
    /// `None` is every address of the node.
    pub host: Option<IpAddr>,
    pub host_port: u16,
    /// The container's address with its network's prefix.
    pub container: IpNetwork,
    pub container_port: u16,
    /// Whether its own network and the loopback are masqueraded, so that their connections work.
    pub masquerade: bool,
    pub masquerade_all: bool,
}

/// The transaction that adds the mappings to tables that are there.
pub fn add(mappings: &[Mapping], owner: &str) -> String {
    mappings.iter().map(|mapping| elements(Family::of(mapping.container.ip()), mapping, owner)).collect()
}

/// The tables that the mappings need. A change of their rules needs another name for a set: where the sets are there
/// the rules are not written again, because nft waits for an RCU grace period (12 ms) after every transaction that
/// removes something.
pub fn tables(mappings: &[Mapping]) -> String {
    let needed = |family: &Family| mappings.iter().any(|mapping| Family::of(mapping.container.ip()) == *family);
    [Family::V4, Family::V6].into_iter().filter(needed).map(base).collect()
}

fn base(family: Family) -> String {
    let (f, addr) = (family.name(), family.address());
    let t = format!("{f} bosun-portmap");
    format!(
        "add table {t}
add map {t} exact {{ type {addr} . inet_proto . inet_service : {addr} . inet_service; }}
add map {t} any {{ type inet_proto . inet_service : {addr} . inet_service; }}
add set {t} masq {{ type {addr} . inet_proto . inet_service; flags interval; }}
add chain {t} ports
add chain {t} prerouting {{ type nat hook prerouting priority -100; }}
add chain {t} output {{ type nat hook output priority -100; }}
add chain {t} postrouting {{ type nat hook postrouting priority 100; }}
flush chain {t} ports
flush chain {t} prerouting
flush chain {t} output
flush chain {t} postrouting
add rule {t} ports {f} saddr . meta l4proto . th dport @masq meta mark set meta mark or {MARK}
add rule {t} ports dnat to {f} daddr . meta l4proto . th dport map @exact
add rule {t} ports dnat to meta l4proto . th dport map @any
add rule {t} prerouting fib daddr type local jump ports
add rule {t} output fib daddr type local jump ports
add rule {t} postrouting meta mark and {MARK} == {MARK} meta mark set meta mark xor {MARK} masquerade
"
    )
}

fn elements(family: Family, mapping: &Mapping, owner: &str) -> String {
    let f = family.name();
    let Mapping { protocol, host_port, container_port, container, .. } = mapping;
    let target = format!("{} . {container_port} }}", container.ip());
    let comment = format!("comment \"{owner}\"");
    let mut script = match mapping.host {
        Some(host) => {
            format!(
                "create element {f} bosun-portmap exact {{ {host} . {protocol} . {host_port} {comment} : {target}\n"
            )
        }
        None => format!("create element {f} bosun-portmap any {{ {protocol} . {host_port} {comment} : {target}\n"),
    };
    let near = format!("{}/{}", container.network(), container.prefix());
    let mut sources: Vec<&str> = Vec::new();
    if mapping.masquerade_all {
        sources.push(family.everywhere());
    } else if mapping.masquerade {
        sources.push(&near);
        if family == Family::V4 {
            sources.push("127.0.0.0/8");
        }
    }
    for source in sources {
        script.push_str(&format!(
            "add element {f} bosun-portmap masq {{ {source} . {protocol} . {host_port} {comment} }}\n"
        ));
    }
    script
}

/// The command whose answer [`read`] takes.
pub fn list(family: Family) -> String {
    format!("list table {} bosun-portmap", family.name())
}
