//! The node's lease in kube-node-lease, by which controllers see that it lives.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::warn;

const NAMESPACE: &str = "kube-node-lease";

/// Renews the lease four times within its duration (seconds). Does not return.
pub async fn renew(client: Client, name: &str, duration: i32, mut node: watch::Receiver<Option<Arc<Node>>>) {
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let pause = Duration::from_secs_f64(f64::from(duration.max(4)) / 4.0);
    loop {
        // A node that is gone needs no lease; one that came back is another owner.
        let uid = match node.wait_for(Option::is_some).await {
            Ok(node) => node.as_ref().and_then(|node| node.metadata.uid.clone()).unwrap_or_default(),
            Err(_) => return,
        };
        if let Err(error) = once(&leases, name, duration, &uid).await {
            warn!(%error, "the node's lease was not renewed");
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn once(leases: &Api<Lease>, name: &str, duration: i32, uid: &str) -> kube::Result<()> {
    let now = MicroTime(Timestamp::now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": duration, "renewTime": now});
    let patch = Patch::Merge(json!({"spec": spec}));
    match leases.patch(name, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => {}
        other => return other.map(|_| ()),
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.into(),
        uid: uid.into(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(NAMESPACE.into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.into()),
            lease_duration_seconds: Some(duration),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.map(|_| ())
}
