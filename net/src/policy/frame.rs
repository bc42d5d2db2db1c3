//! What the table holds before any policy: hooks, the sets that they ask, and the chains between them.

use super::rules::short;
use super::table::TABLE;

/// The sets and maps that are always there, with their type and the families of table that have them.
const SETS: [(&str, &str, &[&str]); 10] = [
    ("egress4", "map egress4 { type ipv4_addr : verdict; }", &["inet"]),
    ("egress6", "map egress6 { type ipv6_addr : verdict; }", &["inet"]),
    ("ingress4", "map ingress4 { type ipv4_addr : verdict; }", &["inet"]),
    ("ingress6", "map ingress6 { type ipv6_addr : verdict; }", &["inet"]),
    ("self4", "set self4 { type ipv4_addr . ipv4_addr; }", &["inet"]),
    ("self6", "set self6 { type ipv6_addr . ipv6_addr; }", &["inet"]),
    ("own4", "set own4 { type ifname . ipv4_addr; }", &["inet", "bridge"]),
    ("own6", "set own6 { type ifname . ipv6_addr; }", &["inet", "bridge"]),
    ("guarded", "set guarded { type ifname; }", &["inet", "bridge"]),
    ("isolated", "set isolated { type ifname; }", &["bridge"]),
];

const DROP: &str = "drop comment \"a pod sent from an address that is not its own\"";
/// Reports of multicast listeners, router and neighbour solicitation, neighbour advertisement.
const DISCOVERY: &str = "icmpv6 type { 131, 132, 133, 135, 136, 143 }";

/// The sets that the kernel fills itself: the last packets that policies dropped, by family.
pub const DROPPED: [&str; 2] = ["dropped4", "dropped6"];

/// What the frame's own counters count.
pub const SPOOFED: &str = "what pods sent from addresses not their own";
pub const FLOODED: &str = "what was flooded to isolated pods";

pub fn sets() -> impl Iterator<Item = &'static str> {
    SETS.iter().map(|(name, ..)| *name)
}

pub fn has(set: &str) -> bool {
    sets().chain(DROPPED).any(|name| name == set)
}

/// The families whose table has a set of that name.
pub fn families(set: &str, bridge: bool) -> impl Iterator<Item = &'static str> {
    let families = SETS.iter().find(|(name, ..)| *name == set).map_or(&["inet"][..], |(.., families)| families);
    families.iter().copied().filter(move |family| bridge || *family != "bridge")
}

/// A chain whose name says which frame stands.
pub fn name(bridge: bool) -> String {
    format!("frame-{}", short(&body(bridge)))
}

/// The frame alone, in place of whatever had the table's name. `bridge`: whether the kernel has that family of tables.
pub fn script(bridge: bool) -> String {
    let families = if bridge { &["inet", "bridge"][..] } else { &["inet"] };
    let replace = families.iter().map(|f| format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\n"));
    format!("{}{}add chain inet {TABLE} {}\n", replace.collect::<String>(), body(bridge), name(bridge))
}

fn body(bridge: bool) -> String {
    let bridged = if bridge { bridge_table() } else { String::new() };
    format!("{}{bridged}", inet_table())
}

fn own_sets(family: &str) -> String {
    let own = SETS.iter().filter(|(.., families)| families.contains(&family));
    own.map(|(_, spec, _)| format!("  {spec}\n")).collect()
}

/// The hooks, in this order of a packet's way:
///
/// - `bridge prerouting -300` and `inet prerouting -300` (raw): a pod's link takes only what its own addresses send.
///   The first sees the ports of a bridge, the second routed links; both come before any translation of addresses.
///   Link-local addresses are for neighbour discovery only, since policies do not know them.
/// - `bridge forward 0`: what a bridge floods or sends by link-local addresses names no pod as its destination, and
///   policies would not see it; a pod that is isolated for ingress gets by its bridge only what is sent to it.
/// - `inet forward 0` (filter): after the translation of a Service's address (prerouting, -100), so that the
///   destination is the pod, and before masquerading (postrouting, 100), so that the source still is. By br_netfilter
///   it sees the traffic inside one bridge too. What the node itself sends to its pods, and they to it, never passes
///   here: upstream documents that it is always allowed.
/// - `inet output 0`: IPVS sends on from here what came in from elsewhere, translated.
///
/// Neighbour discovery passes: without it no address of IPv6 is reached on a bridge. Flows that were allowed when they
/// began pass by what is known of them; [`super::flows`] ends those that policies forbid later.
///
/// `note4` and `note6` remember whom a dropped packet was from and for, as long as two looks of the daemon: addresses of
/// pods that are gone do not stay. A set that is full or a packet without ports ends
/// their rule alone, so that the drop stands by itself.
fn inet_table() -> String {
    format!(
        "table inet {TABLE} {{
{}  set dropped4 {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; size 1024; flags dynamic,timeout; timeout 1m; }}
  set dropped6 {{ type ipv6_addr . ipv6_addr . inet_proto . inet_service; size 1024; flags dynamic,timeout; timeout 1m; }}
  chain note4 {{
    update @dropped4 {{ ip saddr . ip daddr . meta l4proto . th dport }}
  }}
  chain note6 {{
    update @dropped6 {{ ip6 saddr . ip6 daddr . meta l4proto . th dport }}
  }}
  counter dropped-spoofed {{ comment \"{SPOOFED}\"; }}
  chain spoof {{
    type filter hook prerouting priority -300; policy accept;
    iifname @guarded goto own
  }}
  chain own {{
    iifname . ip saddr @own4 return
    iifname . ip6 saddr @own6 return
    ip6 saddr {{ ::, fe80::/10 }} {DISCOVERY} return
    counter name dropped-spoofed {DROP}
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    ct state established,related accept
    {DISCOVERY} accept
    goto leave
  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    ct state established,related accept
    fib saddr type local accept
    goto leave
  }}
  chain leave {{
    ip saddr . ip daddr @self4 accept
    ip6 saddr . ip6 daddr @self6 accept
    ip saddr vmap @egress4
    ip6 saddr vmap @egress6
    goto arrive
  }}
  chain arrive {{
    ip daddr vmap @ingress4
    ip6 daddr vmap @ingress6
    accept
  }}
}}
",
        own_sets("inet"),
    )
}

fn bridge_table() -> String {
    format!(
        "table bridge {TABLE} {{
{}  counter dropped-spoofed {{ comment \"{SPOOFED}\"; }}
  counter dropped-flooded {{ comment \"{FLOODED}\"; }}
  chain spoof {{
    type filter hook prerouting priority -300; policy accept;
    iifname @guarded goto own
  }}
  chain own {{
    iifname . ip saddr @own4 return
    iifname . arp saddr ip @own4 return
    iifname . ip6 saddr @own6 return
    ip6 saddr {{ ::, fe80::/10 }} {DISCOVERY} return
    arp saddr ip 0.0.0.0 return
    counter name dropped-spoofed {DROP}
  }}
  chain deliver {{
    type filter hook forward priority 0; policy accept;
    oifname @isolated goto unicast
  }}
  chain unicast {{
    oifname . ip daddr @own4 return
    oifname . ip6 daddr @own6 return
    meta protocol arp return
    {DISCOVERY} return
    counter name dropped-flooded drop comment \"sent to no address of a pod that is isolated for ingress\"
  }}
}}
",
        own_sets("bridge"),
    )
}
