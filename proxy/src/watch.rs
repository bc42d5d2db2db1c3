//! The three watches, turned into [`Change`]s. Objects are read and dropped; only what the model needs stays.

use std::collections::HashMap;
use std::time::SystemTime;

use futures::StreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use lifecycle::watch::{Present, next};
use tokio::sync::mpsc::Sender;

use crate::model::{Name, Service, Slice, read_node};
use crate::sync::Change;

/// When the endpoints' change that a slice tells of had happened (metrics).
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const NOT_HEADLESS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// What the watches say to the loop.
#[derive(Debug)]
pub enum News {
    Change(Change, Option<SystemTime>),
    /// A list is complete.
    ServicesListed,
    SlicesListed,
    Node(Box<NodeNews>),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeNews {
    pub ips: Vec<std::net::IpAddr>,
    pub zone: Option<Box<str>>,
    pub pod_cidrs: Vec<ipnetwork::IpNetwork>,
    /// The autoscaler's taint or a deletion: no new traffic from outside.
    pub leaving: bool,
}

/// Watches Services until the receiver goes.
pub async fn services(client: Client, news: Sender<News>) {
    let api: Api<core::Service> = Api::all(client);
    let mut present = Present::default();
    let config = watcher::Config::default().labels(NOT_HEADLESS).streaming_lists();
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    while let Some(event) = next("Services", &mut events).await {
        let listed = matches!(event, Event::InitDone).then_some(News::ServicesListed);
        let changes = present.take(event, qualified).into_iter().map(|(name, object)| {
            let service = object.and_then(|object| Service::read(&object));
            News::Change(Change::Service(name, service), None)
        });
        if !send(&news, changes.chain(listed)).await {
            return;
        }
    }
}

/// Watches EndpointSlices until the receiver goes.
pub async fn slices(client: Client, node: String, news: Sender<News>) {
    let api: Api<discovery::EndpointSlice> = Api::all(client);
    let mut present = Present::default();
    let mut owners: HashMap<Name, Name> = HashMap::new();
    let config = watcher::Config::default().labels(NOT_HEADLESS).streaming_lists();
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    while let Some(event) = next("EndpointSlices", &mut events).await {
        let trigger = match &event {
            Event::Apply(object) => object.annotations().get(TRIGGER).and_then(|text| parse_time(text)),
            _ => None,
        };
        let listed = matches!(event, Event::InitDone).then_some(News::SlicesListed);
        let changes = present.take(event, qualified).into_iter().flat_map(|(name, object)| {
            let read = object.and_then(|object| Slice::read(&object, &node));
            owned(&mut owners, name, read).into_iter().map(|change| News::Change(change, trigger)).collect::<Vec<_>>()
        });
        if !send(&news, changes.chain(listed)).await {
            return;
        }
    }
}

/// What a slice changes. One that is gone does not say whose it was, and one that changed hands is its old Service's no
/// more.
fn owned(owners: &mut HashMap<Name, Name>, slice: Name, now: Option<(Name, Slice)>) -> Vec<Change> {
    let before = match &now {
        Some((owner, _)) => owners.insert(slice.clone(), owner.clone()).filter(|before| before != owner),
        None => owners.remove(&slice),
    };
    let left = before.map(|owner| Change::Slice(owner, slice.clone(), None));
    left.into_iter().chain(now.map(|(owner, content)| Change::Slice(owner, slice, Some(content)))).collect()
}

/// Watches the proxy's own Node until the receiver goes.
pub async fn node(client: Client, node: String, news: Sender<News>) {
    let api: Api<core::Node> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    while let Some(event) = next("the Node", &mut events).await {
        let object = match event {
            Event::Apply(object) | Event::InitApply(object) => object,
            Event::Init | Event::InitDone | Event::Delete(_) => continue,
        };
        let (ips, zone, pod_cidrs) = read_node(&object);
        let taints = object.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        let leaving = object.metadata.deletion_timestamp.is_some()
            || taints.into_iter().any(|taint| taint.key == "ToBeDeletedByClusterAutoscaler");
        if news.send(News::Node(Box::new(NodeNews { ips, zone, pod_cidrs, leaving }))).await.is_err() {
            return;
        }
    }
}

/// Whether there still is a receiver.
async fn send(news: &Sender<News>, items: impl Iterator<Item = News>) -> bool {
    for item in items.collect::<Vec<_>>() {
        if news.send(item).await.is_err() {
            return false;
        }
    }
    true
}

fn qualified<K: ResourceExt>(object: &K) -> Name {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()).into()
}

fn parse_time(text: &str) -> Option<SystemTime> {
    let time: k8s_openapi::jiff::Timestamp = text.parse().ok()?;
    Some(time.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_that_changes_hands_leaves_its_old_service() {
        let mut owners = HashMap::new();
        let mut is =
            |owner: Option<&str>| owned(&mut owners, "a/s".into(), owner.map(|owner| (owner.into(), Slice::default())));
        let slice = |owner: &str, content| Change::Slice(owner.into(), "a/s".into(), content);
        assert_eq!(is(None), []);
        assert_eq!(is(Some("a/one")), [slice("a/one", Some(Slice::default()))]);
        assert_eq!(is(Some("a/one")), [slice("a/one", Some(Slice::default()))]);
        assert_eq!(is(Some("a/two")), [slice("a/one", None), slice("a/two", Some(Slice::default()))]);
        assert_eq!(is(None), [slice("a/two", None)]);
    }
}
