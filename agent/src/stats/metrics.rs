//! /metrics/resource and /metrics/cadvisor, in Prometheus' text format.

use std::fmt::Write;

use k8s_openapi::jiff::Timestamp;
use kernel::cgroup::Usage;

use super::{ContainerMeasure, PodMeasure, Stats, node};

/// Writes families of series.
#[derive(Default)]
struct Exposition {
    out: String,
    millis: i64,
}

type Labels<'a> = [(&'a str, &'a str)];

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: f64) {
        self.out.push_str(name);
        for (index, (key, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{}{key}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value} {}", self.millis);
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn name_of(measure: &PodMeasure) -> (&str, &str) {
    let meta = &measure.pod.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// A series with a value for each container.
type OfContainer = (&'static str, &'static str, &'static str, fn(&ContainerMeasure) -> Option<f64>);
/// A series with a value for each control group.
type OfGroup = (&'static str, &'static str, &'static str, fn(&Usage) -> f64);

const CONTAINER_SERIES: [OfContainer; 3] = [
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        |c| Some(seconds(c.usage.cpu_nanos)),
    ),
    ("container_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the container in bytes", |c| {
        Some(c.usage.working_set as f64)
    }),
    (
        "container_start_time_seconds",
        "gauge",
        "[STABLE] Start time of the container since unix epoch in seconds",
        |c| c.started.map(|t| t.as_millisecond() as f64 / 1e3),
    ),
];

const POD_SERIES: [OfGroup; 2] = [
    (
        "pod_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        |u| seconds(u.cpu_nanos),
    ),
    ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes", |u| {
        u.working_set as f64
    }),
];

pub(super) fn resource(stats: &Stats) -> String {
    let mut out = Exposition { millis: Timestamp::now().as_millisecond(), ..Exposition::default() };
    let measures = stats.measure();
    for (name, kind, help, value) in CONTAINER_SERIES {
        out.family(name, kind, help);
        for measure in &measures {
            let (namespace, pod) = name_of(measure);
            for container in &measure.containers {
                if let Some(value) = value(container) {
                    let labels = [("container", &*container.name), ("namespace", namespace), ("pod", pod)];
                    out.sample(name, &labels, value);
                }
            }
        }
    }
    let node = node::read();
    out.family(
        "node_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    );
    out.sample("node_cpu_usage_seconds_total", &[], seconds(node.cpu_nanos));
    out.family("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes");
    out.sample("node_memory_working_set_bytes", &[], node.working_set as f64);
    for (name, kind, help, value) in POD_SERIES {
        out.family(name, kind, help);
        for (measure, usage) in measures.iter().filter_map(|m| Some((m, m.usage.as_ref()?))) {
            let (namespace, pod) = name_of(measure);
            out.sample(name, &[("namespace", namespace), ("pod", pod)], value(usage));
        }
    }
    let error = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    out.family("resource_scrape_error", "gauge", error);
    let _ = writeln!(out.out, "resource_scrape_error 0");
    out.out
}

const CADVISOR_SERIES: [OfGroup; 6] = [
    ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", |u| {
        seconds(u.cpu_nanos)
    }),
    ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory.", |u| {
        u.memory as f64
    }),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |u| u.working_set as f64),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |u| u.rss as f64),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |u| {
        u.memory_limit.unwrap_or(0) as f64
    }),
    ("container_threads", "gauge", "Number of threads running inside the container.", |u| u.pids as f64),
];

pub(super) fn cadvisor(stats: &Stats) -> String {
    let mut out = Exposition { millis: Timestamp::now().as_millisecond(), ..Exposition::default() };
    let measures = stats.measure();
    for (name, kind, help, value) in CADVISOR_SERIES {
        out.family(name, kind, help);
        for measure in &measures {
            let (namespace, pod) = name_of(measure);
            let group = stats.cgroups.pod_path(&measure.pod);
            if let Some(usage) = &measure.usage {
                let labels = [("container", ""), ("id", &*group), ("image", ""), ("name", "")];
                out.sample(
                    name,
                    &[labels.as_slice(), &[("namespace", namespace), ("pod", pod)]].concat(),
                    value(usage),
                );
            }
            for c in &measure.containers {
                let id = format!("{group}/{}", c.id);
                let labels = [("container", &*c.name), ("id", &*id), ("image", &*c.image), ("name", &*c.id)];
                let labels = [labels.as_slice(), &[("namespace", namespace), ("pod", pod)]].concat();
                out.sample(name, &labels, value(&c.usage));
            }
        }
    }
    let node = node::read();
    out.family("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    out.sample("machine_cpu_cores", &[], node.cpus as f64);
    out.family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
    out.sample("machine_memory_bytes", &[], node.memory_total as f64);
    out.out
}

/// The agent's own series, under the kubelet's names.
pub(super) fn agent(stats: &Stats) -> String {
    let mut out = Exposition { millis: Timestamp::now().as_millisecond(), ..Exposition::default() };
    let measures = stats.measure();
    let containers: usize = measures.iter().map(|m| m.containers.len()).sum();
    let process = node::own_process();
    let families = [
        ("kubelet_running_pods", "gauge", "Number of pods that have a running container", {
            measures.iter().filter(|m| !m.containers.is_empty()).count() as f64
        }),
        (
            "kubelet_desired_pods",
            "gauge",
            "The number of pods the kubelet is being instructed to run",
            measures.len() as f64,
        ),
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            seconds(process.cpu_nanos),
        ),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", process.resident as f64),
        ("process_open_fds", "gauge", "Number of open file descriptors.", process.descriptors as f64),
    ];
    out.family("kubelet_running_containers", "gauge", "Number of containers currently running");
    out.sample("kubelet_running_containers", &[("container_state", "running")], containers as f64);
    out.family("kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.");
    out.sample("kubelet_node_name", &[("node", &stats.node_name)], 1.0);
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        out.sample(name, &[], value);
    }
    out.out
}
