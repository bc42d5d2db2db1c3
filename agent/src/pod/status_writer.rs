//! Writes a pod's status to the API: the latest wish only, until it is stored, and nothing where nothing changed.

use super::spec;
use super::status_patch;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
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
    /// A writer for the pod; `latest` is the pod as the API last told it.
    pub fn new(client: Client, latest: watch::Receiver<Arc<Pod>>) -> Self {
        let (wish, wishes) = watch::channel(Wish::default());
        let (stored, done) = watch::channel(0);
        let task = tokio::spawn(write_all(client, latest, wishes, stored));
        Self { wish, done, task }
    }

    /// Wants this status stored; what was wanted before is dropped.
    pub fn want(&self, status: PodStatus) {
        self.wish.send_if_modified(|wish| {
            if wish.status.as_ref() == Some(&status) {
                return false;
            }
            wish.status = Some(status.clone());
            wish.number += 1;
            true
        });
    }

    /// Returns once the last wish is stored, or the pod is gone from the API.
    pub async fn stored(&mut self) {
        let number = self.wish.borrow().number;
        // An error says that the writer ended: the pod is gone.
        let _ = self.done.wait_for(|done| *done >= number).await;
    }
}

async fn write_all(
    client: Client,
    latest: watch::Receiver<Arc<Pod>>,
    mut wishes: watch::Receiver<Wish>,
    stored: watch::Sender<u64>,
) {
    let mut base: Option<Arc<Pod>> = None;
    let mut pause = PAUSE.0;
    loop {
        let wish = wishes.borrow_and_update().clone();
        if let Some(status) = &wish.status {
            let told = latest.borrow().clone();
            let known = match base.take() {
                Some(own) if version(&own) > version(&told) => own,
                _ => told,
            };
            match write(&client, &known, status).await {
                Ok(Some(written)) => base = Some(Arc::new(written)),
                Ok(None) => base = Some(known),
                Err(error) => {
                    if is_gone(&client, &known, &error).await {
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
        if wishes.changed().await.is_err() {
            return;
        }
    }
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
