//! The node lifecycle controller: a node that is silent is unknown, its pods are not ready, and it is tainted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::health::{self, Heard};
use crate::client::events::Notice;
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_conflict, is_not_found, now};
use crate::controllers::{Context, pods};

const LEASES: &str = "kube-node-lease";

/// Runs the controller for ever.
pub async fn run(context: Arc<Context>) {
    let queue: Arc<Queue<Key>> = Queue::new();
    let heard: Arc<Mutex<HashMap<String, Heard>>> = Arc::default();
    let changed = queue.clone();
    let (events, gone) = (context.events.of("node-controller"), heard.clone());
    context.stores.nodes.on_change(move |old, new| {
        match (old, new) {
            (None, Some(node)) => {
                events.emit(&**node, node_event(node, "RegisteredNode", "Registered Node", "in Controller"))
            }
            (Some(node), None) => {
                events.emit(&**node, node_event(node, "RemovingNode", "Removing Node", "from Controller"));
                let name = node.metadata.name.as_deref().unwrap_or_default();
                gone.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            }
            _ => {}
        }
        changed.add_some(new.map(|node| Key::of(&**node)));
    });
    context.stores.nodes.synced().await;
    context.stores.leases.synced().await;
    context.stores.pods.synced().await;
    let period = context.options.node_monitor_period;
    let ticks = queue.clone();
    let all = context.clone();
    let monitor = async move {
        loop {
            tokio::time::sleep(period).await;
            all.stores.nodes.all().iter().for_each(|node| ticks.add(Key::of(&**node)));
        }
    };
    let work = queue.work(4, |key| sync(context.clone(), heard.clone(), key));
    tokio::join!(monitor, work);
}

fn node_event(node: &Node, reason: &'static str, verb: &str, end: &str) -> Notice {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    Notice::normal(reason, format!("Node {name} event: {verb} {name} {end}"))
}

async fn sync(context: Arc<Context>, heard: Arc<Mutex<HashMap<String, Heard>>>, key: Key) -> anyhow::Result<Done> {
    let Some(mut node) = context.stores.nodes.get(&key) else { return Ok(Done::Settled) };
    let lease = context.stores.leases.get(&Key::new(LEASES, &key.name));
    let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0));
    let (silent, evicting) = {
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let updated = Heard::update(heard.remove(&key.name), &node, renewed, Instant::now());
        let (now, grace) = (Instant::now(), context.options.node_monitor_grace_period);
        let silent = updated.is_silent(now, grace);
        heard.insert(key.name.clone(), updated);
        let all = context.stores.nodes.all();
        let all = all.iter().map(|node| (&**node, node.metadata.name.as_ref().and_then(|name| heard.get(name))));
        (silent, health::may_evict(all, now, grace))
    };
    let api: Api<Node> = Api::all(context.client.clone());
    if let Some(conditions) = health::silent_conditions(&node, &now()).filter(|_| silent) {
        let was_ready = health::readiness(&node) == "True";
        let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "status": {"conditions": conditions}});
        let written = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let Some(written) = taken(&context, written, &key)? else { return Ok(Done::Settled) };
        if was_ready {
            let message = format!("Node {} status is now: NodeNotReady", key.name);
            context.events.of("node-controller").emit(&*written, Notice::normal("NodeNotReady", message));
        }
        node = written;
    }
    if let Some(taints) = health::taints(&node, evicting, &now()) {
        let patch =
            json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
        let written = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        if taken(&context, written, &key)?.is_none() {
            return Ok(Done::Settled);
        }
    }
    if health::readiness(&node) != "True" && health::ready(&node).is_some() {
        mark_pods(&context, &key.name).await?;
    }
    Ok(Done::Settled)
}

/// The node as written; None where it is gone. A conflict is an error, so that it is tried again.
fn taken(context: &Context, written: kube::Result<Node>, key: &Key) -> anyhow::Result<Option<Arc<Node>>> {
    match written {
        Ok(node) => {
            context.stores.nodes.wrote(node.clone());
            Ok(Some(Arc::new(node)))
        }
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) if is_conflict(&error) => anyhow::bail!("node {key} was written by someone else"),
        Err(error) => Err(error).with_context(|| format!("write node {key}")),
    }
}

/// Says of each ready pod on a node that it is not: nobody can tell any more.
async fn mark_pods(context: &Context, node: &str) -> anyhow::Result<()> {
    let ready = context.stores.pods.indexed(&format!("node:{node}"));
    for pod in ready.iter().filter(|pod| pods::is_ready(pod) && !pods::is_terminal(pod)) {
        let key = Key::of(&**pod);
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now()}]},
        });
        let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(written) => {
                context.stores.pods.wrote(written);
                let notice = Notice::warning("NodeNotReady", "Node is not ready");
                context.events.of("node-controller").emit(&**pod, notice);
            }
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => return Err(error).with_context(|| format!("mark pod {key} as not ready")),
        }
    }
    Ok(())
}
