//! Rollouts as tables: what the replica sets have, and what they are to have next.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::decide::{Action, Observed, decide};
use super::model::{self, replicas};

fn time(seconds: i64) -> Time {
    Time(Timestamp::from_second(1_000_000 + seconds).unwrap())
}

fn deployment(number: i32, surge: i32, unavailable: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1,
                     "annotations": {"deployment.kubernetes.io/revision": "2"}},
        "spec": {
            "replicas": number, "revisionHistoryLimit": 1, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template("new"),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
        },
        "status": {"observedGeneration": 1},
    }))
    .unwrap()
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

/// A replica set `(name, image, size, available)`, annotated for a deployment of 10 with 3 more at most.
fn set(name: &str, image: &str, size: i32, available: i32) -> ReplicaSet {
    let revision = if image == "new" { "2" } else { "1" };
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": name, "namespace": "ns", "generation": 1,
            "creationTimestamp": time(if image == "new" { 10 } else { 0 }),
            "annotations": {"deployment.kubernetes.io/revision": revision,
                "deployment.kubernetes.io/desired-replicas": "10", "deployment.kubernetes.io/max-replicas": "13"}},
        "spec": {"replicas": size, "selector": {}, "template": template(image)},
        "status": {"replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1},
    }))
    .unwrap()
}

fn step(deployment: &Deployment, sets: &[ReplicaSet], old_pods: bool) -> Vec<Action> {
    decide(&Observed { deployment, sets, old_pods, now: time(100) })
}

/// The new sizes by name that a step asks for.
fn sizes(deployment: &Deployment, sets: &[ReplicaSet]) -> Vec<(String, i32)> {
    let sized = |action: Action| match action {
        Action::Create(set) => Some(("new".to_owned(), replicas(&set))),
        Action::Update { set, from } if from != replicas(&set) => Some((model::name(&set).to_owned(), replicas(&set))),
        _ => None,
    };
    step(deployment, sets, false).into_iter().filter_map(sized).collect()
}

fn expect(sizes_are: &[(&str, i32)], deployment: &Deployment, sets: &[ReplicaSet]) {
    let expected: Vec<(String, i32)> = sizes_are.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
    assert_eq!(sizes(deployment, sets), expected);
}

#[test]
fn a_rolling_update_step_by_step() {
    let d = deployment(10, 3, 2);
    expect(&[("new", 10)], &d, &[]);
    expect(&[("new", 3)], &d, &[set("old", "old", 10, 10)]);
    // 13 pods: at least 8 have to stay available, and the three new ones are not.
    expect(&[("old", 8)], &d, &[set("new", "new", 3, 0), set("old", "old", 10, 10)]);
    expect(&[("new", 5)], &d, &[set("new", "new", 3, 0), set("old", "old", 8, 8)]);
    expect(&[], &d, &[set("new", "new", 5, 0), set("old", "old", 8, 8)]);
    expect(&[("old", 3)], &d, &[set("new", "new", 5, 5), set("old", "old", 8, 8)]);
    expect(&[("new", 10)], &d, &[set("new", "new", 5, 5), set("old", "old", 3, 3)]);
    expect(&[("old", 0)], &d, &[set("new", "new", 10, 10), set("old", "old", 3, 3)]);
    expect(&[], &d, &[set("new", "new", 10, 10), set("old", "old", 0, 0)]);
}

#[test]
fn sick_old_pods_go_first_and_a_crash_looping_new_set_takes_no_more() {
    let d = deployment(10, 3, 2);
    expect(&[("old", 8)], &d, &[set("new", "new", 3, 0), set("old", "old", 10, 8)]);
    expect(&[], &d, &[set("new", "new", 5, 0), set("old", "old", 8, 7)]);
}

#[test]
fn a_change_of_number_in_a_rollout_is_shared_in_proportion() {
    let d = deployment(20, 3, 2);
    // 13 of at most 13 become 23 of at most 23.
    expect(&[("new", 9), ("old", 14)], &d, &[set("new", "new", 5, 0), set("old", "old", 8, 8)]);
    expect(&[("new", 0), ("old", 0)], &deployment(0, 3, 2), &[set("new", "new", 5, 0), set("old", "old", 8, 8)]);
    // One active replica set takes it all.
    expect(&[("new", 20)], &d, &[set("new", "new", 10, 10), set("old", "old", 0, 0)]);
}

