//! Node address management: each node gets a part of the cluster's pod addresses, and keeps it.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::client::events::Notice;
use crate::client::queue::{Done, Queue};
use crate::client::{Key, is_not_found};
use crate::controllers::Context;

/// Runs the controller for ever; without `--allocate-node-cidrs` it does nothing.
pub async fn run(context: Arc<Context>) {
    let Some(cluster) = context.options.cluster_cidr.filter(|_| context.options.allocate_node_cidrs) else { return };
    let queue: Arc<Queue<Key>> = Queue::new();
    let nodes = queue.clone();
    context.stores.nodes.on_change(move |_, new| {
        nodes.add_some(new.filter(|node| assigned(node).is_none()).map(|node| Key::of(&**node)));
    });
    context.stores.nodes.synced().await;
    // One at a time: two nodes must not find the same part free.
    let promised: Mutex<HashSet<Ipv4Network>> = Mutex::default();
    queue.work(1, |key| sync(&context, cluster, &promised, key)).await;
}

fn assigned(node: &Node) -> Option<Ipv4Network> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

/// The first part of `cluster` with this length of prefix that overlaps none of those taken.
fn free(cluster: Ipv4Network, prefix: u8, taken: &[Ipv4Network]) -> Option<Ipv4Network> {
    let size = 1u64 << (32 - prefix);
    let (first, count) = (u64::from(u32::from(cluster.network())), 1u64 << (prefix - cluster.prefix()));
    let parts = (0..count).filter_map(|n| u32::try_from(first + n * size).ok());
    let mut parts = parts.filter_map(|start| Ipv4Network::new(Ipv4Addr::from(start), prefix).ok());
    parts.find(|part| !taken.iter().any(|other| other.overlaps(*part)))
}

async fn sync(
    context: &Context,
    cluster: Ipv4Network,
    promised: &Mutex<HashSet<Ipv4Network>>,
    key: Key,
) -> anyhow::Result<Done> {
    let Some(node) = context.stores.nodes.get(&key).filter(|node| assigned(node).is_none()) else {
        return Ok(Done::Settled);
    };
    let mut taken: Vec<_> = context.stores.nodes.all().iter().filter_map(|node| assigned(node)).collect();
    taken.extend(promised.lock().unwrap_or_else(PoisonError::into_inner).iter());
    let Some(part) = free(cluster, context.options.node_cidr_mask_size, &taken) else {
        let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
        context.events.of("cidrAllocator").emit(&*node, Notice::normal("CIDRNotAvailable", message));
        anyhow::bail!("no part of {cluster} is left for node {key}");
    };
    // A write whose answer was lost may have been taken in: the part is not given to another node meanwhile.
    promised.lock().unwrap_or_else(PoisonError::into_inner).insert(part);
    let patch = json!({"spec": {"podCIDR": part.to_string(), "podCIDRs": [part.to_string()]}});
    let api: Api<Node> = Api::all(context.client.clone());
    match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(written) => context.stores.nodes.wrote(written),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error).with_context(|| format!("give node {key} the addresses {part}")),
    }
    promised.lock().unwrap_or_else(PoisonError::into_inner).remove(&part);
    Ok(Done::Settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_part() {
        let net = |text: &str| text.parse::<Ipv4Network>().unwrap();
        let cluster = net("10.244.0.0/22");
        assert_eq!(free(cluster, 24, &[]), Some(net("10.244.0.0/24")));
        assert_eq!(free(cluster, 24, &[net("10.244.0.0/24"), net("10.244.2.0/24")]), Some(net("10.244.1.0/24")));
        assert_eq!(free(cluster, 24, &[net("10.244.0.0/25"), net("10.244.1.0/24")]), Some(net("10.244.2.0/24")));
        assert_eq!(free(cluster, 24, &[cluster]), None);
    }
}
