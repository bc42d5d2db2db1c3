//! Pods.

mod columns;
pub(super) mod defaults;
mod qos;
mod update;
pub(super) mod validate;

use api::status::FieldError;
use serde_json::{Value, json};

use super::object::{child, fill, keep_status_count_spec, number, put, text};
use super::{ROW, check};
use crate::registry::{Deletion, Resource, Strategy, Subresource};

pub use qos::qos_class;

pub(super) static PODS: Resource = Resource {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Status,
        Subresource::Binding,
        Subresource::Eviction,
        Subresource::EphemeralContainers,
        Subresource::Resize,
        Subresource::Log,
        Subresource::Exec,
        Subresource::Attach,
        Subresource::PortForward,
        Subresource::Proxy,
    ],
    columns: columns::COLUMNS,
    selectable: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    strategy: &Pods,
    ..ROW
};

struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
        twin_addresses(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        api::meta::set(object, "generation", 1);
        let class = qos_class(object);
        put(object, "status", json!({"phase": "Pending", "qosClass": class}));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status_count_spec(new, old);
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        let status = new.get("status").cloned().unwrap_or_else(|| json!({}));
        let version = new["metadata"]["resourceVersion"].clone();
        *new = old.clone();
        if !version.is_null() {
            api::meta::set(new, "resourceVersion", version);
        }
        put(new, "status", status);
        if let Some(status) = child(new, "status") {
            fill(status, "qosClass", old["status"]["qosClass"].clone());
        }
        twin_addresses(new);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = check::name(object, api::names::dns_subdomain);
        errors.extend(validate::spec(&object["spec"], "spec"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        update::check(new, old)
    }

    fn deletion(&self, object: &Value, requested: Option<i64>) -> Deletion {
        let ended = matches!(text(object, "/status/phase"), "Succeeded" | "Failed");
        if ended || text(object, "/spec/nodeName").is_empty() {
            return Deletion::Now;
        }
        match requested.unwrap_or_else(|| number(object, "/spec/terminationGracePeriodSeconds")) {
            0 => Deletion::Now,
            ..0 => Deletion::Graceful { seconds: 1 },
            seconds => Deletion::Graceful { seconds },
        }
    }
}

/// `podIP` is the first of `podIPs`, `hostIP` of `hostIPs`.
fn twin_addresses(pod: &mut Value) {
    let Some(status) = pod.get_mut("status").filter(|status| status.is_object()) else { return };
    for (single, all) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let first = text(status, &format!("/{all}/0/ip")).to_owned();
        let one = text(status, &format!("/{single}")).to_owned();
        if !one.is_empty() && first != one {
            put(status, all, json!([{"ip": one}]));
        } else if one.is_empty() && !first.is_empty() {
            put(status, single, first);
        }
    }
}

#[cfg(test)]
mod tests;
