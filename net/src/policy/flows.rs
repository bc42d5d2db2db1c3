//! Which tracked flows end: what is established passes the rules unseen, so a flow that policies have come to forbid, and
//! one of an address that another pod may get, is forgotten. Its next packet then is a new one.

use std::collections::HashSet;
use std::net::IpAddr;

use kernel::conntrack::{Conntrack, Error, Flow};

use super::decide::{Judge, Packet};
use super::model::{Model, Protocol};

/// What there is to look for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspects {
    /// Addresses whose pod is gone or new: all flows of theirs end.
    pub changed: HashSet<IpAddr>,
    /// Addresses of isolated pods: flows end that policies forbid.
    pub isolated: HashSet<IpAddr>,
    /// This node's own addresses. What it sends to its pods, and they to it, no policy forbids, and translated flows of
    /// that kind would break.
    pub own: HashSet<IpAddr>,
}

/// Where a flow's packets go after the translation of a Service's address. The source is still the first: masquerading
/// comes after the policies.
fn packet(flow: &Flow) -> Packet {
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == flow.protocol);
    let port = protocol.map_or(0, |_| flow.reply.source_port);
    Packet { source: flow.original.source, destination: flow.reply.source, protocol, port }
}

impl Suspects {
    fn ends(&self, judge: Option<&Judge<'_>>, flow: &Flow) -> bool {
        let ends = [flow.original.source, flow.reply.source];
        if ends.iter().any(|ip| self.changed.contains(ip)) {
            return true;
        }
        let concerns = ends.iter().any(|ip| self.isolated.contains(ip)) && !ends.iter().any(|ip| self.own.contains(ip));
        let forbids = |judge: &Judge<'_>| !judge.decide(&packet(flow)).passes();
        concerns && judge.is_some_and(forbids)
    }

    /// Forgets the flows that end; how many there were.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget(&self, model: &Model, conntrack: &mut dyn Conntrack) -> Result<usize, Error> {
        if self.changed.is_empty() && self.isolated.is_empty() {
            return Ok(0);
        }
        let judge = (!self.isolated.is_empty()).then(|| Judge::new(model));
        let mut count = 0;
        for flow in conntrack.all()? {
            if self.ends(judge.as_ref(), &flow) && conntrack.delete(&flow)? {
                count += 1;
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use kernel::conntrack::{Direction, Fake};

    use super::*;
    use crate::policy::model::{Name, Pod, Policy};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// From one to another address, by way of a Service where `asked` is another than where it came to.
    fn flow(from: &str, asked: &str, to: &str) -> Flow {
        let way = |source: &str, destination: &str, source_port, destination_port| Direction {
            source: ip(source),
            destination: ip(destination),
            source_port,
            destination_port,
        };
        Flow { protocol: 6, original: way(from, asked, 40000, 80), reply: way(to, from, 8080, 40000) }
    }

    #[test]
    fn what_is_forbidden_and_what_is_left_of_another_pod_ends() {
        let mut model = Model::default();
        let pod = |ip: &str| Pod { ips: [ip.parse().unwrap()].into(), ..Pod::default() };
        model.pods.insert(Name::new("a", "shut"), pod("10.0.0.1"));
        model.policies.insert(Name::new("a", "deny"), Policy { ingress: Some(vec![]), ..Policy::default() });
        model.pods.insert(Name::new("b", "open"), pod("10.0.0.2"));
        let flows = [
            flow("10.0.0.2", "10.0.0.1", "10.0.0.1"),
            flow("10.0.0.2", "10.96.0.1", "10.0.0.1"),
            flow("10.0.0.1", "10.0.0.2", "10.0.0.2"),
            flow("192.0.2.1", "10.0.0.1", "10.0.0.1"),
            flow("10.0.0.9", "10.0.0.2", "10.0.0.2"),
        ];
        let mut table = Fake { flows: flows.to_vec().into(), broken: false };
        let mut suspects = Suspects {
            changed: HashSet::new(),
            isolated: HashSet::from([ip("10.0.0.1")]),
            own: HashSet::from([ip("192.0.2.1")]),
        };
        assert_eq!(suspects.forget(&model, &mut table).unwrap(), 2);
        assert_eq!(*table.flows.lock().unwrap(), flows[2..], "egress is open, and the node always may");
        suspects.changed.insert(ip("10.0.0.9"));
        assert_eq!(suspects.forget(&model, &mut table).unwrap(), 1);
        assert_eq!(*table.flows.lock().unwrap(), flows[2..4]);
        assert_eq!(Suspects::default().forget(&model, &mut Fake { broken: true, ..Fake::default() }).unwrap(), 0);
        let broken = &mut Fake { broken: true, ..Fake::default() };
        assert!(suspects.forget(&model, broken).is_err());
    }
}
