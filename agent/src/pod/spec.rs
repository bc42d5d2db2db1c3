//! Questions that many parts ask of an API pod.

use crate::quantity::{Resources, milli_of, units_of};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use std::time::Duration;

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// `namespace/name`, for messages.
pub fn full_name(pod: &Pod) -> String {
    format!("{}/{}", namespace(pod), name(pod))
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default()
}

pub fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |spec| &spec.containers)
}

/// Init containers first, then the others.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    init_containers(pod).iter().chain(containers(pod))
}

/// Whether an init container is a sidecar: it keeps running beside the ordinary ones.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Succeeded and Failed are final.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// How long the pod's processes have from the wish to end it, at least a second where they may run at all.
pub fn grace(pod: &Pod) -> Duration {
    let asked = pod.metadata.deletion_grace_period_seconds;
    let declared = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = if pod.metadata.deletion_timestamp.is_some() { asked.or(declared) } else { declared };
    Duration::from_secs(seconds.unwrap_or(30).max(1).unsigned_abs())
}

/// The quality of service class (Guaranteed, Burstable, BestEffort) that requests and limits of cpu and memory give.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for container in init.iter().chain(&spec.containers) {
        let resources = container.resources.as_ref();
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        for (name, read) in [("cpu", milli_of as fn(Option<&Resources>, &str) -> i64), ("memory", units_of)] {
            let (limit, request) = (read(limits, name), read(requests, name));
            any |= limit > 0 || request > 0;
            let has_request = requests.is_some_and(|requests| requests.contains_key(name));
            guaranteed &= limit > 0 && (!has_request || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
pub mod fixture {
    use super::*;
    use serde_json::{Value, json};

    /// A bound pod with this spec, laid over restartPolicy and nodeName.
    pub fn pod(spec: Value) -> Pod {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "generation": 1},
            "spec": {"nodeName": "n1", "restartPolicy": "Always", "containers": []},
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        serde_json::from_value(pod).expect("a pod")
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::pod;
    use super::*;
    use serde_json::json;

    #[test]
    fn quality_of_service() {
        let class = |resources| {
            let pod = pod(json!({"containers": [{"name": "a", "resources": resources}]}));
            qos_class(pod.spec.as_ref().unwrap())
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1"}})), "Burstable");
    }
}
