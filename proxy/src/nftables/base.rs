//! What the table holds before any Service: hooks, maps and the chains between them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Family, MARK};
use crate::model::Facts;

pub const TABLE: &str = "bosun-proxy";

/// Ends the table of a family, whether it is there or not.
pub fn remove(family: Family) -> String {
    let f = family.name();
    format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\n")
}

fn joined<T: std::fmt::Display>(list: impl Iterator<Item = T>) -> String {
    list.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// The pod ranges of a family as an anonymous set; `None` where they are not known.
pub fn pods(facts: &Facts, family: Family) -> Option<String> {
    let own = |cidr: &&IpNetwork| family.has(cidr.ip());
    let text = joined(facts.pod_cidrs.iter().filter(own).map(|cidr| format!("{}/{}", cidr.network(), cidr.prefix())));
    (!text.is_empty()).then(|| format!("{{ {text} }}"))
}

/// Replaces the table by one without Services.
pub fn base(facts: &Facts, family: Family) -> String {
    let (f, address) = (family.name(), family.address());
    let own = |ip: &&IpAddr| family.has(**ip);
    let mut node_ips = joined(facts.node_ips.iter().filter(own));
    if !node_ips.is_empty() {
        node_ips = format!(" elements = {{ {node_ips} }};");
    }
    let not_pod = pods(facts, family).map(|set| format!("{f} saddr != {set} ")).unwrap_or_default();
    let outside = format!("{not_pod}fib saddr type != local");
    let vip = format!("{f} daddr . meta l4proto . th dport");
    let port = "meta l4proto . th dport";
    let node = format!("{f} daddr @node-ips");
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
  map guarded {{ type {address} : verdict; }}
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
    {node} {outside} {port} vmap @refused-nodeports-outside
    {node} {port} vmap @refused-nodeports
    {f} daddr @cluster-ips goto deny
  }}
  chain guard {{ type filter hook prerouting priority -110; ct state new {f} daddr vmap @guarded; }}
  chain prerouting {{ type nat hook prerouting priority -100; jump balance; }}
  chain output {{ type nat hook output priority -100; jump balance; }}
  chain postrouting {{
    type nat hook postrouting priority 100;
    meta mark and {MARK} != 0 meta mark set meta mark xor {MARK} masquerade fully-random
    ct status dnat {f} saddr . {f} daddr @hairpin masquerade fully-random
  }}
  chain filter-input {{ type filter hook input priority 0; ct state new jump refuse; }}
  chain filter-forward {{ type filter hook forward priority 0; ct state new jump refuse; }}
  chain filter-output {{ type filter hook output priority 0; ct state new jump refuse; }}
}}
"
    ));
    script
}
