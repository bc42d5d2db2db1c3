//! Where a pod goes: filters that reject nodes, scores that rank the rest, and the words for a pod that fits nowhere.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PodSpec, Taint};

use super::affinity::{self, is_tolerated};
use super::model::{Cluster, Demand, NodeState};
use super::resources::Resources;

/// The largest score.
const MAX_SCORE: i64 = 100;
/// kube-scheduler's default weights.
const TAINTS_WEIGHT: i64 = 3;
const AFFINITY_WEIGHT: i64 = 2;

/// Where a pod goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Node(String),
    /// The words for the Event and the condition.
    Nowhere(String),
}

/// Why a node is not for a pod.
#[derive(Debug, PartialEq, Eq)]
struct Rejection {
    reasons: Vec<String>,
    /// Whether no removal of other pods could help.
    unresolvable: bool,
}

impl Rejection {
    fn forever(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], unresolvable: true }
    }
}

/// Decides for a pod. `turn` breaks ties between equally good nodes in turn.
pub fn decide(spec: &PodSpec, demand: &Demand, cluster: &Cluster, turn: usize) -> Decision {
    let total = cluster.existing().count();
    if total == 0 {
        return Decision::Nowhere("no nodes available to schedule pods".into());
    }
    let named = affinity::named_nodes(spec);
    let (mut fitting, mut rejections) = (Vec::new(), Vec::new());
    for (name, node, state) in cluster.existing() {
        let rejection = if named.as_ref().is_some_and(|names| !names.contains(&name)) {
            Some(Rejection::forever("node(s) didn't satisfy plugin(s) [NodeAffinity]"))
        } else {
            filter(spec, demand, node, state)
        };
        match rejection {
            Some(rejection) => rejections.push(rejection),
            None => fitting.push((name, node, state)),
        }
    }
    if fitting.is_empty() {
        return Decision::Nowhere(explain(total, &rejections, spec.preemption_policy.as_deref()));
    }
    let scores = score(spec, demand, &fitting);
    let best = scores.iter().max().copied().unwrap_or(0);
    let mut ties: Vec<&str> =
        fitting.iter().zip(&scores).filter(|(_, score)| **score == best).map(|((name, ..), _)| *name).collect();
    ties.sort_unstable();
    Decision::Node(ties[turn % ties.len()].to_owned())
}

/// kube-scheduler's default filters, in its order: the first that rejects gives the reason.
fn filter(spec: &PodSpec, demand: &Demand, node: &Node, state: &NodeState) -> Option<Rejection> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let node_spec = node.spec.as_ref();
    if node_spec.and_then(|spec| spec.unschedulable).unwrap_or(false) {
        let taint =
            Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
        if !is_tolerated(tolerations, &taint) {
            return Some(Rejection::forever("node(s) were unschedulable"));
        }
    }
    let taints = node_spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let mut hard = taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    if hard.any(|taint| !is_tolerated(tolerations, taint)) {
        return Some(Rejection::forever("node(s) had untolerated taint(s)"));
    }
    if !affinity::accepts(spec, node) {
        return Some(Rejection::forever("node(s) didn't match Pod's node affinity/selector"));
    }
    if demand.ports.iter().any(|port| state.has_port(port)) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Some(Rejection { reasons: vec![reason.into()], unresolvable: false });
    }
    fit(demand, state)
}

fn fit(demand: &Demand, state: &NodeState) -> Option<Rejection> {
    let (mut reasons, mut unresolvable) = (Vec::new(), false);
    if i64::try_from(state.pods.len()).unwrap_or(i64::MAX) >= state.allowed_pods {
        reasons.push("Too many pods".to_owned());
    }
    let wanted = &demand.requests;
    let mut check = |name: &str, wanted: i64, used: i64, capacity: i64| {
        if wanted > 0 && wanted > capacity - used {
            reasons.push(format!("Insufficient {name}"));
            unresolvable |= wanted > capacity;
        }
    };
    check("cpu", wanted.cpu, state.requested.cpu, state.allocatable.cpu);
    check("memory", wanted.memory, state.requested.memory, state.allocatable.memory);
    let storage = (state.requested.ephemeral_storage, state.allocatable.ephemeral_storage);
    check("ephemeral-storage", wanted.ephemeral_storage, storage.0, storage.1);
    for (name, amount) in &wanted.others {
        let of = |resources: &Resources| resources.others.get(name).copied().unwrap_or(0);
        check(name, *amount, of(&state.requested), of(&state.allocatable));
    }
    (!reasons.is_empty()).then_some(Rejection { reasons, unresolvable })
}

