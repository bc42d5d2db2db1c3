//! What a deployment and its replica sets say, in the words of the decision.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
pub const HASH_LABEL: &str = "pod-template-hash";
/// The value of `progressDeadlineSeconds` that means none.
const NO_DEADLINE: i32 = i32::MAX;

/// A deployment's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub replicas: i32,
    pub max_surge: i32,
    pub max_unavailable: i32,
    pub recreate: bool,
}

impl Wanted {
    pub fn of(deployment: &Deployment) -> Self {
        let spec = &deployment.spec;
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("Recreate") {
            return Self { replicas, max_surge: 0, max_unavailable: 0, recreate: true };
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let max_surge = scaled(rolling.max_surge.as_ref(), replicas, true);
        let mut max_unavailable = scaled(rolling.max_unavailable.as_ref(), replicas, false);
        // Percentages may round both to nothing, and nothing could then move.
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Self { replicas, max_surge, max_unavailable: max_unavailable.min(replicas), recreate: false }
    }

    pub fn max_total(self) -> i32 {
        self.replicas + self.max_surge
    }

    pub fn min_available(self) -> i32 {
        self.replicas - self.max_unavailable
    }
}

/// A number, or a percentage of `total`, rounded up or down.
fn scaled(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(percent)) => {
            let percent: i64 = percent.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent * i64::from(total);
            i32::try_from(if up { (hundredths + 99) / 100 } else { hundredths / 100 }).unwrap_or(i32::MAX)
        }
    }
}

pub fn replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.replicas.unwrap_or(1)
}

/// The pods that a replica set has, as its status says.
pub fn actual(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().map_or(0, |status| status.replicas)
}

pub fn available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub fn ready(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

pub fn name(rs: &ReplicaSet) -> &str {
    rs.metadata.name.as_deref().unwrap_or_default()
}

pub fn annotation<'a>(rs: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    rs.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn annotated_number(rs: &ReplicaSet, key: &str) -> Option<i32> {
    annotation(rs, key)?.parse().ok().filter(|number| *number >= 0)
}

pub fn revision(rs: &ReplicaSet) -> i64 {
    annotation(rs, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// The deadline for progress in seconds, if there is one.
pub fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != NO_DEADLINE)
}

pub fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.paused.unwrap_or(false)
}

/// Whether two templates are equal but for the hash label.
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let plain = |template: &PodTemplateSpec| {
        let mut meta = template.metadata.clone().unwrap_or_default();
        let labels = meta.labels.get_or_insert_default();
        labels.remove(HASH_LABEL);
        meta.annotations.get_or_insert_default();
        meta.creation_timestamp = None;
        meta
    };
    plain(a) == plain(b) && a.spec == b.spec
}

/// The replica set of the present template (the oldest of several), and the others, both by age.
pub fn split(deployment: &Deployment, sets: &[ReplicaSet]) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    let mut sets = sets.to_vec();
    sets.sort_by_key(|rs| (rs.metadata.creation_timestamp.clone(), rs.metadata.name.clone()));
    let template = deployment.spec.template.clone();
    let is_new = |rs: &ReplicaSet| rs.spec.template.as_ref().is_some_and(|t| same_template(t, &template));
    let new = sets.iter().position(is_new).map(|at| sets.remove(at));
    (new, sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> (i32, i32) {
        let deployment = serde_json::from_value(json!({"spec": {
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
        }}));
        let wanted = Wanted::of(&deployment.unwrap());
        (wanted.max_surge, wanted.max_unavailable)
    }

    #[test]
    fn percentages_round_surge_up_and_unavailable_down() {
        assert_eq!(wanted(10, json!("25%"), json!("25%")), (3, 2));
        assert_eq!(wanted(1, json!("25%"), json!("25%")), (1, 0));
        assert_eq!(wanted(2, json!(0), json!("25%")), (0, 1));
        assert_eq!(wanted(2, json!(0), json!(5)), (0, 2));
    }
}
