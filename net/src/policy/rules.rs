//! What a policy allows, as rules of one chain: for one direction and one address family.
//!
//! Groups of pods become sets, named by what selects them, so that policies that select alike share one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use api::labels::Selector;
use ipnetwork::IpNetwork;
use sha2::{Digest, Sha256};

use super::decide::Way;
use super::model::{Allow, At, Name, Peer, Policy, Port, Protocol};

/// The address family of a chain or a set. One table serves both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(ip: std::net::IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn digit(self) -> char {
        if self == Self::V4 { '4' } else { '6' }
    }

    /// As nft writes it.
    pub fn name(self) -> &'static str {
        if self == Self::V4 { "ip" } else { "ip6" }
    }

    pub fn address(self) -> &'static str {
        if self == Self::V4 { "ipv4_addr" } else { "ipv6_addr" }
    }
}

/// Where a group's pods live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Everywhere,
    One(Box<str>),
    Matching(Selector),
}

/// Pods that a rule speaks of; with a port, those of them that have a port of that name, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub scope: Scope,
    pub pods: Selector,
    pub port: Option<(Box<str>, Protocol)>,
}

impl Group {
    /// Says the group; equal for equal groups alone: neither a star nor a blank is in a name or a label.
    pub fn identity(&self) -> String {
        let any = |selector: &Selector| match selector.is_everything() {
            true => "*".to_owned(),
            false => selector.to_string(),
        };
        let mut text = match &self.scope {
            Scope::Everywhere => format!("every namespace: {}", any(&self.pods)),
            Scope::One(namespace) => format!("{namespace}: {}", any(&self.pods)),
            Scope::Matching(selector) => format!("namespaces {}: {}", any(selector), any(&self.pods)),
        };
        if let Some((name, protocol)) = &self.port {
            let _ = write!(text, ", port {name} {}", protocol.name());
        }
        text
    }

    pub fn set(&self, family: Family) -> Arc<str> {
        let kind = if self.port.is_some() { "ports" } else { "pods" };
        format!("{kind}{}-{}", family.digit(), short(&self.identity())).into()
    }
}

/// Sixteen digits that stand for a text. A policy's author must not be able to give it another policy's name.
pub fn short(text: &str) -> String {
    Sha256::digest(text).iter().take(8).fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// Whom a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Far {
    Anyone,
    Group(Group),
    Block { net: IpNetwork, except: Vec<IpNetwork> },
}

/// Ports of the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    Any,
    Protocol(Protocol),
    /// Ranges without overlap, in order.
    Ranges(Protocol, Vec<(u16, u16)>),
    /// Those of the group's pods.
    Named(Group),
}

/// What matches passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub far: Far,
    pub ports: Ports,
}

/// The chain of one policy for one direction and family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: Arc<str>,
    pub way: Way,
    pub family: Family,
    pub comment: String,
    pub rules: Vec<Rule>,
}

