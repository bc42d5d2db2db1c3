//! The garbage collector: what lost all its owners goes; what is deleted in the foreground goes after its dependents.
//!
//! The graph is made of metadata: the shared informers' where there is one, watches of metadata for all other kinds
//! that the API server has. The graph only says where to look. Before anything is deleted the API server is asked.

mod decide;
mod graph;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Context;
use super::resources::{self, Kind};
use crate::client::informer::{Informer, Kind as Held, events};
use crate::client::queue::{Done, Queue};
use crate::client::{is_conflict, is_not_found};
use decide::{Owner, Verdict};
use graph::{FOREGROUND, Graph, ORPHAN, Work};

const WORKERS: usize = 8;
/// How often the API server is asked for new kinds.
const DISCOVERY: Duration = Duration::from_secs(60);
/// How long the first lists may take before work begins without those that are missing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the collector for ever.
pub async fn run(context: Arc<Context>) {
    let collector =
        Arc::new(Collector { context, graph: Mutex::default(), kinds: Mutex::default(), queue: Queue::new() });
    let (monitors, mut synced) = (collector.clone(), watch::Sender::new(false));
    let first = synced.subscribe();
    let work = async {
        let mut first = first;
        let _ = first.wait_for(|synced| *synced).await;
        let queue = collector.queue.clone();
        queue.work(WORKERS, |work| collector.clone().sync(work)).await;
    };
    tokio::join!(monitors.monitor(&mut synced), work);
}

struct Collector {
    context: Arc<Context>,
    graph: Mutex<Graph>,
    /// By group and kind.
    kinds: Mutex<HashMap<(String, String), Arc<Kind>>>,
    queue: Arc<Queue<Work>>,
}

