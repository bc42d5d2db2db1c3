//! Nodes.

use api::status::FieldError;
use serde_json::{Value, json};

use super::object::{child, keep_status, list, put, remove, text, unset};
use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy, Subresource};

pub(super) static NODES: Resource = Resource {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Status, Subresource::Proxy],
    columns: &[
        cells::column("Status", "string", "The status of the node", |o, _| status(o).into()),
        cells::column("Roles", "string", "The roles of the node", |o, _| roles(o).into()),
        cells::AGE,
        cells::column("Version", "string", "Version of the node's kubelet.", |o, _| {
            text(o, "/status/nodeInfo/kubeletVersion").into()
        }),
        cells::wide("Internal-IP", "Addresses reachable to the node.", |o, _| address(o, "InternalIP").into()),
        cells::wide("External-IP", "Addresses reachable to the node.", |o, _| address(o, "ExternalIP").into()),
        cells::wide("OS-Image", "OS image reported by the node.", |o, _| info(o, "osImage").into()),
        cells::wide("Kernel-Version", "Kernel version reported by the node.", |o, _| kernel(o).into()),
        cells::wide("Container-Runtime", "Container runtime of the node.", |o, _| {
            info(o, "containerRuntimeVersion").into()
        }),
    ],
    selectable: &["spec.unschedulable"],
    strategy: &Nodes,
    ..ROW
};

fn status(node: &Value) -> String {
    let ready = list(node, "/status/conditions").iter().find(|c| c["type"] == "Ready");
    let mut words = vec![match ready.map(|c| text(c, "/status")) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    }];
    if node["spec"]["unschedulable"] == true {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(node: &Value) -> String {
    let mut roles = Vec::new();
    for (key, value) in api::meta::labels(node).as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.push(role),
            _ if key == "kubernetes.io/role" && !value.is_empty() => roles.push(value),
            _ => {}
        }
    }
    roles.sort_unstable();
    roles.dedup();
    cells::or_none(&roles.join(",")).to_owned()
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let found = list(node, "/status/addresses").iter().find(|a| a["type"] == kind);
    cells::or_none(found.map_or("", |a| text(a, "/address")))
}

fn info<'a>(node: &'a Value, field: &str) -> &'a str {
    match text(node, &format!("/status/nodeInfo/{field}")) {
        "" => "<unknown>",
        text => text,
    }
}

fn kernel(node: &Value) -> String {
    match text(node, "/status/nodeInfo/architecture") {
        "" => info(node, "kernelVersion").to_owned(),
        architecture => format!("{} ({architecture})", info(node, "kernelVersion")),
    }
}

struct Nodes;

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            match (text(spec, "/podCIDR").to_owned(), text(spec, "/podCIDRs/0").to_owned()) {
                (single, first) if single.is_empty() && !first.is_empty() => put(spec, "podCIDR", first),
                (single, first) if !single.is_empty() && first.is_empty() => put(spec, "podCIDRs", json!([single])),
                _ => {}
            }
        }
        // Allocatable is capacity, unless the node says otherwise.
        let silent = |status: &&mut Value| status["allocatable"].as_object().is_none_or(serde_json::Map::is_empty);
        let status = object.get_mut("status").filter(|status| status["capacity"].is_object());
        if let Some(status) = status.filter(silent) {
            let capacity = status["capacity"].clone();
            put(status, "allocatable", capacity);
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let Some(spec) = old.get("spec") else { return remove(new, "spec") };
        // As upstream: a write to the status keeps the spec, and may change the metadata.
        put(new, "spec", spec.clone());
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = check::name(object, api::names::dns_subdomain);
        errors.extend(taints(list(object, "/spec/taints")));
        errors.extend(pod_cidrs(&object["spec"]["podCIDRs"]));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if !unset(&old["spec"], "podCIDRs") && new["spec"]["podCIDRs"] != old["spec"]["podCIDRs"] {
            errors.push(FieldError::forbidden(
                "spec.podCIDRs",
                "node updates may not change podCIDR except from \"\" to valid",
            ));
        }
        let (before, after) = (text(old, "/spec/providerID"), text(new, "/spec/providerID"));
        if !before.is_empty() && before != after {
            let why = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.providerID", why));
        }
        errors
    }
}

/// At most one of each family.
fn pod_cidrs(given: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut families = Vec::new();
    for (i, cidr) in list(given, "").iter().enumerate() {
        match check::cidr(&format!("spec.podCIDRs[{i}]"), cidr.as_str().unwrap_or_default()) {
            Ok(cidr) => families.push(cidr.is_ipv4()),
            Err(error) => errors.push(error),
        }
    }
    let count = families.len();
    families.sort_unstable();
    families.dedup();
    if families.len() < count {
        let why = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid("spec.podCIDRs", given.clone(), why));
    }
    errors
}

fn taints(taints: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for (i, taint) in taints.iter().enumerate() {
        let path = format!("spec.taints[{i}]");
        let (key, effect) = (text(taint, "/key"), text(taint, "/effect"));
        errors.extend(check::by_rule(format!("{path}.key"), key, api::names::qualified));
        errors.extend(check::by_rule(format!("{path}.value"), text(taint, "/value"), api::names::label_value));
        match effect {
            "" => errors.push(FieldError::required(format!("{path}.effect"), "")),
            effect => errors.extend(check::one_of(
                format!("{path}.effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            )),
        }
        if seen.contains(&(key, effect)) {
            let mut error = FieldError::duplicate(path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".into();
            errors.push(error);
        }
        seen.push((key, effect));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_say_what_kubectl_shows() {
        let node = json!({
            "metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}],
                "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                "nodeInfo": {"kernelVersion": "6.1", "architecture": "amd64"}},
        });
        assert_eq!(status(&node), "NotReady,SchedulingDisabled");
        assert_eq!(roles(&node), "control-plane,worker");
        assert_eq!((address(&node, "InternalIP"), address(&node, "ExternalIP")), ("1.2.3.4", "<none>"));
        assert_eq!((kernel(&node).as_str(), info(&node, "osImage")), ("6.1 (amd64)", "<unknown>"));
        assert_eq!((status(&json!({})).as_str(), roles(&json!({})).as_str()), ("Unknown", "<none>"));
    }

    #[test]
    fn pod_cidrs_are_twins() {
        let mut node = json!({"spec": {"podCIDR": "10.244.0.0/24"}});
        Nodes.default(&mut node);
        assert_eq!(node["spec"]["podCIDRs"], json!(["10.244.0.0/24"]));
        assert!(pod_cidrs(&json!(["10.244.0.0/24", "fd00::/64"])).is_empty());
        assert!(pod_cidrs(&json!(["10.244.0.0/24", "10.244.1.0/24"]))[0].to_string().contains("no more than one CIDR"));
        assert!(pod_cidrs(&json!(["10.244.0.1/24"]))[0].to_string().starts_with("spec.podCIDRs[0]: Invalid value"));
    }
}