/// `None` where the policy allows nothing in that direction and family.
pub fn compile(name: &Name, policy: &Policy, way: Way, family: Family) -> Option<Chain> {
    let mut rules = Vec::new();
    for allow in way.of(policy)? {
        for rule in expand(name, policy, allow, way) {
            let other_family = matches!(&rule.far, Far::Block { net, .. } if Family::of(net.ip()) != family);
            if !other_family && !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    if rules.is_empty() {
        return None;
    }
    let comment = name.to_string();
    let mut chain = Chain { name: "".into(), way, family, comment, rules };
    let identity = format!("{name} {}", chain.lines().join("\n"));
    chain.name = format!("allow-{}{}-{}", way.name(), family.digit(), short(&identity)).into();
    Some(chain)
}

/// Each of the rule's peers with each of its kinds of ports.
fn expand(name: &Name, policy: &Policy, allow: &Allow, way: Way) -> Vec<Rule> {
    let scope = |namespaces: &Option<Selector>| match namespaces {
        None => Scope::One(name.namespace.clone()),
        Some(selector) => Scope::Matching(selector.clone()),
    };
    let far: Vec<Far> = match &allow.peers {
        None => vec![Far::Anyone],
        Some(peers) => peers
            .iter()
            .filter_map(|peer| match peer {
                Peer::Pods { namespaces, pods } => {
                    Some(Far::Group(Group { scope: scope(namespaces), pods: pods.clone(), port: None }))
                }
                Peer::Block { net, except } => Some(Far::Block { net: *net, except: disjoint(net, except)? }),
            })
            .collect(),
    };
    let Some(ports) = &allow.ports else {
        return far.into_iter().map(|far| Rule { far, ports: Ports::Any }).collect();
    };
    let mut rules = Vec::new();
    for far in far {
        rules.extend(numbered(ports).into_iter().map(|ports| Rule { far: far.clone(), ports }));
        let of_name = |port: &Port| match &port.at {
            At::Named(text) => Some((text.clone(), port.protocol)),
            _ => None,
        };
        let selected = Group { scope: Scope::One(name.namespace.clone()), pods: policy.pods.clone(), port: None };
        rules.extend(ports.iter().filter_map(of_name).map(|port| named(port, far.clone(), way, &selected)));
    }
    rules
}

/// A port by name is where the receiving pod says: the policy's own pods for ingress, the peers for egress.
fn named(port: (Box<str>, Protocol), far: Far, way: Way, selected: &Group) -> Rule {
    let everyone = Group { scope: Scope::Everywhere, pods: Selector::everything(), port: None };
    let (far, receivers) = match (way, far) {
        (Way::Ingress, far) => (far, selected.clone()),
        // The set holds the peers' ports alone, and so says whom.
        (Way::Egress, Far::Group(group)) => (Far::Anyone, group),
        (Way::Egress, far) => (far, everyone),
    };
    Rule { far, ports: Ports::Named(Group { port: Some(port), ..receivers }) }
}

/// The ports that have numbers, by protocol.
fn numbered(ports: &[Port]) -> Vec<Ports> {
    let mut by_protocol: BTreeMap<Protocol, Option<Vec<(u16, u16)>>> = BTreeMap::new();
    for port in ports {
        match port.at {
            At::Named(_) => {}
            At::Any => drop(by_protocol.insert(port.protocol, None)),
            At::Range(first, last) => {
                if let Some(ranges) = by_protocol.entry(port.protocol).or_insert_with(|| Some(Vec::new())) {
                    ranges.push((first, last));
                }
            }
        }
    }
    let each = by_protocol.into_iter().map(|(protocol, ranges)| match ranges.map(merged) {
        None => Ports::Protocol(protocol),
        Some(ranges) => Ports::Ranges(protocol, ranges),
    });
    each.filter(|ports| !matches!(ports, Ports::Ranges(_, ranges) if ranges.is_empty())).collect()
}

/// nft refuses a set whose ranges overlap. A range that ends before it begins holds nothing.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.retain(|(first, last)| first <= last);
    ranges.sort_unstable();
    let mut out: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

/// The exceptions that lie in the block, each once and none inside another. `None` where nothing of the block is left.
fn disjoint(net: &IpNetwork, except: &[IpNetwork]) -> Option<Vec<IpNetwork>> {
    let inside = |a: &IpNetwork, b: &IpNetwork| b.prefix() <= a.prefix() && b.contains(a.network());
    let mut ranges: Vec<IpNetwork> = except.iter().filter(|range| range.is_ipv4() == net.is_ipv4()).copied().collect();
    if ranges.iter().any(|range| inside(net, range)) {
        return None;
    }
    ranges.retain(|range| inside(range, net));
    // The wider first.
    ranges.sort_by_key(|range| (range.prefix(), range.network()));
    let mut out: Vec<IpNetwork> = Vec::new();
    for range in ranges {
        if !out.iter().any(|wider| inside(&range, wider)) {
            out.push(range);
        }
    }
    Some(out)
}

impl Chain {
    /// The groups whose sets the rules name.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.rules.iter().flat_map(|rule| {
            let far = match &rule.far {
                Far::Group(group) => Some(group),
                _ => None,
            };
            let ports = match &rule.ports {
                Ports::Named(group) => Some(group),
                _ => None,
            };
            far.into_iter().chain(ports)
        })
    }

    /// As nft reads them.
    pub fn lines(&self) -> Vec<String> {
        self.rules.iter().map(|rule| self.line(rule)).collect()
    }

    fn line(&self, rule: &Rule) -> String {
        let ip = self.family.name();
        let mut line = String::new();
        let side = if self.way == Way::Ingress { "saddr" } else { "daddr" };
        match &rule.far {
            Far::Anyone => {}
            Far::Group(group) => line.push_str(&format!("{ip} {side} @{} ", group.set(self.family))),
            Far::Block { net, except } => {
                if net.prefix() > 0 {
                    line.push_str(&format!("{ip} {side} {}/{} ", net.network(), net.prefix()));
                }
                if !except.is_empty() {
                    let list: Vec<String> = except.iter().map(|e| format!("{}/{}", e.network(), e.prefix())).collect();
                    line.push_str(&format!("{ip} {side} != {{ {} }} ", list.join(", ")));
                }
            }
        }
        match &rule.ports {
            Ports::Any => {}
            Ports::Protocol(protocol) => line.push_str(&format!("meta l4proto {} ", protocol.number())),
            Ports::Ranges(protocol, ranges) => {
                let range = |(first, last): &(u16, u16)| match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                };
                let list: Vec<String> = ranges.iter().map(range).collect();
                line.push_str(&format!("{} dport {{ {} }} ", protocol.name(), list.join(", ")));
            }
            Ports::Named(group) => {
                line.push_str(&format!("{ip} daddr . meta l4proto . th dport @{} ", group.set(self.family)));
            }
        }
        // What may leave must still be let in where it goes to a pod of this node.
        line.push_str(if self.way == Way::Ingress { "accept" } else { "goto arrive" });
        line
    }
}
