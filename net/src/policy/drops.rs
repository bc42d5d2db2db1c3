//! What is told of dropped packets: Events on the pods, and metrics. The counters are the kernel's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1 as core;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::decide::Way;
use super::frame;
use super::model::{Model, Name};
use super::plan::Dropped;
use super::sync::Met;

/// How long a pod's next Event waits. What is dropped meanwhile is told with it.
const QUIET: Duration = Duration::from_secs(300);
/// Events at one look; the rest waits for the next.
const AT_ONCE: usize = 16;

/// Packets by the words of their counter.
pub type Counts = BTreeMap<String, u64>;

/// Which drops are to be told.
#[derive(Debug, Default)]
pub struct Watch {
    /// As of the last look; `None` before the first.
    seen: Option<Counts>,
    untold: Counts,
    told: BTreeMap<String, Instant>,
}

impl Watch {
    /// Whether there was a first look.
    pub fn has_begun(&self) -> bool {
        self.seen.is_some()
    }

    /// What to tell now: each counter at most so often, with all that was not told of it. What was dropped before the
    /// first look is not new.
    pub fn look(&mut self, counts: Counts, now: Instant) -> Vec<(String, u64)> {
        if let Some(seen) = &self.seen {
            for (who, packets) in crate::trace::risen(seen, &counts) {
                *self.untold.entry(who).or_default() += packets;
            }
        }
        self.untold.retain(|who, _| counts.contains_key(who));
        self.told.retain(|who, at| counts.contains_key(who) && now.duration_since(*at) < QUIET);
        self.seen = Some(counts);
        let due = self.untold.keys().filter(|who| !self.told.contains_key(*who)).take(AT_ONCE);
        let due: Vec<String> = due.cloned().collect();
        let tell = |who: String| {
            self.told.insert(who.clone(), now);
            let packets = self.untold.remove(&who)?;
            Some((who, packets))
        };
        due.into_iter().filter_map(tell).collect()
    }
}

/// An Event of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub pod: Name,
    pub uid: Box<str>,
    pub words: String,
}

/// What to tell of a pod's dropped packets.
pub fn notice(model: &Model, dropped: &Dropped, packets: u64, met: &[Met]) -> Option<Notice> {
    let pod = model.pods.get(&dropped.pod)?;
    let own = model.addresses(&dropped.pod, pod);
    let last = met.iter().filter(|met| own.contains(end(met, dropped.way).0)).max_by_key(|met| met.remembered);
    let last = last.map_or_else(String::new, |met| format!(", the last {}", peer(model, met, dropped.way)));
    let policies = dropped.policies.join(", ");
    let words = format!(
        "dropped {packets} {} of {}{last}: isolated by NetworkPolicy {policies}, and no rule allows it",
        if packets == 1 { "packet" } else { "packets" },
        dropped.way.name(),
    );
    // What an Event may hold at most.
    Some(Notice { pod: dropped.pod.clone(), uid: pod.uid.clone(), words: words.chars().take(1000).collect() })
}

/// The isolated end of a packet, and the other.
fn end(met: &Met, way: Way) -> (&std::net::IpAddr, &std::net::IpAddr) {
    match way {
        Way::Ingress => (&met.destination, &met.source),
        Way::Egress => (&met.source, &met.destination),
    }
}

fn peer(model: &Model, met: &Met, way: Way) -> String {
    let (_, far) = end(met, way);
    let holder = model.pods.iter().find(|(name, pod)| model.addresses(name, pod).contains(far));
    let who = holder.map_or_else(String::new, |(name, _)| format!(" ({name})"));
    let word = if way == Way::Ingress { "from" } else { "to" };
    match api::protocol::Protocol::ALL.into_iter().find(|protocol| protocol.number() == met.protocol) {
        Some(protocol) => format!("{word} {far}{who}, port {}/{}", met.port, protocol.name()),
        None => format!("{word} {far}{who}, IP protocol {}", met.protocol),
    }
}

/// Writes Events about pods.
pub struct Herald(Recorder);

