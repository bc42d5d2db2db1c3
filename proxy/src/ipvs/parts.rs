//! One Service's part: virtual servers, addresses of the host, members of sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kernel::ipvs::Server;

use crate::backend::Family;
use crate::model::Facts;
use crate::plan::{Action, From, Front, Masquerade, Plan, Rule};

/// The sets that iptables asks. All hold (address, port), except for the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Addresses that are the host's for Services alone.
    Vips,
    /// What of them is served.
    Fronts,
    /// Who asks here gets the node's address.
    Masquerade,
    /// The same, except for pods.
    Outside,
    /// The same, only for the node itself.
    Near,
    Reject,
    Drop,
    /// Dropped, except for pods and the node itself.
    Far,
}

impl Set {
    pub const ALL: [Self; 8] =
        [Self::Vips, Self::Fronts, Self::Masquerade, Self::Outside, Self::Near, Self::Reject, Self::Drop, Self::Far];

    pub fn name(self, family: Family) -> String {
        let word = match self {
            Self::Vips => "vips",
            Self::Fronts => "fronts",
            Self::Masquerade => "masquerade",
            Self::Outside => "outside",
            Self::Near => "near",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::Far => "far",
        };
        format!("{}{word}-{}", super::SETS, if family.is_v4() { 4 } else { 6 })
    }

    pub fn kind(self) -> &'static str {
        if self == Self::Vips { "hash:ip" } else { "hash:ip,port" }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Virtual {
    pub persistence: Option<u32>,
    pub endpoints: Arc<[SocketAddr]>,
    /// Of UDP: where flows that have begun may go on, though new ones may not go there.
    pub serving: Arc<[SocketAddr]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    pub servers: BTreeMap<Server, Virtual>,
    pub vips: BTreeSet<IpAddr>,
    pub members: BTreeSet<(Family, Set, String)>,
}

impl Parts {
    pub fn merge(&mut self, other: Self) {
        self.servers.extend(other.servers);
        self.vips.extend(other.vips);
        self.members.extend(other.members);
    }
}

/// Writes down one plan. IPVS has one pool for a front: where external traffic stays on the node and there is an endpoint,
/// pods and the node itself share it with those from outside.
pub fn parts(plan: &Plan, facts: &Facts) -> Parts {
    let mut parts = Parts::default();
    for rule in plan.rules.iter().filter(|rule| rule.from == From::Anyone) {
        let outside = plan
            .rules
            .iter()
            .find(|other| (other.front, other.protocol, other.from) == (rule.front, rule.protocol, From::Outside));
        for address in addresses(rule.front, facts) {
            add_front(&mut parts, address, (rule, outside), &plan.serving);
        }
        if let Front::Vip(ip, _) = rule.front {
            parts.vips.insert(ip);
            let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
            parts.members.insert((family, Set::Vips, ip.to_string()));
            if let Some(health) = plan.health {
                parts.members.insert((family, Set::Fronts, format!("{ip},tcp:{}", health.port)));
            }
        }
    }
    parts
}

fn addresses(front: Front, facts: &Facts) -> Vec<SocketAddr> {
    match front {
        Front::Vip(ip, port) => vec![SocketAddr::new(ip, port)],
        Front::NodePort { v4, port } => {
            let own = facts.node_ips.iter().filter(|ip| ip.is_ipv4() == v4 && !ip.is_loopback());
            own.map(|ip| SocketAddr::new(*ip, port)).collect()
        }
    }
}

fn add_front(
    parts: &mut Parts,
    address: SocketAddr,
    (anyone, outside): (&Rule, Option<&Rule>),
    serving: &[(u64, Arc<[SocketAddr]>)],
) {
    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
    let member = format!("{},{}:{}", address.ip(), anyone.protocol.name(), address.port());
    let mut join = |set| {
        parts.members.insert((family, set, member.clone()));
    };
    join(Set::Fronts);
    match (&anyone.action, outside.map(|rule| &rule.action)) {
        (Action::Reject, _) => join(Set::Reject),
        (Action::Drop, _) => join(Set::Drop),
        (Action::Balance { .. }, Some(Action::Drop | Action::Reject)) => {
            join(Set::Near);
            join(Set::Far);
        }
        (Action::Balance { .. }, Some(Action::Balance { .. })) => join(Set::Near),
        (Action::Balance { masquerade, .. }, None) => match masquerade {
            Masquerade::Always => join(Set::Masquerade),
            Masquerade::OutsidePods => join(Set::Outside),
            Masquerade::Never => {}
        },
    }
    let chosen = [outside, Some(anyone)].into_iter().flatten().find_map(|rule| match &rule.action {
        Action::Balance { endpoints, affinity, .. } => Some((endpoints, affinity)),
        _ => None,
    });
    if let Some((endpoints, affinity)) = chosen {
        let server = Server { protocol: anyone.protocol.number(), address };
        let of_port = serving.iter().find(|(id, _)| *id == anyone.id).map(|(_, serving)| serving.clone());
        let serving = of_port.unwrap_or_default();
        parts.servers.insert(server, Virtual { persistence: *affinity, endpoints: endpoints.clone(), serving });
    }
}
