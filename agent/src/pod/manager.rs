//! All pods of the node: those that the API binds here, and what of others is left in the runtime.

use super::conditions;
use super::context::Context;
use super::lookup::{ContainerRef, Pods};
use super::shared::{Seen, Shared};
use super::spec;
use super::start::of_pod;
use super::view::{Container as Running, POD_NAME, POD_NAMESPACE};
use super::worker::Worker;
use cri::v1::{ContainerEventResponse, ListContainersRequest, ListPodSandboxRequest};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use lifecycle::Stop;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

/// How often the runtime is listed where it tells of no events, and where it does.
const RELIST: Duration = Duration::from_secs(1);
const RELIST_WITH_EVENTS: Duration = Duration::from_secs(10);

/// The node's pods by uid.
pub struct Manager {
    ctx: Arc<Context>,
    pods: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    shared: Arc<Shared>,
    worker: JoinHandle<()>,
}

/// What a listing says of a pod: its sandboxes and containers with their states.
type Print = BTreeSet<(String, i32)>;

impl Manager {
    pub fn new(ctx: Arc<Context>) -> Arc<Self> {
        Arc::new(Self { ctx, pods: Mutex::default() })
    }

    /// Follows the API and the runtime until `stop`. Pods go on when it returns.
    pub async fn run(self: &Arc<Self>, stop: Stop) {
        let synced = tokio::sync::watch::Sender::new(false);
        let follow = self.follow_api(&synced);
        let look = self.follow_runtime(synced.subscribe());
        tokio::select! { () = stop.stopped() => {}, () = follow => {}, () = look => {} }
        for (_, entry) in self.lock().drain() {
            entry.worker.abort();
        }
    }

    /// Makes the worker of this pod look.
    pub fn wake(&self, uid: &str) {
        if let Some(entry) = self.lock().get(uid) {
            entry.shared.wake.notify_one();
        }
    }

