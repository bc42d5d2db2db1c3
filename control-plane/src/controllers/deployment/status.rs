//! A deployment's status: its numbers and its conditions Available, Progressing and ReplicaFailure.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::model::{Wanted, actual, available, deadline, is_paused, name, ready, replicas};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_.as_deref() == Some(kind))
}

/// Sets a condition, unless it has this status for this reason already.
fn set(status: &mut DeploymentStatus, kind: &str, state: &str, said: (&str, String), now: &Time) {
    let before = condition(status, kind).cloned();
    let (reason, message) = said;
    if before.as_ref().is_some_and(|c| c.status.as_deref() == Some(state) && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = before.filter(|c| c.status.as_deref() == Some(state)).and_then(|c| c.last_transition_time);
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_.as_deref() != Some(kind));
    conditions.push(DeploymentCondition {
        type_: Some(kind.into()),
        status: Some(state.into()),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: since.or_else(|| Some(now.clone())),
    });
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    status.conditions.iter_mut().for_each(|conditions| conditions.retain(|c| c.type_.as_deref() != Some(kind)));
}

/// Counts the replicas, and says whether there are enough.
pub fn count(
    status: &mut DeploymentStatus,
    deployment: &Deployment,
    wanted: Wanted,
    sets: (Option<&ReplicaSet>, &[ReplicaSet]),
    now: &Time,
) {
    let (new, old) = sets;
    let sum = |number: fn(&ReplicaSet) -> i32| new.into_iter().chain(old).map(number).sum::<i32>();
    let enough = sum(available);
    status.observed_generation = deployment.metadata.generation;
    status.replicas = Some(sum(actual));
    status.updated_replicas = Some(new.map_or(0, actual));
    status.ready_replicas = Some(sum(ready));
    status.available_replicas = Some(enough);
    status.unavailable_replicas = Some((sum(replicas) - enough).max(0));
    let terminating = |rs: &ReplicaSet| rs.status.as_ref().and_then(|status| status.terminating_replicas);
    status.terminating_replicas = new.into_iter().chain(old).map(terminating).sum();
    if enough >= wanted.min_available() {
        let said = ("MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned());
        set(status, AVAILABLE, "True", said, now);
    } else {
        let said = ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.".to_owned());
        set(status, AVAILABLE, "False", said, now);
    }
}

/// Says that a deployment is paused, or goes on.
pub fn pause(status: &mut DeploymentStatus, deployment: &Deployment, now: &Time) {
    let reason = condition(status, PROGRESSING).and_then(|c| c.reason.as_deref());
    if deadline(deployment).is_none() || reason == Some("ProgressDeadlineExceeded") {
        return;
    }
    let paused = reason == Some("DeploymentPaused");
    if is_paused(deployment) && !paused {
        set(status, PROGRESSING, "Unknown", ("DeploymentPaused", "Deployment is paused".into()), now);
    } else if !is_paused(deployment) && paused {
        set(status, PROGRESSING, "Unknown", ("DeploymentResumed", "Deployment is resumed".into()), now);
    }
}

/// Says that a replica set of the present template was there already, where nothing was said before.
pub fn found(status: &mut DeploymentStatus, new: &ReplicaSet, now: &Time) {
    if condition(status, PROGRESSING).is_none() {
        let message = format!("Found new replica set {:?}", name(new));
        set(status, PROGRESSING, "True", ("FoundNewReplicaSet", message), now);
    }
}

/// Says that a replica set was made for the present template.
pub fn created(status: &mut DeploymentStatus, deployment: &Deployment, new: Option<&ReplicaSet>, now: &Time) {
    if let Some(new) = new.filter(|_| deadline(deployment).is_some()) {
        let message = format!("Created new replica set {:?}", name(new));
        set(status, PROGRESSING, "True", ("NewReplicaSetCreated", message), now);
    }
}

/// Says that a replica set could not be made.
pub fn creation_failed(status: &mut DeploymentStatus, new: &str, error: &str, now: &Time) -> String {
    let message = format!("Failed to create new replica set {new:?}: {error}");
    set(status, PROGRESSING, "False", ("ReplicaSetCreateError", message.clone()), now);
    message
}

/// Whether all replicas are of the present template and available.
pub fn is_complete(status: &DeploymentStatus, deployment: &Deployment, wanted: i32) -> bool {
    let numbers = [status.updated_replicas, status.replicas, status.available_replicas];
    numbers.iter().all(|number| number.unwrap_or(0) == wanted)
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// Says how the rollout goes.
pub fn progress(
    status: &mut DeploymentStatus,
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
    now: &Time,
) {
    match deadline(deployment) {
        None => remove(status, PROGRESSING),
        Some(deadline) => estimate(status, deployment, new, deadline, now),
    }
    let failure = |rs: &ReplicaSet| {
        let conditions = rs.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.into_iter().find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE))
    };
    match new.into_iter().chain(old).find_map(failure) {
        Some(c) => {
            let said = (c.reason.unwrap_or_default(), c.message.unwrap_or_default());
            set(status, REPLICA_FAILURE, c.status.as_deref().unwrap_or("True"), (&said.0, said.1), now);
        }
        None => remove(status, REPLICA_FAILURE),
    }
}

