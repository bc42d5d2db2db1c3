//! The three watches, turned into [`Change`]s. Objects are read and dropped; only what the model needs stays.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
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
    /// The first list of this watch is complete.
    Listed(Source),
    Node(Box<NodeNews>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    Services,
    Slices,
    Node,
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
    let mut seen = Seen::default();
    let config = watcher::Config::default().labels(NOT_HEADLESS).streaming_lists();
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    while let Some(event) = next("Services", &mut events).await {
        let key = |object: &core::Service| qualified(object.namespace(), &object.name_any());
        let changes = seen.changes(event, key, |object, name| match object {
            Some(object) => Change::Service(name, Service::read(&object)),
            None => Change::Service(name, None),
        });
        if send(&news, changes, Source::Services).await.is_err() {
            return;
        }
    }
}

/// Watches EndpointSlices until the receiver goes.
pub async fn slices(client: Client, node: String, news: Sender<News>) {
    let api: Api<discovery::EndpointSlice> = Api::all(client);
    let mut seen = Seen::default();
    let mut owners: HashMap<Name, Name> = HashMap::new();
    let config = watcher::Config::default().labels(NOT_HEADLESS).streaming_lists();
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    while let Some(event) = next("EndpointSlices", &mut events).await {
        let trigger = match &event {
            Event::Apply(object) => object.annotations().get(TRIGGER).and_then(|text| parse_time(text)),
            _ => None,
        };
        let key = |object: &discovery::EndpointSlice| qualified(object.namespace(), &object.name_any());
        let changes = seen.changes(event, key, |object, name| {
            let read = object.and_then(|object| Slice::read(&object, &node));
            let owner = read.as_ref().map(|(owner, _)| owner.clone());
            let before = match &owner {
                Some(owner) => owners.insert(name.clone(), owner.clone()),
                None => owners.remove(&name),
            };
            // A slice that changed hands is rare enough to be taken from the old Service only at its end.
            let owner = owner.or(before).unwrap_or_else(|| "".into());
            Change::Slice(owner, name, read.map(|(_, slice)| slice))
        });
        let sent = changes.into_iter().map(|change| match change {
            Told::Change(change) => News::Change(change, trigger),
            Told::Listed => News::Listed(Source::Slices),
        });
        for item in sent.collect::<Vec<_>>() {
            if news.send(item).await.is_err() {
                return;
            }
        }
    }
}

/// Watches the proxy's own Node until the receiver goes.
pub async fn node(client: Client, node: String, news: Sender<News>) {
    let api: Api<core::Node> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    while let Some(event) = next("the Node", &mut events).await {
        let object = match event {
            Event::Apply(object) | Event::InitApply(object) => object,
            // Whether it was there or not.
            Event::InitDone if news.send(News::Listed(Source::Node)).await.is_ok() => continue,
            Event::InitDone => return,
            Event::Init | Event::Delete(_) => continue,
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

/// The next event; failures are told and waited out by the stream's back-off.
async fn next<K: Send>(
    what: &str,
    events: &mut (impl futures::Stream<Item = watcher::Result<Event<K>>> + Unpin),
) -> Option<Event<K>> {
    loop {
        match events.try_next().await {
            Ok(event) => return event,
            Err(error) => {
                tracing::warn!("cannot watch {what}: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn qualified(namespace: Option<String>, name: &str) -> Name {
    format!("{}/{name}", namespace.unwrap_or_default()).into()
}

fn parse_time(text: &str) -> Option<SystemTime> {
    let time: k8s_openapi::jiff::Timestamp = text.parse().ok()?;
    Some(time.into())
}

async fn send(news: &Sender<News>, told: Vec<Told>, source: Source) -> Result<(), ()> {
    for item in told {
        let item = match item {
            Told::Change(change) => News::Change(change, None),
            Told::Listed => News::Listed(source),
        };
        news.send(item).await.map_err(drop)?;
    }
    Ok(())
}

enum Told {
    Change(Change),
    Listed,
}

/// The names that are there, so that a new list shows what went meanwhile.
#[derive(Default)]
struct Seen {
    present: HashSet<Name>,
    /// Of a list under way.
    listed: Option<HashSet<Name>>,
}

impl Seen {
    fn changes<K>(
        &mut self,
        event: Event<K>,
        key: impl Fn(&K) -> Name,
        mut change: impl FnMut(Option<K>, Name) -> Change,
    ) -> Vec<Told> {
        match event {
            Event::Init => {
                self.listed = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                let name = key(&object);
                self.listed.get_or_insert_default().insert(name.clone());
                vec![Told::Change(change(Some(object), name))]
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone = std::mem::replace(&mut self.present, listed);
                let gone = gone.into_iter().filter(|name| !self.present.contains(name));
                gone.map(|name| Told::Change(change(None, name))).chain([Told::Listed]).collect()
            }
            Event::Apply(object) => {
                let name = key(&object);
                self.present.insert(name.clone());
                vec![Told::Change(change(Some(object), name))]
            }
            Event::Delete(object) => {
                let name = key(&object);
                self.present.remove(&name);
                vec![Told::Change(change(None, name))]
            }
        }
    }
}
