//! The deployment controller: replica sets, one a template, scaled so that the new one takes over from the old.

mod decide;
mod model;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::ownership::{self, Claim};
use super::{Context, pods, selector};
use crate::client::events::{Events, Notice};
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_conflict, is_namespace_terminating, is_not_found, now};
use decide::{Action, Observed};
use model::{name, replicas};

/// How many deployments are worked on at once.
const WORKERS: usize = 5;

/// Runs the controller for ever.
pub async fn run(context: Arc<Context>) {
    let queue = Queue::new();
    subscribe(&context, &queue);
    context.stores.replica_sets.synced().await;
    context.stores.deployments.synced().await;
    context.stores.pods.synced().await;
    queue.work(WORKERS, |key| sync(context.clone(), key)).await;
}

fn subscribe(context: &Arc<Context>, queue: &Arc<Queue<Key>>) {
    let deployments = queue.clone();
    context.stores.deployments.on_change(move |old, new| {
        if let Some(deployment) = new.or(old) {
            deployments.add(Key::of(&**deployment));
        }
    });
    let (sets, shared) = (queue.clone(), Arc::downgrade(context));
    context.stores.replica_sets.on_change(move |old, new| {
        let Some(context) = shared.upgrade() else { return };
        for rs in [old, new].into_iter().flatten() {
            owners(&context, rs).into_iter().for_each(|key| sets.add(key));
        }
    });
    // Recreate waits for the old pods to be gone.
    let (queue, shared) = (queue.clone(), Arc::downgrade(context));
    context.stores.pods.on_change(move |old, new| {
        let (Some(pod), None, Some(context)) = (old, new, shared.upgrade()) else { return };
        let Some(owner) = pods::controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet") else { return };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        if let Some(rs) = context.stores.replica_sets.get(&Key::new(namespace, &owner.name)) {
            owners(&context, &rs).into_iter().for_each(|key| queue.add(key));
        }
    });
}

/// The deployment that a replica set belongs to, or those that might adopt it.
fn owners(context: &Context, rs: &ReplicaSet) -> Vec<Key> {
    let namespace = rs.metadata.namespace.clone().unwrap_or_default();
    match pods::controller_of(&rs.metadata) {
        Some(owner) if owner.kind == "Deployment" => vec![Key::new(namespace, &owner.name)],
        Some(_) => vec![],
        None => {
            let deployments = context.stores.deployments.in_namespace(&namespace);
            deployments.iter().filter(|d| selects(d, rs)).map(|d| Key::of(&**d)).collect()
        }
    }
}

fn selects(deployment: &Deployment, rs: &ReplicaSet) -> bool {
    selector::matches(&deployment.spec.selector, rs.metadata.labels.as_ref())
}

async fn sync(context: Arc<Context>, key: Key) -> anyhow::Result<Done> {
    let Some(deployment) = context.stores.deployments.get(&key) else { return Ok(Done::Settled) };
    let work = Work {
        sets: Api::namespaced(context.client.clone(), &key.namespace),
        deployments: Api::namespaced(context.client.clone(), &key.namespace),
        events: context.events.of("deployment-controller"),
        context: &context,
        deployment: &deployment,
    };
    if selector::is_empty(&deployment.spec.selector) {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        work.events.emit(&*deployment, Notice::warning("SelectingAll", message));
        return Ok(Done::Settled);
    }
    let sets = work.claim().await.with_context(|| format!("claim the replica sets of deployment {key}"))?;
    let time = now();
    let old_pods = work.old_pods(&sets);
    let observed = Observed { deployment: &deployment, sets: &sets, old_pods, now: time.clone() };
    for action in decide::decide(&observed) {
        work.apply(action).await.with_context(|| format!("sync deployment {key}"))?;
    }
    let deployment = context.stores.deployments.get(&key).unwrap_or(deployment);
    let check = deployment.status.as_ref().and_then(|status| status::next_check(status, &deployment, &time));
    Ok(check.map_or(Done::Settled, |seconds| Done::Again(Duration::from_secs(seconds))))
}

struct Work<'a> {
    context: &'a Context,
    deployment: &'a Deployment,
    sets: Api<ReplicaSet>,
    deployments: Api<Deployment>,
    events: Events,
}

