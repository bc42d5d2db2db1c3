//! What the API and the kernel tell, as news for the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kernel::netlink;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use lifecycle::watch::{Present, next};
use tokio::sync::mpsc::Sender;

use super::advertise::{Service, has_endpoint};
use super::learned;
use super::model::Node;
use crate::config;

/// What the loop hears.
#[derive(Debug)]
pub enum News {
    Node(String, Option<Node>),
    /// All nodes that are.
    Nodes(BTreeMap<String, Node>),
    /// The ConfigMap's data; empty where there is none.
    Config(BTreeMap<String, String>),
    Kernel(Vec<netlink::Change>),
    /// By namespace and name.
    Service(String, Option<Service>),
    /// Service, slice, and whether an endpoint of it is ready on this node.
    Slice(String, String, bool),
    /// Of which of the driver's speakers, and what.
    Learned(u64, Vec<learned::Change>),
    /// That speaker has told all it heard when it began.
    Synchronised(u64),
}

/// Watches Nodes until the receiver goes.
pub async fn nodes(client: Client, news: Sender<News>) {
    let api: Api<core::Node> = Api::all(client);
    let config = watcher::Config::default().streaming_lists();
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    let mut listed = BTreeMap::new();
    while let Some(event) = next("Nodes", &mut events).await {
        let told = match event {
            Event::Init => {
                listed.clear();
                continue;
            }
            Event::InitApply(node) => {
                listed.insert(node.name_any(), Node::read(&node));
                continue;
            }
            Event::InitDone => News::Nodes(std::mem::take(&mut listed)),
            Event::Apply(node) => News::Node(node.name_any(), Some(Node::read(&node))),
            Event::Delete(node) => News::Node(node.name_any(), None),
        };
        if news.send(told).await.is_err() {
            return;
        }
    }
}

/// Watches the ConfigMap until the receiver goes.
pub async fn config(client: Client, news: Sender<News>) {
    let api: Api<core::ConfigMap> = Api::namespaced(client, config::NAMESPACE);
    let selected = watcher::Config::default().fields(&format!("metadata.name={}", config::NAME));
    let mut events = watcher::watcher(api, selected).default_backoff().boxed();
    let mut listed = None;
    while let Some(event) = next("the ConfigMap", &mut events).await {
        let data = match event {
            Event::Init => {
                listed = None;
                continue;
            }
            Event::InitApply(map) => {
                listed = Some(map.data.unwrap_or_default());
                continue;
            }
            Event::InitDone => listed.take().unwrap_or_default(),
            Event::Apply(map) => map.data.unwrap_or_default(),
            Event::Delete(_) => BTreeMap::new(),
        };
        if news.send(News::Config(data)).await.is_err() {
            return;
        }
    }
}

/// Watches Services until the receiver goes.
pub async fn services(client: Client, news: Sender<News>) {
    let config = watcher::Config::default().streaming_lists();
    let mut events = watcher::watcher(Api::<core::Service>::all(client), config).default_backoff().boxed();
    let mut present = Present::default();
    while let Some(event) = next("Services", &mut events).await {
        for (name, service) in present.take(event, qualified) {
            let service = service.and_then(|service| Service::read(&service));
            if news.send(News::Service(name, service)).await.is_err() {
                return;
            }
        }
    }
}

fn qualified<K: ResourceExt>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Watches EndpointSlices until the receiver goes.
pub async fn slices(client: Client, node: String, news: Sender<News>) {
    let config = watcher::Config::default().labels("kubernetes.io/service-name").streaming_lists();
    let api: Api<discovery::EndpointSlice> = Api::all(client);
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    let mut present = Present::default();
    // A slice that is gone does not say whose it was.
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    while let Some(event) = next("EndpointSlices", &mut events).await {
        for (name, slice) in present.take(event, qualified) {
            let here = slice.as_ref().is_some_and(|slice| has_endpoint(slice, &node));
            let owner = match &slice {
                Some(slice) => slice
                    .labels()
                    .get("kubernetes.io/service-name")
                    .map(|service| format!("{}/{service}", slice.namespace().unwrap_or_default())),
                None => None,
            };
            let before = match &owner {
                Some(owner) => owners.insert(name.clone(), owner.clone()).filter(|before| before != owner),
                None => owners.remove(&name),
            };
            let told = before.map(|service| (service, false)).into_iter().chain(owner.map(|service| (service, here)));
            for (service, here) in told {
                if news.send(News::Slice(service, name.clone(), here)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Listens to the kernel on a thread of its own until the receiver goes.
///
/// # Errors
/// Where the kernel gives no netlink socket.
pub fn kernel(news: Sender<News>) -> netlink::Result<()> {
    let mut watch = netlink::Watch::open()?;
    let listen = move || {
        while !news.is_closed() {
            match watch.changes(Duration::from_secs(1)) {
                Ok(changes) if changes.is_empty() => {}
                Ok(changes) => drop(news.blocking_send(News::Kernel(changes))),
                Err(error) => {
                    tracing::error!("cannot hear what changes in the kernel, the look of each minute remains: {error}");
                    return;
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("netlink".into()).spawn(listen);
    thread.map(drop).map_err(|source| netlink::Error { verb: "start", object: "the netlink thread".into(), source })
}

/// The lines that are new in `now`, and which of `told` are said no more.
pub fn fresh(told: &mut BTreeSet<String>, now: BTreeSet<String>) -> Vec<String> {
    let new = now.difference(told).cloned().collect();
    *told = now;
    new
}
