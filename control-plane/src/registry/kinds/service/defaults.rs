//! What an unset field of a Service means.

use serde_json::{Value, json};

use super::super::object::{child, fill, list_mut, put, remove, text, unset};
use super::{has_cluster_ip, is_external, is_headless};

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
    twin_addresses(spec);
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
    if has_address {
        families(service);
    }
}

/// `clusterIP` is the first of `clusterIPs`.
fn twin_addresses(spec: &mut Value) {
    let single = text(spec, "/clusterIP").to_owned();
    let first = text(spec, "/clusterIPs/0").to_owned();
    if !single.is_empty() && first.is_empty() {
        put(spec, "clusterIPs", json!([single]));
    } else if single.is_empty() && !first.is_empty() {
        put(spec, "clusterIP", first);
    }
}

/// This cluster has IPv4 services. One that is headless and selects nothing may have endpoints of both families.
fn families(service: &mut Value) {
    let free = is_headless(service) && service["spec"]["selector"].as_object().is_none_or(serde_json::Map::is_empty);
    let address = text(service, "/spec/clusterIPs/0").to_owned();
    let Some(spec) = child(service, "spec") else { return };
    fill(spec, "ipFamilyPolicy", if free { "RequireDualStack" } else { "SingleStack" });
    let first = if address.contains(':') { "IPv6" } else { "IPv4" };
    fill(spec, "ipFamilies", json!([first]));
    let other = if spec["ipFamilies"][0] == "IPv6" { "IPv4" } else { "IPv6" };
    let both = free && text(spec, "/ipFamilyPolicy") != "SingleStack";
    if let Some(families) = spec["ipFamilies"].as_array_mut().filter(|families| both && families.len() == 1) {
        families.push(other.into());
    }
}
