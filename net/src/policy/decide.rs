//! Whether a packet may pass, straight from the words of the API: what the rules in the kernel must come to, and what
//! `bosun net trace` says.
//!
//! Source: "Network Policies" in the documentation of Kubernetes, and networking.k8s.io/v1.
//!
//! It promises TCP, UDP and SCTP, and leaves all other protocols undefined. Here they are treated as what they are, packets
//! without ports: to and from an isolated pod ICMP passes where a rule allows the peer and names no ports. Errors that
//! belong to a flow pass with it, and neighbour discovery always.

use std::collections::HashMap;
use std::net::IpAddr;

use super::model::{Allow, At, Model, Name, Peer, Pod, Policy, Port, Protocol, within};

/// A connection's first packet, after the translation of a Service's address and before any of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// `None`: one without ports.
    pub protocol: Option<Protocol>,
    pub port: u16,
}

/// What the policies of one end say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// No policy isolates the pod in this direction, or there is no pod.
    Open,
    /// By a rule of that policy, counted from 0.
    Allowed { policy: Name, rule: usize },
    /// These isolate the pod, and no rule of them allows it.
    Denied { policies: Vec<Name> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub egress: Side,
    pub ingress: Side,
}

impl Verdict {
    pub fn passes(&self) -> bool {
        ![&self.egress, &self.ingress].iter().any(|side| matches!(side, Side::Denied { .. }))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    Ingress,
    Egress,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// What the policy allows in this direction; `None` where it does not isolate in it.
    pub fn of(self, policy: &Policy) -> Option<&[Allow]> {
        match self {
            Self::Ingress => policy.ingress.as_deref(),
            Self::Egress => policy.egress.as_deref(),
        }
    }
}

/// Decides on one packet.
pub fn decide(model: &Model, packet: &Packet) -> Verdict {
    Judge::new(model).decide(packet)
}

/// Decides on many packets.
pub struct Judge<'a> {
    model: &'a Model,
    /// The pods that have an address.
    holders: HashMap<IpAddr, Vec<(&'a Name, &'a Pod)>>,
}

impl<'a> Judge<'a> {
    pub fn new(model: &'a Model) -> Self {
        let mut holders: HashMap<IpAddr, Vec<(&Name, &Pod)>> = HashMap::new();
        for (name, pod) in &model.pods {
            for ip in model.addresses(name, pod) {
                holders.entry(ip).or_default().push((name, pod));
            }
        }
        Self { model, holders }
    }

    /// A pod always reaches itself; what a node sends to its own pods passes too, and never comes here.
    pub fn decide(&self, packet: &Packet) -> Verdict {
        if packet.source == packet.destination {
            return Verdict { egress: Side::Open, ingress: Side::Open };
        }
        Verdict { egress: self.side(packet, Way::Egress), ingress: self.side(packet, Way::Ingress) }
    }

    fn side(&self, packet: &Packet, way: Way) -> Side {
        let own = match way {
            Way::Ingress => packet.destination,
            Way::Egress => packet.source,
        };
        let mut isolating = Vec::new();
        for (name, pod) in self.holders(own) {
            for (policy_name, policy) in within(&self.model.policies, &name.namespace) {
                let Some(rules) = way.of(policy).filter(|_| pod.labels.match_by(&policy.pods)) else { continue };
                let allows = |rule: &Allow| self.allows(&policy_name.namespace, rule, packet, way);
                if let Some(rule) = rules.iter().position(allows) {
                    return Side::Allowed { policy: policy_name.clone(), rule };
                }
                isolating.push(policy_name.clone());
            }
        }
        if isolating.is_empty() { Side::Open } else { Side::Denied { policies: isolating } }
    }

    /// The pods that have the address.
    pub fn holders(&self, ip: IpAddr) -> &[(&'a Name, &'a Pod)] {
        self.holders.get(&ip).map(Vec::as_slice).unwrap_or_default()
    }

    fn allows(&self, namespace: &str, rule: &Allow, packet: &Packet, way: Way) -> bool {
        let far = match way {
            Way::Ingress => packet.source,
            Way::Egress => packet.destination,
        };
        let namespaces = &self.model.namespaces;
        let peer = |peer: &Peer| match peer {
            Peer::Block { net, except } => net.contains(far) && !except.iter().any(|range| range.contains(far)),
            Peer::Pods { namespaces: wanted, pods } => self.holders(far).iter().any(|(name, pod)| {
                let inside = match wanted {
                    None => *name.namespace == *namespace,
                    Some(selector) => namespaces.get(&name.namespace).is_some_and(|labels| labels.match_by(selector)),
                };
                inside && pod.labels.match_by(pods)
            }),
        };
        rule.peers.as_ref().is_none_or(|peers| peers.iter().any(peer))
            && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(|port| self.at_port(port, packet)))
    }

    fn at_port(&self, port: &Port, packet: &Packet) -> bool {
        packet.protocol == Some(port.protocol)
            && match &port.at {
                At::Any => true,
                At::Range(first, last) => (*first..=*last).contains(&packet.port),
                At::Named(name) => {
                    let named = |(_, pod): &(&Name, &Pod)| pod.port(name, port.protocol) == Some(packet.port);
                    self.holders(packet.destination).iter().any(named)
                }
            }
    }
}
