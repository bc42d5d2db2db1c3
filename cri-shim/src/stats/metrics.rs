//! What kubelet serves at /metrics/cadvisor when the runtime tells it: cAdvisor's names and meanings.
//!
//! CRI's values are whole numbers: times are in whole seconds. Source: KEP-2371, cAdvisor's docs/storage/prometheus.md.

mod tables;

use cri::v1::{ContainerMetrics, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, UInt64Value};
use kernel::cgroup::Detail;
use kernel::netlink::LinkStatistics;

use super::{Layer, Measure};
use tables::{CONTAINER, GROUP, LINK};

/// What is measured of a control group, as one value.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupMeasure {
    /// Its path.
    pub path: String,
    pub measure: Measure,
    pub detail: Detail,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ContainerMeasure {
    pub id: String,
    /// As the pod's spec names it.
    pub name: String,
    pub image: String,
    pub group: GroupMeasure,
    pub layer: Option<Layer>,
    /// Seconds since 1970.
    pub started: u64,
}

/// A pod that is ready.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodMeasure {
    pub id: String,
    pub name: String,
    pub namespace: String,
    /// `None` where the pod has no group of its own.
    pub group: Option<GroupMeasure>,
    /// Empty for a pod on the node's network.
    pub links: Vec<LinkStatistics>,
    pub containers: Vec<ContainerMeasure>,
}

/// One metric: of what it is read, and under which labels beyond those that all have.
struct Series<T> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    keys: &'static [&'static str],
    read: fn(&T) -> Values,
}

/// A value for each set of labels.
type Values = Vec<(Vec<String>, u64)>;

/// Labels that every metric has.
const KEYS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Every metric that [`pod_metrics`] may tell, with the names of its labels in the order of their values.
pub fn descriptors() -> Vec<MetricDescriptor> {
    fn of<T>(series: &Series<T>) -> MetricDescriptor {
        let keys = KEYS.iter().chain(series.keys);
        MetricDescriptor {
            name: series.name.to_owned(),
            help: series.help.to_owned(),
            label_keys: keys.map(|key| (*key).to_owned()).collect(),
        }
    }
    GROUP.iter().map(of).chain(CONTAINER.iter().map(of)).chain(LINK.iter().map(of)).collect()
}

/// A pod's metrics and those of its containers.
pub fn pod_metrics(pod: &PodMeasure) -> PodSandboxMetrics {
    let path = pod.group.as_ref().map(|group| group.path.as_str()).unwrap_or_default();
    let labels = |container: &str, id: &str, image: &str, name: &str| {
        [container, id, image, name, &pod.namespace, &pod.name].map(str::to_owned)
    };
    let at = pod.group.as_ref().map_or_else(super::now, |group| group.measure.at);
    let own = labels("", path, "", &pod.id);
    let mut metrics = Vec::new();
    if let Some(group) = &pod.group {
        tell(&GROUP, group, (&own, at), &mut metrics);
    }
    for link in pod.links.iter().filter(|link| link.name != "lo") {
        tell(&LINK, link, (&own, at), &mut metrics);
    }
    let container = |container: &ContainerMeasure| {
        let own = labels(&container.name, &container.group.path, &container.image, &container.id);
        let mut metrics = Vec::new();
        tell(&GROUP, &container.group, (&own, container.group.measure.at), &mut metrics);
        tell(&CONTAINER, container, (&own, container.group.measure.at), &mut metrics);
        ContainerMetrics { container_id: container.id.clone(), metrics }
    };
    PodSandboxMetrics {
        pod_sandbox_id: pod.id.clone(),
        metrics,
        container_metrics: pod.containers.iter().map(container).collect(),
    }
}

