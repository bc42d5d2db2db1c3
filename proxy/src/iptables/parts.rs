//! One Service's part of the tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::base::{GUARD, MASQUERADE, MASQUERADE_OUTSIDE, NODE_PORTS, REFUSE, REFUSE_PORTS, pods};
use super::{Chain, Family, Table};
use crate::model::{Facts, Protocol};
use crate::plan::{Action, From, Front, Guard, Masquerade, Plan, Pool, Rule};

/// What one Service has in the tables of one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// Rules in chains that Services share, by a key of this Service alone.
    pub shared: BTreeMap<(Shared, String), Vec<String>>,
    /// Chains of this Service alone.
    pub owned: BTreeMap<Chain, Vec<String>>,
}

/// A chain to which each Service may add rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shared {
    Near(Neighbourhood),
    NodePorts,
    Refuse,
    RefusePorts,
    Guard,
}

impl Shared {
    pub fn chain(self) -> Chain {
        match self {
            Self::Near(near) => (Table::Nat, near.chain()),
            Self::NodePorts => (Table::Nat, NODE_PORTS.into()),
            Self::Refuse => (Table::Filter, REFUSE.into()),
            Self::RefusePorts => (Table::Filter, REFUSE_PORTS.into()),
            Self::Guard => (Table::Mangle, GUARD.into()),
        }
    }
}

/// Writes down one plan.
pub fn parts(name: &str, plan: &Plan, family: Family, facts: &Facts) -> Parts {
    let mut parts = Parts::default();
    for rule in plan.rules.iter().filter(|rule| rule.front.is_ipv4() == family.is_v4()) {
        let outside = plan
            .rules
            .iter()
            .find(|other| (other.front, other.protocol, other.from) == (rule.front, rule.protocol, From::Outside));
        if rule.from == From::Anyone {
            add_front(&mut parts, name, (rule, outside), (family, facts));
        }
    }
    for guard in plan.guards.iter().filter(|guard| family.has(guard.ip)) {
        add_guard(&mut parts, name, guard);
    }
    parts
}

fn add_front(
    parts: &mut Parts,
    name: &str,
    (anyone, outside): (&Rule, Option<&Rule>),
    (family, facts): (Family, &Facts),
) {
    let front = condition(anyone.front, anyone.protocol);
    let mut lines = Vec::new();
    match outside {
        None => lines.extend(lead(parts, anyone, &front, (family, facts))),
        Some(outside) => {
            let (near, masquerade) = (pool(parts, anyone), "-m addrtype --src-type LOCAL");
            if let Some(near) = near {
                lines.extend(pods(facts, family).iter().map(|pods| format!("{front} {pods} -j {near}")));
                lines.push(format!("{front} {masquerade} -j {MASQUERADE}"));
                lines.push(format!("{front} {masquerade} -j {near}"));
            }
            lines.extend(lead(parts, outside, &front, (family, facts)));
        }
    }
    let key = format!("{front} {name}");
    if !lines.is_empty() {
        let place = match anyone.front {
            Front::Vip(ip, _) => Shared::Near(Neighbourhood::of(ip)),
            Front::NodePort { .. } => Shared::NodePorts,
        };
        parts.shared.insert((place, key.clone()), lines);
    }
    // What was led somewhere has another destination when it comes to be refused.
    let verdict = [Some(anyone), outside].into_iter().flatten().find_map(|rule| match rule.action {
        Action::Balance { .. } => None,
        // A reset has no rate limit, which the kernel's ICMP has.
        Action::Reject if rule.protocol == Protocol::Tcp => Some("REJECT --reject-with tcp-reset"),
        Action::Reject => Some("REJECT"),
        Action::Drop => Some("DROP"),
    });
    if let Some(verdict) = verdict {
        let (place, local) = match anyone.front {
            Front::Vip(..) => (Shared::Refuse, ""),
            Front::NodePort { .. } => (Shared::RefusePorts, " -m addrtype --dst-type LOCAL"),
        };
        parts.shared.insert((place, key), vec![format!("{front}{local} -j {verdict}")]);
    }
}

