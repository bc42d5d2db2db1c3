//! Amounts of resources: what a pod asks for, and what a node has.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The default requests that scoring, and only scoring, assumes for a container that asks for nothing.
const SCORED_CPU: i64 = 100;
const SCORED_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts; `cpu` in thousandths, all else in units (bytes).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Huge pages and extended resources.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            match name.as_str() {
                "cpu" => resources.cpu = parse(&quantity.0, 1000),
                "memory" => resources.memory = parse(&quantity.0, 1),
                "ephemeral-storage" => resources.ephemeral_storage = parse(&quantity.0, 1),
                "pods" => {}
                other => drop(resources.others.insert(other.to_owned(), parse(&quantity.0, 1))),
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| a.saturating_add(b));
    }

    pub fn remove(&mut self, other: &Self) {
        self.combine(other, |a, b| a - b);
    }

    fn at_least(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.cpu = with(self.cpu, other.cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.others {
            let own = self.others.entry(name.clone()).or_default();
            *own = with(*own, *amount);
        }
    }

    pub fn is_zero(&self) -> bool {
        self.cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.others.is_empty()
    }
}

/// What a node can give to pods, and how many it takes.
pub fn allocatable(node: &Node) -> (Resources, i64) {
    let list = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let pods = list.and_then(|list| list.get("pods")).map_or(0, |pods| parse(&pods.0, 1));
    (Resources::of(list), pods)
}

/// What a pod asks for: the larger of its containers with their sidecars and of each init container with the sidecars
/// before it (KEP-753), or what the pod level says (KEP-2837), and its overhead.
pub fn requests(spec: &PodSpec) -> Resources {
    total(spec, |container| {
        Resources::of(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
    })
}

/// The same as scoring counts it: a container that asks for no CPU or memory counts as a small one.
pub fn scored_requests(spec: &PodSpec) -> Resources {
    total(spec, |container| {
        let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let mut resources = Resources::of(list);
        if !list.is_some_and(|list| list.contains_key("cpu")) {
            resources.cpu = SCORED_CPU;
        }
        if !list.is_some_and(|list| list.contains_key("memory")) {
            resources.memory = SCORED_MEMORY;
        }
        resources
    })
}

fn total(spec: &PodSpec, of_container: impl Fn(&Container) -> Resources) -> Resources {
    let mut sum = Resources::default();
    spec.containers.iter().for_each(|container| sum.add(&of_container(container)));
    let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sum.add(&own);
            sidecars.add(&own);
            starting.at_least(&sidecars);
        } else {
            let mut together = sidecars.clone();
            together.add(&own);
            starting.at_least(&together);
        }
    }
    sum.at_least(&starting);
    if let Some(list) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let pod = Resources::of(Some(list));
        if list.contains_key("cpu") {
            sum.cpu = pod.cpu;
        }
        if list.contains_key("memory") {
            sum.memory = pod.memory;
        }
        sum.others.extend(pod.others);
    }
    sum.add(&Resources::of(spec.overhead.as_ref()));
    sum
}

/// A quantity (`100m`, `1Gi`, `2e3`) in `1/scale` units, rounded up; 0 for what is none.
pub fn parse(text: &str, scale: i64) -> i64 {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let Ok(number) = number.parse::<f64>() else { return 0 };
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => match exponent.strip_prefix(['e', 'E']).and_then(|e| e.parse().ok()) {
            Some(exponent) => 10f64.powi(exponent),
            None => return 0,
        },
    };
    // Exact for all that has less than 16 digits; the cast saturates.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    let units = (number * factor * scale as f64 - 1e-6).ceil() as i64;
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities() {
        for (text, scale, expected) in [
            ("100m", 1000, 100),
            ("2", 1000, 2000),
            ("0.5", 1000, 500),
            ("1Gi", 1, 1 << 30),
            ("1.5Mi", 1, 3 << 19),
            ("128974848", 1, 128_974_848),
            ("129e6", 1, 129_000_000),
            ("1500m", 1, 2),
            ("1u", 1000, 1),
            ("7E", 1, 7_000_000_000_000_000_000),
            ("", 1, 0),
        ] {
            assert_eq!(parse(text, scale), expected, "{text}");
        }
    }

    #[test]
    fn sidecars_run_beside_containers_and_beside_later_init_containers() {
        let c = |cpu: &str, restart: Option<&str>| json!({"name": cpu, "restartPolicy": restart, "resources": {"requests": {"cpu": cpu}}});
        let cpu = |init: serde_json::Value, containers: serde_json::Value| {
            let spec = json!({"initContainers": init, "containers": containers, "overhead": {"cpu": "1m"}});
            requests(&serde_json::from_value(spec).unwrap()).cpu
        };
        assert_eq!(cpu(json!([]), json!([c("100m", None), c("200m", None)])), 301);
        assert_eq!(cpu(json!([c("500m", None)]), json!([c("100m", None)])), 501);
        // The sidecar counts with the containers, and with the init container that starts after it.
        assert_eq!(cpu(json!([c("50m", Some("Always"))]), json!([c("100m", None)])), 151);
        assert_eq!(cpu(json!([c("50m", Some("Always")), c("500m", None)]), json!([c("100m", None)])), 551);
        assert_eq!(cpu(json!([c("500m", None), c("50m", Some("Always"))]), json!([c("100m", None)])), 501);
    }
}