#[test]
fn recreate_waits_for_the_old_pods() {
    let mut d = deployment(3, 0, 0);
    d.spec.strategy = serde_json::from_value(json!({"type": "Recreate"})).unwrap();
    let mut old = set("old", "old", 3, 3);
    old.metadata.annotations.as_mut().unwrap().insert(model::DESIRED.into(), "3".into());
    expect(&[("old", 0)], &d, &[old]);
    let gone = set("old", "old", 0, 0);
    let creates =
        |old_pods| step(&d, std::slice::from_ref(&gone), old_pods).iter().any(|a| matches!(a, Action::Create(_)));
    assert!(!creates(true));
    assert!(creates(false));
}

#[test]
fn a_paused_deployment_scales_and_does_not_roll() {
    let mut d = deployment(12, 3, 2);
    d.spec.paused = Some(true);
    expect(&[("old", 12)], &d, &[set("old", "old", 10, 10)]);
    let Some(Action::Status(status)) = step(&d, &[set("old", "old", 10, 10)], false).pop() else { panic!("no status") };
    assert_eq!(super::status::condition(&status, "Progressing").unwrap().reason.as_deref(), Some("DeploymentPaused"));
}

#[test]
fn a_rollback_takes_the_next_revision_and_remembers_the_former() {
    let d = deployment(10, 3, 2);
    let mut back = set("new", "new", 0, 0);
    back.metadata.annotations.as_mut().unwrap().insert(model::REVISION.into(), "1".into());
    let mut old = set("old", "old", 10, 10);
    old.metadata.annotations.as_mut().unwrap().insert(model::REVISION.into(), "2".into());
    let actions = step(&d, &[back, old], false);
    let Some(Action::Update { set, .. }) = actions.first() else { panic!("{actions:?}") };
    assert_eq!(model::annotation(set, model::REVISION), Some("3"));
    assert_eq!(model::annotation(set, model::REVISION_HISTORY), Some("1"));
    assert!(actions.contains(&Action::Revision("3".into())));
}

#[test]
fn history_beyond_the_limit_goes_when_the_rollout_is_complete() {
    let mut d = deployment(10, 3, 2);
    d.status = serde_json::from_value(json!({
        "observedGeneration": 1, "replicas": 10, "updatedReplicas": 10, "readyReplicas": 10, "availableReplicas": 10,
    }))
    .unwrap();
    let mut older = set("older", "older", 0, 0);
    older.metadata.annotations.as_mut().unwrap().insert(model::REVISION.into(), "0".into());
    let sets = [set("new", "new", 10, 10), set("old", "old", 0, 0), older];
    assert!(step(&d, &sets, false).contains(&Action::Delete("older".into())));
    d.spec.revision_history_limit = Some(2);
    assert!(!step(&d, &sets, false).iter().any(|action| matches!(action, Action::Delete(_))));
}

#[test]
fn progress_is_told_and_its_absence_after_the_deadline() {
    let mut d = deployment(10, 3, 2);
    let status = |actions: Vec<Action>| match actions.into_iter().next_back() {
        Some(Action::Status(status)) => *status,
        other => panic!("{other:?}"),
    };
    let reason = |status: &_, kind| super::status::condition(status, kind).unwrap().reason.clone().unwrap();
    let first = status(step(&d, &[], false));
    assert_eq!(reason(&first, "Progressing"), "NewReplicaSetCreated");
    assert_eq!(reason(&first, "Available"), "MinimumReplicasUnavailable");
    d.status = Some(first);
    let second = status(step(&d, &[set("new", "new", 10, 4)], false));
    assert_eq!(reason(&second, "Progressing"), "ReplicaSetUpdated");
    d.status = Some(second.clone());
    let observed = Observed { deployment: &d, sets: &[set("new", "new", 10, 4)], old_pods: false, now: time(800) };
    assert_eq!(reason(&status(decide(&observed)), "Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(super::status::next_check(&second, &d, &time(100)), Some(601));
    let done = status(step(&d, &[set("new", "new", 10, 10)], false));
    assert_eq!(reason(&done, "Progressing"), "NewReplicaSetAvailable");
    let condition = super::status::condition(&done, "Progressing").unwrap();
    assert_eq!(condition.message.as_deref(), Some("ReplicaSet \"new\" has successfully progressed."));
    assert_eq!(super::status::next_check(&done, &d, &time(100)), None);
}
