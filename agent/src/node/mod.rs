//! The node's own object: registered, its status told, its lease renewed.

mod lease;
mod machine;
mod status;

pub use machine::{Machine, tasks};
pub use status::allocatable;

use crate::config::Config;
use crate::event::{Kind, Recorder};
use crate::options::Options;
use crate::runtime::Runtime;
use cri::v1::{ImageFsInfoRequest, ListImagesRequest, StatusRequest, VersionRequest};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use lifecycle::Stop;
use serde_json::{Value, json};
use status::{Readings, Reported};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// The runtime is asked this often whether it is ready; sooner while it is not.
const ASK: Duration = Duration::from_secs(5);
const ASK_SOON: Duration = Duration::from_millis(500);
/// Images change with pulls only; their list is read this often.
const LIST_IMAGES: Duration = Duration::from_secs(60);

/// What tells of this node.
pub struct Keeper {
    client: Client,
    name: String,
    ips: Vec<IpAddr>,
    config: Config,
    labels: BTreeMap<String, String>,
    root_dir: PathBuf,
    runtime: Runtime,
    events: Recorder,
    machine: Machine,
    node: watch::Sender<Option<Arc<Node>>>,
    network: watch::Sender<String>,
}

/// Where the keeper publishes.
pub struct Published {
    /// The node as it was last stored.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// Why the runtime's network is not ready; empty when it is.
    pub network: watch::Receiver<String>,
}

/// What the keeper works with.
pub struct Parts {
    pub client: Client,
    pub name: String,
    pub ips: Vec<IpAddr>,
    pub runtime: Runtime,
    pub events: Recorder,
    pub machine: Machine,
}

impl Keeper {
    pub fn new(parts: Parts, config: &Config, options: &Options) -> (Self, Published) {
        let (node, node_seen) = watch::channel(None);
        let (network, network_seen) = watch::channel("the runtime was not asked yet".to_string());
        let pairs = options.node_labels.iter().filter_map(|pair| pair.split_once('='));
        let keeper = Self {
            client: parts.client,
            name: parts.name,
            ips: parts.ips,
            config: config.clone(),
            labels: pairs.map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            root_dir: options.root_dir.clone(),
            runtime: parts.runtime,
            events: parts.events,
            machine: parts.machine,
            node,
            network,
        };
        (keeper, Published { node: node_seen, network: network_seen })
    }

    /// Registers the node and keeps its status and lease until `stop`.
    pub async fn run(self, stop: Stop) {
        let lease = lease::renew(
            self.client.clone(),
            &self.name,
            self.config.node_lease_duration_seconds,
            self.node.subscribe(),
        );
        tokio::select! { () = stop.stopped() => {}, () = lease => {}, () = self.tell() => {}, () = self.follow() => {} }
    }

    /// Publishes the node as others change it, and that it is gone.
    async fn follow(&self) {
        let mut node = self.node.subscribe();
        if node.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let own = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut changes = watcher::watcher(nodes, own).default_backoff().boxed();
        let mut listed = None;
        while let Some(change) = changes.next().await {
            let now = match change {
                Ok(Event::Init) => continue,
                Ok(Event::InitApply(node)) => {
                    listed = Some(node);
                    continue;
                }
                Ok(Event::InitDone) => listed.take(),
                Ok(Event::Apply(node)) => Some(node),
                Ok(Event::Delete(_)) => None,
                Err(error) => {
                    debug!(%error, "the watch of the node broke");
                    continue;
                }
            };
            self.node.send_replace(now.map(Arc::new));
        }
    }

    async fn tell(&self) {
        let mut reported = Reported::default();
        let mut images = (Instant::now(), Vec::new());
        let mut told: Option<(Value, Instant)> = None;
        let mut node = self.node.subscribe();
        let mut looked: Option<Instant> = None;
        loop {
            let readings = self.read(&mut images).await;
            let soon = !readings.is_ready();
            self.network.send_if_modified(|network| {
                let changed = *network != readings.network;
                network.clone_from(&readings.network);
                changed
            });
            let mut registered = node.borrow_and_update().is_some();
            if !registered {
                registered = self.register().await;
                // A node that was deleted comes back with all of its status.
                reported.forget();
                told = None;
            }
            let due = looked.is_none_or(|at| at.elapsed() >= self.config.node_status_update_frequency);
            let turned = reported.ready() != Some(readings.is_ready());
            if registered && (due || turned) {
                looked = Some(Instant::now());
                self.report(&readings, &mut reported, &mut told).await;
            }
            let pause = tokio::time::sleep(if soon || !registered { ASK_SOON } else { ASK });
            let gone = node.wait_for(|node| node.is_none() == registered);
            tokio::select! { () = pause => {}, _ = gone => {} }
        }
    }

    async fn report(&self, readings: &Readings, reported: &mut Reported, told: &mut Option<(Value, Instant)>) {
        let Some(node) = self.node.borrow().clone() else { return };
        let (status, events) = reported.status(self, node.status.as_ref(), readings, Timestamp::now());
        let essence = status::essence(&status);
        let fresh = told
            .as_ref()
            .is_some_and(|(before, at)| *before == essence && at.elapsed() < self.config.node_status_report_frequency);
        if fresh {
            return;
        }
        match self.patch_status(&status).await {
            Ok(stored) => {
                *told = Some((essence, Instant::now()));
                for reason in events {
                    info!(node = self.name, reason, "the node's status");
                    let message = format!("Node {} status is now: {reason}", self.name);
                    self.events.node(&stored, Kind::Normal, reason, message);
                }
                self.node.send_replace(Some(Arc::new(stored)));
            }
            Err(error) => {
                reported.forget();
                warn!(%error, "the node's status was not stored");
            }
        }
    }

