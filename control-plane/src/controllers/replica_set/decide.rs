//! What a replica set's pods need: how many to create, which to delete, and what its status says.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::controllers::{pods, selector};

/// No more pods than this are created or deleted at once.
pub const BURST: usize = 500;

/// What is to be done about a replica set's pods.
#[derive(Debug, PartialEq)]
pub enum Action {
    Nothing,
    Create(usize),
    /// Pods by name.
    Delete(Vec<String>),
}

/// Compares the pods that count as replicas with the number that is wanted. `related` are all pods of replica sets
/// with the same owner: a pod beside others of them on its node goes first.
pub fn decide(rs: &ReplicaSet, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Action {
    let wanted = usize::try_from(replicas(rs)).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Equal => Action::Nothing,
        Ordering::Less => Action::Create((wanted - active.len()).min(BURST)),
        Ordering::Greater => {
            let count = (active.len() - wanted).min(BURST);
            let ranked = by_deletion_order(active, related, now);
            Action::Delete(ranked.iter().take(count).filter_map(|pod| pod.metadata.name.clone()).collect())
        }
    }
}

pub fn replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.replicas.unwrap_or(1)
}

/// The pods in the order in which they go: what does the least first.
fn by_deletion_order(active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pods::is_active(pod)) {
        *on_node.entry(pods::node(pod).unwrap_or_default()).or_default() += 1;
    }
    let mut ranked = active.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let neighbours = on_node.get(pods::node(pod).unwrap_or_default()).copied().unwrap_or(0);
        deletion_rank(pod, neighbours, now)
    });
    ranked
}

/// Unassigned before assigned, pending before running, unready before ready, cheap before dear, crowded before
/// alone, ready since a short time before a long one, often restarted before seldom, young before old. Times are
/// compared by their order of magnitude (KEP-2185), and by UID within one.
fn deletion_rank(pod: &Pod, neighbours: usize, now: Timestamp) -> impl Ord + use<> {
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get("controller.kubernetes.io/pod-deletion-cost"));
    let cost = cost.and_then(|cost| cost.parse::<i32>().ok()).unwrap_or(0);
    let ready = pods::condition(pod, "Ready").filter(|ready| ready.status == "True");
    let ready_age = ready.map_or(0, |ready| magnitude(ready.last_transition_time.as_ref(), now));
    (
        (pods::node(pod).is_some(), phase, ready.is_some(), cost, Reverse(neighbours), ready_age),
        Reverse(restarts(pod)),
        magnitude(pod.metadata.creation_timestamp.as_ref(), now),
        pod.metadata.uid.clone(),
    )
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

/// The binary logarithm of an age in nanoseconds; -1 for what has no time or lies ahead.
fn magnitude(since: Option<&Time>, now: Timestamp) -> i32 {
    let age = since.map_or(0, |time| now.as_nanosecond() - time.0.as_nanosecond());
    u128::try_from(age).ok().and_then(u128::checked_ilog2).and_then(|log| i32::try_from(log).ok()).unwrap_or(-1)
}

