//! What every pod's worker works with.

use super::admit::Admission;
use crate::cgroup::PodCgroups;
use crate::config::Config;
use crate::event::Recorder;
use crate::image::Images;
use crate::runtime::Runtime;
use crate::services::Services;
use crate::volume::Volumes;
use cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// Shared by all workers.
pub struct Context {
    pub client: Client,
    pub config: Config,
    /// `--root-dir`.
    pub root_dir: PathBuf,
    pub host: Host,
    pub runtime: Runtime,
    pub images: Images,
    pub volumes: Volumes,
    pub cgroups: PodCgroups,
    pub events: Recorder,
    pub services: Arc<Services>,
    pub admission: Admission,
    /// The node as it was last stored; absent until it is registered.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// Why the runtime's network is not ready; empty when it is.
    pub network: watch::Receiver<String>,
}

/// The machine, as pods see it.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub node_name: String,
    pub ips: Vec<IpAddr>,
    /// The resolver configuration that pods start from.
    pub dns: DnsConfig,
    /// Capacity, bytes.
    pub memory: i64,
    pub allocatable_milli_cpu: i64,
    pub allocatable_memory: i64,
}
