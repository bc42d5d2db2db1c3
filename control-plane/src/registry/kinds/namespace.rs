//! Namespaces.

use api::meta;
use api::status::FieldError;
use serde_json::{Value, json};

use super::object::{child, keep_status, put, text};
use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy, Subresource};

pub(super) static NAMESPACES: Resource = Resource {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    subresources: &[Subresource::Status, Subresource::Finalize],
    columns: &[
        cells::column("Status", "string", "The status of the namespace", |o, _| text(o, "/status/phase").into()),
        cells::AGE,
    ],
    selectable: &["status.phase"],
    strategy: &Namespaces,
    ..ROW
};

/// Every namespace carries its name as this label.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Stands in `spec.finalizers` until the namespace controller has emptied the namespace.
const FINALIZER: &str = "kubernetes";

struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        let name = meta::name(object).to_owned();
        if name.is_empty() {
            return;
        }
        if let Some(labels) = child(object, "metadata").and_then(|m| child(m, "labels")) {
            put(labels, NAME_LABEL, name);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        put(object, "status", json!({"phase": "Active"}));
        if let Some(spec) = child(object, "spec") {
            let mut finalizers = spec["finalizers"].as_array().cloned().unwrap_or_default();
            if !finalizers.iter().any(|f| f == FINALIZER) {
                finalizers.push(FINALIZER.into());
            }
            put(spec, "finalizers", finalizers);
        }
        self.default(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status(new, old);
        if let Some(spec) = old.get("spec") {
            put(new, "spec", spec.clone());
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        check::name(object, api::names::dns_label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_active_and_labelled() {
        let mut namespace = json!({"metadata": {"name": "a"}, "spec": {}, "status": {"phase": "Terminating"}});
        Namespaces.prepare_create(&mut namespace);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "a", "labels": {NAME_LABEL: "a"}}, "spec": {"finalizers": ["kubernetes"]},
                "status": {"phase": "Active"}})
        );
    }
}