    async fn follow_api(self: &Arc<Self>, synced: &tokio::sync::watch::Sender<bool>) {
        let selector = format!("spec.nodeName={}", self.ctx.host.node_name);
        let config = watcher::Config::default().fields(&selector);
        let events = watch(Api::<Pod>::all(self.ctx.client.clone()), config).default_backoff();
        let mut events = std::pin::pin!(events.map_err(|error| warn!(%error, "the watch of pods broke")));
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Err(()) => {}
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(pod)) => {
                    listed.insert(spec::uid(&pod).to_string());
                    self.apply(pod);
                }
                Ok(Event::InitDone) => {
                    let gone: Vec<Pod> = self
                        .lock()
                        .iter()
                        .filter(|(uid, _)| !listed.contains(*uid))
                        .map(|(_, entry)| Pod::clone(&entry.shared.pod.borrow()))
                        .collect();
                    gone.into_iter().for_each(|pod| self.remove(pod));
                    synced.send_replace(true);
                    self.share_out();
                }
                Ok(Event::Apply(pod)) => self.apply(pod),
                Ok(Event::Delete(pod)) => self.remove(pod),
            }
        }
    }

    fn apply(self: &Arc<Self>, pod: Pod) {
        let uid = spec::uid(&pod).to_string();
        let pod = Arc::new(pod);
        let mut pods = self.lock();
        if let Some(entry) = pods.get(&uid) {
            let before = entry.shared.pod.send_replace(Arc::clone(&pod));
            if concerns_worker(&before, &pod) {
                entry.shared.wake.notify_one();
            }
            return;
        }
        pods.insert(uid, self.begin(pod, false));
        drop(pods);
        self.share_out();
    }

    fn begin(&self, pod: Arc<Pod>, gone: bool) -> Entry {
        let shared = Arc::new(Shared::new(pod));
        shared.gone.send_replace(gone);
        let worker = tokio::spawn(Worker::new(Arc::clone(&self.ctx), Arc::clone(&shared)).run());
        Entry { shared, worker }
    }

    fn remove(&self, pod: Pod) {
        let mut pods = self.lock();
        let Some(entry) = pods.get(spec::uid(&pod)) else { return };
        if entry.worker.is_finished() {
            pods.remove(spec::uid(&pod));
        } else {
            entry.shared.pod.send_replace(Arc::new(pod));
            entry.shared.gone.send_replace(true);
            entry.shared.wake.notify_one();
        }
        drop(pods);
        self.share_out();
    }

    /// The burstable pods' common share of the cpus.
    fn share_out(&self) {
        let pods: Vec<Arc<Pod>> = self
            .lock()
            .values()
            .map(|entry| entry.shared.pod.borrow().clone())
            .filter(|pod| !spec::is_terminal(pod))
            .collect();
        let cgroups = self.ctx.cgroups.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = cgroups.share_out(pods.iter().map(AsRef::as_ref)) {
                debug!(%error, "the burstable pods' share was not written");
            }
        });
    }

    /// Wakes workers whose containers changed, and clears away what belongs to no pod of this node.
    async fn follow_runtime(self: &Arc<Self>, mut synced: tokio::sync::watch::Receiver<bool>) {
        let mut known: BTreeMap<String, Print> = BTreeMap::new();
        let mut strangers = HashSet::new();
        let mut events = self.ctx.runtime.container_events().await.ok();
        let mut away = false;
        loop {
            let pause = if events.is_some() { RELIST_WITH_EVENTS } else { RELIST };
            match &mut events {
                None => tokio::time::sleep(pause).await,
                // An error ends the stream; it is asked for again after the runtime was away.
                Some(stream) => {
                    if tokio::time::timeout(pause, self.heed(stream)).await.is_ok() {
                        events = None;
                    }
                }
            }
            let Ok(current) = self.look().await else {
                away = true;
                continue;
            };
            if std::mem::take(&mut away) {
                events = self.ctx.runtime.container_events().await.ok();
            }
            let prints: BTreeMap<String, Print> =
                current.iter().map(|(uid, (print, _))| (uid.clone(), print.clone())).collect();
            for uid in changed(&known, &prints) {
                self.wake(&uid);
            }
            known = prints;
            if *synced.borrow_and_update() {
                strangers = self.clear_strangers(current, &strangers);
            }
            self.lock().retain(|_, entry| !(*entry.shared.gone.borrow() && entry.worker.is_finished()));
        }
    }

    /// Wakes the workers of the pods that the runtime tells of, until it tells no more.
    async fn heed(&self, events: &mut tonic::Streaming<ContainerEventResponse>) {
        while let Ok(Some(event)) = events.message().await {
            if let Some(uid) = of_pod(&event.pod_sandbox_status.unwrap_or_default().labels) {
                self.wake(uid);
            }
        }
    }

    async fn look(&self) -> crate::runtime::Result<BTreeMap<String, (Print, Pod)>> {
        let (sandboxes, containers) = tokio::try_join!(
            self.ctx.runtime.list_pod_sandbox(ListPodSandboxRequest::default()),
            self.ctx.runtime.list_containers(ListContainersRequest::default())
        )?;
        let sandboxes = sandboxes.items.into_iter().map(|item| (item.labels, item.id, item.state));
        let containers = containers.containers.into_iter().map(|item| (item.labels, item.id, item.state));
        let mut out: BTreeMap<String, (Print, Pod)> = BTreeMap::new();
        for (labels, id, state) in sandboxes.chain(containers) {
            let Some(uid) = of_pod(&labels) else { continue };
            let entry = out.entry(uid.to_string()).or_insert_with(|| (Print::new(), stranger(uid, &labels)));
            entry.0.insert((id, state));
        }
        Ok(out)
    }

    /// Ends what was no pod of ours at two looks in a row. Returns the strangers of this look.
    fn clear_strangers(&self, current: BTreeMap<String, (Print, Pod)>, before: &HashSet<String>) -> HashSet<String> {
        let mut pods = self.lock();
        let mut strangers = HashSet::new();
        for (uid, (_, pod)) in current {
            let idle = pods.get(&uid).is_none_or(|entry| entry.worker.is_finished());
            if !idle {
                continue;
            }
            if before.contains(&uid) {
                info!(pod = spec::full_name(&pod), uid, "ends, for the API has it no more");
                let entry = self.begin(Arc::new(pod), true);
                pods.insert(uid, entry);
            } else {
                strangers.insert(uid);
            }
        }
        strangers
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self, uid: &str) -> Option<Seen> {
        self.lock().get(uid).map(|entry| entry.shared.seen())
    }
}

