//! Which tracked UDP flows lead to where their Service no longer leads.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kernel::conntrack::Flow;

use crate::model::{Facts, Protocol};
use crate::plan::{Front, Plan};

/// The endpoints of each UDP front that still serve, though new flows may go elsewhere; none where it has none, or is gone.
pub type Targets = HashMap<(IpAddr, u16), Vec<Arc<[SocketAddr]>>>;

/// Collects the fronts of `now`, and of `before` those that are gone.
pub fn targets(now: &[&Plan], before: &[&Plan], facts: &Facts) -> Targets {
    let mut targets = Targets::new();
    for (plans, counts) in [(before, false), (now, true)] {
        let rules = plans.iter().flat_map(|plan| plan.rules.iter().map(move |rule| (plan, rule)));
        for (plan, rule) in rules.filter(|(_, rule)| rule.protocol == Protocol::Udp) {
            let serving = plan.serving.iter().find(|(id, _)| *id == rule.id).map(|(_, endpoints)| endpoints);
            let fronts: Vec<(IpAddr, u16)> = match rule.front {
                Front::Vip(ip, port) => vec![(ip, port)],
                Front::NodePort { v4, port } => {
                    facts.node_ips.iter().filter(|ip| ip.is_ipv4() == v4).map(|ip| (*ip, port)).collect()
                }
            };
            for front in fronts {
                targets.entry(front).or_default().extend(serving.filter(|_| counts).cloned());
            }
        }
    }
    targets
}

/// Whether the flow's client asked for one of the fronts and is led to none of its endpoints: to one that is gone, or
/// nowhere, because the Service had none when the flow began.
pub fn is_stale(flow: &Flow, targets: &Targets) -> bool {
    let asked = (flow.original.destination, flow.original.destination_port);
    let led_to = SocketAddr::new(flow.reply.source, flow.reply.source_port);
    targets.get(&asked).is_some_and(|pools| !pools.iter().any(|pool| pool.contains(&led_to)))
}

#[cfg(test)]
mod tests {
    use kernel::conntrack::Direction;

    use super::*;
    use crate::plan::{Action, From, Rule};

    fn flow(asked: &str, led_to: &str) -> Flow {
        let (asked, led_to): (SocketAddr, SocketAddr) = (asked.parse().unwrap(), led_to.parse().unwrap());
        let client: IpAddr = "10.0.0.9".parse().unwrap();
        let way = |source: SocketAddr, destination: SocketAddr| Direction {
            source: source.ip(),
            destination: destination.ip(),
            source_port: source.port(),
            destination_port: destination.port(),
        };
        let client = SocketAddr::new(client, 5000);
        Flow { protocol: 17, original: way(client, asked), reply: way(led_to, client) }
    }

    #[test]
    fn only_flows_that_lead_elsewhere_end() {
        let serving: Arc<[SocketAddr]> = ["10.0.0.1:53".parse().unwrap()].into();
        let rule = |port| Rule {
            front: Front::Vip("10.96.0.10".parse().unwrap(), port),
            protocol: Protocol::Udp,
            from: From::Anyone,
            id: u64::from(port),
            action: Action::Drop,
        };
        let (now, before) = (
            Plan { rules: vec![rule(53)], serving: vec![(53, serving.clone())], ..Plan::default() },
            Plan { rules: vec![rule(53), rule(54)], serving: vec![(54, serving)], ..Plan::default() },
        );
        let targets = targets(&[&now], &[&before], &Facts::default());
        let stale = |asked, led_to| is_stale(&flow(asked, led_to), &targets);
        assert!(!stale("10.96.0.10:53", "10.0.0.1:53"));
        assert!(stale("10.96.0.10:53", "10.0.0.2:53"), "an endpoint that is gone");
        assert!(stale("10.96.0.10:53", "10.96.0.10:53"), "led nowhere while there was none");
        assert!(stale("10.96.0.10:54", "10.0.0.1:53"), "a port that is gone");
        assert!(!stale("8.8.8.8:53", "8.8.8.8:53"));
    }
}
