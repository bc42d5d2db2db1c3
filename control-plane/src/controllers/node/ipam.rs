//! Node address management: each node gets a part of the cluster's pod addresses, of each family, and keeps it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::client::events::Notice;
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_not_found};
use crate::controllers::Context;

/// Runs the controller for ever; without ranges to give from it does nothing.
pub async fn run(context: Arc<Context>) {
    if context.pools.is_empty() {
        return;
    }
    let queue: Arc<Queue<Key>> = Queue::new();
    let nodes = queue.clone();
    context.stores.nodes.on_change(move |_, new| {
        nodes.add_some(new.filter(|node| assigned(node).is_empty()).map(|node| Key::of(&**node)));
    });
    context.stores.nodes.synced().await;
    // One at a time: two nodes must not find the same part free.
    let promised: Mutex<HashSet<IpNetwork>> = Mutex::default();
    queue.work(1, |key| sync(&context, &promised, key)).await;
}

fn assigned(node: &Node) -> Vec<IpNetwork> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|cidr| cidr.parse().ok()).collect()
}

async fn sync(context: &Context, promised: &Mutex<HashSet<IpNetwork>>, key: Key) -> anyhow::Result<Done> {
    let promised = || promised.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(node) = context.stores.nodes.get(&key).filter(|node| assigned(node).is_empty()) else {
        return Ok(Done::Settled);
    };
    let mut taken: Vec<IpNetwork> = context.stores.nodes.all().iter().flat_map(|node| assigned(node)).collect();
    taken.extend(promised().iter());
    let mut parts = Vec::new();
    for pool in &context.pools {
        let Some(part) = pool.first_free(&taken) else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            context.events.of("cidrAllocator").emit(&*node, Notice::normal("CIDRNotAvailable", message));
            anyhow::bail!("no part of {} is left for node {key}", pool.range());
        };
        parts.push(part);
    }
    // A write whose answer was lost may have been taken in: the parts are not given to another node meanwhile.
    promised().extend(&parts);
    let cidrs: Vec<String> = parts.iter().map(ToString::to_string).collect();
    let patch = json!({"spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs}});
    let api: Api<Node> = Api::all(context.client.clone());
    match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(written) => context.stores.nodes.wrote(written),
        Err(error) if is_not_found(&error) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("give node {key} the addresses {}", cidrs.join(", ")));
        }
    }
    promised().retain(|part| !parts.contains(part));
    Ok(Done::Settled)
}
