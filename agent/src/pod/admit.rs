//! Whether this node can take a pod: room, ports and labels, checked once, before anything of it is made.

use super::report::Failed;
use super::spec;
use crate::cgroup::pod_resources;
use crate::quantity::{milli_of, units_of};
use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// What a pod holds of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Share {
    milli_cpu: i64,
    memory: i64,
    ports: BTreeSet<(String, i32, String)>,
}

/// What the node's pods hold together.
#[derive(Debug, Default)]
pub struct Admission {
    shares: Mutex<BTreeMap<String, Share>>,
}

impl Admission {
    /// Takes the pod in, or says why not. `running` pods are taken without a question.
    ///
    /// # Errors
    /// The reason and message of the pod's failure.
    pub fn admit(&self, pod: &Pod, node: &Node, running: bool) -> Result<(), Failed> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let share = share_of(pod);
        if !running && !shares.contains_key(spec::uid(pod)) {
            check(pod, node, &share, &shares)?;
        }
        shares.insert(spec::uid(pod).to_string(), share);
        Ok(())
    }

    /// Gives back what the pod held. Idempotent.
    pub fn release(&self, uid: &str) {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

fn share_of(pod: &Pod) -> Share {
    let resources = pod_resources(pod);
    let ports = spec::all_containers(pod).flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter_map(|port| {
        let host_port = port.host_port.filter(|port| *port > 0)?;
        let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some((port.protocol.clone().unwrap_or_else(|| "TCP".into()), host_port, ip))
    });
    Share { milli_cpu: resources.cpu_request, memory: resources.memory_request, ports: ports.collect() }
}

fn check(pod: &Pod, node: &Node, share: &Share, shares: &BTreeMap<String, Share>) -> Result<(), Failed> {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let used = |read: fn(&Share) -> i64| shares.values().map(read).sum::<i64>();
    let rooms = [
        ("pods", 1, shares.len() as i64, units_of(allocatable, "pods")),
        ("cpu", share.milli_cpu, used(|share| share.milli_cpu), milli_of(allocatable, "cpu")),
        ("memory", share.memory, used(|share| share.memory), units_of(allocatable, "memory")),
    ];
    for (name, requested, used, capacity) in rooms {
        if requested > 0 && used + requested > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            );
            return Err(failed(&format!("OutOf{name}"), message));
        }
    }
    if !selected(pod, node) {
        let why = "node(s) didn't match Pod's node affinity/selector";
        return Err(failed("NodeAffinity", format!("Predicate NodeAffinity failed: {why}")));
    }
    let overlaps = |one: &str, other: &str| one == other || one == "0.0.0.0" || other == "0.0.0.0";
    let taken = |(protocol, port, ip): &(String, i32, String)| {
        shares.values().flat_map(|other| &other.ports).any(|(p, n, i)| p == protocol && n == port && overlaps(i, ip))
    };
    if share.ports.iter().any(taken) {
        let why = "node(s) didn't have free ports for the requested pod ports";
        return Err(failed("NodePorts", format!("Predicate NodePorts failed: {why}")));
    }
    Ok(())
}

fn failed(reason: &str, message: String) -> Failed {
    Failed { reason: reason.into(), message: format!("Pod was rejected: {message}") }
}

fn selected(pod: &Pod, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let Some(spec) = &pod.spec else { return true };
    let plain = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.as_deref().unwrap_or_default();
    plain && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, labels, name)))
}

fn matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let (expressions, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    let some = expressions.clone().chain(fields.clone()).next().is_some();
    some && expressions
        .into_iter()
        .all(|rule| holds(&rule.operator, labels.get(&rule.key).map(String::as_str), &rule.values))
        && fields.into_iter().all(|rule| holds(&rule.operator, Some(name), &rule.values))
}

fn holds(operator: &str, value: Option<&str>, values: &Option<Vec<String>>) -> bool {
    let values = values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|other| other == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |test: fn(i64, i64) -> bool| {
        let pair = value.and_then(number).zip(values.first().and_then(|bound| number(bound)));
        pair.is_some_and(|(value, bound)| test(value, bound))
    };
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture;
    use serde_json::{Value, json};

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd", "gen": "5"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}},
        }))
        .unwrap()
    }

    fn admit(admission: &Admission, uid: &str, spec: Value) -> Result<(), String> {
        let mut pod = fixture::pod(spec);
        pod.metadata.uid = Some(uid.into());
        admission.admit(&pod, &node(), false).map_err(|failed| failed.reason)
    }

    fn asks(cpu: &str) -> Value {
        json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}, "ports": []}]})
    }

    #[test]
    fn room_is_counted_and_given_back() {
        let admission = Admission::default();
        assert_eq!(admit(&admission, "1", asks("1500m")), Ok(()));
        assert_eq!(admit(&admission, "2", asks("600m")), Err("OutOfcpu".into()));
        assert_eq!(admit(&admission, "1", asks("1500m")), Ok(()), "what is in stays in");
        assert_eq!(admit(&admission, "3", asks("500m")), Ok(()));
        assert_eq!(admit(&admission, "4", asks("0")), Err("OutOfpods".into()));
        admission.release("1");
        assert_eq!(admit(&admission, "2", asks("600m")), Ok(()));
    }

    #[test]
    fn ports_and_labels() {
        let admission = Admission::default();
        let port = |ip: &str| json!({"containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 80, "hostIP": ip}]}]});
        assert_eq!(admit(&admission, "1", port("10.0.0.1")), Ok(()));
        assert_eq!(admit(&admission, "2", port("")), Err("NodePorts".into()));
        assert_eq!(admit(&admission, "3", json!({"nodeSelector": {"disk": "hdd"}})), Err("NodeAffinity".into()));
        let affinity = |operator: &str, value: &str| {
            let rule = json!({"key": "gen", "operator": operator, "values": [value]});
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [rule]}]}}}})
        };
        assert_eq!(admit(&admission, "4", affinity("Gt", "7")), Err("NodeAffinity".into()));
        assert_eq!(admit(&admission, "4", affinity("Gt", "4")), Ok(()));
    }
}