/// Whether the worker has to look at a pod that the API tells anew. Most often it tells what the worker had stored itself.
fn concerns_worker(before: &Pod, now: &Pod) -> bool {
    let meta = |pod: &Pod| {
        let meta = &pod.metadata;
        let ends = (meta.deletion_timestamp.clone(), meta.deletion_grace_period_seconds);
        (meta.labels.clone(), meta.annotations.clone(), ends, meta.generation)
    };
    let foreign = |pod: &Pod| {
        let conditions = pod.status.clone().and_then(|status| status.conditions).unwrap_or_default();
        let foreign = conditions.into_iter().filter(|condition| !conditions::OWN.contains(&condition.type_.as_str()));
        foreign.collect::<Vec<_>>()
    };
    before.spec != now.spec
        || meta(before) != meta(now)
        || foreign(before) != foreign(now)
        || spec::is_terminal(before) != spec::is_terminal(now)
}

/// Uids whose print differs between two listings.
fn changed(before: &BTreeMap<String, Print>, now: &BTreeMap<String, Print>) -> Vec<String> {
    let uids: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    uids.into_iter().filter(|uid| before.get(*uid) != now.get(*uid)).cloned().collect()
}

/// A pod of which only the labels in the runtime are known.
fn stranger(uid: &str, labels: &HashMap<String, String>) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: labels.get(POD_NAME).cloned(),
            namespace: labels.get(POD_NAMESPACE).cloned(),
            uid: Some(uid.to_string()),
            deletion_grace_period_seconds: Some(30),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec::default()),
        status: None,
    }
}

impl Pods for Manager {
    fn list(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(|entry| entry.shared.seen().pod).collect()
    }

    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Arc<Pod>> {
        let fits = |pod: &Arc<Pod>| {
            spec::namespace(pod) == namespace && spec::name(pod) == name && uid.is_none_or(|uid| spec::uid(pod) == uid)
        };
        let found: Vec<Arc<Pod>> = self.list().into_iter().filter(fits).collect();
        // Of two with one name, the one that stays.
        found.iter().find(|pod| pod.metadata.deletion_timestamp.is_none()).or(found.first()).cloned()
    }

    fn by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.seen(uid).map(|seen| seen.pod)
    }

    fn address(&self, uid: &str) -> Option<IpAddr> {
        let seen = self.seen(uid)?;
        if spec::is_host_network(&seen.pod) {
            return self.ctx.host.ips.first().copied();
        }
        seen.view.ready_sandbox().and_then(|sandbox| sandbox.ips.first().copied())
    }

    fn sandbox(&self, uid: &str) -> Option<String> {
        self.seen(uid)?.view.ready_sandbox().map(|sandbox| sandbox.id.clone())
    }

    fn container(&self, uid: &str, name: &str, previous: bool) -> Option<ContainerRef> {
        let view = self.seen(uid)?.view;
        let found = if previous { view.previous(name) } else { view.latest(name) };
        found.map(reference)
    }
}

fn reference(container: &Running) -> ContainerRef {
    ContainerRef {
        id: container.id.clone(),
        name: container.name.clone(),
        attempt: container.attempt,
        phase: container.phase,
        log_path: container.log_path.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture;
    use serde_json::json;

    #[test]
    fn a_workers_own_status_does_not_wake_it() {
        let told = |status: serde_json::Value| Pod {
            status: Some(serde_json::from_value(status).unwrap()),
            ..fixture::pod(json!({}))
        };
        let condition = |kind: &str| json!({"conditions": [{"type": kind, "status": "True"}]});
        let before = told(json!({}));
        assert!(!concerns_worker(&before, &told(condition("Ready"))));
        assert!(concerns_worker(&before, &told(condition("example.com/gate"))));
        assert!(concerns_worker(&before, &told(json!({"phase": "Failed"}))));
        assert!(concerns_worker(&before, &fixture::pod(json!({"activeDeadlineSeconds": 5}))));
    }

    #[test]
    fn only_what_changed_is_woken() {
        let print = |state| Print::from([("c".to_string(), state)]);
        let before =
            BTreeMap::from([("a".to_string(), print(1)), ("b".to_string(), print(1)), ("d".to_string(), print(1))]);
        let now =
            BTreeMap::from([("a".to_string(), print(1)), ("b".to_string(), print(2)), ("e".to_string(), print(1))]);
        assert_eq!(changed(&before, &now), ["b", "d", "e"]);
    }
}
