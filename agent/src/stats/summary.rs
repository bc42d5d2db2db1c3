//! /stats/summary, in the schema of kubelet's stats v1alpha1.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kernel::cgroup::Usage;
use kernel::mount::Space;
use serde_json::{Map, Value, json};

use super::disk::{self, Used};
use super::node::{self, NodeUsage};
use super::{ContainerMeasure, PodMeasure, Stats, Stores};

pub(super) fn build(stats: &Stats, stores: &Stores) -> Value {
    let now = time(Timestamp::now());
    let measures = stats.measure();
    let pods: Vec<Value> = measures.iter().map(|m| Builder { stats, stores, now: &now }.pod(m)).collect();
    json!({"node": node_part(stats, stores, &now), "pods": pods})
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn node_part(stats: &Stats, stores: &Stores, now: &str) -> Value {
    let usage = node::read();
    let boot = Timestamp::from_second(usage.boot_time).map(time).unwrap_or_default();
    let space = |path: &Path| kernel::mount::space(path).map(|s| file_system(&s, now)).unwrap_or(Value::Null);
    let fs = space(&stats.root);
    let image = stores.image_root.as_deref().map_or_else(|| fs.clone(), space);
    let total = stats.cgroups.total_usage().ok();
    let pods = total.map(|t| {
        json!({"name": "pods", "startTime": boot, "cpu": cpu(stats, "pods", t.cpu_nanos, now), "memory": memory(&t, now)})
    });
    json!({
        "nodeName": stats.node_name,
        "systemContainers": pods.into_iter().collect::<Vec<_>>(),
        "startTime": boot,
        "cpu": cpu(stats, "node", usage.cpu_nanos, now),
        "memory": {
            "time": now,
            "availableBytes": usage.available,
            "usageBytes": usage.memory,
            "workingSetBytes": usage.working_set,
            "rssBytes": usage.rss,
            "pageFaults": usage.page_faults,
            "majorPageFaults": usage.major_page_faults,
        },
        "network": network(&usage, now),
        "fs": fs,
        "runtime": {"imageFs": image, "containerFs": image},
        "rlimit": {"time": now, "maxpid": usage.max_pid, "curproc": usage.processes},
    })
}

fn cpu(stats: &Stats, key: &str, nanos: u64, now: &str) -> Value {
    let mut out = json!({"time": now, "usageCoreNanoSeconds": nanos});
    if let Some(rate) = stats.rate(key, nanos) {
        out["usageNanoCores"] = rate.into();
    }
    out
}

fn memory(usage: &Usage, now: &str) -> Value {
    let mut out = json!({
        "time": now,
        "usageBytes": usage.memory,
        "workingSetBytes": usage.working_set,
        "rssBytes": usage.rss,
        "pageFaults": usage.page_faults,
        "majorPageFaults": usage.major_page_faults,
    });
    if let Some(limit) = usage.memory_limit {
        out["availableBytes"] = limit.saturating_sub(usage.working_set).into();
    }
    out
}

fn file_system(space: &Space, now: &str) -> Value {
    json!({
        "time": now,
        "availableBytes": space.available,
        "capacityBytes": space.capacity,
        "usedBytes": space.used,
        "inodesFree": space.inodes_free,
        "inodes": space.inodes,
        "inodesUsed": space.inodes.saturating_sub(space.inodes_free),
    })
}

fn network(usage: &NodeUsage, now: &str) -> Value {
    let one = |i: &node::Interface| {
        json!({
            "name": i.name,
            "rxBytes": i.received,
            "rxErrors": i.receive_errors,
            "txBytes": i.sent,
            "txErrors": i.send_errors,
        })
    };
    // The kubelet's default interface is eth0; the first stands in where there is none.
    let default = usage.interfaces.iter().find(|i| i.name == "eth0").or(usage.interfaces.first());
    let mut out = default.map_or_else(|| json!({"name": ""}), one);
    out["time"] = now.into();
    out["interfaces"] = usage.interfaces.iter().map(one).collect();
    out
}

struct Builder<'a> {
    stats: &'a Stats,
    stores: &'a Stores,
    now: &'a str,
}

impl Builder<'_> {
    fn pod(&self, measure: &PodMeasure) -> Value {
        let meta = &measure.pod.metadata;
        let uid = meta.uid.as_deref().unwrap_or_default();
        let started = measure.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| time(t.0));
        let mut ephemeral = Used::default();
        let containers: Vec<Value> =
            measure.containers.iter().map(|c| self.container(uid, c, &mut ephemeral)).collect();
        let volumes = self.volumes(&measure.pod, uid, &mut ephemeral);
        let mut out = json!({
            "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": uid},
            "startTime": started,
            "containers": containers,
            "volume": volumes,
            "ephemeral-storage": self.part_of(&self.stats.root, ephemeral),
        });
        if let Some(usage) = &measure.usage {
            out["cpu"] = cpu(self.stats, uid, usage.cpu_nanos, self.now);
            out["memory"] = memory(usage, self.now);
            out["process_stats"] = json!({"process_count": usage.pids});
        }
        out
    }

    fn container(&self, uid: &str, measure: &ContainerMeasure, ephemeral: &mut Used) -> Value {
        let key = format!("{uid}/{}", measure.id);
        let mut out = json!({
            "name": measure.name,
            "startTime": measure.started.map(time),
            "cpu": cpu(self.stats, &key, measure.usage.cpu_nanos, self.now),
            "memory": memory(&measure.usage, self.now),
        });
        if let Some(layer) = self.stores.layers.get(&measure.id) {
            let used = Used { bytes: layer.used, inodes: layer.inodes };
            *ephemeral += used;
            out["rootfs"] = self.part_of(self.stores.image_root.as_deref().unwrap_or(&self.stats.root), used);
        }
        if let Some(dir) = &measure.log_dir {
            let used = disk::used(dir);
            *ephemeral += used;
            out["logs"] = self.part_of(dir, used);
        }
        out
    }

    /// The pod's volumes that hold data of its own. What lies on the node's disk counts as ephemeral storage.
    fn volumes(&self, pod: &Pod, uid: &str, ephemeral: &mut Used) -> Vec<Value> {
        let base = self.stats.root.join("pods").join(uid).join("volumes");
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let mut out = Vec::new();
        for volume in volumes {
            let plugins = ["empty-dir", "configmap", "secret", "projected", "downward-api"];
            let dirs = plugins.iter().map(|p| base.join(format!("kubernetes.io~{p}")).join(&volume.name));
            let Some(dir) = dirs.into_iter().find(|d| d.is_dir()) else { continue };
            let mounted = kernel::mount::is_mount_point(&dir).unwrap_or(false);
            let used = disk::used(&dir);
            if !mounted {
                *ephemeral += used;
            }
            let mut entry = self.part_of(&dir, used);
            entry["name"] = volume.name.clone().into();
            out.push(entry);
        }
        out
    }

    /// What something uses of the file system at `path`.
    fn part_of(&self, path: &Path, used: Used) -> Value {
        let space = kernel::mount::space(path).unwrap_or_default();
        let mut out = file_system(&space, self.now);
        let own = Map::from_iter([
            ("usedBytes".to_owned(), used.bytes.into()),
            ("inodesUsed".to_owned(), used.inodes.into()),
        ]);
        if let Value::Object(fields) = &mut out {
            fields.extend(own);
        }
        out
    }
}
