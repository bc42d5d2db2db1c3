//! The control groups of this node's pods: `kubepods` with its two QoS groups, and one group for each pod.
//!
//! ```text
//! ROOT/kubepods                      node allocatable
//! ROOT/kubepods/pod<uid>             Guaranteed
//! ROOT/kubepods/burstable/pod<uid>   Burstable
//! ROOT/kubepods/besteffort/pod<uid>  BestEffort
//! ```
//!
//! A group is recognised after a restart by its name, `pod<uid>`, below `kubepods`.

mod resources;

use k8s_openapi::api::core::v1::Pod;
use kernel::cgroup::{Cgroups, Limits, Usage, shares};

pub use resources::{PodResources, Qos, Rules, pod_limits, pod_resources, qos};

/// Why a pod's group could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
#[error("cgroup of {what}: {source}")]
pub struct CgroupError {
    what: String,
    source: kernel::cgroup::Error,
}

/// What all pods together may use, thousandths of a CPU and bytes and processes; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeAllocatable {
    pub milli_cpu: i64,
    pub memory: Option<i64>,
    pub pids: Option<i64>,
}

/// The tree of control groups below one root.
#[derive(Clone, Debug)]
pub struct PodCgroups {
    cgroups: Cgroups,
    /// `ROOT/kubepods`.
    kubepods: String,
    rules: Rules,
}

impl PodCgroups {
    /// The tree below `root` (`/` or empty for the hierarchies' own root). Nothing is made yet.
    pub fn new(cgroups: Cgroups, root: &str, rules: Rules) -> Self {
        Self { cgroups, kubepods: format!("{}/kubepods", root.trim_end_matches('/')), rules }
    }

    /// Makes `kubepods` with the node's limits, and the QoS groups. Idempotent.
    ///
    /// # Errors
    /// Where the kernel refuses a group or a limit.
    pub fn setup(&self, node: &NodeAllocatable) -> Result<(), CgroupError> {
        let limits = Limits {
            cpu_shares: Some(shares(node.milli_cpu)),
            memory: node.memory,
            pids: node.pids,
            ..Limits::default()
        };
        self.make(&self.kubepods, &limits)?;
        let least = Limits { cpu_shares: Some(shares(0)), ..Limits::default() };
        self.make(&self.qos_path(Qos::Burstable), &least)?;
        self.make(&self.qos_path(Qos::BestEffort), &least)
    }

    /// Makes the pod's group with its limits and returns its path, the CRI's `cgroup_parent`. Idempotent, and changes
    /// the limits of a pod that was resized.
    ///
    /// # Errors
    /// Where the kernel refuses the group or a limit.
    pub fn create_pod(&self, pod: &Pod) -> Result<String, CgroupError> {
        let path = self.pod_path(pod);
        self.make(&path, &pod_limits(pod, &self.rules))?;
        Ok(path)
    }

    /// Gives the burstable group the CPU shares that its pods asked for together. `pods` are all that are to run.
    ///
    /// # Errors
    /// Where the kernel refuses the value.
    pub fn share_out<'a>(&self, pods: impl IntoIterator<Item = &'a Pod>) -> Result<(), CgroupError> {
        let burstable = pods.into_iter().filter(|pod| qos(pod) == Qos::Burstable);
        let milli = burstable.map(|pod| pod_resources(pod).cpu_request).sum();
        let path = self.qos_path(Qos::Burstable);
        let limits = Limits { cpu_shares: Some(shares(milli)), ..Limits::default() };
        self.cgroups.limit(&path, &limits).map_err(|source| CgroupError { what: path, source })
    }

    /// Removes the pod's group wherever it stands, and kills what is left in it. A group that is not there is success.
    /// Blocks for at most two seconds.
    ///
    /// # Errors
    /// Where processes or the kernel keep it.
    pub fn remove_pod(&self, uid: &str) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for qos in Qos::ALL {
            let path = format!("{}/pod{uid}", self.qos_path(qos));
            if let Err(source) = self.cgroups.remove(&path) {
                result = Err(CgroupError { what: path, source });
            }
        }
        result
    }

    /// Uids of the pods that have a group, for instance to remove those of pods that are gone.
    pub fn pods(&self) -> Vec<String> {
        let children = Qos::ALL.into_iter().flat_map(|qos| self.cgroups.children(&self.qos_path(qos)));
        children.filter_map(|name| Some(name.strip_prefix("pod")?.to_owned())).collect()
    }

    /// Removes the whole tree, for a node that is taken down.
    ///
    /// # Errors
    /// Where processes or the kernel keep a group.
    pub fn remove_all(&self) -> Result<(), CgroupError> {
        self.cgroups.remove(&self.kubepods).map_err(|source| CgroupError { what: self.kubepods.clone(), source })
    }

    /// The pod's group: the CRI's `cgroup_parent`.
    pub fn pod_path(&self, pod: &Pod) -> String {
        format!("{}/pod{}", self.qos_path(qos(pod)), pod.metadata.uid.as_deref().unwrap_or_default())
    }

    /// What the pod uses, or one of its containers by the runtime's id.
    ///
    /// # Errors
    /// Where the group is not there or cannot be read.
    pub fn usage(&self, pod: &Pod, container: Option<&str>) -> Result<Usage, CgroupError> {
        let mut path = self.pod_path(pod);
        if let Some(id) = container {
            path = format!("{path}/{id}");
        }
        self.cgroups.usage(&path).map_err(|source| CgroupError { what: path, source })
    }

    /// What all pods use together.
    ///
    /// # Errors
    /// Where the group is not there or cannot be read.
    pub fn total_usage(&self) -> Result<Usage, CgroupError> {
        let path = &self.kubepods;
        self.cgroups.usage(path).map_err(|source| CgroupError { what: path.clone(), source })
    }

    fn qos_path(&self, qos: Qos) -> String {
        match qos {
            Qos::Guaranteed => self.kubepods.clone(),
            Qos::Burstable => format!("{}/burstable", self.kubepods),
            Qos::BestEffort => format!("{}/besteffort", self.kubepods),
        }
    }

    fn make(&self, path: &str, limits: &Limits) -> Result<(), CgroupError> {
        let made = self.cgroups.create(path).and_then(|()| self.cgroups.limit(path, limits));
        made.map_err(|source| CgroupError { what: path.into(), source })
    }
}

#[cfg(test)]
mod tests;
