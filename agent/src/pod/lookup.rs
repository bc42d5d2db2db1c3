//! What port 10250 and the probes ask about the pods of this node.

use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// The pods of this node as the workers know them. Every call answers from memory.
pub trait Pods: Send + Sync + 'static {
    /// All pods, each with the status that the agent last computed.
    fn list(&self) -> Vec<Arc<Pod>>;

    /// A pod by namespace and name; where a uid is given, only if it is that pod.
    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Arc<Pod>>;

    /// The pod with this uid.
    fn by_uid(&self, uid: &str) -> Option<Arc<Pod>>;

    /// The pod's first address, once its sandbox has one (the node's for a pod on the host's network).
    fn address(&self, uid: &str) -> Option<IpAddr>;

    /// The CRI sandbox of the pod, if one is ready.
    fn sandbox(&self, uid: &str) -> Option<String>;

    /// The latest container of that name (init, sidecar, ordinary), or with `previous` the one before it.
    fn container(&self, uid: &str, name: &str, previous: bool) -> Option<ContainerRef>;
}

/// A container in the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRef {
    /// The CRI's id, without a scheme.
    pub id: String,
    pub name: String,
    /// How often the container of this name was started before.
    pub attempt: u32,
    pub phase: ContainerPhase,
    /// The absolute path of its log in the CRI format.
    pub log_path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerPhase {
    Created,
    Running,
    Exited,
    Unknown,
}
