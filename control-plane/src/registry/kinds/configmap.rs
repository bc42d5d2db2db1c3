//! ConfigMaps.

use api::status::FieldError;
use serde_json::Value;

use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy};

pub(super) static CONFIG_MAPS: Resource = Resource {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    columns: &[
        cells::column("Data", "string", "Number of entries in data and binaryData.", |object, _| {
            (cells::count(object, "data") + cells::count(object, "binaryData")).into()
        }),
        cells::AGE,
    ],
    strategy: &ConfigMaps,
    ..ROW
};

struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = check::name(object, api::names::dns_subdomain);
        errors.extend(check::data_keys(object, "data"));
        errors.extend(check::data_keys(object, "binaryData"));
        for key in object["data"].as_object().into_iter().flat_map(|data| data.keys()) {
            if object["binaryData"].get(key).is_some() {
                errors.push(FieldError::invalid(
                    format!("data[{key}]"),
                    key.as_str(),
                    "duplicate of key present in binaryData",
                ));
            }
        }
        errors.extend(check::data_size(object, &["data", "binaryData"], ""));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        check::immutable_data(new, old, &["data", "binaryData"])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_and_immutability() {
        let map = json!({"metadata": {"name": "a"}, "data": {"a b": "x", "k": "y"}, "binaryData": {"k": "eA=="}});
        let said: Vec<String> = ConfigMaps.validate(&map).iter().map(ToString::to_string).collect();
        assert!(
            said[0].starts_with("data[a b]: Invalid value: \"a b\": a valid config key must consist of"),
            "{said:?}"
        );
        assert_eq!(said[1], "data[k]: Invalid value: \"k\": duplicate of key present in binaryData");
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let said: Vec<String> =
            ConfigMaps.validate_update(&json!({"data": {"a": "2"}}), &old).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set"
            ]
        );
    }
}