fn tell<T>(table: &[Series<T>], subject: &T, (labels, at): (&[String; 6], i64), metrics: &mut Vec<Metric>) {
    for series in table {
        for (more, value) in (series.read)(subject) {
            metrics.push(Metric {
                name: series.name.to_owned(),
                timestamp: at,
                metric_type: series.kind as i32,
                label_values: labels.iter().cloned().chain(more).collect(),
                value: Some(UInt64Value { value }),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use kernel::cgroup::{DeviceIo, HugePages, Pressure, Pressures, Stall, Usage};

    use super::*;

    fn group(path: &str) -> GroupMeasure {
        let pressure = Pressure { some: Stall { total_micros: 3_500_000, ..Stall::default() }, ..Pressure::default() };
        GroupMeasure {
            path: path.into(),
            measure: Measure {
                at: 5,
                usage: Usage { cpu_nanos: 2_900_000_000, page_faults: 7, ..Usage::default() },
                pressures: Pressures { cpu: Some(pressure), ..Pressures::default() },
                nano_cores: None,
            },
            detail: Detail {
                io: vec![DeviceIo { device: "8:0".into(), reads: 4, ..DeviceIo::default() }],
                huge_pages: vec![HugePages { size: "2MB".into(), used: 1, peak: 2 }],
                cpu_quota: Some(50_000),
                ..Detail::default()
            },
        }
    }

    fn pod() -> PodMeasure {
        PodMeasure {
            id: "s1".into(),
            name: "web".into(),
            namespace: "default".into(),
            group: Some(group("/kubepods/pod1")),
            links: ["lo", "eth0"]
                .map(|name| LinkStatistics { name: name.into(), rx_bytes: 9, ..Default::default() })
                .into(),
            containers: vec![ContainerMeasure {
                id: "c1".into(),
                name: "app".into(),
                image: "nginx:1".into(),
                group: group("/kubepods/pod1/c1"),
                layer: Some(Layer { used_bytes: 77, ..Layer::default() }),
                started: 1_700_000_000,
            }],
        }
    }

    #[test]
    fn every_metric_has_a_descriptor_with_as_many_labels() {
        let known: BTreeMap<String, usize> = descriptors().into_iter().map(|d| (d.name, d.label_keys.len())).collect();
        assert_eq!(known.len(), descriptors().len(), "each name once");
        let told = pod_metrics(&pod());
        let all: Vec<&Metric> =
            told.metrics.iter().chain(told.container_metrics.iter().flat_map(|c| &c.metrics)).collect();
        for metric in &all {
            assert_eq!(known.get(&metric.name), Some(&metric.label_values.len()), "{}", metric.name);
        }
        let seen: BTreeSet<&str> = all.iter().map(|metric| metric.name.as_str()).collect();
        for name in
            ["container_cpu_cfs_throttled_seconds_total", "container_memory_working_set_bytes", "container_threads"]
        {
            assert!(seen.contains(name), "{name}");
        }
    }

    #[test]
    fn values_stand_under_cadvisors_labels() {
        let told = pod_metrics(&pod());
        let find = |metrics: &[Metric], name: &str| {
            let found: Vec<_> = metrics.iter().filter(|metric| metric.name == name).collect();
            found.iter().map(|m| (m.label_values.join(","), m.value.unwrap().value)).collect::<Vec<_>>()
        };
        let container = &told.container_metrics[0].metrics;
        let own = "app,/kubepods/pod1/c1,nginx:1,c1,default,web";
        assert_eq!(find(container, "container_cpu_usage_seconds_total"), [(format!("{own},total"), 2)]);
        assert_eq!(
            find(container, "container_memory_failures_total"),
            [(format!("{own},pgfault,container"), 7), (format!("{own},pgmajfault,container"), 0)]
        );
        assert_eq!(find(container, "container_fs_reads_total"), [(format!("{own},8:0"), 4)]);
        assert_eq!(find(container, "container_pressure_cpu_waiting_seconds_total"), [(own.to_owned(), 3)]);
        assert_eq!(find(container, "container_pressure_io_waiting_seconds_total"), []);
        assert_eq!(find(container, "container_start_time_seconds"), [(own.to_owned(), 1_700_000_000)]);
        assert_eq!(find(container, "container_network_receive_bytes_total"), []);
        assert_eq!(
            find(&told.metrics, "container_network_receive_bytes_total"),
            [(",/kubepods/pod1,,s1,default,web,eth0".to_owned(), 9)]
        );
    }
}
