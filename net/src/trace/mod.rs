//! What becomes of a packet from one pod to another or to a Service, and why.
//!
//! [`path`] says it by the decision that the rules are made from; [`probe`] sends a packet from the pod itself, and
//! [`text`] sets both beside each other.

mod probe;
mod question;
mod text;

use std::net::{IpAddr, SocketAddr};

use crate::policy::decide::{Packet, Side, Verdict, decide};
use crate::policy::model::{Model, Name, Pod, Protocol};

pub use probe::{Answer, Found, probe};
pub use question::{Question, Service, service};
pub use text::text;

/// The way from the source to each of the destinations that it may come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub from: Name,
    pub node: Box<str>,
    pub source: IpAddr,
    /// The link of this node that the source is behind; `None` where it is not here or not known.
    pub link: Option<Box<str>>,
    pub protocol: Protocol,
    /// The Service and its address, where the question named one.
    pub service: Option<(Name, SocketAddr)>,
    pub legs: Vec<Leg>,
}

/// One destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    pub address: SocketAddr,
    /// The pod that has the address.
    pub pod: Option<Name>,
    pub node: Box<str>,
    pub verdict: Verdict,
}

/// What is foretold of the whole path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foretold {
    Passes,
    Stopped,
    /// The Service has no endpoint.
    Refused,
    /// It depends on the endpoint.
    Some,
}

impl Path {
    pub fn foretold(&self) -> Foretold {
        let passing = self.legs.iter().filter(|leg| leg.verdict.passes()).count();
        match (passing, self.legs.len()) {
            (0, 0) => Foretold::Refused,
            (0, _) => Foretold::Stopped,
            (passing, all) if passing == all => Foretold::Passes,
            _ => Foretold::Some,
        }
    }

    /// What the source connects to.
    pub fn goal(&self) -> Option<SocketAddr> {
        self.service.as_ref().map(|(_, address)| *address).or(self.legs.first().map(|leg| leg.address))
    }
}

/// Decides the way. `service` is what the API says where the question names a Service.
///
/// # Errors
/// In words for the user: where there is no such pod or Service, or one has no address.
pub fn path(model: &Model, question: &Question, service: Option<&Service>) -> anyhow::Result<Path> {
    let from = known(model, &question.from)?;
    let sources = addresses(model, &question.from, from);
    let family_of_service = service.and_then(|service| service.address.as_ref().ok());
    let to = model.pods.get(&question.to);
    let goals: Vec<IpAddr> = match (family_of_service, to) {
        (Some(address), _) => vec![address.ip()],
        (None, Some(pod)) => addresses(model, &question.to, pod),
        (None, None) => match service {
            Some(Service { address: Err(why), .. }) => anyhow::bail!("{why}"),
            _ => anyhow::bail!("there is no pod and no Service {}", question.to),
        },
    };
    // IPv4 before IPv6, as most clients choose where a name gives both.
    let both = |four: bool| {
        let of = |list: &[IpAddr]| list.iter().copied().find(|ip| ip.is_ipv4() == four);
        Some((of(&sources)?, of(&goals)?))
    };
    let Some((source, goal)) = both(true).or_else(|| both(false)) else {
        anyhow::bail!("{} and {} have no addresses of one family", question.from, question.to)
    };
    let ends = match service {
        Some(service) => service.endpoints.clone(),
        None => vec![SocketAddr::new(goal, question.port)],
    };
    let legs = ends.into_iter().map(|end| leg(model, (from, source), end, question.protocol)).collect();
    Ok(Path {
        from: question.from.clone(),
        node: from.node.clone(),
        source,
        link: model.attached.of(&question.from).next().map(|attachment| attachment.link.clone()),
        protocol: question.protocol,
        service: service.map(|_| (question.to.clone(), SocketAddr::new(goal, question.port))),
        legs,
    })
}

fn known<'a>(model: &'a Model, name: &Name) -> anyhow::Result<&'a Pod> {
    let pod = model.pods.get(name).ok_or_else(|| anyhow::anyhow!("there is no pod {name}"))?;
    anyhow::ensure!(!pod.finished, "pod {name} has finished");
    Ok(pod)
}

/// Those of a pod in the node's network too, which no policy concerns.
fn addresses(model: &Model, name: &Name, pod: &Pod) -> Vec<IpAddr> {
    if pod.host_network { pod.ips.to_vec() } else { model.addresses(name, pod) }
}

fn leg(model: &Model, (from, source): (&Pod, IpAddr), end: SocketAddr, protocol: Protocol) -> Leg {
    let has = |(name, pod): &(&Name, &Pod)| !pod.finished && addresses(model, name, pod).contains(&end.ip());
    let to = model.pods.iter().find(has);
    let node = to.map(|(_, pod)| pod.node.clone()).unwrap_or_default();
    let packet = Packet { source, destination: end.ip(), protocol, port: end.port() };
    let mut verdict = decide(model, &packet);
    // Between a node and its own pods everything passes.
    if let Some((_, pod)) = to.filter(|(_, pod)| pod.node == from.node) {
        if from.host_network {
            verdict.ingress = Side::Open;
        }
        if pod.host_network {
            verdict.egress = Side::Open;
        }
    }
    Leg { address: end, pod: to.map(|(name, _)| name.clone()), node, verdict }
}

/// The counters that rose, by how much.
pub fn risen(
    before: &std::collections::BTreeMap<String, u64>,
    after: &std::collections::BTreeMap<String, u64>,
) -> Vec<(String, u64)> {
    let rise = |(who, now): (&String, &u64)| {
        let by = now.saturating_sub(before.get(who).copied().unwrap_or_default());
        (by > 0).then(|| (who.clone(), by))
    };
    after.iter().filter_map(rise).collect()
}
