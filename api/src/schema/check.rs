//! What a strict decoder says about a value.

use serde_json::{Map, Value};

use super::{Definition, SchemaOr, Type};
use crate::time;

/// A value that no field of this type can hold. `Display` is what the API's JSON decoder says.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TypeError {
    #[error("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}")]
    Mismatch {
        /// As `string` or `number 1.5`.
        found: String,
        /// The struct that has the field, as `DeploymentSpec`.
        owner: &'static str,
        /// Without indexes, as `spec.template.spec.containers.name`.
        path: String,
        /// As `int32`, `[]v1.Container`.
        wanted: String,
    },
    #[error("json: cannot unmarshal {0} into Go value of type {1}")]
    Root(&'static str, String),
    /// What a scalar's own parser says.
    #[error("{0}")]
    Scalar(String),
}

/// Compares a JSON object with its definition.
///
/// Returns the unknown fields, as `unknown field "spec.containers[0].foo"`, in the order of the object.
///
/// # Errors
/// Where a value's type is wrong: such a body cannot be decoded at all.
pub fn check(definition: &'static Definition, value: &Value) -> Result<Vec<String>, TypeError> {
    let Some(object) = value.as_object() else {
        return Err(TypeError::Root(found_word(value), go_name(definition)));
    };
    let mut walk = Walk { unknown: Vec::new(), steps: Vec::new() };
    walk.object(definition, object)?;
    Ok(walk.unknown)
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

struct Walk<'a> {
    unknown: Vec<String>,
    steps: Vec<Step<'a>>,
}

impl<'a> Walk<'a> {
    fn object(&mut self, definition: &'static Definition, object: &'a Map<String, Value>) -> Result<(), TypeError> {
        for (name, value) in object {
            self.steps.push(Step::Name(name));
            match definition.field(name) {
                Some(field) => self.value(definition, field.ty, value)?,
                None => self.unknown.push(format!("unknown field \"{}\"", self.path(true))),
            }
            self.steps.pop();
        }
        Ok(())
    }

    fn value(&mut self, owner: &'static Definition, ty: Type, value: &'a Value) -> Result<(), TypeError> {
        match (ty, value) {
            (_, Value::Null) => Ok(()),
            (Type::Array(inner), Value::Array(items)) => {
                for (i, item) in items.iter().enumerate() {
                    self.steps.push(Step::Index(i));
                    self.value(owner, *inner, item)?;
                    self.steps.pop();
                }
                Ok(())
            }
            (Type::Map(inner), Value::Object(entries)) => {
                for (key, item) in entries {
                    self.steps.push(Step::Name(key));
                    self.value(owner, *inner, item)?;
                    self.steps.pop();
                }
                Ok(())
            }
            (Type::StringList, Value::Array(items)) if items.iter().all(Value::is_string) => Ok(()),
            (Type::Object(index), Value::Object(object)) => self.object(super::at(index), object),
            (Type::SchemaOr(_, index), Value::Object(object)) => self.object(super::at(index), object),
            (Type::SchemaOr(SchemaOr::Bool, _), Value::Bool(_)) => Ok(()),
            (Type::SchemaOr(SchemaOr::Array | SchemaOr::StringArray, _), Value::Array(_)) => Ok(()),
            _ if scalar_fits(ty, value)? => Ok(()),
            _ => Err(TypeError::Mismatch {
                found: found(value),
                owner: owner.short_name(),
                path: self.path(false),
                wanted: go_type(ty),
            }),
        }
    }

    fn path(&self, indexes: bool) -> String {
        let mut text = String::new();
        for step in &self.steps {
            match step {
                Step::Name(name) if text.is_empty() => text.push_str(name),
                Step::Name(name) => text.extend([".", name]),
                Step::Index(i) if indexes => text.push_str(&format!("[{i}]")),
                Step::Index(_) => {}
            }
        }
        text
    }
}