/// The status that a replica set with these pods has; `failure` is the error of the last attempt to create or delete.
pub fn status(
    rs: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&str>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let template = rs.spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
    let template = template.unwrap_or_default();
    let min_ready = rs.spec.min_ready_seconds.unwrap_or(0);
    let labeled = active.iter().filter(|pod| selector::subset(&template, pod.metadata.labels.as_ref())).count();
    let ready = active.iter().filter(|pod| pods::is_ready(pod)).count();
    let available = active.iter().filter(|pod| pods::is_available(pod, min_ready, now)).count();
    let mut conditions = rs.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let failing = conditions.iter().any(|condition| condition.type_.as_deref() == Some("ReplicaFailure"));
    match failure {
        Some(message) if !failing => conditions.push(ReplicaSetCondition {
            type_: Some("ReplicaFailure".into()),
            status: Some("True".into()),
            reason: Some(if count(active.len()) < replicas(rs) { "FailedCreate" } else { "FailedDelete" }.into()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
        None => conditions.retain(|condition| condition.type_.as_deref() != Some("ReplicaFailure")),
    }
    ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: Some(count(labeled)),
        ready_replicas: Some(count(ready)),
        available_replicas: Some(count(available)),
        terminating_replicas: Some(count(terminating)),
        observed_generation: rs.metadata.generation,
        conditions: Some(conditions),
    }
}

/// Whether two statuses say the same, where an absent number is zero.
pub fn same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let numbers = |s: &ReplicaSetStatus| {
        [s.fully_labeled_replicas, s.ready_replicas, s.available_replicas].map(|n| n.unwrap_or(0))
    };
    let conditions = |s: &ReplicaSetStatus| s.conditions.clone().unwrap_or_default();
    a.replicas == b.replicas
        && numbers(a) == numbers(b)
        && a.terminating_replicas == b.terminating_replicas
        && a.observed_generation.unwrap_or(0) == b.observed_generation.unwrap_or(0)
        && conditions(a) == conditions(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn pod(name: &str, node: &str, phase: &str, ready_since: Option<i64>) -> Arc<Pod> {
        let conditions = ready_since
            .map(|seconds| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(seconds).to_string()}]));
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "creationTimestamp": at(0).to_string(), "labels": {"app": "a"}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": conditions},
            }))
            .unwrap(),
        )
    }

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "rs", "generation": 3},
            "spec": {"replicas": replicas, "selector": {}, "template": {"metadata": {"labels": {"app": "a"}}}},
        }))
        .unwrap()
    }

    fn order(pods: &[Arc<Pod>]) -> Vec<String> {
        match decide(&set(0), pods, pods, at(1000)) {
            Action::Delete(names) => names,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn creates_what_is_missing_in_bursts() {
        assert_eq!(decide(&set(3), &[], &[], at(0)), Action::Create(3));
        assert_eq!(decide(&set(900), &[], &[], at(0)), Action::Create(500));
        assert_eq!(decide(&set(0), &[], &[], at(0)), Action::Nothing);
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let pods = [
            pod("old", "n1", "Running", Some(10)),
            pod("young", "n2", "Running", Some(990)),
            pod("unready", "n3", "Running", None),
            pod("pending", "n4", "Pending", None),
            pod("unassigned", "", "Pending", None),
        ];
        assert_eq!(order(&pods), ["unassigned", "pending", "unready", "young", "old"]);
    }

    #[test]
    fn a_crowded_node_gives_up_pods_first_and_cost_comes_before() {
        let mut cheap = Pod::clone(&pod("cheap", "n3", "Running", Some(10)));
        cheap.metadata.annotations =
            Some([("controller.kubernetes.io/pod-deletion-cost".to_owned(), "-1".to_owned())].into());
        let pods = [
            pod("alone", "n1", "Running", Some(990)),
            pod("crowded-1", "n2", "Running", Some(10)),
            pod("crowded-2", "n2", "Running", Some(10)),
            Arc::new(cheap),
        ];
        assert_eq!(order(&pods), ["cheap", "crowded-1", "crowded-2", "alone"]);
    }

    #[test]
    fn status_counts_and_keeps_the_first_failure() {
        let pods = [pod("a", "n", "Running", Some(995)), pod("b", "n", "Running", None)];
        let mut rs = set(3);
        rs.spec.min_ready_seconds = Some(10);
        let first = status(&rs, &pods, 1, Some("quota"), at(1000));
        let numbers = (first.replicas, first.fully_labeled_replicas, first.ready_replicas, first.available_replicas);
        assert_eq!(numbers, (2, Some(2), Some(1), Some(0)));
        assert_eq!((first.terminating_replicas, first.observed_generation), (Some(1), Some(3)));
        assert_eq!(first.conditions.as_ref().unwrap()[0].reason.as_deref(), Some("FailedCreate"));
        rs.status = Some(first.clone());
        assert!(same(&first, &status(&rs, &pods, 1, Some("other"), at(1001))));
        assert_eq!(status(&rs, &pods, 1, None, at(1006)).conditions, Some(vec![]));
        assert_eq!(status(&rs, &pods, 1, None, at(1006)).available_replicas, Some(1));
    }
}
