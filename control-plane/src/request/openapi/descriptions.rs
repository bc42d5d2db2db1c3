//! The API's own words for its types and fields, as `build.rs` found them.

use std::collections::{BTreeMap, BTreeSet};

/// Only what a document needs is parsed, and dropped with it.
static TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/descriptions.txt"));

/// What objects say of themselves: constants in the types that the descriptions come from.
const API_VERSION: &str =
    "The group and version of the schema that this object follows, such as apps/v1; the legacy group has no name: v1.";
const KIND: &str = "The kind of this object, in the singular and in camel case. It cannot be changed.";

/// The descriptions of some definitions and their fields.
pub(super) struct Descriptions(BTreeMap<&'static str, BTreeMap<String, String>>);

impl Descriptions {
    /// Those of the definitions with these names.
    pub fn of(names: &BTreeSet<&'static str>) -> Self {
        let lines = TEXT.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| names.contains(name));
        Self(lines.filter_map(|(name, fields)| Some((name, serde_json::from_str(fields).ok()?))).collect())
    }

    pub fn definition(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.get("").map(String::as_str)
    }

    pub fn field(&self, definition: &str, field: &str) -> Option<&str> {
        match (self.0.get(definition).and_then(|fields| fields.get(field)), field) {
            (Some(text), _) => Some(text),
            (None, "apiVersion") => Some(API_VERSION),
            (None, "kind") => Some(KIND),
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_names_in_json() {
        const SPEC: &str = "io.k8s.api.core.v1.PodSpec";
        let descriptions = Descriptions::of(&BTreeSet::from([SPEC]));
        assert!(descriptions.definition(SPEC).is_some_and(|text| text.starts_with("PodSpec is")));
        assert!(descriptions.field(SPEC, "hostPID").is_some_and(|text| text.contains("pid namespace")));
        assert!(descriptions.field(SPEC, "evictionResponders").is_some_and(|text| text.contains("responders[]")));
        assert_eq!(descriptions.field(SPEC, "nosuch"), None);
    }
}
