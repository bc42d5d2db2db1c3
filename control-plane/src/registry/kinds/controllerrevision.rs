//! ControllerRevisions.

use api::meta;
use api::status::FieldError;
use serde_json::Value;

use super::object::number;
use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy};

pub(super) static CONTROLLER_REVISIONS: Resource = Resource {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    columns: &[
        cells::column("Controller", "string", "Controller of the object", |o, _| controller(o).into()),
        cells::column("Revision", "string", "Revision of the state represented by data.", |o, _| {
            number(o, "/revision").into()
        }),
        cells::AGE,
    ],
    strategy: &Revisions,
    ..ROW
};

/// As `daemonset.apps/web`.
fn controller(object: &Value) -> String {
    let Some(owner) = meta::controller(object) else { return cells::NONE.into() };
    let kind = owner["kind"].as_str().unwrap_or_default().to_lowercase();
    let name = owner["name"].as_str().unwrap_or_default();
    match owner["apiVersion"].as_str().unwrap_or_default().split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

struct Revisions;

impl Strategy for Revisions {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = check::name(object, api::names::dns_subdomain);
        if object.get("data").is_none_or(Value::is_null) {
            errors.push(FieldError::required("data", "data is mandatory"));
        }
        if number(object, "/revision") < 0 {
            errors.push(FieldError::invalid("revision", number(object, "/revision"), check::NOT_NEGATIVE));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        if new["data"] == old["data"] {
            return Vec::new();
        }
        vec![FieldError::invalid("data", new["data"].clone(), "field is immutable")]
    }
}
