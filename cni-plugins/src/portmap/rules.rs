//! The table `bosun-portmap`, one for each family, and its elements.
//!
//! A packet to one of the node's own addresses is looked up with its address in `exact`, then without in `any`. What
//! would otherwise be answered past the node, from the container's own network or from the loopback, is in `masq`
//! and gets a mark, which the last chain turns into a masquerade. Every element's comment is its owner.
//!
//! A configuration with conditions, or with a mark of its own, has a table of its own, whose rules have them.

use std::net::IpAddr;

use kernel::netlink::IpNetwork;

use crate::listing::Family;
use crate::veth;

/// Bit 13, the reference's default `markMasqBit`.
const MARK_BIT: u32 = 13;
const NAME: &str = "bosun-portmap";

/// The tables that one configuration's elements are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    mark: u32,
    /// What else a packet has to be, in the words of nft, for IPv4 and IPv6.
    conditions: [String; 2],
}

impl Table {
    /// `bit` of the packet's mark says that it is to be masqueraded.
    pub fn new(bit: Option<u32>, conditions: [String; 2]) -> Self {
        let bit = bit.unwrap_or(MARK_BIT);
        let name = match bit == MARK_BIT && conditions.iter().all(String::is_empty) {
            true => NAME.to_owned(),
            false => format!("{NAME}-{}", veth::hash(&format!("{bit}\0{}\0{}", conditions[0], conditions[1]))),
        };
        Self { name, mark: 1 << bit, conditions }
    }

    /// Whether a name that nft lists is one of these tables'.
    pub fn is_name(name: &str) -> bool {
        name == NAME || name.strip_prefix(NAME).is_some_and(|rest| rest.starts_with('-'))
    }
}

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
pub fn add(mappings: &[Mapping], table: &Table, owner: &str) -> String {
    mappings.iter().map(|mapping| elements(table, mapping, owner)).collect()
}

/// The tables that the mappings need. A change of their rules needs another name for a set: where the sets are there
/// the rules are not written again, because nft waits for an RCU grace period (12 ms) after every transaction that
/// removes something.
pub fn tables(mappings: &[Mapping], table: &Table) -> String {
    let needed = |family: &Family| mappings.iter().any(|mapping| Family::of(mapping.container.ip()) == *family);
    [Family::V4, Family::V6].into_iter().filter(needed).map(|family| base(table, family)).collect()
}

fn base(table: &Table, family: Family) -> String {
    let (f, addr, mark) = (family.name(), family.address(), format!("{:#x}", table.mark));
    let t = format!("{f} {}", table.name);
    let condition = &table.conditions[usize::from(family == Family::V6)];
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
add rule {t} ports {f} saddr . meta l4proto . th dport @masq meta mark set meta mark or {mark}
add rule {t} ports dnat to {f} daddr . meta l4proto . th dport map @exact
add rule {t} ports dnat to meta l4proto . th dport map @any
add rule {t} prerouting {condition} fib daddr type local jump ports
add rule {t} output {condition} fib daddr type local jump ports
add rule {t} postrouting meta mark and {mark} == {mark} meta mark set meta mark xor {mark} masquerade
"
    )
}

fn elements(table: &Table, mapping: &Mapping, owner: &str) -> String {
    let family = Family::of(mapping.container.ip());
    let t = format!("{} {}", family.name(), table.name);
    let Mapping { protocol, host_port, container_port, container, .. } = mapping;
    let target = format!("{} . {container_port} }}", container.ip());
    let comment = format!("comment \"{owner}\"");
    let mut script = match mapping.host {
        Some(host) => format!("create element {t} exact {{ {host} . {protocol} . {host_port} {comment} : {target}\n"),
        None => format!("create element {t} any {{ {protocol} . {host_port} {comment} : {target}\n"),
    };
    let near = format!("{}/{}", container.network(), container.prefix());
    let mut sources: Vec<&str> = Vec::new();
    if mapping.masquerade && mapping.masquerade_all {
        sources.push(family.everywhere());
    } else if mapping.masquerade {
        sources.push(&near);
        if family == Family::V4 {
            sources.push("127.0.0.0/8");
        }
    }
    for source in sources {
        script.push_str(&format!("add element {t} masq {{ {source} . {protocol} . {host_port} {comment} }}\n"));
    }
    script
}
