//! Reading and filling in the fields of an object.

use serde_json::{Map, Value};

/// The text at a JSON pointer, or an empty one.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a JSON pointer, or 0.
pub(super) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The list at a JSON pointer, or an empty one.
pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The list in a field, to change its elements.
pub(super) fn list_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut [Value] {
    object.get_mut(field).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// Whether a field is absent, null, empty text or zero: what Go cannot tell from unset.
pub(super) fn unset(object: &Value, field: &str) -> bool {
    match object.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

/// Sets a field that is unset.
pub(super) fn fill(object: &mut Value, field: &str, value: impl Into<Value>) {
    if unset(object, field) {
        put(object, field, value);
    }
}

/// Sets a field that is absent: for pointers, where zero is a value.
pub(super) fn fill_absent(object: &mut Value, field: &str, value: impl Into<Value>) {
    if object.get(field).is_none_or(Value::is_null) {
        put(object, field, value);
    }
}

/// Sets a field, where the object is one.
pub(super) fn put(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        map.insert(field.to_owned(), value.into());
    }
}

pub(super) fn remove(object: &mut Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        map.shift_remove(field);
    }
}

/// A field that is an object, made where it is absent; `None` where `object` is none.
pub(super) fn child<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let entry = object.as_object_mut()?.entry(field).or_insert(Value::Null);
    if entry.is_null() {
        *entry = Value::Object(Map::new());
    }
    Some(entry)
}

/// What a plain update does with `status`, and with `metadata.generation` where the kind counts it: the status stays, and
/// the generation grows when the spec changed.
pub(super) fn keep_status_count_spec(new: &mut Value, old: &Value) {
    keep_status(new, old);
    if new.get("spec") != old.get("spec") {
        api::meta::set(new, "generation", api::meta::generation(old) + 1);
    }
}

pub(super) fn keep_status(new: &mut Value, old: &Value) {
    match old.get("status") {
        Some(status) => put(new, "status", status.clone()),
        None => remove(new, "status"),
    }
}
