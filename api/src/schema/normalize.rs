//! The JSON that a Go server would have stored after decoding into its structs.

use serde_json::{Map, Value};

use super::{Definition, Field, Type};
use crate::{quantity::Quantity, time};

/// Drops unknown fields, explicit nulls and the zero values that Go's encoder leaves out, and writes quantities and
/// times in their canonical form. Idempotent. Call [`super::check`] before: values of a wrong type stay as they are.
pub fn normalize(definition: &'static Definition, value: &mut Value) {
    if let Value::Object(object) = value {
        normalize_object(definition, object);
    }
}

fn normalize_object(definition: &'static Definition, object: &mut Map<String, Value>) {
    object.retain(|name, value| match definition.field(name) {
        Some(field) => {
            canonical(field.ty, value);
            !hidden(field, value)
        }
        None => false,
    });
}

/// Whether Go's encoder leaves this value of a field out.
pub(crate) fn hidden(field: &Field, value: &Value) -> bool {
    if value.is_null() {
        return true;
    }
    if field.pointer || field.always {
        return false;
    }
    match (field.ty, value) {
        (Type::Object(_) | Type::RawExtension | Type::FieldsV1 | Type::Json | Type::SchemaOr(..), _) => false,
        (Type::IntOrString | Type::Quantity, _) => false,
        (_, Value::String(text)) => text.is_empty(),
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::Object(entries)) => entries.is_empty(),
        (_, Value::Bool(truth)) => !truth,
        (_, Value::Number(number)) => number.as_f64() == Some(0.0),
        (_, Value::Null) => true,
    }
}

fn canonical(ty: Type, value: &mut Value) {
    match (ty, &mut *value) {
        (Type::Object(index) | Type::SchemaOr(_, index), Value::Object(object)) => {
            normalize_object(super::at(index), object);
        }
        (Type::Array(inner), Value::Array(items)) => {
            for item in items {
                if item.is_null() {
                    *item = zero(*inner);
                }
                canonical(*inner, item);
            }
        }
        (Type::Map(inner), Value::Object(entries)) => {
            for (_, item) in entries.iter_mut() {
                if item.is_null() {
                    *item = zero(*inner);
                }
                canonical(*inner, item);
            }
        }
        (Type::Quantity, Value::Number(number)) => {
            if let Ok(quantity) = number.to_string().parse::<Quantity>() {
                *value = Value::String(quantity.to_string());
            }
        }
        (Type::Quantity, Value::String(text)) => {
            if let Ok(quantity) = text.parse::<Quantity>() {
                *text = quantity.to_string();
            }
        }
        (Type::Time, Value::String(text)) => {
            if let Some((seconds, _)) = time::parse(text) {
                *text = time::format(seconds);
            }
        }
        (Type::MicroTime, Value::String(text)) => {
            if let Some((seconds, nanos)) = time::parse(text) {
                *text = time::format_micro(seconds, nanos / 1000);
            }
        }
        _ => {}
    }
}

/// What null in a list or map means.
fn zero(ty: Type) -> Value {
    match ty {
        Type::String | Type::Bytes => Value::String(String::new()),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => Value::from(0),
        Type::Boolean => Value::Bool(false),
        Type::Quantity => Value::String("0".into()),
        Type::Object(_) => Value::Object(Map::new()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::by_kind;

    #[test]
    fn keeps_what_go_would_keep() {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "junk": 1,
            "metadata": {"name": "a", "creationTimestamp": null, "labels": {}, "namespace": ""},
            "spec": {
                "hostNetwork": false, "terminationGracePeriodSeconds": 0, "nodeName": "", "securityContext": {},
                "containers": [{"name": "", "args": [], "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
            "status": {"startTime": "2026-01-02T05:04:05+02:00"},
        });
        normalize(by_kind("", "v1", "Pod").expect("known"), &mut pod);
        assert_eq!(
            pod,
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
                "spec": {
                    "terminationGracePeriodSeconds": 0, "securityContext": {},
                    "containers": [{"name": "", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                },
                "status": {"startTime": "2026-01-02T03:04:05Z"},
            })
        );
    }
}
