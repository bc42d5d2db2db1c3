//! The replica set controller: as many pods as `spec.replicas` says.

mod decide;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};

use super::ownership::{self, Claim};
use super::{Context, pods, selector};
use crate::client::events::{Events, Notice};
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_namespace_terminating, is_not_found};
use decide::Action;

/// How many replica sets are worked on at once.
const WORKERS: usize = 5;

/// Runs the controller for ever.
pub async fn run(context: Arc<Context>) {
    let queue = Queue::new();
    subscribe(&context, &queue);
    context.stores.pods.synced().await;
    context.stores.replica_sets.synced().await;
    queue.work(WORKERS, |key| sync(context.clone(), key)).await;
}

fn subscribe(context: &Arc<Context>, queue: &Arc<Queue<Key>>) {
    let sets = queue.clone();
    context.stores.replica_sets.on_change(move |old, new| {
        if let Some(rs) = new.or(old) {
            sets.add(Key::of(&**rs));
        }
    });
    let (queue, shared) = (queue.clone(), Arc::downgrade(context));
    context.stores.pods.on_change(move |old, new| {
        let Some(context) = shared.upgrade() else { return };
        for pod in [old, new].into_iter().flatten() {
            owners(&context, pod).into_iter().for_each(|key| queue.add(key));
        }
    });
}

/// The replica set that a pod belongs to, or those that might adopt it.
fn owners(context: &Context, pod: &Pod) -> Vec<Key> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    match pods::controller_of(&pod.metadata) {
        Some(owner) if owner.kind == "ReplicaSet" => vec![Key::new(namespace, &owner.name)],
        Some(_) => vec![],
        None => {
            let sets = context.stores.replica_sets.in_namespace(&namespace);
            sets.iter().filter(|rs| selects(rs, pod)).map(|rs| Key::of(&**rs)).collect()
        }
    }
}

fn selects(rs: &ReplicaSet, pod: &Pod) -> bool {
    !selector::is_empty(&rs.spec.selector) && selector::matches(&rs.spec.selector, pod.metadata.labels.as_ref())
}

async fn sync(context: Arc<Context>, key: Key) -> anyhow::Result<Done> {
    let Some(rs) = context.stores.replica_sets.get(&key) else { return Ok(Done::Settled) };
    let set = Set {
        pods: Api::namespaced(context.client.clone(), &key.namespace),
        events: context.events.of("replicaset-controller"),
        context: &context,
        rs: &rs,
    };
    let claimed = set.claim().await.with_context(|| format!("claim the pods of replica set {key}"))?;
    let (active, terminating): (Vec<_>, Vec<_>) =
        claimed.into_iter().filter(|pod| !pods::is_terminal(pod)).partition(|pod| pods::is_active(pod));
    let now = Timestamp::now();
    let failure = if rs.metadata.deletion_timestamp.is_some() { None } else { set.scale(&active, now).await.err() };
    // What was just created and deleted is in the store already: the status tells of the newest.
    let active: Vec<_> = set.owned().into_iter().filter(|pod| pods::is_active(pod) && selects(&rs, pod)).collect();
    let message = failure.as_ref().map(|error| format!("{error}"));
    let status = decide::status(&rs, &active, terminating.len(), message.as_deref(), now);
    let all_available = status.ready_replicas == status.available_replicas;
    if !decide::same(&status, rs.status.as_ref().unwrap_or(&Default::default())) {
        let api: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &key.namespace);
        let mut changed = ReplicaSet::clone(&rs);
        changed.status = Some(status);
        match api.replace_status(&key.name, &PostParams::default(), &changed).await {
            Ok(written) => context.stores.replica_sets.wrote(written),
            Err(error) if is_not_found(&error) => return Ok(Done::Settled),
            Err(error) => return Err(error).with_context(|| format!("write the status of replica set {key}")),
        }
    }
    if let Some(error) = failure {
        return Err(error).with_context(|| format!("scale replica set {key}"));
    }
    Ok(if all_available { Done::Settled } else { next_availability(&rs, &active, now) })
}

/// When the next ready pod becomes available.
fn next_availability(rs: &ReplicaSet, active: &[Arc<Pod>], now: Timestamp) -> Done {
    let min_ready = rs.spec.min_ready_seconds.unwrap_or(0);
    let times = active.iter().filter_map(|pod| pods::available_from(pod, min_ready));
    let next = times.filter(|at| *at > now).min();
    next.map_or(Done::Settled, |at| {
        Done::Again(Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(10))
    })
}

struct Set<'a> {
    context: &'a Context,
    rs: &'a ReplicaSet,
    pods: Api<Pod>,
    events: Events,
}

