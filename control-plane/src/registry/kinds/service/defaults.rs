//! What an unset field of a Service means.

use serde_json::Value;

use super::super::object::{child, fill, list_mut, put, remove, text, unset};
use super::{has_cluster_ip, is_external};

/// How long a client stays with its endpoint, in seconds.
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) fn fill_in(service: &mut Value) {
    let Some(spec) = child(service, "spec") else { return };
    fill(spec, "sessionAffinity", "None");
    fill(spec, "type", "ClusterIP");
    match text(spec, "/sessionAffinity") {
        "ClientIP" => {
            if let Some(client) = child(spec, "sessionAffinityConfig").and_then(|c| child(c, "clientIP")) {
                super::super::object::fill_absent(client, "timeoutSeconds", AFFINITY_SECONDS);
            }
        }
        "None" => remove(spec, "sessionAffinityConfig"),
        _ => {}
    }
    for port in list_mut(spec, "ports") {
        fill(port, "protocol", "TCP");
        if unset(port, "targetPort") {
            let same = port["port"].clone();
            put(port, "targetPort", same);
        }
    }
    let (has_address, external) = (has_cluster_ip(service), is_external(service));
    let Some(spec) = child(service, "spec") else { return };
    if external {
        fill(spec, "externalTrafficPolicy", "Cluster");
    }
    if has_address {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
    if text(spec, "/type") == "LoadBalancer" && spec.get("allocateLoadBalancerNodePorts").is_none() {
        put(spec, "allocateLoadBalancerNodePorts", true);
    }
}