/// kube-scheduler's words, with the part about preemption, which is not done: nobody is a victim.
fn explain(total: usize, rejections: &[Rejection], preemption: Option<&str>) -> String {
    let why = histogram(total, rejections.iter().flat_map(|rejection| &rejection.reasons).map(String::as_str));
    if preemption == Some("Never") {
        return format!("{why} preemption: not eligible due to preemptionPolicy=Never.");
    }
    let help = rejections.iter().map(|rejection| match rejection.unresolvable {
        true => "Preemption is not helpful for scheduling",
        false => "No preemption victims found for incoming pod",
    });
    format!("{why} preemption: {}", histogram(total, help))
}

fn histogram<'a>(total: usize, reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    reasons.for_each(|reason| *counts.entry(reason).or_default() += 1);
    let mut lines: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort_unstable();
    format!("0/{total} nodes are available: {}.", lines.join(", "))
}

fn score(spec: &PodSpec, demand: &Demand, nodes: &[(&str, &Node, &NodeState)]) -> Vec<i64> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let soft = |node: &Node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let untolerated =
            taints.iter().filter(|taint| taint.effect == "PreferNoSchedule" && !is_tolerated(tolerations, taint));
        i64::try_from(untolerated.count()).unwrap_or(i64::MAX)
    };
    let tainted: Vec<i64> = nodes.iter().map(|(_, node, _)| soft(node)).collect();
    let preferred: Vec<i64> = nodes.iter().map(|(_, node, _)| affinity::preference(spec, node)).collect();
    let (most_tainted, most_preferred) = (max(&tainted), max(&preferred));
    let each = nodes.iter().zip(tainted).zip(preferred);
    each.map(|(((_, _, state), tainted), preferred)| {
        let taints = if most_tainted == 0 { MAX_SCORE } else { MAX_SCORE - tainted * MAX_SCORE / most_tainted };
        let affinity = if most_preferred == 0 { 0 } else { preferred * MAX_SCORE / most_preferred };
        taints * TAINTS_WEIGHT + affinity * AFFINITY_WEIGHT + least_allocated(demand, state) + balanced(demand, state)
    })
    .collect()
}

fn max(values: &[i64]) -> i64 {
    values.iter().copied().max().unwrap_or(0)
}

/// How much CPU and memory would be left, in hundredths.
fn least_allocated(demand: &Demand, state: &NodeState) -> i64 {
    let left = |wanted: i64, used: i64, capacity: i64| {
        let used = used + wanted;
        (capacity > 0).then(|| if used > capacity { 0 } else { (capacity - used) * MAX_SCORE / capacity })
    };
    let scores = [
        left(demand.scored.cpu, state.scored.cpu, state.allocatable.cpu),
        left(demand.scored.memory, state.scored.memory, state.allocatable.memory),
    ];
    let known: Vec<i64> = scores.into_iter().flatten().collect();
    known.iter().sum::<i64>() / i64::try_from(known.len().max(1)).unwrap_or(1)
}

/// How much nearer to each other the shares of CPU and memory come: about 75 if nothing changes.
fn balanced(demand: &Demand, state: &NodeState) -> i64 {
    if demand.requests.is_zero() {
        return 0;
    }
    let (used, all) = (&state.requested, &state.allocatable);
    let without = balance(used.cpu, used.memory, all);
    let with = balance(used.cpu + demand.requests.cpu, used.memory + demand.requests.memory, all);
    MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
}

