//! One Service's part of the table.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kernel::nftables::{Key, Part, Value};

use super::base::not_pod;
use super::{Family, MARK};
use crate::model::{Facts, Protocol};
use crate::plan::{Action, From, Front, Masquerade, Plan, Rule};

/// Where the indices of the pool for packets from outside begin.
const OUTSIDE_OFFSET: u32 = 65_536;

/// What one Service has in the table of one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// (map, key) to value; a set's have none.
    pub elements: BTreeMap<(&'static str, Key), Option<Value>>,
    /// Chains for pool sizes, which Services share.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Chains of this Service alone.
    pub owned: BTreeMap<String, Vec<String>>,
    /// Sets of clients with their timeout in seconds, of this Service alone.
    pub sets: BTreeMap<String, u32>,
}

impl Parts {
    pub fn merge(&mut self, other: Self) {
        self.elements.extend(other.elements);
        self.chains.extend(other.chains);
        self.owned.extend(other.owned);
        self.sets.extend(other.sets);
    }
}

/// Writes down one plan.
pub fn parts(plan: &Plan, family: Family, facts: &Facts) -> Parts {
    let mut parts = Parts::default();
    for ip in plan.cluster_ips.iter().filter(|ip| family.has(**ip)) {
        parts.elements.insert(("cluster-ips", [Part::Address(*ip)].into()), None);
    }
    for rule in plan.rules.iter().filter(|rule| rule.front.is_ipv4() == (family == Family::V4)) {
        add_rule(&mut parts, rule, family, facts);
    }
    for guard in plan.guards.iter().filter(|guard| family.has(guard.ip)) {
        let key = key(Front::Vip(guard.ip, guard.port), guard.protocol);
        let chain = format!("guard-{}", word(&key));
        let allowed: Vec<String> =
            guard.allowed.iter().map(|range| format!("{}/{}", range.network(), range.prefix())).collect();
        // One by one, since ranges may overlap and a set of them must not.
        let mut body: Vec<String> =
            allowed.iter().map(|range| format!("{} saddr {range} return", family.name())).collect();
        body.push("drop".into());
        parts.elements.insert(("guarded", key), goto(&chain));
        parts.owned.insert(chain, body);
    }
    parts
}

fn key(front: Front, protocol: Protocol) -> Key {
    let protocol = Part::Protocol(protocol.number());
    match front {
        Front::Vip(ip, port) => [Part::Address(ip), protocol, Part::Port(port)].into(),
        Front::NodePort { port, .. } => [protocol, Part::Port(port)].into(),
    }
}

fn goto(chain: &str) -> Option<Value> {
    Some(Value::Goto(chain.into()))
}

/// A front as part of a chain's name.
fn word(key: &[Part]) -> String {
    let words: Vec<String> = key.iter().map(|part| part.to_string().replace(['.', ':'], "-")).collect();
    words.join("-")
}

fn add_rule(parts: &mut Parts, rule: &Rule, family: Family, facts: &Facts) {
    let key = key(rule.front, rule.protocol);
    let outside = rule.from == From::Outside;
    let (services, refused) = match (rule.front, outside) {
        (Front::Vip(..), false) => ("services", "refused"),
        (Front::Vip(..), true) => ("services-outside", "refused-outside"),
        (Front::NodePort { .. }, false) => ("nodeports", "refused-nodeports"),
        (Front::NodePort { .. }, true) => ("nodeports-outside", "refused-nodeports-outside"),
    };
    match &rule.action {
        Action::Balance { endpoints: pool, masquerade, affinity: Some(seconds), .. } => {
            let chain = format!("affinity-{}", word(&key)) + if outside { "-outside" } else { "" };
            let (body, sets) = affinity_chain(pool, (rule, *seconds), mark(*masquerade, family, facts), family);
            parts.sets.extend(sets);
            parts.elements.insert((services, key), goto(&chain));
            parts.owned.insert(chain, body);
        }
        Action::Balance { endpoints: pool, masquerade, affinity: None, .. } => {
            let (name, body) = pool_chain(rule, pool.len(), mark(*masquerade, family, facts), family);
            parts.elements.insert((services, key), goto(&name));
            parts.chains.insert(name, body);
            let endpoints = pool_map(rule.front, rule.protocol);
            for (index, target) in (if outside { OUTSIDE_OFFSET } else { 0 }..).zip(pool.iter()) {
                let place = match rule.front {
                    Front::Vip(ip, port) => [Part::Address(ip), Part::Port(port), Part::Number(index)].into(),
                    Front::NodePort { port, .. } => [Part::Port(port), Part::Number(index)].into(),
                };
                let target = [Part::Address(target.ip()), Part::Port(target.port())];
                parts.elements.insert((endpoints, place), Some(Value::Parts(target.into())));
            }
        }
        refusal => {
            let verdict = if *refusal == Action::Reject { goto("deny") } else { Some(Value::Drop) };
            parts.elements.insert((refused, key.clone()), verdict);
            if outside {
                // Ends the translation before the rule for anyone is asked; the packet then meets the refusal.
                parts.elements.insert((services, key), Some(Value::Accept));
            }
        }
    }
}

