//! Requests and limits of a container as the CRI takes them.

use crate::config::Config;
use crate::pod::spec;
use crate::quantity::{milli_of, units_of};
use cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod};
use kernel::cgroup::{quota, shares};

/// cpu shares, quota and period (µs), memory limit (bytes) and the kernel's out-of-memory score.
pub fn linux(pod: &Pod, container: &Container, config: &Config, memory_capacity: i64) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let cpu_limit = milli_of(limits, "cpu");
    let cpu_request = if requests.is_some_and(|requests| requests.contains_key("cpu")) {
        milli_of(requests, "cpu")
    } else {
        cpu_limit
    };
    let mut linux = LinuxContainerResources {
        cpu_shares: i64::try_from(shares(cpu_request)).unwrap_or(i64::MAX),
        memory_limit_in_bytes: units_of(limits, "memory"),
        oom_score_adj: oom_score_adj(pod, units_of(requests, "memory"), memory_capacity),
        ..LinuxContainerResources::default()
    };
    if config.cpu_cfs_quota {
        let period = u64::try_from(config.cpu_cfs_quota_period.as_micros()).unwrap_or(100_000);
        linux.cpu_period = i64::try_from(period).unwrap_or(100_000);
        linux.cpu_quota = quota(cpu_limit, period);
    }
    linux
}

/// The kubelet's scores: what is guaranteed goes last, what asked for nothing first, the rest by its share of memory.
fn oom_score_adj(pod: &Pod, memory_request: i64, memory_capacity: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    let Some(spec) = pod.spec.as_ref() else { return 1000 };
    if spec.priority_class_name.as_deref() == Some("system-node-critical") {
        return GUARANTEED;
    }
    match spec::qos_class(spec) {
        "Guaranteed" => GUARANTEED,
        "BestEffort" => 1000,
        _ => (1000 - 1000_i64.saturating_mul(memory_request) / memory_capacity.max(1)).clamp(3, 999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture::pod;
    use serde_json::{Value, json};

    fn of(resources: Value) -> (i64, i64, i64, i64) {
        let pod = pod(json!({"containers": [{"name": "a", "resources": resources}]}));
        let made = linux(&pod, &spec::containers(&pod)[0], &Config::default(), 1 << 30);
        (made.cpu_shares, made.cpu_quota, made.memory_limit_in_bytes, made.oom_score_adj)
    }

    #[test]
    fn shares_quota_memory_and_score() {
        assert_eq!(of(json!({})), (2, 0, 0, 1000));
        let guaranteed = json!({"cpu": "500m", "memory": "128Mi"});
        assert_eq!(of(json!({"limits": guaranteed, "requests": guaranteed})), (512, 50_000, 128 << 20, -997));
        assert_eq!(of(json!({"requests": {"memory": "256Mi"}})), (2, 0, 0, 750));
    }
}
