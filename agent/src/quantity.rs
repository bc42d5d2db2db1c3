//! Kubernetes quantities as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// A list of resources, as in requests, limits and capacity.
pub type Resources = BTreeMap<String, Quantity>;

/// The quantity in thousandths, rounded up; `None` where it is malformed.
pub fn milli(text: &str) -> Option<i64> {
    parse(text).map(api::quantity::Quantity::milli_value)
}

/// The quantity in whole units, rounded up; `None` where it is malformed.
pub fn units(text: &str) -> Option<i64> {
    parse(text).map(api::quantity::Quantity::value)
}

/// A resource of a list in thousandths; 0 where it is absent.
pub fn milli_of(list: Option<&Resources>, name: &str) -> i64 {
    list.and_then(|list| list.get(name)).and_then(|quantity| milli(&quantity.0)).unwrap_or(0)
}

/// A resource of a list in whole units; 0 where it is absent.
pub fn units_of(list: Option<&Resources>, name: &str) -> i64 {
    list.and_then(|list| list.get(name)).and_then(|quantity| units(&quantity.0)).unwrap_or(0)
}

fn parse(text: &str) -> Option<api::quantity::Quantity> {
    text.parse().ok()
}
