//! Figures of sandboxes and containers: what is known here, measured by [`crate::stats`].

use std::path::PathBuf;
use std::sync::Arc;

use cri::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, PodSandboxAttributes, PodSandboxMetrics,
    PodSandboxStats, PodSandboxStatsFilter,
};
use futures::stream::{self, StreamExt};

use crate::container::record::ContainerRecord;
use crate::container::{Container, cgroup};
use crate::error::Result;
use crate::sandbox::Sandbox;
use crate::sandbox::record::{Phase, SandboxRecord};
use crate::sandbox::status::selects;
use crate::shim::{Shim, blocking};
use crate::stats::{
    ContainerMeasure, GroupMeasure, Layer, Measure, Meter, PodMeasure, container_stats, links, pod_metrics,
    sandbox_stats,
};

/// Writable layers that are measured at once: each is a walk over a file system.
const LAYERS: usize = 4;

/// A container's figures; one that does not run has only its writable layer.
///
/// # Errors
/// `NotFound`.
pub async fn of_container(shim: &Arc<Shim>, id: &str) -> Result<ContainerStats> {
    let container = shim.containers.find(id)?;
    Ok(measured(shim, vec![container]).await?.remove(0))
}

/// Figures of the containers that the filter lets through.
///
/// # Errors
/// Where no thread measures.
pub async fn of_containers(shim: &Arc<Shim>, filter: Option<&ContainerStatsFilter>) -> Result<Vec<ContainerStats>> {
    let wanted = |record: &ContainerRecord| {
        filter.is_none_or(|filter| {
            record.id.starts_with(&filter.id)
                && record.sandbox.starts_with(&filter.pod_sandbox_id)
                && selects(&filter.label_selector, &record.config.labels)
        })
    };
    let all = shim.containers.all().into_iter();
    measured(shim, all.filter(|container| wanted(&container.record())).collect()).await
}

/// The same order as `containers`.
async fn measured(shim: &Arc<Shim>, containers: Vec<Arc<Container>>) -> Result<Vec<ContainerStats>> {
    let layers: Vec<Option<Layer>> =
        stream::iter(containers.clone()).map(|c| layer(shim, c.record().id.clone())).buffered(LAYERS).collect().await;
    let meter = shim.meter.clone();
    blocking("measure containers", move || {
        let one = |(container, layer): (Arc<Container>, Option<Layer>)| {
            let measure = container.running().and_then(|_| measure(meter.as_deref(), &container.record()));
            container_stats(attributes(&container.record()), measure.as_ref(), layer.as_ref())
        };
        Ok(containers.into_iter().zip(layers).map(one).collect())
    })
    .await
}

/// Nothing for a group that has just gone.
fn measure(meter: Option<&Meter>, record: &ContainerRecord) -> Option<Measure> {
    let meter = meter?;
    meter.measure(&cgroup::of_container(meter.cgroups(), &record.cgroup)).ok()
}

async fn layer(shim: &Arc<Shim>, id: String) -> Option<Layer> {
    let (usage, mount_point) = futures::join!(shim.images.usage(&id), shim.images.mount_point());
    let (usage, mount_point) = (usage.ok()?, mount_point.ok()?);
    let at = usage.at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Some(Layer {
        at: i64::try_from(at.as_nanos()).unwrap_or(i64::MAX),
        mountpoint: mount_point.to_string_lossy().into_owned(),
        used_bytes: usage.bytes,
        inodes: usage.inodes,
    })
}