impl Herald {
    pub fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter { controller: "bosun-net".into(), instance: Some(node.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// An API that does not take it is told in the log.
    pub async fn tell(&self, notice: &Notice) {
        let event = Event {
            type_: EventType::Warning,
            reason: "NetworkPolicyDropped".into(),
            note: Some(notice.words.clone()),
            action: "Drop".into(),
            secondary: None,
        };
        let pod = core::ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(notice.pod.namespace.to_string()),
            name: Some(notice.pod.name.to_string()),
            uid: Some(notice.uid.to_string()),
            ..core::ObjectReference::default()
        };
        if let Err(error) = self.0.publish(&event, &pod).await {
            tracing::warn!("cannot write an Event of pod {}: {error}", notice.pod);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    pod: String,
    direction: String,
    /// The names of all that isolate the pod in this direction.
    policy: String,
}

/// The metrics' page.
pub fn page(dropped: &BTreeMap<String, Dropped>, counts: &Counts) -> String {
    let by_policy = Family::<Labels, Counter>::default();
    for (who, dropped) in dropped {
        let labels = Labels {
            namespace: dropped.pod.namespace.to_string(),
            pod: dropped.pod.name.to_string(),
            direction: dropped.way.name().into(),
            policy: dropped.policies.join(","),
        };
        by_policy.get_or_create(&labels).inc_by(counts.get(who).copied().unwrap_or_default());
    }
    let mut registry = Registry::with_prefix("bosun_net");
    registry.register(
        "policy_dropped_packets",
        "Packets of a pod that no rule of the NetworkPolicies that isolate it allows",
        by_policy,
    );
    for (name, what, who) in [
        ("spoofed_packets", "Packets that pods sent from addresses not their own", frame::SPOOFED),
        ("flooded_packets", "Packets that a bridge flooded to isolated pods", frame::FLOODED),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(counts.get(who).copied().unwrap_or_default());
        registry.register(name, what, counter);
    }
    let mut text = String::new();
    // A String takes all that is written to it.
    let _ = encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Pod;

    fn counts(pairs: &[(&str, u64)]) -> Counts {
        pairs.iter().map(|(who, packets)| ((*who).to_owned(), *packets)).collect()
    }

    #[test]
    fn each_counter_is_told_of_now_and_then_with_all_that_came() {
        let begin = Instant::now();
        let mut watch = Watch::default();
        let mut look = |pairs: &[(&str, u64)], seconds| watch.look(counts(pairs), begin + Duration::from_secs(seconds));
        let told = |who: &str, packets| vec![(who.to_owned(), packets)];
        assert_eq!(look(&[("a", 5)], 0), [], "of before");
        assert_eq!(look(&[("a", 7)], 30), told("a", 2));
        assert_eq!(look(&[("a", 9), ("b", 1)], 60), told("b", 1));
        assert_eq!(look(&[("a", 10), ("b", 1)], 90), []);
        assert_eq!(look(&[("a", 10), ("b", 1)], 331), told("a", 3));
        assert_eq!(look(&[], 400), []);
        assert_eq!(look(&[("a", 1)], 700), told("a", 1), "counted anew");
        let many: Vec<String> = (0..40).map(|n| format!("c{n}")).collect();
        let many: Vec<(&str, u64)> = many.iter().map(|who| (who.as_str(), 1)).collect();
        assert_eq!([800, 830, 860].map(|seconds| look(&many, seconds).len()), [16, 16, 8]);
    }

    #[test]
    fn a_notice_names_policies_and_the_last_peer() {
        let mut model = Model::default();
        let pod = |ip: &str| Pod { ips: [ip.parse().unwrap()].into(), uid: "u".into(), ..Pod::default() };
        model.pods.insert(Name::new("a", "web"), pod("10.0.0.1"));
        model.pods.insert(Name::new("b", "client"), pod("10.0.0.2"));
        let policies = ["deny", "web"].map(Box::from).to_vec();
        let dropped = Dropped { pod: Name::new("a", "web"), way: Way::Ingress, policies };
        let met = |source: &str, protocol, port, remembered| Met {
            source: source.parse().unwrap(),
            destination: "10.0.0.1".parse().unwrap(),
            protocol,
            port,
            remembered,
        };
        let words = |met: &[Met]| notice(&model, &dropped, 3, met).unwrap().words;
        assert_eq!(
            words(&[met("192.0.2.1", 6, 22, 90), met("10.0.0.2", 6, 80, 100)]),
            "dropped 3 packets of ingress, the last from 10.0.0.2 (b/client), port 80/tcp: isolated by NetworkPolicy \
             deny, web, and no rule allows it"
        );
        assert!(words(&[met("192.0.2.1", 1, 9, 1)]).contains("the last from 192.0.2.1, IP protocol 1: "));
        assert!(words(&[]).starts_with("dropped 3 packets of ingress: "));
        let gone = Dropped { pod: Name::new("a", "gone"), ..dropped.clone() };
        assert_eq!(notice(&model, &gone, 3, &[]), None);
        let page = page(&BTreeMap::from([("x".into(), dropped)]), &counts(&[("x", 3), (frame::SPOOFED, 2)]));
        let line = "bosun_net_policy_dropped_packets_total{namespace=\"a\",pod=\"web\",direction=\"ingress\",policy=\"deny,web\"} 3";
        assert!(page.contains(line) && page.contains("\nbosun_net_spoofed_packets_total 2\n"), "{page}");
    }
}
