//! Leases.

use api::status::FieldError;
use serde_json::Value;

use super::object::{number, text};
use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy};

pub(super) static LEASES: Resource = Resource {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    columns: &[
        cells::column("Holder", "string", "Identity of the holder of the lease.", |o, _| {
            text(o, "/spec/holderIdentity").into()
        }),
        cells::AGE,
    ],
    strategy: &Leases,
    ..ROW
};

struct Leases;

impl Strategy for Leases {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = check::name(object, api::names::dns_subdomain);
        if object["spec"].get("leaseDurationSeconds").is_some() && number(object, "/spec/leaseDurationSeconds") <= 0 {
            let seconds = number(object, "/spec/leaseDurationSeconds");
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        if number(object, "/spec/leaseTransitions") < 0 {
            let count = number(object, "/spec/leaseTransitions");
            errors.push(FieldError::invalid("spec.leaseTransitions", count, check::NOT_NEGATIVE));
        }
        errors
    }
}
