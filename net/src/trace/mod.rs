//! What becomes of a packet from one pod to another or to a Service, and why.
//!
//! [`path`] says it by the decision that the rules are made from; [`probe`] sends a packet from the pod itself, and
//! [`text`] sets both beside each other.

mod probe;
mod question;
mod text;

use std::net::{IpAddr, SocketAddr};

use crate::control::Ends;
use crate::policy::decide::{Packet, Side, Verdict, decide};
use crate::policy::model::{Model, Name, Pod, Protocol};

pub use probe::{Answer, Found, probe};
pub use question::{Question, Service, service};
pub use text::{counted, text};

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

    /// The nodes that know more of the packet than what is foretold.
    pub fn ends(&self) -> Ends {
        let destinations = self.legs.iter().filter(|leg| !leg.node.is_empty()).map(|leg| leg.node.to_string());
        Ends { source: self.node.to_string(), destinations: destinations.collect() }
    }

    /// What the source connects to.
    pub fn goal(&self) -> Option<SocketAddr> {
        self.service.as_ref().map(|(_, address)| *address).or(self.legs.first().map(|leg| leg.address))
    }
}

/// Decides the way. `service` is what the API says of a Service of that name; where it has the port, it is meant, and
/// else the pod.
///
/// # Errors
/// In words for the user: where there is no such pod or Service, or one has no address.
pub fn path(model: &Model, question: &Question, service: Option<&Service>) -> anyhow::Result<Path> {
    let from = known(model, &question.from)?;
    let sources = addresses(model, &question.from, from);
    let meant = service.and_then(|service| Some((service, service.address.clone().ok()?)));
    let goals: Vec<IpAddr> = match (meant, model.pods.get(&question.to), service) {
        (Some((_, address)), ..) => vec![address.ip()],
        (None, Some(pod), _) => addresses(model, &question.to, pod),
        (None, None, Some(Service { address: Err(why), .. })) => anyhow::bail!("{why}"),
        _ => anyhow::bail!("there is no pod and no Service {}", question.to),
    };
    // IPv4 before IPv6, as most clients choose where a name gives both.
    let both = |four: bool| {
        let of = |list: &[IpAddr]| list.iter().copied().find(|ip| ip.is_ipv4() == four);
        Some((of(&sources)?, of(&goals)?))
    };
    let Some((source, goal)) = both(true).or_else(|| both(false)) else {
        anyhow::bail!("{} and {} have no addresses of one family", question.from, question.to)
    };
    let ends = match meant {
        Some((service, _)) => service.endpoints.clone(),
        None => vec![SocketAddr::new(goal, question.port)],
    };
    let legs = ends.into_iter().map(|end| leg(model, (from, source), end, question.protocol)).collect();
    Ok(Path {
        from: question.from.clone(),
        node: from.node.clone(),
        source,
        link: model.attached.of(&question.from).next().map(|attachment| attachment.link.clone()),
        protocol: question.protocol,
        service: meant.map(|(_, address)| (question.to.clone(), address)),
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
    let packet = Packet { source, destination: end.ip(), protocol: Some(protocol), port: end.port() };
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::model::{Allow, At, Labels, Peer, Policy, Port};

    fn model() -> Model {
        let mut model = Model::default();
        let pod = |node: &str, app: &str, ip: &str| Pod {
            node: node.into(),
            labels: Labels::new([("app", app)].into_iter()),
            ips: [ip.parse().unwrap()].into(),
            ..Pod::default()
        };
        model.namespaces.insert("a".into(), Labels::default());
        model.pods.insert(Name::new("a", "client"), pod("n1", "client", "10.0.0.1"));
        model.pods.insert(Name::new("a", "web-1"), pod("n1", "web", "10.0.0.2"));
        model.pods.insert(Name::new("a", "web-2"), pod("n2", "other", "10.0.1.2"));
        let port = Port { protocol: Protocol::Tcp, at: At::Range(8080, 8080) };
        let pods = api::labels::Selector::parse("app=client").unwrap();
        let allow = Allow { peers: Some(vec![Peer::Pods { namespaces: None, pods }]), ports: Some(vec![port]) };
        let web = api::labels::Selector::parse("app=web").unwrap();
        model.policies.insert(Name::new("a", "web"), Policy { pods: web, ingress: Some(vec![allow]), egress: None });
        let other = api::labels::Selector::parse("app=other").unwrap();
        model.policies.insert(Name::new("a", "deny"), Policy { pods: other, ingress: Some(vec![]), egress: None });
        model
    }

    fn lines(path: &Path, found: &Found) -> Vec<String> {
        text(path, found, &[("ingress of a/web-2".into(), 2)]).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_path_names_the_policy_that_stops_it() {
        let model = model();
        let question = Question::parse("a/client", "a/web-2:8080").unwrap();
        let path = path(&model, &question, None).unwrap();
        assert_eq!(path.foretold(), Foretold::Stopped);
        assert_eq!(path.ends(), Ends { source: "n1".into(), destinations: ["n2".into()].into() });
        let goal = "10.0.1.2:8080".parse().unwrap();
        assert_eq!(
            lines(&path, &Found::Answers(vec![(goal, Answer::Silence)])),
            [
                "from       a/client 10.0.0.1 on node n1",
                "to         a/web-2 10.0.1.2:8080/tcp on node n2",
                "  egress   open: no policy isolates",
                "  ingress  DROPPED: isolated by a/deny, and no rule allows it",
                "foretold   dropped: ingress of a/web-2",
                "probe      10.0.1.2:8080: nothing came back in 2 s",
                "counted    2 packets dropped meanwhile: ingress of a/web-2",
            ]
        );
        let answer = Answer::Connected(Duration::from_micros(300));
        let text = lines(&path, &Found::Answers(vec![(goal, answer)])).join("\n");
        assert!(text.contains("connected in 0.3 ms") && text.contains("DIFFERS"), "{text}");
    }

    #[test]
    fn a_service_leads_to_its_endpoints() {
        let model = model();
        let question = Question::parse("a/client", "a/web:80").unwrap();
        let ends = ["10.0.0.2:8080", "10.0.1.2:8080"].map(|end| end.parse().unwrap());
        let mut service = Service { address: Ok("10.96.0.5:80".parse().unwrap()), endpoints: ends.into() };
        let whole = path(&model, &question, Some(&service)).unwrap();
        assert_eq!((whole.foretold(), whole.goal().unwrap().to_string()), (Foretold::Some, "10.96.0.5:80".into()));
        assert_eq!(whole.legs[0].verdict.ingress, Side::Allowed { policy: Name::new("a", "web"), rule: 0 });
        let text = lines(&whole, &Found::NotSent("why".into())).join("\n");
        assert!(text.contains("Service    a/web 10.96.0.5:80/tcp, 2 ready endpoints"), "{text}");
        assert!(text.contains("foretold   depends on the endpoint: 1 of 2 pass\nprobe      not sent: why"), "{text}");

        service.endpoints.clear();
        let none = path(&model, &question, Some(&service)).unwrap();
        assert_eq!(none.foretold(), Foretold::Refused);
        service.address = Err("Service a/web has no tcp port 80; its ports are 8080".into());
        let error = path(&model, &question, Some(&service)).unwrap_err();
        assert_eq!(error.to_string(), "Service a/web has no tcp port 80; its ports are 8080");
        let nobody = Question::parse("a/client", "a/nobody:80").unwrap();
        assert_eq!(path(&model, &nobody, None).unwrap_err().to_string(), "there is no pod and no Service a/nobody");
    }
}
