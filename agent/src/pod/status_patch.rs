//! What of a status has to be written: the difference as a strategic merge patch, bound to the pod's uid.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// The patch from what the API has to what it should have; `None` where nothing differs.
pub fn patch(uid: &str, old: Option<&PodStatus>, new: &PodStatus) -> Option<Value> {
    let old = object(old.map(serde_json::to_value));
    let new = object(Some(serde_json::to_value(new)));
    let mut status = Map::new();
    for (name, value) in &new {
        let before = old.get(name);
        if before == Some(value) {
            continue;
        }
        let change = match name.as_str() {
            "conditions" => merge_list(before, value, "type"),
            "podIPs" | "hostIPs" => merge_list(before, value, "ip"),
            _ => Some(value.clone()),
        };
        status.extend(change.map(|change| (name.clone(), change)));
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        status.insert(name.clone(), Value::Null);
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

/// In a list that the API merges by a key: elements that differ, and directives for those that go.
fn merge_list(old: Option<&Value>, new: &Value, key: &str) -> Option<Value> {
    let empty = Vec::new();
    let old = old.and_then(Value::as_array).unwrap_or(&empty);
    let new = new.as_array().unwrap_or(&empty);
    let same_key = |one: &Value, other: &Value| one.get(key) == other.get(key);
    let mut changed: Vec<Value> = new
        .iter()
        .filter(|element| !old.contains(element))
        .map(|element| {
            let mut element = element.clone();
            // A field that is gone from an element is cleared by null, since elements are merged.
            if let Some(before) = old.iter().find(|before| same_key(before, &element)).and_then(Value::as_object)
                && let Some(fields) = element.as_object_mut()
            {
                for name in before.keys() {
                    fields.entry(name.clone()).or_insert(Value::Null);
                }
            }
            element
        })
        .collect();
    let gone = old.iter().filter(|element| !new.iter().any(|other| same_key(element, other)));
    changed.extend(gone.map(|element| json!({"$patch": "delete", key: element.get(key)})));
    (!changed.is_empty()).then_some(Value::Array(changed))
}

fn object(value: Option<Result<Value, serde_json::Error>>) -> Map<String, Value> {
    match value {
        Some(Ok(Value::Object(mut fields))) => {
            fields.retain(|_, value| !value.is_null());
            fields
        }
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_differs_is_written() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
        let old = status(json!({
            "phase": "Pending", "reason": "x", "hostIP": "1.1.1.1",
            "conditions": [condition("Ready", "False"), condition("Foreign", "True")],
            "podIPs": [{"ip": "10.0.0.1"}],
        }));
        assert_eq!(patch("u", Some(&old), &old), None);
        let new = status(json!({
            "phase": "Running", "hostIP": "1.1.1.1",
            "conditions": [condition("Ready", "True"), condition("Foreign", "True")],
            "podIPs": [{"ip": "10.0.0.2"}],
        }));
        let expected = json!({"metadata": {"uid": "u"}, "status": {
            "phase": "Running", "reason": null,
            "conditions": [condition("Ready", "True")],
            "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}],
        }});
        assert_eq!(patch("u", Some(&old), &new), Some(expected));
    }

    #[test]
    fn a_reason_that_is_gone_from_a_condition_is_cleared() {
        let old = status(json!({"conditions": [{"type": "Ready", "status": "False", "reason": "R"}]}));
        let new = status(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        let made = patch("u", Some(&old), &new).unwrap();
        assert_eq!(made["status"]["conditions"][0], json!({"type": "Ready", "status": "True", "reason": null}));
    }
}