    async fn patch_status(&self, status: &NodeStatus) -> kube::Result<Node> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let mut status = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
        // Addresses merge by type in the API; what is told is all there is.
        if let Some(addresses) = status.get_mut("addresses").and_then(Value::as_array_mut) {
            addresses.push(json!({"$patch": "replace"}));
        }
        let patch = Patch::Strategic(json!({"status": status}));
        nodes.patch_status(&self.name, &PatchParams::default(), &patch).await
    }

    /// Makes the node's object, or takes over the one that is there.
    async fn register(&self) -> bool {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let stored = match nodes.get_opt(&self.name).await {
            Ok(Some(node)) => self.adopt(&nodes, node).await,
            Ok(None) if self.config.register_node => nodes.create(&PostParams::default(), &self.object()).await,
            Ok(None) => return false,
            Err(error) => Err(error),
        };
        match stored {
            Ok(node) => {
                info!(node = self.name, "registered");
                self.events.node(&node, Kind::Normal, "Starting", "Starting kubelet.".into());
                self.node.send_replace(Some(Arc::new(node)));
                true
            }
            Err(error) => {
                warn!(node = self.name, %error, "the node was not registered");
                false
            }
        }
    }

    /// Gives an existing node the labels that are the agent's to give.
    async fn adopt(&self, nodes: &Api<Node>, node: Node) -> kube::Result<Node> {
        let has = node.metadata.labels.clone().unwrap_or_default();
        let missing: BTreeMap<_, _> =
            self.all_labels().into_iter().filter(|(key, value)| has.get(key) != Some(value)).collect();
        if missing.is_empty() {
            return Ok(node);
        }
        let patch = Patch::Merge(json!({"metadata": {"labels": missing}}));
        nodes.patch(&self.name, &PatchParams::default(), &patch).await
    }

    fn all_labels(&self) -> BTreeMap<String, String> {
        let arch = machine::arch();
        let own = [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
        ];
        let own = own.into_iter().map(|(key, value)| (key.to_string(), value.to_string()));
        own.chain(self.labels.clone()).collect()
    }

    fn object(&self) -> Node {
        let taint = |taint: &crate::config::Taint| Taint {
            key: taint.key.clone(),
            value: taint.value.clone(),
            effect: taint.effect.clone(),
            time_added: None,
        };
        let taints: Vec<Taint> = self.config.register_with_taints.iter().map(taint).collect();
        let annotation = ("volumes.kubernetes.io/controller-managed-attach-detach".to_string(), "true".to_string());
        Node {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(self.all_labels()),
                annotations: Some(BTreeMap::from([annotation])),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                provider_id: Some(self.config.provider_id.clone()).filter(|id| !id.is_empty()),
                taints: Some(taints).filter(|taints| !taints.is_empty()),
                ..NodeSpec::default()
            }),
            status: None,
        }
    }

    async fn read(&self, images: &mut (Instant, Vec<cri::v1::Image>)) -> Readings {
        let mut readings = Readings { memory_available: machine::memory_available(), ..Readings::default() };
        readings.nodefs = kernel::mount::space(&self.root_dir).ok();
        readings.tasks = machine::tasks();
        match self.runtime.status(StatusRequest { verbose: false }).await {
            Ok(status) => {
                for condition in status.status.map(|status| status.conditions).unwrap_or_default() {
                    let text = format!(
                        "{}={} reason:{} message:{}",
                        condition.r#type, condition.status, condition.reason, condition.message
                    );
                    match (condition.r#type.as_str(), condition.status) {
                        ("RuntimeReady", false) => readings.runtime = format!("container runtime not ready: {text}"),
                        ("NetworkReady", false) => {
                            readings.network = format!("container runtime network not ready: {text}");
                        }
                        _ => {}
                    }
                }
                readings.handlers = status.runtime_handlers;
            }
            Err(error) => {
                readings.runtime = format!("container runtime is down: {}", error.message());
                readings.network = "container runtime network not ready: the runtime is down".into();
                return readings;
            }
        }
        if let Ok(version) = self.runtime.version(VersionRequest::default()).await {
            readings.runtime_version = format!("{}://{}", version.runtime_name, version.runtime_version);
        }
        if (images.1.is_empty() || images.0.elapsed() > LIST_IMAGES)
            && let Ok(list) = self.runtime.list_images(ListImagesRequest::default()).await
        {
            *images = (Instant::now(), list.images);
        }
        readings.images.clone_from(&images.1);
        if let Ok(info) = self.runtime.image_fs_info(ImageFsInfoRequest {}).await {
            let mount = info.image_filesystems.first().and_then(|fs| fs.fs_id.as_ref()).map(|id| id.mountpoint.clone());
            readings.imagefs = mount.and_then(|mount| kernel::mount::space(mount.as_ref()).ok());
        }
        readings
    }
}
