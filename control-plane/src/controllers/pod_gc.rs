//! The pod garbage collector: pods of nodes that are gone, terminated pods beyond a threshold, and pods that were
//! deleted before they had a node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio::time::Instant;

use super::{Context, pods};
use crate::client::{Key, is_not_found, now};

/// How often the pods are looked at.
const PERIOD: Duration = Duration::from_secs(20);
/// How long a node has to be gone before its pods go.
const QUARANTINE: Duration = Duration::from_secs(40);

/// Runs the collector for ever.
pub async fn run(context: Arc<Context>) {
    context.stores.pods.synced().await;
    context.stores.nodes.synced().await;
    let mut missing: HashMap<String, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let all = context.stores.pods.all();
        let gone = gone_nodes(&context, &all, &mut missing).await;
        for (pod, why) in decide(&all, &gone, context.options.terminated_pod_gc_threshold) {
            if let Err(error) = remove(&context, &pod, why).await {
                tracing::warn!(pod = %Key::of(&*pod), %error, "cannot remove the pod");
            }
        }
    }
}

/// Why a pod goes.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Why {
    Orphaned,
    Terminated,
    Unscheduled,
}

/// The nodes that pods name, that have been missing for the whole quarantine, and that the API server does not know.
async fn gone_nodes(context: &Context, all: &[Arc<Pod>], missing: &mut HashMap<String, Instant>) -> Vec<String> {
    let exists = |name: &str| context.stores.nodes.get(&Key::new("", name)).is_some();
    let named: Vec<&str> = all.iter().filter_map(|pod| pods::node(pod)).filter(|name| !exists(name)).collect();
    missing.retain(|name, _| named.contains(&name.as_str()));
    for name in named {
        missing.entry(name.to_owned()).or_insert_with(Instant::now);
    }
    let api: Api<Node> = Api::all(context.client.clone());
    let mut gone = Vec::new();
    for (name, _) in missing.iter().filter(|(_, since)| since.elapsed() >= QUARANTINE) {
        if matches!(api.get_metadata_opt(name).await, Ok(None)) {
            gone.push(name.clone());
        }
    }
    gone
}

fn decide(all: &[Arc<Pod>], gone: &[String], threshold: usize) -> Vec<(Arc<Pod>, Why)> {
    let mut doomed = Vec::new();
    let mut terminated = Vec::new();
    for pod in all {
        match pods::node(pod) {
            Some(node) if gone.iter().any(|name| name == node) => doomed.push((pod.clone(), Why::Orphaned)),
            None if pod.metadata.deletion_timestamp.is_some() => doomed.push((pod.clone(), Why::Unscheduled)),
            _ if pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_none() => terminated.push(pod),
            _ => {}
        }
    }
    if threshold > 0 && terminated.len() > threshold {
        terminated.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
        let surplus = terminated.len() - threshold;
        doomed.extend(terminated.into_iter().take(surplus).map(|pod| (pod.clone(), Why::Terminated)));
    }
    doomed
}

/// Removes a pod at once; one that had not ended is said to have failed first.
async fn remove(context: &Context, pod: &Pod, why: Why) -> kube::Result<()> {
    let key = Key::of(pod);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    if !pods::is_terminal(pod) {
        let condition = json!([{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": now(),
        }]);
        let conditions = if why == Why::Orphaned { condition } else { json!([]) };
        let patch =
            json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": "Failed", "conditions": conditions}});
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    let this = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    match api.delete(&key.name, &DeleteParams::default().grace_period(0).preconditions(this)).await {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, deleted: bool) -> Arc<Pod> {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let pod = json!({"metadata": {"name": name, "deletionTimestamp": deleted},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn who_goes() {
        let pods = [
            pod("fine", "n1", "Running", false),
            pod("orphan", "gone", "Running", false),
            pod("ended-1", "n1", "Succeeded", false),
            pod("ended-2", "n1", "Failed", false),
            pod("never", "", "Pending", true),
        ];
        let names = |threshold| {
            let doomed = decide(&pods, &["gone".to_owned()], threshold);
            doomed.into_iter().map(|(pod, why)| (pod.metadata.name.clone().unwrap(), why)).collect::<Vec<_>>()
        };
        let always = [("orphan".to_owned(), Why::Orphaned), ("never".to_owned(), Why::Unscheduled)];
        assert_eq!(names(0), always);
        assert_eq!(names(1)[2..], [("ended-1".to_owned(), Why::Terminated)]);
    }
}
