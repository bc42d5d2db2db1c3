//! What the server keeps in an object's metadata, whoever writes it.

use api::status::{FieldError, FieldErrorKind, Status};
use serde_json::{Map, Value};

use super::{Call, meta};
use crate::random;
use crate::registry::Resource;

/// Makes sure that the metadata is an object, and gives it.
pub(super) fn of(object: &mut Value) -> Result<&mut Map<String, Value>, Status> {
    let fields = object.as_object_mut().ok_or_else(|| Status::bad_request("the body is not an object"))?;
    let metadata = fields.entry("metadata").or_insert_with(|| Map::new().into());
    metadata.as_object_mut().ok_or_else(|| Status::bad_request("metadata is not an object"))
}

/// Sets what a new object gets from the server and clears what it may not bring.
pub(super) fn for_create(call: &Call, object: &mut Value, now: i64) -> Result<(), Status> {
    let metadata = of(object)?;
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
        return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields", "resourceVersion"] {
        metadata.shift_remove(field);
    }
    let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if call.resource.namespaced {
        if !given.is_empty() && given != call.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata.insert("namespace".into(), call.namespace.as_str().into());
    } else if given.is_empty() {
        metadata.shift_remove("namespace");
    }
    metadata.insert("uid".into(), random::uid().into());
    metadata.insert("creationTimestamp".into(), api::time::format(now).into());
    Ok(())
}

/// Gives a new object a name from `generateName` where it has none. True where it did.
pub(super) fn name(object: &mut Value) -> Result<bool, Status> {
    let base = meta(object, "generateName").to_owned();
    if !meta(object, "name").is_empty() || base.is_empty() {
        return Ok(false);
    }
    of(object)?.insert("name".into(), random::name(&base).into());
    Ok(true)
}

/// Keeps what no update may change, and fills in what an update may leave out.
pub(super) fn for_update(new: &mut Value, old: &Value) -> Result<(), Status> {
    let metadata = of(new)?;
    for field in ["selfLink", "managedFields"] {
        metadata.shift_remove(field);
    }
    for field in ["uid", "creationTimestamp", "name", "namespace"] {
        let absent = metadata.get(field).is_none_or(|v| v.is_null() || v == "");
        if let (true, Some(value)) = (absent, old["metadata"].get(field)) {
            metadata.insert(field.into(), value.clone());
        }
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        match old["metadata"].get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.shift_remove(field),
        };
    }
    Ok(())
}

/// The finalizers of an object.
pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What is wrong with the metadata of any kind.
pub(super) fn validate(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = meta(object, "name");
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        let wrong = |why| FieldError::invalid("metadata.name", name, why);
        errors.extend(api::names::path_segment(name).into_iter().map(wrong));
    }
    if !resource.namespaced && !meta(object, "namespace").is_empty() {
        errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
    }
    for (key, value) in map(object, "labels") {
        let wrong = |value: &str, why| FieldError::invalid("metadata.labels", value, why);
        errors.extend(api::names::qualified(key).into_iter().map(|why| wrong(key, why)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(api::names::label_value(value).into_iter().map(|why| wrong(value, why)));
    }
    let mut size = 0;
    for (key, value) in map(object, "annotations") {
        size += key.len() + value.as_str().map_or(0, str::len);
        let wrong = |why| FieldError::invalid("metadata.annotations", key.as_str(), why);
        errors.extend(api::names::qualified(&key.to_lowercase()).into_iter().map(wrong));
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(FieldError {
            field: "metadata.annotations".into(),
            kind: FieldErrorKind::TooLong,
            value: None,
            detail: format!("may not be more than {ANNOTATIONS_LIMIT} bytes"),
        });
    }
    for finalizer in finalizers(object) {
        let wrong = |why| FieldError::invalid("metadata.finalizers", finalizer, why);
        errors.extend(api::names::qualified(finalizer).into_iter().map(wrong));
    }
    errors.extend(validate_owners(object));
    errors
}

/// All annotations of an object together, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

fn map<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object["metadata"][field].as_object().into_iter().flatten()
}

fn validate_owners(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controllers = 0;
    for owner in object["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
        let path = "metadata.ownerReferences";
        for (field, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::invalid(format!("{path}.{field}"), owner[field].as_str().unwrap_or(""), why));
            }
        }
        controllers += u32::from(owner["controller"] == true);
    }
    if controllers > 1 {
        let why = "Only one reference can have Controller set to true.";
        let owners = object["metadata"]["ownerReferences"].clone();
        errors.push(FieldError::invalid("metadata.ownerReferences", owners, why));
    }
    errors
}

/// What an update did to the metadata that it may not do.
pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        if new["metadata"][field] != old["metadata"][field] {
            let path = format!("metadata.{field}");
            errors.push(FieldError::invalid(path, new["metadata"][field].clone(), "field is immutable"));
        }
    }
    let before = finalizers(old);
    let added: Vec<String> = finalizers(new).iter().filter(|f| !before.contains(f)).map(|f| format!("{f:?}")).collect();
    if !added.is_empty() && !meta(old, "deletionTimestamp").is_empty() {
        let why = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.join(", ")
        );
        errors.push(FieldError::forbidden("metadata.finalizers", why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_update_keeps_the_identity() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "creationTimestamp": "t", "generation": 3}});
        let mut new = json!({"metadata": {"name": "a", "generation": 9, "deletionTimestamp": "now"}});
        for_update(&mut new, &old).unwrap();
        assert_eq!(new, old);
    }

    #[test]
    fn a_dying_object_takes_no_new_finalizer() {
        let old = json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a"]}});
        let new = json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a", "b"]}});
        let errors = validate_update(&new, &old);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].detail.ends_with("[]string{\"b\"}"), "{}", errors[0]);
    }
}