fn estimate(
    status: &mut DeploymentStatus,
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    deadline: i32,
    now: &Time,
) {
    let before = deployment.status.clone().unwrap_or_default();
    let current = condition(status, PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.as_deref());
    if status.replicas == status.updated_replicas && reason == Some("NewReplicaSetAvailable") {
        return;
    }
    let subject = match new {
        Some(new) => format!("ReplicaSet {:?}", name(new)),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    let wanted = Wanted::of(deployment).replicas;
    if is_complete(status, deployment, wanted) {
        let said = ("NewReplicaSetAvailable", format!("{subject} has successfully progressed."));
        set(status, PROGRESSING, "True", said, now);
    } else if has_progressed(&before, status) {
        let since = current.filter(|c| c.status.as_deref() == Some("True")).and_then(|c| c.last_transition_time);
        // Removed first, so that the time of the last progress is written even where the reason stays.
        remove(status, PROGRESSING);
        set(status, PROGRESSING, "True", ("ReplicaSetUpdated", format!("{subject} is progressing.")), now);
        let written = status.conditions.iter_mut().flatten().find(|c| c.type_.as_deref() == Some(PROGRESSING));
        if let (Some(written), Some(since)) = (written, since) {
            written.last_transition_time = Some(since);
        }
    } else if current.is_some_and(|c| has_timed_out(&c, deadline, now)) {
        let said = ("ProgressDeadlineExceeded", format!("{subject} has timed out progressing."));
        set(status, PROGRESSING, "False", said, now);
    }
}

fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let n = |number: Option<i32>| number.unwrap_or(0);
    let old = |status: &DeploymentStatus| n(status.replicas) - n(status.updated_replicas);
    n(after.updated_replicas) > n(before.updated_replicas)
        || old(after) < old(before)
        || n(after.ready_replicas) > n(before.ready_replicas)
        || n(after.available_replicas) > n(before.available_replicas)
}

fn has_timed_out(progressing: &DeploymentCondition, deadline: i32, now: &Time) -> bool {
    match progressing.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => progressing.last_update_time.as_ref().is_some_and(|at| seconds_since(at, now) > i64::from(deadline)),
    }
}

fn seconds_since(at: &Time, now: &Time) -> i64 {
    now.0.as_second() - at.0.as_second()
}

/// After how many seconds the deadline for progress has to be looked at, if at all.
pub fn next_check(status: &DeploymentStatus, deployment: &Deployment, now: &Time) -> Option<u64> {
    let deadline = deadline(deployment)?;
    let current = condition(status, PROGRESSING)?;
    let ended = current.reason.as_deref() == Some("ProgressDeadlineExceeded");
    if ended || is_complete(status, deployment, Wanted::of(deployment).replicas) {
        return None;
    }
    let left = i64::from(deadline) - seconds_since(current.last_update_time.as_ref()?, now);
    Some(u64::try_from(left).unwrap_or(0) + 1)
}

/// Whether two statuses say the same, where an absent number is zero.
pub fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let numbers = |s: &DeploymentStatus| {
        [s.replicas, s.updated_replicas, s.ready_replicas, s.available_replicas, s.unavailable_replicas]
            .map(|number| number.unwrap_or(0))
    };
    let conditions = |s: &DeploymentStatus| s.conditions.clone().unwrap_or_default();
    numbers(a) == numbers(b)
        && a.terminating_replicas == b.terminating_replicas
        && a.observed_generation.unwrap_or(0) == b.observed_generation.unwrap_or(0)
        && a.collision_count == b.collision_count
        && conditions(a) == conditions(b)
}
