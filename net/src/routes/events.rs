//! What an operator shall see: Events on this node, its annotations, and the condition of its network.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use serde_json::json;

/// Writes about one node.
pub struct Voice {
    client: Client,
    recorder: Recorder,
    node: String,
}

impl Voice {
    pub fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter { controller: "bosun-net".into(), instance: Some(node.to_owned()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, node: node.to_owned() }
    }

    /// A warning, in the log and as an Event. An API that does not take it is told in the log.
    pub async fn warn(&self, reason: &str, words: &str) {
        tracing::warn!("{words}");
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            // What an Event may hold at most.
            note: Some(words.chars().take(1000).collect()),
            action: "Route".into(),
            secondary: None,
        };
        // As the kubelet's own Events name a node, so that they stand with those.
        let node = core::ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..core::ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &node).await {
            tracing::warn!("cannot write an Event of node {}: {error}", self.node);
        }
    }

    /// Sets the annotations, or removes them.
    ///
    /// # Errors
    /// The API's refusal.
    pub async fn annotate<'a>(
        &self,
        annotations: impl Iterator<Item = (&'a &'static str, &'a Option<String>)>,
    ) -> kube::Result<()> {
        let annotations: serde_json::Map<_, _> =
            annotations.map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        if annotations.is_empty() {
            return Ok(());
        }
        let api: Api<core::Node> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        api.patch_metadata(&self.node, &PatchParams::default(), &patch).await.map(drop)
    }

    /// Says in the node's condition NetworkUnavailable that its network is there, as others do it that route pods: what
    /// a cloud's controller marked as unavailable until now takes pods from here on.
    ///
    /// # Errors
    /// The API's refusal.
    pub async fn has_network(&self) -> kube::Result<()> {
        let now = Time(Timestamp::now());
        let condition = json!({
            "type": "NetworkUnavailable", "status": "False", "reason": "BosunNetIsUp",
            "message": "the net daemon keeps the routes of this node", "lastHeartbeatTime": now, "lastTransitionTime": now,
        });
        let api: Api<core::Node> = Api::all(self.client.clone());
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        api.patch_status(&self.node, &PatchParams::default(), &patch).await.map(drop)
    }
}