impl Collector {
    /// Watches all kinds, those that come later too.
    async fn monitor(self: Arc<Self>, synced: &mut watch::Sender<bool>) {
        let mut watches = JoinSet::new();
        loop {
            match resources::discover(&self.context.client).await {
                Ok((kinds, _)) => {
                    let mut lists = Vec::new();
                    for kind in kinds.into_iter().filter(is_watched) {
                        lists.extend(self.clone().add(kind, &mut watches));
                    }
                    let all = futures::future::join_all(lists.into_iter().map(|mut list| async move {
                        let _ = list.wait_for(|synced| *synced).await;
                    }));
                    if tokio::time::timeout(PATIENCE, all).await.is_err() {
                        tracing::warn!("some kinds are not listed yet, garbage is collected without them");
                    }
                    synced.send_replace(true);
                    tokio::time::sleep(DISCOVERY).await;
                }
                Err(error) => {
                    tracing::debug!("{error:#}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Begins to watch a kind, if it is not watched yet.
    fn add(self: Arc<Self>, kind: Kind, watches: &mut JoinSet<()>) -> Option<watch::Receiver<bool>> {
        let key = (kind.resource.group.clone(), kind.resource.kind.clone());
        let kind = Arc::new(kind);
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.contains_key(&key) {
            return None;
        }
        kinds.insert(key.clone(), kind.clone());
        drop(kinds);
        let stores = &self.context.stores;
        let synced = watch::Sender::new(false);
        let list = synced.subscribe();
        match (key.0.as_str(), key.1.as_str()) {
            ("", "Pod") => self.clone().share(&stores.pods, kind, synced, watches),
            ("apps", "ReplicaSet") => self.clone().share(&stores.replica_sets, kind, synced, watches),
            ("apps", "Deployment") => self.clone().share(&stores.deployments, kind, synced, watches),
            ("", "Service") => self.clone().share(&stores.services, kind, synced, watches),
            ("", "Endpoints") => self.clone().share(&stores.endpoints, kind, synced, watches),
            ("discovery.k8s.io", "EndpointSlice") => self.clone().share(&stores.endpoint_slices, kind, synced, watches),
            ("", "Node") => self.clone().share(&stores.nodes, kind, synced, watches),
            ("coordination.k8s.io", "Lease") => self.clone().share(&stores.leases, kind, synced, watches),
            ("", "Namespace") => self.clone().share(&stores.namespaces, kind, synced, watches),
            ("", "ServiceAccount") => self.clone().share(&stores.service_accounts, kind, synced, watches),
            _ => drop(watches.spawn(self.clone().watch(kind, synced))),
        }
        Some(list)
    }

    /// Takes a kind's metadata from an informer that there is already.
    fn share<K: Held>(
        self: Arc<Self>,
        informer: &Arc<Informer<K>>,
        kind: Arc<Kind>,
        synced: watch::Sender<bool>,
        watches: &mut JoinSet<()>,
    ) {
        let collector = self.clone();
        informer.on_change(move |old, new| {
            // A new object of an old one's name is a deletion and a creation.
            if let Some(old) = old.filter(|old| new.is_none_or(|new| new.meta().uid != old.meta().uid)) {
                collector.remove(old.meta().uid.as_deref().unwrap_or_default());
            }
            if let Some(new) = new {
                collector.put(&kind, new.meta());
            }
        });
        let informer = informer.clone();
        watches.spawn(async move {
            informer.synced().await;
            synced.send_replace(true);
        });
    }

    async fn watch(self: Arc<Self>, kind: Arc<Kind>, synced: watch::Sender<bool>) {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(self.context.client.clone(), &kind.resource);
        let mut events = std::pin::pin!(events(api, watcher::Config::default()));
        let mut listed: HashSet<String> = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(object) => {
                    listed.extend(object.metadata.uid.clone());
                    self.put(&kind, &object.metadata);
                }
                Event::InitDone => {
                    let known = self.graph().of_kind(&kind);
                    known.iter().filter(|uid| !listed.contains(*uid)).for_each(|uid| self.remove(uid));
                    listed = HashSet::new();
                    synced.send_replace(true);
                }
                Event::Apply(object) => self.put(&kind, &object.metadata),
                Event::Delete(object) => self.remove(object.metadata.uid.as_deref().unwrap_or_default()),
            }
        }
    }

    fn put(&self, kind: &Arc<Kind>, meta: &ObjectMeta) {
        let work = self.graph().apply(kind, meta);
        work.into_iter().for_each(|work| self.queue.add(work));
    }

    fn remove(&self, uid: &str) {
        let work = self.graph().remove(uid);
        work.into_iter().for_each(|work| self.queue.add(work));
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sync(self: Arc<Self>, work: Work) -> anyhow::Result<Done> {
        let done = match &work {
            Work::Delete(uid) => self.attempt_delete(uid).await,
            Work::Orphan(uid) => self.orphan(uid).await,
        };
        match done {
            // What changed meanwhile is looked at anew.
            Err(error) if is_conflict(&error) => Ok(Done::Again(Duration::from_millis(100))),
            Err(error) => Err(error).context("collect garbage"),
            Ok(()) => Ok(Done::Settled),
        }
    }

    async fn attempt_delete(&self, uid: &str) -> kube::Result<()> {
        let Some(node) = self.graph().get(uid).cloned() else { return Ok(()) };
        if node.deleting && !node.foreground {
            return Ok(());
        }
        if !node.foreground && node.owners.iter().all(|owner| self.graph().is_solid(owner, &node.namespace)) {
            return Ok(());
        }
        let api = node.kind.api(&self.context.client, &node.namespace);
        let live = api.get_metadata_opt(&node.name).await?.filter(|live| live.metadata.uid.as_deref() == Some(uid));
        let Some(live) = live.map(|live| live.metadata) else {
            self.remove(uid);
            return Ok(());
        };
        if node.foreground {
            return self.finish_foreground(uid, &live, &api).await;
        }
        if live.deletion_timestamp.is_some() {
            return Ok(());
        }
        let mut owners = Vec::new();
        for owner in live.owner_references.iter().flatten() {
            match self.look_at(owner, &node).await? {
                Some(state) => owners.push((owner.uid.clone(), state)),
                // Nobody can tell whether such an owner exists: the object stays.
                None => return Ok(()),
            }
        }
        let dependents = !self.graph().dependents(uid, false).is_empty();
        match decide::decide(&live, &owners, dependents) {
            Verdict::Keep => Ok(()),
            Verdict::Unlink(lost) => unlink(&api, &live, &lost).await,
            Verdict::Delete(policy) => {
                let this = Preconditions { uid: live.uid.clone(), resource_version: live.resource_version.clone() };
                let params = DeleteParams { propagation_policy: Some(policy.into()), ..DeleteParams::default() };
                match api.delete(&node.name, &params.preconditions(this)).await {
                    Err(error) if !is_not_found(&error) => Err(error),
                    _ => Ok(()),
                }
            }
        }
    }

    /// An object that waits for its dependents: it may go when none blocks it any more.
    async fn finish_foreground(&self, uid: &str, live: &ObjectMeta, api: &Api<DynamicObject>) -> kube::Result<()> {
        let blocking = self.graph().dependents(uid, true);
        if blocking.is_empty() {
            return remove_finalizer(api, live, FOREGROUND).await;
        }
        for (dependent, _) in blocking.into_iter().filter(|(_, dependent)| !dependent.deleting) {
            self.queue.add(Work::Delete(dependent));
        }
        Ok(())
    }

    /// An owner's state; None where its kind is unknown, or where it could never own such an object.
    async fn look_at(&self, owner: &OwnerReference, dependent: &graph::Node) -> kube::Result<Option<Owner>> {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let key = (group.to_owned(), owner.kind.clone());
        let kind = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let Some(kind) = kind else { return Ok(None) };
        if kind.namespaced && dependent.namespace.is_empty() {
            tracing::warn!(
                object = dependent.name,
                owner = owner.name,
                "a cluster-scoped object has a namespaced owner"
            );
            return Ok(None);
        }
        let api = kind.api(&self.context.client, &dependent.namespace);
        let live = api.get_metadata_opt(&owner.name).await?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_ref() == Some(&owner.uid)) else {
            return Ok(Some(Owner::Gone));
        };
        let waits = live.metadata.deletion_timestamp.is_some()
            && live.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FOREGROUND);
        Ok(Some(if waits { Owner::Waiting } else { Owner::Solid }))
    }

    /// Lets the dependents of an object stay, and then lets the object go.
    async fn orphan(&self, uid: &str) -> kube::Result<()> {
        let Some(node) = self.graph().get(uid).cloned() else { return Ok(()) };
        let dependents = self.graph().dependents(uid, false);
        for (_, dependent) in dependents {
            let api = dependent.kind.api(&self.context.client, &dependent.namespace);
            let Some(live) = api.get_metadata_opt(&dependent.name).await? else { continue };
            unlink(&api, &live.metadata, &[uid.to_owned()]).await?;
        }
        let api = node.kind.api(&self.context.client, &node.namespace);
        let live = api.get_metadata_opt(&node.name).await?;
        let Some(live) = live.filter(|live| live.metadata.uid.as_deref() == Some(uid)) else { return Ok(()) };
        remove_finalizer(&api, &live.metadata, ORPHAN).await
    }
}

/// Whether a kind's objects can be watched and deleted; Events are too many and own nothing.
fn is_watched(kind: &Kind) -> bool {
    kind.can("watch") && kind.can("delete") && kind.resource.kind != "Event"
}

/// Takes the references to owners with these UIDs from an object, if it is still as it was seen.
async fn unlink(api: &Api<DynamicObject>, live: &ObjectMeta, lost: &[String]) -> kube::Result<()> {
    let owners = live.owner_references.iter().flatten().filter(|owner| !lost.contains(&owner.uid));
    let owners: Vec<&OwnerReference> = owners.collect();
    patch(api, live, json!({"ownerReferences": if owners.is_empty() { json!(null) } else { json!(owners) }})).await
}

async fn remove_finalizer(api: &Api<DynamicObject>, live: &ObjectMeta, finalizer: &str) -> kube::Result<()> {
    let all: Vec<&String> = live.finalizers.iter().flatten().collect();
    if !all.iter().any(|f| *f == finalizer) {
        return Ok(());
    }
    let left: Vec<&String> = all.into_iter().filter(|f| *f != finalizer).collect();
    patch(api, live, json!({"finalizers": left})).await
}

async fn patch(api: &Api<DynamicObject>, live: &ObjectMeta, mut meta: serde_json::Value) -> kube::Result<()> {
    meta["uid"] = json!(live.uid);
    meta["resourceVersion"] = json!(live.resource_version);
    let name = live.name.as_deref().unwrap_or_default();
    match api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(json!({"metadata": meta}))).await {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}
