//! What a node's heartbeats and conditions say, and the conditions and taints that follow.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The taints that are this controller's to set and to take, by condition and its status.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];
/// The conditions that nobody vouches for once a node is silent.
const SUSPECT: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// When a node was last heard of, by our own clock: heartbeats are compared with one another, never with our time.
#[derive(Debug, Clone)]
pub struct Heard {
    pub at: Instant,
    lease: Option<Timestamp>,
    status: Option<Timestamp>,
}

impl Heard {
    /// Takes in the newest heartbeats: a new one is a sign of life now.
    pub fn update(before: Option<Self>, node: &Node, lease: Option<Timestamp>, now: Instant) -> Self {
        let status = ready(node).and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|time| time.0);
        let at = before.filter(|b| b.lease == lease && b.status == status).map_or(now, |before| before.at);
        Self { at, lease, status }
    }

    pub fn is_silent(&self, now: Instant, grace: Duration) -> bool {
        now.duration_since(self.at) > grace
    }
}

pub fn ready(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == "Ready")
}

/// `True`, `False` or `Unknown`.
pub fn readiness(node: &Node) -> &str {
    ready(node).map_or("Unknown", |condition| condition.status.as_str())
}

/// Whether pods may be driven from nodes: some node is ready and was heard of in half the time that makes a node
/// silent. Where nobody is heard, the fault is likely ours, and the first to be found silent are no worse than the rest.
pub fn may_evict<'a>(
    nodes: impl Iterator<Item = (&'a Node, Option<&'a Heard>)>,
    now: Instant,
    grace: Duration,
) -> bool {
    let mut nodes = nodes.filter(|(node, _)| readiness(node) == "True");
    nodes.any(|(_, heard)| heard.is_some_and(|heard| !heard.is_silent(now, grace / 2)))
}

/// The conditions of a node that is silent, where they differ from what it has.
pub fn silent_conditions(node: &Node, now: &Time) -> Option<Vec<NodeCondition>> {
    let before = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut after = before.clone();
    for kind in SUSPECT {
        match after.iter_mut().find(|condition| condition.type_ == kind) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(now.clone());
            }
            None => after.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(now.clone()),
            }),
        }
    }
    (after != before).then_some(after)
}

/// The taints that a node is to have, where they differ from those it has: foreign ones stay. `evicting` says whether
/// pods may be driven away (not where all nodes are silent).
pub fn taints(node: &Node, evicting: bool, now: &Time) -> Option<Vec<Taint>> {
    let before = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let has = |kind: &str, status: &str| {
        node.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind && c.status == status)
    };
    let mut wanted: Vec<(&str, &str)> = BY_CONDITION
        .iter()
        .filter(|(kind, status, _)| has(kind, status))
        .map(|(_, _, key)| (*key, "NoSchedule"))
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    match readiness(node) {
        "False" if evicting => wanted.push((NOT_READY, "NoExecute")),
        "Unknown" if evicting && ready(node).is_some() => wanted.push((UNREACHABLE, "NoExecute")),
        _ => {}
    }
    let ours = |taint: &Taint| match taint.effect.as_str() {
        "NoSchedule" => taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| *key == taint.key),
        "NoExecute" => taint.key == NOT_READY || taint.key == UNREACHABLE,
        _ => false,
    };
    let is = |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let stays = |taint: &&Taint| !ours(taint) || wanted.iter().any(|wanted| is(taint, *wanted));
    let mut after: Vec<Taint> = before.iter().filter(stays).cloned().collect();
    for (key, effect) in wanted {
        if !after.iter().any(|taint| is(taint, (key, effect))) {
            let time_added = Some(now.clone());
            after.push(Taint { key: key.into(), effect: effect.into(), time_added, ..Taint::default() });
        }
    }
    (after != before).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(conditions: Value, spec: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn time() -> Time {
        Time(Timestamp::from_second(1000).unwrap())
    }

    fn keys(taints: Option<Vec<Taint>>) -> Vec<String> {
        taints.into_iter().flatten().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
    }

    #[test]
    fn a_heartbeat_is_a_change_and_not_a_time() {
        let beat = |seconds: i64| {
            let time = Timestamp::from_second(seconds).unwrap().to_string();
            node(json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": time}]), json!({}))
        };
        let (start, grace) = (Instant::now(), Duration::from_secs(40));
        let after = |seconds| start + Duration::from_secs(seconds);
        let heard = Heard::update(None, &beat(1), None, start);
        let heard = Heard::update(Some(heard), &beat(1), None, after(30));
        assert!(!heard.is_silent(after(40), grace));
        assert!(heard.is_silent(after(41), grace));
        // The lease alone is a sign of life.
        let heard = Heard::update(Some(heard), &beat(1), Some(Timestamp::UNIX_EPOCH), after(41));
        assert!(!heard.is_silent(after(81), grace));
    }

    #[test]
    fn nobody_is_driven_away_while_nobody_is_heard() {
        let ready = node(json!([{"type": "Ready", "status": "True"}]), json!({}));
        let (start, grace) = (Instant::now(), Duration::from_secs(40));
        let heard_at = |seconds| Heard::update(None, &ready, None, start + Duration::from_secs(seconds));
        let evicts = |seconds: [u64; 2]| {
            let heard = seconds.map(heard_at);
            may_evict(heard.iter().map(|heard| (&ready, Some(heard))), start + Duration::from_secs(45), grace)
        };
        assert!(evicts([0, 40]), "one is silent");
        assert!(!evicts([0, 10]), "all fell silent at about the same time, some are not found out yet");
    }

    #[test]
    fn silence_makes_conditions_unknown_once() {
        let alive = node(json!([{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]), json!({}));
        let after = silent_conditions(&alive, &time()).unwrap();
        let said = |kind: &str| {
            let condition = after.iter().find(|condition| condition.type_ == kind).unwrap();
            (condition.status.clone(), condition.reason.clone().unwrap_or_default())
        };
        assert_eq!(said("Ready"), ("Unknown".into(), "NodeStatusUnknown".into()));
        assert_eq!(said("DiskPressure"), ("Unknown".into(), "NodeStatusNeverUpdated".into()));
        assert_eq!(said("Other"), ("True".into(), String::new()));
        let mut silent = alive;
        silent.status.as_mut().unwrap().conditions = Some(after);
        assert_eq!(silent_conditions(&silent, &time()), None);
    }

    #[test]
    fn taints_follow_conditions_and_foreign_ones_stay() {
        let unknown = json!([{"type": "Ready", "status": "Unknown"}, {"type": "DiskPressure", "status": "True"}]);
        let foreign =
            json!({"taints": [{"key": "mine", "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]});
        let all = keys(taints(&node(unknown.clone(), foreign.clone()), true, &time()));
        let disk = "node.kubernetes.io/disk-pressure:NoSchedule";
        let expected = [
            "mine:NoSchedule",
            "node.kubernetes.io/unreachable:NoSchedule",
            disk,
            "node.kubernetes.io/unreachable:NoExecute",
        ];
        assert_eq!(all, expected);
        assert_eq!(keys(taints(&node(unknown, foreign), false, &time())), expected[..3]);
        let ready = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(
            keys(taints(&node(ready.clone(), json!({"unschedulable": true})), true, &time())),
            ["node.kubernetes.io/unschedulable:NoSchedule"]
        );
        assert_eq!(taints(&node(ready, json!({})), true, &time()), None);
    }
}