fn scalar_fits(ty: Type, value: &Value) -> Result<bool, TypeError> {
    let scalar = |message: String| Err(TypeError::Scalar(message));
    Ok(match (ty, value) {
        (Type::String, Value::String(_)) | (Type::Boolean, Value::Bool(_)) => true,
        (Type::Double, Value::Number(_)) => true,
        (Type::Int32, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        (Type::Int64, Value::Number(n)) => n.as_i64().is_some(),
        (Type::IntOrString, Value::String(_)) => true,
        (Type::IntOrString, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        (Type::Quantity, Value::Number(n)) => quantity_fits(&n.to_string())?,
        (Type::Quantity, Value::String(text)) => quantity_fits(text)?,
        (Type::Time, Value::String(text)) => match time::parse(text) {
            Some(_) => true,
            None => return scalar(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse")),
        },
        (Type::MicroTime, Value::String(text)) => match time::parse(text) {
            Some(_) => true,
            None => {
                return scalar(format!("parsing time {text:?} as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse"));
            }
        },
        (Type::Bytes, Value::String(text)) => match crate::protobuf::base64(text) {
            Ok(_) => true,
            Err(at) => return scalar(format!("illegal base64 data at input byte {at}")),
        },
        (Type::RawExtension | Type::FieldsV1, Value::Object(_)) | (Type::Json, _) => true,
        _ => false,
    })
}

fn quantity_fits(text: &str) -> Result<bool, TypeError> {
    match text.parse::<crate::quantity::Quantity>() {
        Ok(_) => Ok(true),
        Err(error) => Err(TypeError::Scalar(error.to_string())),
    }
}

fn found(value: &Value) -> String {
    match value {
        Value::Number(n) => format!("number {n}"),
        other => found_word(other).to_owned(),
    }
}

fn found_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Go's name of a struct, as `v1.Pod`.
fn go_name(definition: &Definition) -> String {
    let mut parts = definition.name.rsplit('.');
    let (short, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{package}.{short}")
}

fn go_type(ty: Type) -> String {
    match ty {
        Type::String => "string".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Double => "float64".into(),
        Type::Boolean => "bool".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Time | Type::MicroTime => "string".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::RawExtension => "runtime.RawExtension".into(),
        Type::FieldsV1 => "v1.FieldsV1".into(),
        Type::Json => "interface {}".into(),
        Type::StringList => "[]string".into(),
        Type::SchemaOr(_, index) | Type::Object(index) => go_name(super::at(index)),
        Type::Array(inner) => format!("[]{}", go_type(*inner)),
        Type::Map(inner) => format!("map[string]{}", go_type(*inner)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::by_kind;

    fn deployment(spec: Value) -> Result<Vec<String>, TypeError> {
        check(by_kind("apps", "v1", "Deployment").expect("known"), &json!({"kind": "Deployment", "spec": spec}))
    }

    #[test]
    fn names_unknown_fields_with_their_path() {
        let spec = json!({"foo": 1, "template": {"spec": {"containers": [{"name": "a", "bar": {}}]}}});
        assert_eq!(
            deployment(spec),
            Ok(vec![
                "unknown field \"spec.foo\"".into(),
                "unknown field \"spec.template.spec.containers[0].bar\"".into()
            ])
        );
    }

    #[test]
    fn a_wrong_type_speaks_as_go_does() {
        let said = |spec| deployment(spec).map_err(|e| e.to_string());
        assert_eq!(
            said(json!({"replicas": "3"})),
            Err("json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32".into())
        );
        assert_eq!(
            said(json!({"template": {"spec": {"containers": {}}}})),
            Err("json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container".into())
        );
        assert_eq!(
            said(json!({"replicas": 1.5})),
            Err("json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"
                .into())
        );
    }

    #[test]
    fn nulls_and_special_scalars_pass() {
        let spec = json!({"replicas": null, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
            "template": {"metadata": {"creationTimestamp": null}, "spec": {"containers": [
                {"name": "a", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]}}});
        assert_eq!(deployment(spec), Ok(vec![]));
        let config = by_kind("", "v1", "Secret").expect("known");
        let error = check(config, &json!({"data": {"a": "!!!!"}})).map_err(|e| e.to_string());
        assert_eq!(error, Err("illegal base64 data at input byte 0".into()));
    }
}
