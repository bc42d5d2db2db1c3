//! The nftables table `bosun-net`: source NAT for what leaves the cluster, and who may send wrapped packets.
//!
//! What the rules say is fixed; nodes and ranges come and go as elements of sets. Source: nft(8).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use ipnetwork::IpNetwork;

use super::model::Node;
use super::plan::Model;
use super::state::Rules;

/// The command that lists the table.
pub const LIST: &str = "list table inet bosun-net";

/// Sets by name, with the type of their elements.
const SETS: [(&str, &str, &str); 6] = [
    ("pods4", "ipv4_addr", "pods of this node"),
    ("pods6", "ipv6_addr", "pods of this node"),
    ("inside4", "ipv4_addr", "where pods are seen with their own addresses"),
    ("inside6", "ipv6_addr", "where pods are seen with their own addresses"),
    ("nodes4", "ipv4_addr", "who may send wrapped packets"),
    ("nodes6", "ipv6_addr", "who may send wrapped packets"),
];

/// The table as the model wants it.
pub fn plan(model: &Model<'_>, me: &Node) -> Rules {
    let config = model.config;
    let mut sets: BTreeMap<String, BTreeSet<IpNetwork>> =
        SETS.iter().map(|(name, ..)| ((*name).to_owned(), BTreeSet::new())).collect();
    let mut put = |set: &str, net: IpNetwork| {
        let name = format!("{set}{}", if net.is_ipv4() { 4 } else { 6 });
        sets.entry(name).or_default().insert(net);
    };
    for node in model.nodes.values() {
        node.pod_cidrs.iter().for_each(|cidr| put("inside", *cidr));
        if config.nat_excludes_hosts {
            node.addresses.iter().for_each(|address| put("inside", (*address).into()));
        }
        if config.mode.tunnels() {
            node.senders().for_each(|address| put("nodes", address.into()));
        }
    }
    config.cidr.iter().chain(&config.non_masquerade).for_each(|cidr| put("inside", *cidr));
    me.pod_cidrs.iter().for_each(|cidr| put("pods", *cidr));
    for set in sets.values_mut() {
        *set = outermost(set);
    }
    Rules { nat: config.nat_outgoing, port: config.mode.tunnels().then_some(config.port), sets }
}

/// Which rules there are, in words: the comment of the table, by which a fresh daemon knows them.
fn form(nat: bool, port: Option<u16>) -> String {
    let nat = if nat { "nat outgoing" } else { "no nat" };
    let port = port.map_or_else(|| "no tunnels".into(), |port| format!("tunnels on port {port}"));
    format!("{FORM}{nat}, {port}")
}

/// Changes with the rules below.
const FORM: &str = "bosun net, form 1: ";

fn read_form(comment: &str) -> Option<(bool, Option<u16>)> {
    let (nat, port) = comment.strip_prefix(FORM)?.split_once(", ")?;
    let port = port.strip_prefix("tunnels on port ").map(str::parse).transpose().ok()?;
    Some((nat == "nat outgoing", port)).filter(|(nat, port)| form(*nat, *port) == comment)
}

/// Only those that no other holds: a set of intervals takes no overlap.
fn outermost(set: &BTreeSet<IpNetwork>) -> BTreeSet<IpNetwork> {
    let mut kept: Vec<IpNetwork> = Vec::new();
    // In order a network comes before those inside it, and those follow at once.
    for net in set {
        if !kept.last().is_some_and(|last| last.is_ipv4() == net.is_ipv4() && last.contains(net.ip())) {
            kept.push(*net);
        }
    }
    kept.into_iter().collect()
}

/// Chain and rule.
fn rules(nat: bool, port: Option<u16>) -> Vec<(&'static str, String)> {
    let mut rules = Vec::new();
    if nat {
        for (n, family, multicast) in [(4, "ip", "224.0.0.0/4"), (6, "ip6", "ff00::/8")] {
            let rule = format!(
                "{family} saddr @pods{n} {family} daddr != @inside{n} {family} daddr != {multicast} counter masquerade fully-random"
            );
            rules.push(("postrouting", rule));
        }
    }
    if let Some(port) = port {
        for (n, family) in [(4, "ip"), (6, "ip6")] {
            rules.push(("input", format!("udp dport {port} {family} saddr != @nodes{n} counter drop")));
            // Source NAT would make a pod's packet one of this node.
            rules.push((
                "forward",
                format!("udp dport {port} {family} saddr @pods{n} {family} daddr @nodes{n} counter drop"),
            ));
        }
    }
    rules
}

/// The script that makes the table, in place of one that is there.
pub fn whole(wanted: &Rules) -> String {
    let mut text = String::from("add table inet bosun-net\ndelete table inet bosun-net\ntable inet bosun-net {\n");
    let _ = writeln!(text, "comment \"{}\"", form(wanted.nat, wanted.port));
    for (name, kind, comment) in SETS {
        let elements = wanted.sets.get(name).map(elements).filter(|elements| !elements.is_empty());
        let elements = elements.map(|elements| format!("elements = {{ {elements} }};")).unwrap_or_default();
        let _ = writeln!(text, "set {name} {{ type {kind}; flags interval; comment \"{comment}\"; {elements} }}");
    }
    for (chain, hook) in [
        ("postrouting", "type nat hook postrouting priority 100"),
        ("input", "type filter hook input priority -5"),
        ("forward", "type filter hook forward priority -5"),
    ] {
        let _ = writeln!(text, "chain {chain} {{ {hook};");
        for (_, rule) in rules(wanted.nat, wanted.port).iter().filter(|(of, _)| *of == chain) {
            let _ = writeln!(text, "{rule}");
        }
        text.push_str("}\n");
    }
    text.push_str("}\n");
    text
}

