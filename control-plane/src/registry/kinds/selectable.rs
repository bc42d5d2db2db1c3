//! The values that field selectors see.

use std::borrow::Cow;

use serde_json::Value;

/// The value of a selectable field, as `spec.nodeName`; empty where it is absent.
pub fn selected<'a>(object: &'a Value, field: &str) -> Cow<'a, str> {
    let found = field.split('.').try_fold(object, |value, name| value.get(name));
    match (field, found) {
        // An event's source is its component, whichever field names it.
        ("source", _) => {
            let component = object.pointer("/source/component").and_then(Value::as_str).filter(|c| !c.is_empty());
            component.or(object["reportingComponent"].as_str()).unwrap_or_default().into()
        }
        (_, Some(Value::String(text))) => text.as_str().into(),
        (_, Some(value @ (Value::Bool(_) | Value::Number(_)))) => value.to_string().into(),
        ("spec.unschedulable" | "spec.hostNetwork", _) => "false".into(),
        ("status.replicas", _) => "0".into(),
        _ => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_truth_is_false() {
        let node = json!({"metadata": {"name": "n"}, "spec": {}, "source": {"component": "kubelet"}});
        assert_eq!(selected(&node, "spec.unschedulable"), "false");
        assert_eq!(selected(&node, "metadata.name"), "n");
        assert_eq!(selected(&node, "spec.nodeName"), "");
        assert_eq!(selected(&node, "source"), "kubelet");
    }
}
