//! ReplicaSets.

use api::status::FieldError;
use serde_json::{Value, json};

use super::object::{child, fill_absent, keep_status_count_spec, number, put};
use super::{ROW, cells, check, pod, template};
use crate::registry::{Resource, Strategy, Subresource};

pub(super) static REPLICA_SETS: Resource = Resource {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    columns: &[
        cells::column("Desired", "integer", "Number of pods that are wanted.", |o, _| {
            number(o, "/spec/replicas").into()
        }),
        cells::column("Current", "integer", "Number of pods that there are.", |o, _| {
            number(o, "/status/replicas").into()
        }),
        cells::column("Ready", "integer", "Number of pods that are ready.", |o, _| {
            number(o, "/status/readyReplicas").into()
        }),
        cells::AGE,
        cells::wide("Containers", "Names of each container in the template.", |o, _| cells::containers(o, "name")),
        cells::wide("Images", "Images referenced by each container in the template.", |o, _| {
            cells::containers(o, "image")
        }),
        cells::wide("Selector", "The labels of the pods that are counted.", |o, _| cells::selector(o)),
    ],
    selectable: &["status.replicas"],
    strategy: &ReplicaSets,
    ..ROW
};

struct ReplicaSets;

impl Strategy for ReplicaSets {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        fill_absent(spec, "replicas", 1);
        if let Some(template) = child(spec, "template") {
            pod::defaults::template(template);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        put(object, "status", json!({"replicas": 0}));
        api::meta::set(object, "generation", 1);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        keep_status_count_spec(new, old);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let spec = &object["spec"];
        let mut errors = check::name(object, api::names::dns_subdomain);
        errors.extend(check::not_negative("spec.replicas", spec["replicas"].as_i64()));
        errors.extend(check::not_negative("spec.minReadySeconds", spec["minReadySeconds"].as_i64()));
        errors.extend(template::check(object, "replicaset"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        template::same_selector(new, old).into_iter().collect()
    }
}