/// The statement that marks for masquerade, and the word for it in a chain's name.
fn mark(masquerade: Masquerade, family: Family, facts: &Facts) -> (&'static str, Option<String>) {
    let set = format!("meta mark set meta mark or {MARK}");
    match (masquerade, not_pod(facts, family)) {
        (Masquerade::Always, _) => ("masq", Some(set)),
        (Masquerade::OutsidePods, Some(not_pod)) => ("pods", Some(format!("{not_pod} {set}"))),
        _ => ("plain", None),
    }
}

/// The map that holds a front's endpoints.
fn pool_map(front: Front, protocol: Protocol) -> &'static str {
    let [vip, node] = match protocol {
        Protocol::Tcp => ["endpoints-tcp", "node-endpoints-tcp"],
        Protocol::Udp => ["endpoints-udp", "node-endpoints-udp"],
        Protocol::Sctp => ["endpoints-sctp", "node-endpoints-sctp"],
    };
    match front {
        Front::Vip(..) => vip,
        Front::NodePort { .. } => node,
    }
}

/// The chain for pools of that size, shared by all rules of that kind.
fn pool_chain(rule: &Rule, size: usize, mark: (&str, Option<String>), family: Family) -> (String, Vec<String>) {
    let protocol = rule.protocol.name();
    let map = pool_map(rule.front, rule.protocol);
    let (front, lookup) = match rule.front {
        Front::Vip(..) => ("vip", format!("{} daddr . {protocol} dport", family.name())),
        Front::NodePort { .. } => ("node", format!("{protocol} dport")),
    };
    let (word, offset) = match rule.from {
        From::Outside => ("-outside", format!(" offset {OUTSIDE_OFFSET}")),
        From::Anyone => ("", String::new()),
    };
    let dnat = format!("dnat to {lookup} . numgen random mod {size}{offset} map @{map}");
    (format!("{front}-{}{word}-{protocol}-{size}", mark.0), mark.1.into_iter().chain([dnat]).collect())
}

/// A client that is in an endpoint's set goes there again; another one is drawn and remembered.
fn affinity_chain(
    pool: &[SocketAddr],
    (rule, seconds): (&Rule, u32),
    mark: (&str, Option<String>),
    family: Family,
) -> (Vec<String>, BTreeMap<String, u32>) {
    let (f, l4) = (family.name(), rule.protocol.name());
    let mut body: Vec<String> = mark.1.into_iter().collect();
    let mut sets = BTreeMap::new();
    let mut draws = Vec::new();
    for (index, target) in pool.iter().enumerate() {
        let place = format!("{}-{}", target.ip(), target.port()).replace([':', '.'], "-");
        let set = format!("clients-{:016x}-{place}", rule.id);
        let go = format!("update @{set} {{ {f} saddr }} dnat to {target}");
        body.push(format!("meta l4proto {l4} {f} saddr @{set} {go}"));
        // Of those that are left each has the same chance.
        draws.push(match pool.len() - index {
            1 => format!("meta l4proto {l4} {go}"),
            left => format!("meta l4proto {l4} numgen random mod {left} 0 {go}"),
        });
        sets.insert(set, seconds);
    }
    body.extend(draws);
    // Where all sets are full nobody is remembered, and everybody is served.
    body.extend(pool.last().map(|target| format!("meta l4proto {l4} dnat to {target}")));
    (body, sets)
}