impl Set<'_> {
    fn owned(&self) -> Vec<Arc<Pod>> {
        let uid = self.rs.metadata.uid.as_deref().unwrap_or_default();
        self.context.stores.pods.indexed(&format!("owner:{uid}"))
    }

    /// The pods that are this replica set's, after adopting and releasing.
    async fn claim(&self) -> kube::Result<Vec<Arc<Pod>>> {
        let namespace = self.rs.metadata.namespace.as_deref().unwrap_or_default();
        let mut met = self.owned();
        met.extend(self.context.stores.pods.indexed(&format!("orphans:{namespace}")));
        let mut claimed = Vec::new();
        for pod in met {
            match ownership::claim(&self.rs.metadata, &pod.metadata, selects(self.rs, &pod)) {
                Claim::Ours => claimed.push(pod),
                Claim::Adopt if pods::is_active(&pod) => {
                    let patch = ownership::adoption(&ownership::reference(self.rs), pod.metadata.uid.as_ref());
                    claimed.extend(self.patch(&pod, patch).await?);
                }
                Claim::Release => {
                    let patch = ownership::release(self.rs.metadata.uid.as_ref(), pod.metadata.uid.as_ref());
                    self.patch(&pod, patch).await?;
                }
                Claim::Adopt | Claim::Ignore => {}
            }
        }
        Ok(claimed)
    }

    async fn patch(&self, pod: &Pod, patch: serde_json::Value) -> kube::Result<Option<Arc<Pod>>> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match self.pods.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(written) => {
                self.context.stores.pods.wrote(written.clone());
                Ok(Some(Arc::new(written)))
            }
            // Gone, or another one of its name by now: nothing to claim.
            Err(kube::Error::Api(status)) if [404, 409, 422].contains(&status.code) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn scale(&self, active: &[Arc<Pod>], now: Timestamp) -> kube::Result<()> {
        match decide::decide(self.rs, active, &self.related(), now) {
            Action::Nothing => Ok(()),
            Action::Create(count) => self.create(count).await,
            Action::Delete(names) => {
                let doomed =
                    active.iter().filter(|pod| names.contains(pod.metadata.name.as_ref().unwrap_or(&String::new())));
                let results = join_all(doomed.map(|pod| self.delete(pod))).await;
                results.into_iter().collect()
            }
        }
    }

    /// All pods of the replica sets that have the same owner as this one (one deployment's).
    fn related(&self) -> Vec<Arc<Pod>> {
        let Some(owner) = pods::controller_of(&self.rs.metadata) else { return self.owned() };
        let sets = self.context.stores.replica_sets.indexed(&format!("owner:{}", owner.uid));
        let uids = sets.iter().filter_map(|rs| rs.metadata.uid.as_deref());
        uids.flat_map(|uid| self.context.stores.pods.indexed(&format!("owner:{uid}"))).collect()
    }

    /// Creates pods in batches that double with each success, so that what cannot work is tried once and not 500 times.
    async fn create(&self, count: usize) -> kube::Result<()> {
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = left.min(batch);
            let results = join_all((0..size).map(|_| self.create_one())).await;
            results.into_iter().collect::<kube::Result<()>>()?;
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self) -> kube::Result<()> {
        match self.pods.create(&PostParams::default(), &pod_of(self.rs)).await {
            Ok(pod) => {
                let name = pod.metadata.name.clone().unwrap_or_default();
                self.context.stores.pods.wrote(pod);
                self.events.emit(self.rs, Notice::normal("SuccessfulCreate", format!("Created pod: {name}")));
                Ok(())
            }
            Err(error) if is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                self.events
                    .emit(self.rs, Notice::warning("FailedCreate", format!("Error creating: {}", reason(&error))));
                Err(error)
            }
        }
    }

    async fn delete(&self, pod: &Pod) -> kube::Result<()> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let this = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        match self.pods.delete(name, &DeleteParams::default().preconditions(this)).await {
            Ok(_) => {
                self.context.stores.pods.deleted(pod);
                self.events.emit(self.rs, Notice::normal("SuccessfulDelete", format!("Deleted pod: {name}")));
                Ok(())
            }
            Err(error) if is_not_found(&error) => {
                self.context.stores.pods.missing(pod);
                Ok(())
            }
            Err(error) => {
                self.events
                    .emit(self.rs, Notice::warning("FailedDelete", format!("Error deleting: {}", reason(&error))));
                Err(error)
            }
        }
    }
}

/// What the API server said, without the client's words around it.
fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A new pod by the replica set's template.
fn pod_of(rs: &ReplicaSet) -> Pod {
    let template = rs.spec.template.clone().unwrap_or_default();
    let from = template.metadata.unwrap_or_default();
    let name = rs.metadata.name.as_deref().unwrap_or_default();
    let mut pod = Pod { spec: template.spec, ..Pod::default() };
    pod.metadata.generate_name = Some(format!("{name}-"));
    pod.metadata.namespace = rs.metadata.namespace.clone();
    pod.metadata.labels = from.labels;
    pod.metadata.annotations = from.annotations;
    pod.metadata.finalizers = from.finalizers;
    pod.metadata.owner_references = Some(vec![ownership::reference(rs)]);
    pod
}
