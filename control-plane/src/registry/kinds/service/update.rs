//! What an update of a Service keeps, and what it may not change.

use api::status::FieldError;
use serde_json::{Value, json};

use super::super::object::{child, keep_status, list, list_mut, number, put, remove, text, unset};
use super::{allocate, families, has_cluster_ip, has_node_ports, is_external, is_headless};

/// Brings over what was allocated and the client left out, and drops what the new type has no use for.
pub(super) fn carry_over(new: &mut Value, old: &Value) {
    keep_status(new, old);
    if has_cluster_ip(old) && has_cluster_ip(new) {
        keep_addresses(new, old);
    }
    if has_cluster_ip(new) && list(old, "/spec/clusterIPs").is_empty() {
        twin_addresses(new);
    }
    if has_node_ports(old) && has_node_ports(new) {
        keep_node_ports(new, old);
    }
    if has_cluster_ip(old) && !has_cluster_ip(new) {
        drop_same(new, old, &["clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
        if new["spec"].get("clusterIPs").is_none() {
            drop_same(new, old, &["clusterIP"]);
        }
    }
    let node_ports_go = has_node_ports(old) && !has_node_ports(new) && node_ports(old) == node_ports(new);
    if let Some(spec) = child(new, "spec").filter(|_| node_ports_go) {
        list_mut(spec, "ports").iter_mut().for_each(|port| remove(port, "nodePort"));
    }
    if text(old, "/spec/type") == "LoadBalancer" && text(new, "/spec/type") != "LoadBalancer" {
        drop_same(new, old, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_external(old) && !is_external(new) {
        drop_same(new, old, &["externalTrafficPolicy"]);
    }
    if text(new, "/spec/type") != "LoadBalancer" {
        put(new, "status", json!({"loadBalancer": {}}));
    }
}

/// A client that knows `clusterIP` alone means both; one that knows `clusterIPs` has to write both.
pub(super) fn twin_addresses(service: &mut Value) {
    let Some(spec) = child(service, "spec") else { return };
    let single = text(spec, "/clusterIP").to_owned();
    if !single.is_empty() && list(spec, "/clusterIPs").is_empty() {
        put(spec, "clusterIPs", json!([single]));
    }
}

/// A client that writes without an address means those there are, and one that knows `clusterIP` alone means both by the
/// first. One that changes only one of the twins means both.
fn keep_addresses(new: &mut Value, old: &Value) {
    let Some(spec) = child(new, "spec") else { return };
    let before = &old["spec"];
    if unset(spec, "clusterIP") {
        put(spec, "clusterIP", before["clusterIP"].clone());
    }
    if unset(spec, "clusterIPs") && spec["clusterIP"] == before["clusterIP"] {
        put(spec, "clusterIPs", before["clusterIPs"].clone());
    } else if spec["clusterIP"] != before["clusterIP"] && spec["clusterIPs"] == before["clusterIPs"] {
        let address = spec["clusterIP"].clone();
        put(spec, "clusterIPs", json!([address]));
    }
}

fn keep_node_ports(new: &mut Value, old: &Value) {
    let identity = |port: &Value| (text(port, "/protocol").to_owned(), number(port, "/port"));
    let mut used: Vec<i64> = node_ports(new);
    let Some(spec) = child(new, "spec") else { return };
    for port in list_mut(spec, "ports") {
        if number(port, "/nodePort") != 0 {
            continue;
        }
        let same = list(old, "/spec/ports").iter().find(|before| identity(before) == identity(port));
        let kept = same.map_or(0, |before| number(before, "/nodePort"));
        if kept != 0 && !used.contains(&kept) {
            put(port, "nodePort", kept);
            used.push(kept);
        }
    }
}

fn node_ports(service: &Value) -> Vec<i64> {
    let all = list(service, "/spec/ports").iter().map(|port| number(port, "/nodePort"));
    all.filter(|port| *port != 0).collect()
}

/// Removes fields of the spec that the client did not touch.
fn drop_same(new: &mut Value, old: &Value, fields: &[&str]) {
    let Some(spec) = child(new, "spec") else { return };
    for field in fields {
        if spec.get(*field) == old["spec"].get(*field) {
            remove(spec, field);
        }
    }
}

pub(super) fn check(new: &Value, old: &Value) -> Vec<FieldError> {
    let external_name = |service: &Value| text(service, "/spec/type") == "ExternalName";
    if external_name(new) || external_name(old) || is_headless(new) && is_headless(old) {
        return Vec::new();
    }
    if let Some(error) = families::released(new, old) {
        return vec![error];
    }
    if !families::refused(&allocate::ranges().families(), new).is_empty() {
        return Vec::new(); // told already, and upstream looks no further
    }
    let mut errors = addresses(new, old);
    if is_headless(new) == is_headless(old) {
        errors.extend(families::validate_update(new, old));
    }
    errors
}

fn addresses(new: &Value, old: &Value) -> Vec<FieldError> {
    let (before, after) = (list(old, "/spec/clusterIPs"), list(new, "/spec/clusterIPs"));
    let invalid = |i: usize, why: &str| {
        FieldError::invalid(format!("spec.clusterIPs[{i}]"), new["spec"]["clusterIPs"].clone(), why)
    };
    if after.is_empty() && !before.is_empty() {
        return vec![invalid(0, "primary clusterIP can not be unset")];
    }
    let changed = (0..before.len().min(after.len())).filter(|i| before[*i] != after[*i]);
    changed.map(|i| invalid(i, "may not change once set")).collect()
}
