//! What the table holds before any Service: hooks, maps and the chains between them.

use std::net::IpAddr;

use super::{Family, MARK};
use crate::model::{Facts, NodePorts, PodSource};

pub const TABLE: &str = "bosun-proxy";

/// Ends the table of a family, whether it is there or not.
pub fn remove(family: Family) -> String {
    let f = family.name();
    format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\n")
}

fn joined<T: std::fmt::Display>(list: impl Iterator<Item = T>) -> String {
    list.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Conditions that all hold for packets that are no pod's; `None` where that is not known.
pub fn not_pod(facts: &Facts, family: Family) -> Option<String> {
    let (mut ranges, mut links) = (Vec::new(), String::new());
    for pods in &facts.pods {
        match pods {
            PodSource::Range(range) if family.has(range.ip()) => {
                ranges.push(format!("{}/{}", range.network(), range.prefix()));
            }
            PodSource::Range(_) => {}
            PodSource::Link(name) => links.push_str(&format!("iifname != \"{name}\" ")),
            PodSource::LinkPrefix(prefix) => links.push_str(&format!("iifname != \"{prefix}*\" ")),
        }
    }
    let sources = match ranges.is_empty() {
        true => String::new(),
        false => format!("{} saddr != {{ {} }} ", family.name(), ranges.join(", ")),
    };
    facts.knows_pods(family.is_v4()).then(|| (sources + &links).trim_end().to_owned())
}

/// The condition for packets to an address on which node ports answer.
fn node(facts: &Facts, family: Family) -> String {
    let f = family.name();
    match (facts.node_ports, family) {
        (NodePorts::Listed, _) => format!("{f} daddr @node-ips"),
        (_, Family::V4) => "fib daddr type local ip daddr != 127.0.0.0/8".into(),
        (_, Family::V6) => "fib daddr type local ip6 daddr != ::1".into(),
    }
}

/// Replaces the table by one without Services.
pub fn base(facts: &Facts, family: Family) -> String {
    let (f, address) = (family.name(), family.address());
    let own = |ip: &&IpAddr| family.has(**ip) && !ip.is_loopback();
    let mut node_ips = joined(facts.node_ips.iter().filter(own));
    if !node_ips.is_empty() {
        node_ips = format!(" elements = {{ {node_ips} }};");
    }
    let not_pod = not_pod(facts, family).unwrap_or_default();
    let outside = format!("{not_pod} fib saddr type != local");
    let vip = format!("{f} daddr . meta l4proto . th dport");
    let port = "meta l4proto . th dport";
    let node = node(facts, family);
    // A map for each protocol: nft 1.0 cannot read a target of `th dport` back from the kernel, and takes one of
    // `tcp dport` for a condition.
    let of_protocol = |p: &str| {
        format!(
            "  map endpoints-{p} {{ typeof {f} daddr . {p} dport . numgen random mod 65536 : {f} daddr . {p} dport; }}
  map node-endpoints-{p} {{ typeof {p} dport . numgen random mod 65536 : {f} daddr . {p} dport; }}
"
        )
    };
    let endpoints: String = ["tcp", "udp", "sctp"].map(of_protocol).concat();
    let mut script = remove(family);
    script.push_str(&format!(
        "table {f} {TABLE} {{
  set node-ips {{ type {address};{node_ips} }}
  set cluster-ips {{ type {address}; }}
  set hairpin {{ type {address} . {address}; }}
  map services {{ type {address} . inet_proto . inet_service : verdict; }}
  map services-outside {{ type {address} . inet_proto . inet_service : verdict; }}
{endpoints}  map nodeports {{ type inet_proto . inet_service : verdict; }}
  map nodeports-outside {{ type inet_proto . inet_service : verdict; }}
  map refused {{ type {address} . inet_proto . inet_service : verdict; }}
  map refused-outside {{ type {address} . inet_proto . inet_service : verdict; }}
  map refused-nodeports {{ type inet_proto . inet_service : verdict; }}
  map refused-nodeports-outside {{ type inet_proto . inet_service : verdict; }}
  map guarded {{ type {address} . inet_proto . inet_service : verdict; }}
  chain deny {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain balance {{
    {outside} {vip} vmap @services-outside
    {vip} vmap @services
    {node} {outside} {port} vmap @nodeports-outside
    {node} {port} vmap @nodeports
  }}
  chain refuse {{
    {outside} {vip} vmap @refused-outside
    {vip} vmap @refused
    {f} daddr @cluster-ips goto deny
  }}
  chain refuse-node-ports {{
    {node} {outside} {port} vmap @refused-nodeports-outside
    {node} {port} vmap @refused-nodeports
  }}
  chain guard {{ ct state new {vip} vmap @guarded; }}
  chain guard-prerouting {{ type filter hook prerouting priority -110; jump guard; }}
  chain guard-output {{ type filter hook output priority -110; jump guard; }}
  chain prerouting {{ type nat hook prerouting priority -100; jump balance; }}
  chain output {{ type nat hook output priority -100; jump balance; }}
  chain postrouting {{
    type nat hook postrouting priority 100;
    meta mark and {MARK} != 0 meta mark set meta mark xor {MARK} masquerade fully-random
    ct status dnat {f} saddr . {f} daddr @hairpin masquerade fully-random
  }}
  chain filter-input {{
    type filter hook input priority 0;
    ct state new jump refuse
    ct state new jump refuse-node-ports
  }}
  chain filter-forward {{
    type filter hook forward priority 0;
    ct state invalid drop
    ct state new jump refuse
  }}
  chain filter-output {{ type filter hook output priority 0; ct state new jump refuse; }}
}}
"
    ));
    script
}