// Fractions of a node need no more digits than a float has.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn balance(cpu: i64, memory: i64, all: &Resources) -> i64 {
    let fraction = |used: i64, capacity: i64| (capacity > 0).then(|| (used as f64 / capacity as f64).min(1.0));
    let deviation = match (fraction(cpu, all.cpu), fraction(memory, all.memory)) {
        (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn cluster(nodes: &[(&str, Value, Value)]) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, spec, allocatable) in nodes {
            let node = json!({"metadata": {"name": name, "labels": {"host": name}}, "spec": spec,
                "status": {"allocatable": allocatable}});
            cluster.set_node(&Arc::new(serde_json::from_value(node).unwrap()));
        }
        cluster
    }

    fn roomy() -> Value {
        json!({"cpu": "4", "memory": "8Gi", "pods": "110"})
    }

    fn pod(spec: Value) -> PodSpec {
        let mut spec = spec;
        spec.as_object_mut().unwrap().entry("containers").or_insert(json!([]));
        serde_json::from_value(spec).unwrap()
    }

    fn asking(cpu: &str, memory: &str) -> PodSpec {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}))
    }

    fn decision(spec: &PodSpec, cluster: &Cluster) -> Decision {
        decide(spec, &Demand::of(spec), cluster, 0)
    }

    fn nowhere(spec: &PodSpec, cluster: &Cluster) -> String {
        match decision(spec, cluster) {
            Decision::Nowhere(why) => why,
            node => panic!("{node:?}"),
        }
    }

    #[test]
    fn kubernetes_own_words() {
        assert_eq!(nowhere(&asking("1", "1Gi"), &cluster(&[])), "no nodes available to schedule pods");
        let taint = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
        let mixed = cluster(&[
            ("a", taint.clone(), roomy()),
            ("b", taint, roomy()),
            ("c", json!({}), json!({"cpu": "1", "memory": "1Gi", "pods": "110"})),
        ]);
        assert_eq!(
            nowhere(&asking("2", "2Gi"), &mixed),
            "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 2 node(s) had untolerated taint(s). \
             preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
        );
        let mut full = cluster(&[("a", json!({}), roomy())]);
        full.place("other", "a", Demand::of(&asking("3", "1Gi")));
        assert_eq!(
            nowhere(&asking("2", "1Gi"), &full),
            "0/1 nodes are available: 1 Insufficient cpu. \
             preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        );
        let cordoned = cluster(&[("a", json!({"unschedulable": true}), roomy())]);
        let said = nowhere(&asking("1", "1Gi"), &cordoned);
        assert!(said.starts_with("0/1 nodes are available: 1 node(s) were unschedulable. preemption: 0/1"), "{said}");
    }

    #[test]
    fn filters() {
        let one = cluster(&[("a", json!({}), roomy())]);
        let said = nowhere(&pod(json!({"nodeSelector": {"host": "b"}})), &one);
        assert!(said.contains("1 node(s) didn't match Pod's node affinity/selector."), "{said}");
        let mut tiny = cluster(&[("a", json!({}), json!({"cpu": "4", "memory": "8Gi", "pods": "1"}))]);
        tiny.place("other", "a", Demand::default());
        assert!(nowhere(&pod(json!({})), &tiny).contains("1 Too many pods."));
        let gpu = pod(json!({"containers": [{"name": "c", "resources": {"requests": {"x.io/gpu": "1"}}}]}));
        assert!(nowhere(&gpu, &one).contains("1 Insufficient x.io/gpu."));
        let tolerating = pod(json!({"tolerations": [{"operator": "Exists"}]}));
        let cordoned = cluster(&[("a", json!({"unschedulable": true}), roomy())]);
        assert_eq!(decision(&tolerating, &cordoned), Decision::Node("a".into()));
    }

    #[test]
    fn host_ports_conflict_by_address_and_protocol() {
        let port = |ip: &str, protocol: &str| {
            pod(json!({"containers": [{"name": "c",
                "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]}))
        };
        for (there, wanted, free) in [
            (port("", "TCP"), port("10.0.0.1", "TCP"), false),
            (port("10.0.0.2", "TCP"), port("10.0.0.1", "TCP"), true),
            (port("10.0.0.1", "TCP"), port("0.0.0.0", "TCP"), false),
            (port("", "UDP"), port("", "TCP"), true),
        ] {
            let mut one = cluster(&[("a", json!({}), roomy())]);
            one.place("other", "a", Demand::of(&there));
            assert_eq!(decision(&wanted, &one) == Decision::Node("a".into()), free);
        }
    }

    #[test]
    fn the_emptier_node_then_the_preferred_then_the_untainted() {
        let mut two = cluster(&[("a", json!({}), roomy()), ("b", json!({}), roomy())]);
        two.place("other", "a", Demand::of(&asking("1", "2Gi")));
        assert_eq!(decision(&asking("1", "2Gi"), &two), Decision::Node("b".into()));
        let term = json!({"weight": 10, "preference": {"matchExpressions": [{"key": "host", "operator": "In", "values": ["a"]}]}});
        let preferring =
            pod(json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}}));
        assert_eq!(decision(&preferring, &two), Decision::Node("a".into()));
        let soft = json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]});
        let tainted = cluster(&[("a", soft, roomy()), ("b", json!({}), roomy())]);
        assert_eq!(decision(&pod(json!({})), &tainted), Decision::Node("b".into()));
    }

    #[test]
    fn equals_take_turns() {
        let two = cluster(&[("a", json!({}), roomy()), ("b", json!({}), roomy())]);
        let spec = asking("1", "1Gi");
        let turn = |turn| decide(&spec, &Demand::of(&spec), &two, turn);
        assert_eq!((turn(0), turn(1)), (Decision::Node("a".into()), Decision::Node("b".into())));
    }
}
