//! What the scheduler writes: bindings, and the condition that says why there is none.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::client::now;
use crate::controllers::pods;

/// What came of a write.
#[derive(Debug)]
pub enum Outcome {
    Bound {
        pod: Arc<Pod>,
        node: String,
    },
    /// `gone`: the pod does not exist any more, or has a node already.
    NotBound {
        pod: Arc<Pod>,
        gone: bool,
        error: String,
    },
    Explained,
}

/// Binds a pod to a node.
pub async fn bind(client: Client, pod: Arc<Pod>, node: String) -> Outcome {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut binding = Binding::default();
    binding.metadata.name = pod.metadata.name.clone();
    binding.metadata.namespace = pod.metadata.namespace.clone();
    binding.metadata.uid = pod.metadata.uid.clone();
    binding.target = ObjectReference { kind: Some("Node".into()), name: Some(node.clone()), ..Default::default() };
    let api: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or_default());
    match api.create_subresource::<_, Value>("binding", name, &PostParams::default(), &binding).await {
        Ok(_) => Outcome::Bound { pod, node },
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {
            Outcome::NotBound { pod, gone: true, error: status.message }
        }
        Err(error) => Outcome::NotBound { pod, gone: false, error: format!("binding rejected: {error}") },
    }
}

/// Whether the pod's condition says something else than this.
pub fn says_something_else(pod: &Pod, reason: &str, message: &str) -> bool {
    pods::condition(pod, "PodScheduled").is_none_or(|condition| {
        condition.status != "False"
            || condition.reason.as_deref() != Some(reason)
            || condition.message.as_deref() != Some(message)
    })
}

/// Says in the pod's condition PodScheduled why it has no node.
pub async fn explain(client: Client, pod: Arc<Pod>, reason: &'static str, message: String) -> Outcome {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let before = pods::condition(&pod, "PodScheduled").filter(|condition| condition.status == "False");
    let since = before.and_then(|condition| condition.last_transition_time.clone()).unwrap_or_else(now);
    let patch = json!({
        "metadata": {"uid": pod.metadata.uid},
        "status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": since, "observedGeneration": pod.metadata.generation,
        }]},
    });
    let api: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or_default());
    if let Err(error) = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        tracing::debug!(%name, %error, "cannot say why the pod has no node");
    }
    Outcome::Explained
}