fn elements(set: &BTreeSet<IpNetwork>) -> String {
    set.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The script that changes elements alone; empty where none differs, `None` where the rules themselves differ.
pub fn change(is: Option<&Rules>, wanted: &Rules) -> Option<String> {
    let is = is.filter(|is| (is.nat, is.port) == (wanted.nat, wanted.port))?;
    let none = BTreeSet::new();
    let mut script = String::new();
    for verb in ["delete", "add"] {
        for (name, ..) in SETS {
            let (from, to) = (is.sets.get(name)?, wanted.sets.get(name).unwrap_or(&none));
            let differ: BTreeSet<IpNetwork> = if verb == "delete" { from - to } else { to - from };
            if !differ.is_empty() {
                let _ = writeln!(script, "{verb} element inet bosun-net {name} {{ {} }}", elements(&differ));
            }
        }
    }
    Some(script)
}

/// Whether the text is a listing of the table.
pub fn is_listing(text: &str) -> bool {
    read(text).is_some()
}

/// Reads what nft lists of the table. `None` where a rule is missing, or another version of the daemon made it.
pub fn read(listing: &str) -> Option<Rules> {
    let mut sets: BTreeMap<String, BTreeSet<IpNetwork>> = BTreeMap::new();
    let (mut set, mut inside) = (None, false);
    let (mut known, mut count) = (None, 0);
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("set ") {
            let name = name.trim_end_matches(['{', ' ']).to_owned();
            sets.insert(name.clone(), BTreeSet::new());
            set = Some(name);
        } else if let (Some(comment), None) = (line.strip_prefix("comment \""), &set) {
            known = read_form(comment.trim_end_matches('"'));
        }
        count += usize::from(line.contains(" counter "));
        let text = line.strip_prefix("elements = {").inspect(|_| inside = true).unwrap_or(line);
        if let (true, Some(set)) = (inside, set.as_ref().and_then(|name| sets.get_mut(name))) {
            set.extend(text.trim_end_matches('}').split(',').filter_map(|item| item.trim().parse::<IpNetwork>().ok()));
            inside = !text.ends_with('}');
        }
    }
    let (nat, port) = known?;
    (count == rules(nat, port).len()).then_some(Rules { nat, port, sets })
}

#[cfg(test)]
mod tests {
    use kernel::netns::Netns;
    use kernel::nftables::{Nft, Nftables};

    use super::*;

    fn nets(text: &str) -> BTreeSet<IpNetwork> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    fn wanted(nodes: usize) -> Rules {
        let mut sets: BTreeMap<String, BTreeSet<IpNetwork>> =
            SETS.iter().map(|(name, ..)| ((*name).to_owned(), BTreeSet::new())).collect();
        sets.insert("pods4".into(), nets("10.244.0.0/24"));
        sets.insert("inside4".into(), (0..nodes).map(|n| format!("10.244.{n}.0/24").parse().unwrap()).collect());
        sets.insert("nodes4".into(), (0..nodes).map(|n| format!("192.0.2.{n}").parse().unwrap()).collect());
        sets.insert("nodes6".into(), (0..nodes).map(|n| format!("2001:db8::{n:x}").parse().unwrap()).collect());
        Rules { nat: true, port: Some(8472), sets }
    }

    #[test]
    fn networks_inside_others_are_left_out() {
        let given = nets("10.0.0.0/8 10.1.0.0/16 10.1.2.0/24 11.0.0.0/8 fd00::/8 fd00:1::/64");
        assert_eq!(outermost(&given), nets("10.0.0.0/8 11.0.0.0/8 fd00::/8"));
    }

    #[test]
    fn only_what_differs_is_written() {
        let (two, three) = (wanted(2), wanted(3));
        assert_eq!(change(Some(&two), &two).as_deref(), Some(""));
        assert_eq!(change(None, &two), None);
        let script = change(Some(&two), &three).unwrap();
        assert_eq!(
            script,
            "add element inet bosun-net inside4 { 10.244.2.0/24 }
add element inet bosun-net nodes4 { 192.0.2.2/32 }
add element inet bosun-net nodes6 { 2001:db8::2/128 }
"
        );
        assert_eq!(change(Some(&Rules { nat: false, ..two }), &three), None);
    }

    #[test]
    fn what_was_written_is_read_back() {
        if !crate::routes::test::root("the table bosun-net") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let run = || {
            for (nat, port) in [(true, Some(8472)), (false, Some(4789)), (true, None), (false, None)] {
                let many = Rules { nat, port, ..wanted(200) };
                Nft.apply(&whole(&many)).unwrap();
                assert_eq!(read(&Nft.list(LIST).unwrap()), Some(many.clone()));
                let mut fewer = Rules { nat, port, ..wanted(100) };
                fewer.sets.insert("inside4".into(), nets("10.0.0.0/8"));
                Nft.apply(&change(Some(&many), &fewer).unwrap()).unwrap();
                assert_eq!(read(&Nft.list(LIST).unwrap()), Some(fewer));
            }
            Nft.apply(&whole(&wanted(2))).unwrap();
            Nft.apply("flush chain inet bosun-net input").unwrap();
            assert_eq!(read(&Nft.list(LIST).unwrap()), None, "somebody removed rules");
        };
        netns.run(run).unwrap();
    }
}
