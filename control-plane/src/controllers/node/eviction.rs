//! Eviction by taints: a pod leaves a node whose NoExecute taints it does not tolerate, or not any longer.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::client::events::Notice;
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_conflict, is_not_found, now};
use crate::controllers::{Context, pods};
use crate::scheduler::tolerates;

/// Runs the controller for ever.
pub async fn run(context: Arc<Context>) {
    let queue: Arc<Queue<Key>> = Queue::new();
    let (on_node, shared) = (queue.clone(), Arc::downgrade(&context));
    context.stores.nodes.on_change(move |old, new| {
        let (Some(node), Some(context)) = (new, shared.upgrade()) else { return };
        let taints = |node: &k8s_openapi::api::core::v1::Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
        if old.is_some_and(|old| taints(old) == taints(node)) {
            return;
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        context.stores.pods.indexed(&format!("node:{name}")).iter().for_each(|pod| on_node.add(Key::of(&**pod)));
    });
    let placed = queue.clone();
    context.stores.pods.on_change(move |old, new| {
        let Some(pod) = new.filter(|pod| pods::node(pod).is_some()) else { return };
        let tolerations = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.tolerations.clone());
        if old.is_none_or(|old| pods::node(old).is_none() || tolerations(old) != tolerations(pod)) {
            placed.add(Key::of(&**pod));
        }
    });
    context.stores.nodes.synced().await;
    context.stores.pods.synced().await;
    queue.work(8, |key| sync(context.clone(), key)).await;
}

/// When a pod has to leave.
#[derive(Debug, PartialEq, Eq)]
enum Leave {
    Never,
    At(Timestamp),
}

/// Judges a pod by the taints of its node: it leaves at once for one that it does not tolerate, or when the shortest
/// `tolerationSeconds` of those that it tolerates has run since that taint was set.
fn decide(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Leave {
    let mut leave = Leave::Never;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let tolerating: Vec<_> = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).collect();
        if tolerating.is_empty() {
            return Leave::At(now);
        }
        let Some(seconds) = tolerating.iter().filter_map(|toleration| toleration.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let at = Timestamp::from_second(since.as_second().saturating_add(seconds.max(0))).unwrap_or(Timestamp::MAX);
        leave = match leave {
            Leave::At(earlier) if earlier <= at => Leave::At(earlier),
            _ => Leave::At(at),
        };
    }
    leave
}

async fn sync(context: Arc<Context>, key: Key) -> anyhow::Result<Done> {
    let Some(pod) = context.stores.pods.get(&key) else { return Ok(Done::Settled) };
    let Some(node) = pods::node(&pod).and_then(|name| context.stores.nodes.get(&Key::new("", name))) else {
        return Ok(Done::Settled);
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(Done::Settled);
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let now = Timestamp::now();
    match decide(taints, tolerations, now) {
        Leave::Never => Ok(Done::Settled),
        Leave::At(at) if at <= now => evict(&context, &pod, &key).await,
        Leave::At(at) => {
            Ok(Done::Again(Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(1)))
        }
    }
}

async fn evict(context: &Context, pod: &Pod, key: &Key) -> anyhow::Result<Done> {
    let notice = Notice::normal("TaintManagerEviction", format!("Marking for deletion Pod {key}"));
    context.events.of("taint-eviction-controller").emit(pod, notice);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let patch = json!({
        "metadata": {"uid": pod.metadata.uid},
        "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": now(),
        }]},
    });
    let marked = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    match marked {
        Err(error) if is_not_found(&error) || is_conflict(&error) => return Ok(Done::Settled),
        Err(error) => return Err(error).with_context(|| format!("mark pod {key} for its eviction")),
        Ok(_) => {}
    }
    let this = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    match api.delete(&key.name, &DeleteParams::default().preconditions(this)).await {
        Ok(_) => context.stores.pods.deleted(pod),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error).with_context(|| format!("evict pod {key}")),
    }
    Ok(Done::Settled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_leave_when_their_tolerance_ends() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect, "timeAdded": at(100).to_string()});
        let toleration =
            |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        for (taints, tolerations, expected) in [
            (json!([taint("a", "NoSchedule")]), json!([]), Leave::Never),
            (json!([taint("a", "NoExecute")]), json!([]), Leave::At(at(500))),
            (json!([taint("a", "NoExecute")]), json!([toleration("a", None)]), Leave::Never),
            (json!([taint("a", "NoExecute")]), json!([toleration("a", Some(300))]), Leave::At(at(400))),
            (
                json!([taint("a", "NoExecute"), taint("b", "NoExecute")]),
                json!([toleration("a", Some(300)), toleration("b", Some(30))]),
                Leave::At(at(130)),
            ),
            (
                json!([taint("a", "NoExecute"), taint("b", "NoExecute")]),
                json!([toleration("a", None)]),
                Leave::At(at(500)),
            ),
        ] {
            let taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
            assert_eq!(decide(&taints, &tolerations, at(500)), expected, "{taints:?} {tolerations:?}");
        }
    }
}
