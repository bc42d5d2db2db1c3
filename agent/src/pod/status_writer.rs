//! Writes a pod's status to the API: the latest wish only, until it is stored, and nothing where nothing differs. Where
//! somebody else overwrites it, as the node controller does while it takes the node for lost, the worker is woken to say
//! it again.

use super::conditions;
use super::spec;
use super::status_patch;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// The first and the longest pause between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// The writer of one pod. Dropping ends it.
pub struct StatusWriter {
    wish: watch::Sender<Wish>,
    done: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Wish {
    number: u64,
    status: Option<PodStatus>,
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StatusWriter {
    /// A writer for the pod; `latest` is the pod as the API last told it, `wake` wakes who wants statuses stored.
    pub fn new(client: Client, latest: watch::Receiver<Arc<Pod>>, wake: Arc<Notify>) -> Self {
        let (wish, wishes) = watch::channel(Wish::default());
        let (stored, done) = watch::channel(0);
        let task = tokio::spawn(write_all(Told { client, latest, wake }, wishes, stored));
        Self { wish, done, task }
    }

    /// Wants this status stored; what was wanted before is dropped.
    pub fn want(&self, status: PodStatus) {
        self.wish.send_modify(|wish| {
            wish.status = Some(status);
            wish.number += 1;
        });
    }

    /// Returns once the last wish is stored, or the pod is gone from the API.
    pub async fn stored(&mut self) {
        let number = self.wish.borrow().number;
        // An error says that the writer ended: the pod is gone.
        let _ = self.done.wait_for(|done| *done >= number).await;
    }
}

/// The API's side of the pod.
struct Told {
    client: Client,
    latest: watch::Receiver<Arc<Pod>>,
    wake: Arc<Notify>,
}

async fn write_all(mut told: Told, mut wishes: watch::Receiver<Wish>, stored: watch::Sender<u64>) {
    let mut base: Option<Arc<Pod>> = None;
    let mut pause = PAUSE.0;
    loop {
        let wish = wishes.borrow_and_update().clone();
        if let Some(status) = &wish.status {
            let latest = told.latest.borrow_and_update().clone();
            let known = match base.take() {
                Some(own) if version(&own) > version(&latest) => own,
                _ => latest,
            };
            match write(&told.client, &known, status).await {
                Ok(Some(written)) => base = Some(Arc::new(written)),
                Ok(None) => base = Some(known),
                Err(error) => {
                    if is_gone(&told.client, &known, &error).await {
                        debug!(pod = spec::full_name(&known), "the pod is gone from the API");
                        return;
                    }
                    warn!(pod = spec::full_name(&known), %error, "the pod's status was not stored");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                    continue;
                }
            }
            pause = PAUSE.0;
            stored.send_replace(wish.number);
        }
        if !next_wish(&mut told, &mut wishes, base.as_deref()).await {
            return;
        }
    }
}

/// Waits until something is wanted; whether anything ever will be. `base` is what was last stored.
async fn next_wish(told: &mut Told, wishes: &mut watch::Receiver<Wish>, base: Option<&Pod>) -> bool {
    loop {
        tokio::select! {
            wish = wishes.changed() => return wish.is_ok(),
            // An error says that the pod's worker ends.
            latest = told.latest.changed() => match latest {
                Ok(()) if base.is_some_and(|base| is_overwritten(base, &told.latest.borrow_and_update())) => {
                    told.wake.notify_one();
                }
                Ok(()) => {}
                Err(_) => return wishes.changed().await.is_ok(),
            },
        }
    }
}

/// Whether somebody else gave one of the agent's own conditions another status after `base` was stored.
fn is_overwritten(base: &Pod, latest: &Pod) -> bool {
    let conditions = |pod: &Pod| pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let now = conditions(latest);
    version(latest) > version(base)
        && conditions(base).iter().filter(|own| conditions::OWN.contains(&own.type_.as_str())).any(|own| {
            now.iter().find(|condition| condition.type_ == own.type_).is_none_or(|found| found.status != own.status)
        })
}

/// Stores what differs. `None` where nothing does.
async fn write(client: &Client, known: &Pod, status: &PodStatus) -> kube::Result<Option<Pod>> {
    let Some(patch) = status_patch::patch(spec::uid(known), known.status.as_ref(), status) else { return Ok(None) };
    let pods: Api<Pod> = Api::namespaced(client.clone(), spec::namespace(known));
    pods.patch_status(spec::name(known), &PatchParams::default(), &Patch::Strategic(patch)).await.map(Some)
}

/// Whether a call failed because the API has no such pod any more, or another of that name. A conflict alone does not
/// say so: writers may have been in each other's way.
pub async fn is_gone(client: &Client, pod: &Pod, error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(answer) if answer.code == 404 => true,
        kube::Error::Api(answer) if answer.code == 409 => {
            let pods: Api<Pod> = Api::namespaced(client.clone(), spec::namespace(pod));
            match pods.get_opt(spec::name(pod)).await {
                Ok(found) => found.is_none_or(|found| spec::uid(&found) != spec::uid(pod)),
                Err(_) => false,
            }
        }
        _ => false,
    }
}

fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture;
    use serde_json::json;

    #[test]
    fn what_another_writes_over_a_condition_is_seen() {
        let told = |version: &str, ready: &str, gate: &str| {
            let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
            let conditions = [condition("Ready", ready), condition("example.com/gate", gate)];
            let mut pod = fixture::pod(json!({}));
            pod.metadata.resource_version = Some(version.to_owned());
            pod.status = Some(serde_json::from_value(json!({"conditions": conditions})).unwrap());
            pod
        };
        let stored = told("7", "True", "True");
        assert!(is_overwritten(&stored, &told("8", "False", "True")));
        assert!(!is_overwritten(&stored, &told("8", "True", "False")), "the gate is another's");
        assert!(!is_overwritten(&stored, &told("6", "False", "True")), "what came before our own");
    }
}
