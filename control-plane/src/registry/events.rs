//! Events are stored once, as `v1`, and shown in two groups. Source: k8s.io/kubernetes `pkg/apis/events/v1` conversion.

use serde_json::{Map, Value};

/// The newer of the two groups.
pub const GROUP: &str = "events.k8s.io";

/// Fields whose name differs: in `v1`, in `events.k8s.io/v1`.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// An `events.k8s.io/v1` Event as `v1`.
pub fn to_core(event: &Value) -> Value {
    renamed(event, "v1", |name| NAMES.iter().find(|(_, new)| *new == name).map(|(old, _)| *old))
}

/// A `v1` Event as `events.k8s.io/v1`.
pub fn from_core(event: &Value) -> Value {
    renamed(event, "events.k8s.io/v1", |name| NAMES.iter().find(|(old, _)| *old == name).map(|(_, new)| *new))
}

fn renamed(event: &Value, version: &str, name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Some(fields) = event.as_object() else { return event.clone() };
    let mut to: Map<String, Value> =
        fields.iter().map(|(key, value)| (name(key).unwrap_or(key).to_owned(), value.clone())).collect();
    if to.contains_key("apiVersion") {
        to.insert("apiVersion".into(), version.into());
    }
    Value::Object(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_ways() {
        let core = json!({"apiVersion": "v1", "message": "m", "involvedObject": {"name": "p"}, "reason": "r"});
        let new = json!({"apiVersion": "events.k8s.io/v1", "note": "m", "regarding": {"name": "p"}, "reason": "r"});
        assert_eq!(from_core(&core), new);
        assert_eq!(to_core(&new), core);
    }
}
