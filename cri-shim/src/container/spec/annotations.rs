//! Annotations of a spec: those by which shims and sandboxed runtimes know a pod's tasks, and those that a handler
//! lets through.

use std::collections::HashMap;

use cri::v1;

use super::{ContainerInput, Handler};

/// Containers with the same value share one shim.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
/// `sandbox` or `container`.
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_LOG_DIRECTORY: &str = "io.kubernetes.cri.sandbox-log-directory";
const SANDBOX_IMAGE_NAME: &str = "io.kubernetes.cri.podsandbox.image-name";
const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const SANDBOX_CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

pub(super) fn of_container(input: &ContainerInput<'_>) -> HashMap<String, String> {
    let mut all = passed(input.handler, &input.sandbox.config.annotations);
    all.extend(selected(&input.handler.container_annotations, &input.config.annotations));
    all.extend(of_pod(input.sandbox.id, input.sandbox.config, "container"));
    let name = input.config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
    all.insert(CONTAINER_NAME.into(), name);
    let image = input.config.image.clone().unwrap_or_default();
    let named = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    all.insert(IMAGE_NAME.into(), named);
    all
}

/// Those of a pod's pause task.
pub(crate) fn of_sandbox(id: &str, config: &v1::PodSandboxConfig, image: &str) -> HashMap<String, String> {
    let mut all = of_pod(id, config, "sandbox");
    all.insert(SANDBOX_LOG_DIRECTORY.into(), config.log_directory.clone());
    all.insert(SANDBOX_IMAGE_NAME.into(), image.into());
    if let Some(wanted) = config.linux.as_ref().and_then(|l| l.resources.as_ref()) {
        all.insert(SANDBOX_CPU_PERIOD.into(), wanted.cpu_period.to_string());
        all.insert(SANDBOX_CPU_QUOTA.into(), wanted.cpu_quota.to_string());
        all.insert(SANDBOX_CPU_SHARES.into(), wanted.cpu_shares.to_string());
        all.insert(SANDBOX_MEMORY.into(), wanted.memory_limit_in_bytes.to_string());
    }
    all
}

fn of_pod(id: &str, config: &v1::PodSandboxConfig, kind: &str) -> HashMap<String, String> {
    let pod = config.metadata.clone().unwrap_or_default();
    let pairs = [
        (SANDBOX_ID, id.to_owned()),
        (CONTAINER_TYPE, kind.to_owned()),
        (SANDBOX_NAMESPACE, pod.namespace),
        (SANDBOX_UID, pod.uid),
        (SANDBOX_NAME, pod.name),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The pod's annotations that the handler wants to see.
pub(crate) fn passed(handler: &Handler, annotations: &HashMap<String, String>) -> HashMap<String, String> {
    selected(&handler.pod_annotations, annotations)
}

fn selected(patterns: &[String], annotations: &HashMap<String, String>) -> HashMap<String, String> {
    let wanted = |key: &str| patterns.iter().any(|pattern| matches(pattern, key));
    annotations.iter().filter(|(key, _)| wanted(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// A shell pattern with `*` for any run of characters but `/`, as containerd's `pod_annotations` are.
fn matches(pattern: &str, key: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == key,
        Some((before, rest)) => key.strip_prefix(before).is_some_and(|tail| {
            let run = tail.find('/').unwrap_or(tail.len());
            (0..=run).any(|at| tail.is_char_boundary(at) && matches(rest, &tail[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stop_at_a_slash() {
        assert!(matches("io.kata.*", "io.kata.cpu"));
        assert!(!matches("io.kata.*", "io.kata.cpu/limit"));
        assert!(matches("*/limit", "cpu/limit"));
        assert!(matches("a*c*", "abcd"));
        assert!(!matches("a", "ab"));
    }
}
