//! From requests and limits to QoS class, pod totals and the limits of a pod's group: decided purely.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kernel::cgroup::{CpuQuota, Limits, quota, shares};

/// The quality of service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub const ALL: [Self; 3] = [Self::Guaranteed, Self::Burstable, Self::BestEffort];

    /// As `status.qosClass` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What the kubelet's configuration says about pods' groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// cpuCFSQuota
    pub cpu_quota: bool,
    pub cpu_period_micros: u64,
    /// podPidsLimit; -1 for none.
    pub pids: i64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { cpu_quota: true, cpu_period_micros: 100_000, pids: -1 }
    }
}

/// The effective requests and limits of a whole pod: thousandths of a CPU and bytes. A limit is `None` where a
/// container has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodResources {
    pub cpu_request: i64,
    pub memory_request: i64,
    pub cpu_limit: Option<i64>,
    pub memory_limit: Option<i64>,
}

type List = BTreeMap<String, ApiQuantity>;

/// The pod's class: from its status if the API server said it, else from its resources.
pub fn qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => Qos::Guaranteed,
        Some("Burstable") => Qos::Burstable,
        Some("BestEffort") => Qos::BestEffort,
        _ => computed_qos(pod),
    }
}

fn computed_qos(pod: &Pod) -> Qos {
    let Some(spec) = &pod.spec else { return Qos::BestEffort };
    let all: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        Some(resources) => vec![Some(resources)],
        None => {
            let init = spec.init_containers.iter().flatten();
            spec.containers.iter().chain(init).map(|c| c.resources.as_ref()).collect()
        }
    };
    let amount = |list: Option<&List>, name: &str| value(list, name, Quantity::milli_value).unwrap_or(0);
    let mut guaranteed = true;
    let mut best_effort = true;
    for resources in all {
        let (limits, requests) = lists(resources);
        for name in ["cpu", "memory"] {
            let limit = amount(limits, name);
            let request = value(requests, name, Quantity::milli_value).unwrap_or(limit);
            best_effort &= limit == 0 && request == 0;
            guaranteed &= limit > 0 && request == limit;
        }
    }
    match (best_effort, guaranteed) {
        (true, _) => Qos::BestEffort,
        (_, true) => Qos::Guaranteed,
        _ => Qos::Burstable,
    }
}

fn lists(resources: Option<&ResourceRequirements>) -> (Option<&List>, Option<&List>) {
    (resources.and_then(|r| r.limits.as_ref()), resources.and_then(|r| r.requests.as_ref()))
}

fn value(list: Option<&List>, name: &str, unit: impl Fn(Quantity) -> i64) -> Option<i64> {
    list?.get(name)?.0.parse::<Quantity>().ok().map(unit)
}

/// What the pod asks for and is limited to: the sum of its containers and sidecars, or what its largest init container
/// needs beside the sidecars started before it, and the overhead of its runtime class. Pod-level resources come first.
pub fn pod_resources(pod: &Pod) -> PodResources {
    let request = |name, unit: fn(Quantity) -> i64| pod_request(pod, name, unit);
    let limit = |name, unit: fn(Quantity) -> i64| pod_limit(pod, name, unit);
    PodResources {
        cpu_request: request("cpu", Quantity::milli_value),
        memory_request: request("memory", Quantity::value),
        cpu_limit: limit("cpu", Quantity::milli_value),
        memory_limit: limit("memory", Quantity::value),
    }
}

fn pod_request(pod: &Pod, name: &str, unit: fn(Quantity) -> i64) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let of_pod = value(lists(spec.resources.as_ref()).1, name, unit);
    let of_container = |c: &Container| {
        let (limits, requests) = lists(c.resources.as_ref());
        Some(value(requests, name, unit).or(value(limits, name, unit)).unwrap_or(0))
    };
    let total = of_pod.or_else(|| aggregate(pod, of_container)).unwrap_or(0);
    total + value(spec.overhead.as_ref(), name, unit).unwrap_or(0)
}

fn pod_limit(pod: &Pod, name: &str, unit: fn(Quantity) -> i64) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let of_pod = value(lists(spec.resources.as_ref()).0, name, unit);
    let of_container = |c: &Container| value(lists(c.resources.as_ref()).0, name, unit).filter(|v| *v > 0);
    let total = of_pod.or_else(|| aggregate(pod, of_container))?;
    Some(total + value(spec.overhead.as_ref(), name, unit).unwrap_or(0))
}

/// `None` as soon as one container has no amount.
fn aggregate(pod: &Pod, amount: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let mut running: i64 = spec.containers.iter().map(&amount).sum::<Option<i64>>()?;
    let mut sidecars = 0;
    let mut largest_init = 0;
    for container in spec.init_containers.iter().flatten() {
        let own = amount(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += own;
            running += own;
            largest_init = largest_init.max(sidecars);
        } else {
            largest_init = largest_init.max(sidecars + own);
        }
    }
    Some(running.max(largest_init))
}

/// What is written to the pod's group, as the kubelet does for each class.
pub fn pod_limits(pod: &Pod, rules: &Rules) -> Limits {
    let resources = pod_resources(pod);
    let period = rules.cpu_period_micros;
    let cpu_quota = resources
        .cpu_limit
        .filter(|_| rules.cpu_quota)
        .map(|milli| CpuQuota { quota: quota(milli, period), period })
        .filter(|q| q.quota > 0);
    let pids = (rules.pids > 0).then_some(rules.pids);
    match qos(pod) {
        Qos::BestEffort => Limits { cpu_shares: Some(shares(0)), pids, ..Limits::default() },
        Qos::Guaranteed | Qos::Burstable => Limits {
            cpu_shares: Some(shares(resources.cpu_request)),
            cpu_quota,
            memory: resources.memory_limit,
            pids,
            ..Limits::default()
        },
    }
}