/// From a front to a rule's pool.
fn lead(parts: &mut Parts, rule: &Rule, front: &str, (family, facts): (Family, &Facts)) -> Vec<String> {
    let (Some(pool), Action::Balance { masquerade, .. }) = (pool(parts, rule), &rule.action) else { return Vec::new() };
    let mark = match masquerade {
        Masquerade::Always => Some(MASQUERADE),
        Masquerade::OutsidePods if facts.knows_pods(family.is_v4()) => Some(MASQUERADE_OUTSIDE),
        _ => None,
    };
    mark.into_iter().map(str::to_owned).chain([pool]).map(|target| format!("{front} -j {target}")).collect()
}

/// The chain that draws one of the rule's endpoints. Fronts of one service port share it.
fn pool(parts: &mut Parts, rule: &Rule) -> Option<String> {
    let Action::Balance { pool, endpoints, affinity, .. } = &rule.action else { return None };
    let word = match pool {
        Pool::Cluster => "SVC",
        Pool::Local => "SVL",
    };
    let chain = format!("BOSUN-{word}-{:016X}", rule.id);
    parts.owned.entry((Table::Nat, chain.clone())).or_insert_with(|| draw(rule, endpoints, *affinity));
    Some(chain)
}

fn draw(rule: &Rule, endpoints: &[SocketAddr], affinity: Option<u32>) -> Vec<String> {
    let protocol = rule.protocol.name();
    let mut rules = Vec::new();
    // The list of clients that an endpoint has.
    let list = |target: &SocketAddr| format!("-m recent --name bosun-{:016x}-{target}", rule.id);
    for target in endpoints.iter().filter(|_| affinity.is_some()) {
        let seconds = affinity.unwrap_or_default();
        let back = format!("{} --update --seconds {seconds} --reap", list(target));
        rules.push(format!("-p {protocol} {back} -j DNAT --to-destination {target}"));
    }
    for (at, target) in endpoints.iter().enumerate() {
        // Of those that are left each has the same chance.
        let chance = match endpoints.len() - at {
            1 => String::new(),
            left => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
        };
        let remember = affinity.map(|_| format!(" {} --set", list(target))).unwrap_or_default();
        rules.push(format!("-p {protocol}{chance}{remember} -j DNAT --to-destination {target}"));
    }
    rules
}

pub fn add_guard(parts: &mut Parts, name: &str, guard: &Guard) {
    let front = condition(Front::Vip(guard.ip, guard.port), guard.protocol);
    let chain = format!("BOSUN-GRD-{:016X}", hash(front.bytes()));
    parts.shared.insert((Shared::Guard, format!("{front} {name}")), vec![format!("{front} -j {chain}")]);
    let allowed = guard.allowed.iter().map(|range| format!("-s {}/{} -j RETURN", range.network(), range.prefix()));
    parts.owned.insert((Table::Mangle, chain), allowed.chain(["-j DROP".into()]).collect());
}

fn condition(front: Front, protocol: Protocol) -> String {
    let l4 = protocol.name();
    match front {
        Front::Vip(ip, port) => format!("-d {ip} -p {l4} -m {l4} --dport {port}"),
        Front::NodePort { port, .. } => format!("-p {l4} -m {l4} --dport {port}"),
    }
}

/// The 256 addresses among which one lies: a chain for each keeps a packet from meeting all Services, and a new Service
/// from writing them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbourhood(IpAddr);

impl Neighbourhood {
    pub fn of(ip: IpAddr) -> Self {
        Self(match ip {
            IpAddr::V4(ip) => std::net::Ipv4Addr::from_bits(ip.to_bits() & !0xff).into(),
            IpAddr::V6(ip) => std::net::Ipv6Addr::from_bits(ip.to_bits() & !0xff).into(),
        })
    }

    pub fn chain(self) -> String {
        match self.0 {
            IpAddr::V4(ip) => format!("BOSUN-NET-{:06X}", ip.to_bits() >> 8),
            // A chain's name has at most 28 characters.
            IpAddr::V6(ip) => format!("BOSUN-NET-{:016X}", hash(ip.octets().into_iter())),
        }
    }

    pub fn range(self) -> String {
        format!("{}/{}", self.0, if self.0.is_ipv4() { 24 } else { 120 })
    }
}

fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