impl Work<'_> {
    /// The replica sets that are this deployment's, after adopting and releasing.
    async fn claim(&self) -> kube::Result<Vec<ReplicaSet>> {
        let meta = &self.deployment.metadata;
        let store = &self.context.stores.replica_sets;
        let mut met = store.indexed(&format!("owner:{}", meta.uid.as_deref().unwrap_or_default()));
        met.extend(store.indexed(&format!("orphans:{}", meta.namespace.as_deref().unwrap_or_default())));
        let mut claimed = Vec::new();
        for rs in met {
            let patch = match ownership::claim(meta, &rs.metadata, selects(self.deployment, &rs)) {
                Claim::Ours => {
                    claimed.push(ReplicaSet::clone(&rs));
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt => ownership::adoption(&ownership::reference(self.deployment), rs.metadata.uid.as_ref()),
                Claim::Release => ownership::release(meta.uid.as_ref(), rs.metadata.uid.as_ref()),
            };
            match self.sets.patch(name(&rs), &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(written) => {
                    store.wrote(written.clone());
                    if selects(self.deployment, &written) {
                        claimed.push(written);
                    }
                }
                Err(kube::Error::Api(status)) if [404, 409, 422].contains(&status.code) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(claimed)
    }

    /// Whether pods of other templates than the present one have not ended yet.
    fn old_pods(&self, sets: &[ReplicaSet]) -> bool {
        let (_, old) = model::split(self.deployment, sets);
        old.iter().filter_map(|rs| rs.metadata.uid.as_deref()).any(|uid| {
            let pods = self.context.stores.pods.indexed(&format!("owner:{uid}"));
            pods.iter().any(|pod| !pods::is_terminal(pod))
        })
    }

    async fn apply(&self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Create(set) => self.create(&set).await,
            Action::Update { set, from } => self.update(&set, from).await,
            Action::Delete(set) => match self.sets.delete(&set, &DeleteParams::background()).await {
                Ok(_) => Ok(()),
                Err(error) if is_not_found(&error) => Ok(()),
                Err(error) => Err(error).with_context(|| format!("delete old replica set {set}")),
            },
            Action::Revision(revision) => {
                let patch = json!({"metadata": {"annotations": {model::REVISION: revision}}});
                self.patch(patch).await
            }
            Action::Status(status) => self.write_status(*status).await,
        }
    }

    async fn create(&self, set: &ReplicaSet) -> anyhow::Result<()> {
        match self.sets.create(&PostParams::default(), set).await {
            Ok(created) => {
                let message = format!("Scaled up replica set {} from 0 to {}", name(&created), replicas(&created));
                if replicas(&created) > 0 {
                    self.events.emit(self.deployment, Notice::normal("ScalingReplicaSet", message));
                }
                self.context.stores.replica_sets.wrote(created);
                Ok(())
            }
            Err(error) if is_conflict(&error) => self.collide(set, error).await,
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    self.creation_failed(set, &error).await;
                }
                Err(error).with_context(|| format!("create replica set {}", name(set)))
            }
        }
    }

    /// A replica set of that name is there: ours, written by someone before us, or another template's.
    async fn collide(&self, set: &ReplicaSet, error: kube::Error) -> anyhow::Result<()> {
        let there = self.sets.get(name(set)).await?;
        let ours =
            pods::controller_of(&there.metadata).map(|owner| &owner.uid) == self.deployment.metadata.uid.as_ref();
        let template = |rs: &ReplicaSet| rs.spec.template.clone().unwrap_or_default();
        if ours && model::same_template(&template(&there), &template(set)) {
            self.context.stores.replica_sets.wrote(there);
            return Ok(());
        }
        let mut status = self.deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(status).await?;
        Err(error).with_context(|| format!("the hash of replica set {} collides, another one is tried", name(set)))
    }

    async fn creation_failed(&self, set: &ReplicaSet, error: &kube::Error) {
        let mut status = self.deployment.status.clone().unwrap_or_default();
        let message = status::creation_failed(&mut status, name(set), &error.to_string(), &now());
        self.events.emit(self.deployment, Notice::warning("ReplicaSetCreateError", message));
        if model::deadline(self.deployment).is_some() {
            // The error of the creation is the one to tell.
            let _ = self.write_status(status).await;
        }
    }

    async fn update(&self, set: &ReplicaSet, from: i32) -> anyhow::Result<()> {
        let to = replicas(set);
        let patch = json!({
            // Against what was decided upon, and nothing younger.
            "metadata": {"resourceVersion": set.metadata.resource_version, "annotations": set.metadata.annotations},
            "spec": {"replicas": to, "minReadySeconds": set.spec.min_ready_seconds},
        });
        let written = self.sets.patch(name(set), &PatchParams::default(), &Patch::Merge(patch)).await;
        self.context.stores.replica_sets.wrote(written.with_context(|| format!("update replica set {}", name(set)))?);
        if to != from {
            let direction = if to > from { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {from} to {to}", name(set));
            self.events.emit(self.deployment, Notice::normal("ScalingReplicaSet", message));
        }
        Ok(())
    }

    async fn patch(&self, patch: Value) -> anyhow::Result<()> {
        let name = self.deployment.metadata.name.as_deref().unwrap_or_default();
        let written = self.deployments.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.context.stores.deployments.wrote(written);
        Ok(())
    }

    async fn write_status(&self, status: DeploymentStatus) -> anyhow::Result<()> {
        let name = self.deployment.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({"metadata": {"uid": self.deployment.metadata.uid}, "status": status});
        match self.deployments.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(written) => {
                self.context.stores.deployments.wrote(written);
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error).context("write its status"),
        }
    }
}
