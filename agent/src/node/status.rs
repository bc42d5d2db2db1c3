//! The node's status: a function of the machine, the configuration and what was just read.

use super::Keeper;
use super::machine::{Machine, arch};
use crate::config::Config;
use crate::quantity::{Resources, milli, units};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kernel::mount::Space;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// The version of Kubernetes whose kubelet the agent stands in for.
const VERSION: &str = concat!("v1.37.1+bosun.", env!("CARGO_PKG_VERSION"));

/// What one look at the node gave. A text is empty where all is well.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    pub runtime: String,
    pub network: String,
    pub runtime_version: String,
    pub memory_available: i64,
    pub nodefs: Option<Space>,
    pub imagefs: Option<Space>,
    /// Threads that run, and the most there can be.
    pub tasks: Option<(i64, i64)>,
    pub images: Vec<cri::v1::Image>,
    pub handlers: Vec<cri::v1::RuntimeHandler>,
}

impl Readings {
    pub fn is_ready(&self) -> bool {
        self.runtime.is_empty() && self.network.is_empty()
    }
}

/// What was reported before: the conditions, and since when a pressure was seen.
#[derive(Debug, Default)]
pub struct Reported {
    conditions: Vec<NodeCondition>,
    pressed: HashMap<&'static str, Instant>,
}

impl Reported {
    pub fn ready(&self) -> Option<bool> {
        self.conditions.iter().find(|condition| condition.type_ == "Ready").map(|ready| ready.status == "True")
    }

    /// What was reported did not arrive.
    pub fn forget(&mut self) {
        self.conditions.clear();
    }

    /// The status now, and the reasons of the Events that it is worth.
    pub fn status(
        &mut self,
        keeper: &Keeper,
        stored: Option<&NodeStatus>,
        readings: &Readings,
        now: Timestamp,
    ) -> (NodeStatus, Vec<&'static str>) {
        let before = if self.conditions.is_empty() {
            stored.and_then(|status| status.conditions.clone()).unwrap_or_default()
        } else {
            std::mem::take(&mut self.conditions)
        };
        let (conditions, events) = self.conditions(&before, &keeper.config, readings, now);
        self.conditions.clone_from(&conditions);
        let capacity = capacity(&keeper.machine, &keeper.config, readings.nodefs);
        let addresses = keeper.ips.iter().map(|ip| ("InternalIP", ip.to_string()));
        let addresses = addresses.chain([("Hostname", keeper.name.clone())]);
        let status = NodeStatus {
            addresses: Some(addresses.map(|(type_, address)| NodeAddress { type_: type_.into(), address }).collect()),
            allocatable: Some(allocatable(&capacity, &keeper.config)),
            capacity: Some(capacity),
            conditions: Some(conditions),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(keeper.config.port) }),
            }),
            images: Some(images(&readings.images, keeper.config.node_status_max_images)),
            node_info: Some(info(&keeper.machine, readings)),
            runtime_handlers: Some(handlers(&readings.handlers)).filter(|handlers| !handlers.is_empty()),
            ..NodeStatus::default()
        };
        (status, events)
    }

    fn conditions(
        &mut self,
        before: &[NodeCondition],
        config: &Config,
        readings: &Readings,
        now: Timestamp,
    ) -> (Vec<NodeCondition>, Vec<&'static str>) {
        let mut verdicts = Vec::new();
        for (kind, pressed) in pressures(config, readings) {
            if pressed {
                self.pressed.insert(kind, Instant::now());
            }
            let lasts = |at: &Instant| at.elapsed() < config.eviction_pressure_transition_period;
            let holds = self.pressed.get(kind).is_some_and(lasts);
            verdicts.push(pressure_words(kind, holds));
        }
        let errors: Vec<&str> = [readings.runtime.as_str(), readings.network.as_str()]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect();
        verdicts.push(match errors.as_slice() {
            [] => ("Ready", true, "KubeletReady", "kubelet is posting ready status".into(), "NodeReady"),
            [one] => ("Ready", false, "KubeletNotReady", (*one).to_string(), "NodeNotReady"),
            more => ("Ready", false, "KubeletNotReady", format!("[{}]", more.join(", ")), "NodeNotReady"),
        });
        let mut events = Vec::new();
        let conditions = verdicts.into_iter().map(|(kind, holds, reason, message, event)| {
            let status = if holds { "True" } else { "False" };
            let old = before.iter().find(|condition| condition.type_ == kind);
            let same = old.filter(|old| old.status == status);
            if same.is_none() && (old.is_some() || kind != "Ready" || holds) {
                events.push(event);
            }
            NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: same.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
            }
        });
        let conditions = conditions.collect();
        (conditions, events)
    }
}

