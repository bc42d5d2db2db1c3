//! What pods, containers and the node use: measured when somebody asks, from control groups, /proc and statvfs.

mod disk;
mod metrics;
mod node;
mod summary;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cri::v1::ListContainerStatsRequest;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kernel::cgroup::Usage;

use crate::cgroup::PodCgroups;
use crate::pod::{ContainerPhase, Pods};
use crate::runtime::Runtime;

/// The shortest time over which a CPU rate is computed.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// How long a rate's sample is kept when nobody asks.
const SAMPLE_LIFE: Duration = Duration::from_secs(600);

/// Measures this node.
pub struct Stats {
    pods: Arc<dyn Pods>,
    cgroups: PodCgroups,
    runtime: Runtime,
    node_name: String,
    /// The agent's root folder, whose file system is the node's.
    root: PathBuf,
    samples: Mutex<HashMap<String, Sample>>,
}

/// Where things stand on this node.
#[derive(Clone, Debug)]
pub struct Places {
    pub node_name: String,
    /// The agent's root folder.
    pub root: PathBuf,
}

/// CPU time at a moment, and the rate that was computed there.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    cpu_nanos: u64,
    rate: Option<u64>,
}

/// One pod's measures.
struct PodMeasure {
    pod: Arc<Pod>,
    usage: Option<Usage>,
    containers: Vec<ContainerMeasure>,
}

struct ContainerMeasure {
    name: String,
    id: String,
    image: String,
    started: Option<Timestamp>,
    usage: Usage,
    log_dir: Option<PathBuf>,
}

/// What the runtime says of its storage.
struct Stores {
    /// Writable layers by container id.
    layers: HashMap<String, Layer>,
    /// Where images are kept.
    image_root: Option<PathBuf>,
}

/// The writable layer of a container.
#[derive(Clone, Copy, Debug, Default)]
struct Layer {
    used: u64,
    inodes: u64,
}

impl Stats {
    pub fn new(pods: Arc<dyn Pods>, cgroups: PodCgroups, runtime: Runtime, places: Places) -> Self {
        let Places { node_name, root } = places;
        Self { pods, cgroups, runtime, node_name, root, samples: Mutex::default() }
    }

    /// The body of /stats/summary (kubelet's `stats/v1alpha1` Summary).
    pub async fn summary(self: &Arc<Self>) -> serde_json::Value {
        let stores = Stores { layers: self.layers().await, image_root: self.image_root().await };
        let stats = self.clone();
        let body = tokio::task::spawn_blocking(move || summary::build(&stats, &stores)).await;
        body.unwrap_or(serde_json::Value::Null)
    }

    /// The body of /metrics/resource.
    pub async fn resource_metrics(self: &Arc<Self>) -> String {
        let stats = self.clone();
        tokio::task::spawn_blocking(move || metrics::resource(&stats)).await.unwrap_or_default()
    }

    /// The body of /metrics: the agent itself.
    pub async fn agent_metrics(self: &Arc<Self>) -> String {
        let stats = self.clone();
        tokio::task::spawn_blocking(move || metrics::agent(&stats)).await.unwrap_or_default()
    }

    /// The body of /metrics/cadvisor: the series that dashboards ask for most.
    pub async fn cadvisor_metrics(self: &Arc<Self>) -> String {
        let stats = self.clone();
        tokio::task::spawn_blocking(move || metrics::cadvisor(&stats)).await.unwrap_or_default()
    }

    /// Writable layers by container id; empty where the runtime does not tell.
    async fn layers(&self) -> HashMap<String, Layer> {
        let listed = match self.runtime.list_container_stats(ListContainerStatsRequest::default()).await {
            Ok(listed) => listed.stats,
            Err(error) => {
                tracing::debug!("list container statistics: {error}");
                return HashMap::new();
            }
        };
        let layer = |s: cri::v1::ContainerStats| {
            let layer = s.writable_layer?;
            let used = layer.used_bytes.map_or(0, |v| v.value);
            Some((s.attributes?.id, Layer { used, inodes: layer.inodes_used.map_or(0, |v| v.value) }))
        };
        listed.into_iter().filter_map(layer).collect()
    }

    async fn image_root(&self) -> Option<PathBuf> {
        let told = self.runtime.image_fs_info(cri::v1::ImageFsInfoRequest {}).await.ok()?;
        Some(told.image_filesystems.into_iter().next()?.fs_id?.mountpoint.into())
    }

    fn measure(&self) -> Vec<PodMeasure> {
        self.pods.list().into_iter().map(|pod| self.measure_pod(pod)).collect()
    }

    fn measure_pod(&self, pod: Arc<Pod>) -> PodMeasure {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let usage = self.cgroups.usage(&pod, None).ok();
        let measured = statuses(&pod).filter_map(|status| {
            let found = self.pods.container(&uid, &status.name, false)?;
            if found.phase != ContainerPhase::Running {
                return None;
            }
            let usage = self.cgroups.usage(&pod, Some(&found.id)).ok()?;
            let running = status.state.as_ref().and_then(|s| s.running.as_ref());
            Some(ContainerMeasure {
                name: status.name.clone(),
                started: running.and_then(|r| r.started_at.as_ref()).map(|t| t.0),
                image: status.image.clone(),
                log_dir: found.log_path.parent().map(PathBuf::from),
                id: found.id,
                usage,
            })
        });
        let containers = measured.collect();
        PodMeasure { pod, usage, containers }
    }

    /// Billionths of a CPU used since the sample before; `None` until there are two.
    fn rate(&self, key: &str, cpu_nanos: u64) -> Option<u64> {
        let now = Instant::now();
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|_, sample| now.duration_since(sample.at) < SAMPLE_LIFE);
        let next = next_sample(samples.get(key), now, cpu_nanos);
        samples.insert(key.into(), next);
        next.rate
    }
}

fn next_sample(last: Option<&Sample>, now: Instant, cpu_nanos: u64) -> Sample {
    let Some(last) = last else { return Sample { at: now, cpu_nanos, rate: None } };
    let window = now.duration_since(last.at);
    if window < MIN_WINDOW {
        return *last;
    }
    let used = u128::from(cpu_nanos.saturating_sub(last.cpu_nanos));
    let rate = u64::try_from(used * 1_000_000_000 / window.as_nanos().max(1)).ok();
    Sample { at: now, cpu_nanos, rate }
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let lists = status.into_iter().flat_map(|s| {
        [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses].into_iter().flatten()
    });
    lists.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_samples_a_second_apart() {
        let start = Instant::now();
        let first = next_sample(None, start, 1_000);
        assert_eq!(first.rate, None);
        let soon = next_sample(Some(&first), start + Duration::from_millis(10), 9_000);
        assert_eq!((soon.rate, soon.cpu_nanos), (None, 1_000));
        let later = next_sample(Some(&first), start + Duration::from_secs(2), 1_000_001_000);
        assert_eq!(later.rate, Some(500_000_000));
    }
}
