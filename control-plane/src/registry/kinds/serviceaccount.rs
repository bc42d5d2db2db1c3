//! ServiceAccounts.

use api::status::FieldError;
use serde_json::Value;

use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy, Subresource};

pub(super) static SERVICE_ACCOUNTS: Resource = Resource {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    columns: &[cells::AGE],
    strategy: &ServiceAccounts,
    ..ROW
};

struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        check::name(object, api::names::dns_subdomain)
    }
}