type Words = (&'static str, bool, &'static str, String, &'static str);

fn pressure_words(kind: &'static str, holds: bool) -> Words {
    let (reason, message, event) = match (kind, holds) {
        ("MemoryPressure", true) => {
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available", "NodeHasInsufficientMemory")
        }
        ("MemoryPressure", false) => {
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available", "NodeHasSufficientMemory")
        }
        ("DiskPressure", true) => ("KubeletHasDiskPressure", "kubelet has disk pressure", "NodeHasDiskPressure"),
        ("DiskPressure", false) => {
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure", "NodeHasNoDiskPressure")
        }
        (_, true) => ("KubeletHasInsufficientPID", "kubelet has insufficient PID available", "NodeHasInsufficientPID"),
        (_, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available", "NodeHasSufficientPID"),
    };
    (kind, holds, reason, message.into(), event)
}

/// Which thresholds of evictionHard are crossed.
fn pressures(config: &Config, readings: &Readings) -> [(&'static str, bool); 3] {
    let below = |signal: &str, available: Option<u64>, capacity: Option<u64>| {
        let threshold = config.eviction_hard.get(signal).zip(capacity).and_then(|(text, all)| threshold(text, all));
        threshold.zip(available).is_some_and(|(threshold, available)| available < threshold)
    };
    let memory = u64::try_from(readings.memory_available).ok();
    let total = Some(u64::MAX);
    let disk = |name: &str, space: Option<Space>| {
        below(&format!("{name}.available"), space.map(|space| space.available), space.map(|space| space.capacity))
            || (space.is_some_and(|space| space.inodes > 0)
                && below(&format!("{name}.inodesFree"), space.map(|s| s.inodes_free), space.map(|s| s.inodes)))
    };
    let tasks = readings
        .tasks
        .and_then(|(running, most)| Some((u64::try_from(most - running).ok()?, u64::try_from(most).ok()?)));
    [
        ("MemoryPressure", below("memory.available", memory, total)),
        ("DiskPressure", disk("nodefs", readings.nodefs) || disk("imagefs", readings.imagefs)),
        ("PIDPressure", below("pid.available", tasks.map(|tasks| tasks.0), tasks.map(|tasks| tasks.1))),
    ]
}

/// A threshold as a number: a quantity, or a percentage of the capacity.
fn threshold(text: &str, capacity: u64) -> Option<u64> {
    match text.strip_suffix('%') {
        Some(percent) => Some((capacity as f64 * percent.parse::<f64>().ok()? / 100.0) as u64),
        None => u64::try_from(units(text)?).ok(),
    }
}

fn capacity(machine: &Machine, config: &Config, nodefs: Option<Space>) -> Resources {
    let mut capacity = BTreeMap::from([
        ("cpu".to_string(), Quantity(machine.cpus.to_string())),
        ("memory".to_string(), Quantity(format!("{}Ki", machine.memory / 1024))),
        ("pods".to_string(), Quantity(config.max_pods.to_string())),
    ]);
    if let Some(space) = nodefs {
        capacity.insert("ephemeral-storage".into(), Quantity(format!("{}Ki", space.capacity / 1024)));
    }
    capacity
}

/// Capacity without what is reserved and what evictionHard keeps free.
pub fn allocatable(capacity: &Resources, config: &Config) -> Resources {
    let reserved = |name: &str, read: fn(&str) -> Option<i64>| {
        let of = |list: &BTreeMap<String, String>| list.get(name).and_then(|text| read(text)).unwrap_or(0);
        of(&config.kube_reserved) + of(&config.system_reserved)
    };
    let kept = |signal: &str, capacity: i64| {
        let text = config.eviction_hard.get(signal);
        let kept = text.and_then(|text| threshold(text, u64::try_from(capacity).ok()?));
        kept.and_then(|kept| i64::try_from(kept).ok()).unwrap_or(0)
    };
    capacity
        .iter()
        .map(|(name, quantity)| {
            let all = units(&quantity.0).unwrap_or(0);
            let left = match name.as_str() {
                "cpu" => match reserved("cpu", milli) {
                    0 => quantity.0.clone(),
                    reserved => format!("{}m", (milli(&quantity.0).unwrap_or(0) - reserved).max(0)),
                },
                "memory" => {
                    let left = all - reserved("memory", units) - kept("memory.available", all);
                    format!("{}Ki", left.max(0) / 1024)
                }
                "ephemeral-storage" => {
                    (all - reserved("ephemeral-storage", units) - kept("nodefs.available", all)).max(0).to_string()
                }
                _ => quantity.0.clone(),
            };
            (name.clone(), Quantity(left))
        })
        .collect()
}

fn images(images: &[cri::v1::Image], most: i32) -> Vec<ContainerImage> {
    let mut images: Vec<&cri::v1::Image> = images.iter().collect();
    images.sort_by(|one, other| other.size.cmp(&one.size).then(one.id.cmp(&other.id)));
    images.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    let of = |image: &cri::v1::Image| ContainerImage {
        names: Some(image.repo_digests.iter().chain(&image.repo_tags).take(5).cloned().collect()),
        size_bytes: i64::try_from(image.size).ok(),
    };
    images.into_iter().map(of).collect()
}

fn handlers(handlers: &[cri::v1::RuntimeHandler]) -> Vec<NodeRuntimeHandler> {
    let of = |handler: &cri::v1::RuntimeHandler| NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: handler.features.as_ref().map(|features| NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
            user_namespaces: Some(features.user_namespaces),
        }),
    };
    handlers.iter().map(of).collect()
}

fn info(machine: &Machine, readings: &Readings) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: arch().into(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: readings.runtime_version.clone(),
        kernel_version: machine.kernel_version.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.into(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.system_uuid.clone(),
        ..NodeSystemInfo::default()
    }
}

/// The status without what changes with every look.
pub fn essence(status: &NodeStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    for condition in value.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(fields) = condition.as_object_mut() {
            fields.remove("lastHeartbeatTime");
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(available: u64) -> Option<Space> {
        Some(Space { capacity: 100 << 30, available, ..Space::default() })
    }

    #[test]
    fn allocatable_is_what_nothing_else_keeps() {
        let mut config = Config::default();
        config.kube_reserved.insert("cpu".into(), "250m".into());
        config.system_reserved.insert("memory".into(), "100Mi".into());
        let machine = Machine { cpus: 2, memory: 1 << 30, ..Machine::default() };
        let capacity = capacity(&machine, &config, space(0));
        let left: Vec<String> =
            allocatable(&capacity, &config).into_iter().map(|(k, v)| format!("{k}={}", v.0)).collect();
        assert_eq!(left, ["cpu=1750m", "ephemeral-storage=96636764160", "memory=843776Ki", "pods=110"]);
    }

    #[test]
    fn thresholds_are_quantities_or_shares() {
        let pressed = |readings: Readings| pressures(&Config::default(), &readings).map(|(_, pressed)| pressed);
        let fine = Readings { memory_available: 1 << 30, nodefs: space(50 << 30), ..Readings::default() };
        assert_eq!(pressed(fine.clone()), [false, false, false]);
        assert_eq!(pressed(Readings { memory_available: 50 << 20, ..fine.clone() }), [true, false, false]);
        assert_eq!(pressed(Readings { imagefs: space(14 << 30), ..fine.clone() }), [false, true, false]);
        assert_eq!(pressed(Readings { nodefs: space(9 << 30), ..fine }), [false, true, false]);
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut reported = Reported::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let ready = Readings { memory_available: 1 << 30, ..Readings::default() };
        let (first, events) = reported.conditions(&[], &Config::default(), &ready, at(1));
        assert!(events.contains(&"NodeReady"));
        let (second, events) = reported.conditions(&first, &Config::default(), &ready, at(2));
        assert!(events.is_empty());
        assert_eq!(second[3].last_transition_time, Some(Time(at(1))));
        assert_eq!(second[3].last_heartbeat_time, Some(Time(at(2))));
        let down = Readings { network: "container runtime network not ready: x".into(), ..ready };
        let (third, events) = reported.conditions(&second, &Config::default(), &down, at(3));
        assert_eq!((third[3].status.as_str(), events), ("False", vec!["NodeNotReady"]));
        assert_eq!(third[3].message.as_deref(), Some("container runtime network not ready: x"));
    }
}