fn attributes(record: &ContainerRecord) -> ContainerAttributes {
    ContainerAttributes {
        id: record.id.clone(),
        metadata: Some(record.metadata()),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

/// A sandbox's figures with those of its containers.
///
/// # Errors
/// `NotFound`.
pub async fn of_sandbox(shim: &Arc<Shim>, id: &str) -> Result<PodSandboxStats> {
    pod(shim, &*shim.sandboxes.find(id)?).await
}

/// Figures of the sandboxes that are ready and that the filter lets through.
///
/// # Errors
/// Where no thread measures.
pub async fn of_sandboxes(shim: &Arc<Shim>, filter: Option<&PodSandboxStatsFilter>) -> Result<Vec<PodSandboxStats>> {
    let wanted = |sandbox: &Sandbox| {
        let record = &sandbox.record;
        sandbox.phase() == Phase::Ready
            && filter.is_none_or(|filter| {
                record.id.starts_with(&filter.id) && selects(&filter.label_selector, &record.config.labels)
            })
    };
    let mut all = Vec::new();
    for sandbox in shim.sandboxes.all().into_iter().filter(|sandbox| wanted(sandbox)) {
        all.push(pod(shim, &sandbox).await?);
    }
    Ok(all)
}

async fn pod(shim: &Arc<Shim>, sandbox: &Sandbox) -> Result<PodSandboxStats> {
    let record = sandbox.record.clone();
    let containers = measured(shim, shim.containers_of(&record.id)).await?;
    let (meter, netns) = (shim.meter.clone(), netns(shim, &record));
    blocking("measure a pod sandbox", move || {
        let group = pod_group(&record);
        let measure = group.and_then(|group| meter?.measure(&group).ok());
        let links = netns.map(|path| links(&path)).unwrap_or_default();
        let attributes = PodSandboxAttributes {
            id: record.id.clone(),
            metadata: Some(record.metadata()),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        };
        Ok(sandbox_stats(attributes, measure.as_ref(), &links, containers))
    })
    .await
}

/// The pod's own network namespace; none for a pod on the node's network.
fn netns(shim: &Shim, record: &SandboxRecord) -> Option<PathBuf> {
    (!record.host_network()).then(|| shim.folders.sandbox(&record.id).netns())
}

fn pod_group(record: &SandboxRecord) -> Option<String> {
    let parent = record.cgroup_parent();
    (!parent.is_empty()).then(|| cgroup::of_pod(parent))
}

/// What dashboards read of every sandbox that is ready.
///
/// # Errors
/// Where no thread measures.
pub async fn metrics(shim: &Arc<Shim>) -> Result<Vec<PodSandboxMetrics>> {
    let ready = shim.sandboxes.all().into_iter().filter(|sandbox| sandbox.phase() == Phase::Ready);
    let mut all = Vec::new();
    for sandbox in ready {
        let running = shim.containers_of(&sandbox.record.id).into_iter().filter(|c| c.running().is_some());
        let running: Vec<Arc<Container>> = running.collect();
        let layers: Vec<Option<Layer>> =
            stream::iter(running.clone()).map(|c| layer(shim, c.record().id.clone())).buffered(LAYERS).collect().await;
        let (meter, netns) = (shim.meter.clone(), netns(shim, &sandbox.record));
        let measured = blocking("measure a pod's metrics", move || {
            let meter = meter.as_deref();
            let record = &sandbox.record;
            let metadata = record.metadata();
            let containers = running.iter().zip(layers).filter_map(|(c, layer)| container_measure(meter, c, layer));
            Ok(pod_metrics(&PodMeasure {
                id: record.id.clone(),
                name: metadata.name,
                namespace: metadata.namespace,
                group: pod_group(record).and_then(|path| group(meter?, path)),
                links: netns.map(|path| links(&path)).unwrap_or_default(),
                containers: containers.collect(),
            }))
        });
        all.push(measured.await?);
    }
    Ok(all)
}

fn container_measure(meter: Option<&Meter>, container: &Container, layer: Option<Layer>) -> Option<ContainerMeasure> {
    let (record, running) = (container.record(), container.running()?);
    Some(ContainerMeasure {
        id: record.id.clone(),
        name: record.metadata().name,
        image: record.image.name.clone(),
        group: group(meter?, cgroup::of_container(meter?.cgroups(), &record.cgroup))?,
        layer,
        started: u64::try_from(running.started_at / 1_000_000_000).unwrap_or(0),
    })
}

fn group(meter: &Meter, path: String) -> Option<GroupMeasure> {
    let (measure, detail) = (meter.measure(&path).ok()?, meter.detail(&path).ok()?);
    Some(GroupMeasure { path, measure, detail })
}
