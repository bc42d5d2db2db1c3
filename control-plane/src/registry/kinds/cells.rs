//! Cells of tables, as `kubectl get` prints them.

use api::{labels, meta, time};
use serde_json::Value;

use super::object::{list, text};
use crate::registry::Column;

pub(super) const NONE: &str = "<none>";

/// A column that is always shown.
pub(super) const fn column(
    name: &'static str,
    kind: &'static str,
    description: &'static str,
    cell: fn(&Value, i64) -> Value,
) -> Column {
    Column { name, kind, priority: 0, description, cell }
}

/// A column of `-o wide`.
pub(super) const fn wide(name: &'static str, description: &'static str, cell: fn(&Value, i64) -> Value) -> Column {
    Column { name, kind: "string", priority: 1, description, cell }
}

/// The last column of nearly every kind.
pub(super) const AGE: Column = column("Age", "string", "Time since the object was created.", |object, now| {
    since(meta::creation_time(object), now).into()
});

/// How long ago a moment was.
pub(super) fn since(moment: Option<i64>, now: i64) -> String {
    moment.map_or_else(|| "<unknown>".into(), |moment| time::human_duration(now - moment))
}

/// How long ago the moment was that stands in a field.
pub(super) fn since_field(object: &Value, pointer: &str, now: i64) -> Option<String> {
    let (moment, _) = time::parse(text(object, pointer))?;
    Some(since(Some(moment), now))
}

/// The text or `<none>`.
pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

/// The number of entries of a map.
pub(super) fn count(object: &Value, field: &str) -> usize {
    object.get(field).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

/// `a,b,c + 2 more...`, at most three.
pub(super) fn at_most_three(items: &[String], empty: &str) -> String {
    match items {
        [] => empty.to_owned(),
        [a, b, c, rest @ ..] if !rest.is_empty() => format!("{a},{b},{c} + {} more...", rest.len()),
        few => few.join(","),
    }
}

/// A field of all containers of a pod template.
pub(super) fn containers(object: &Value, field: &str) -> Value {
    let all = list(object, "/spec/template/spec/containers");
    all.iter().map(|c| c[field].as_str().unwrap_or_default()).collect::<Vec<_>>().join(",").into()
}

/// `spec.selector` where it is a LabelSelector.
pub(super) fn selector(object: &Value) -> Value {
    label_selector(&object["spec"]["selector"])
}

pub(super) fn label_selector(selector: &Value) -> Value {
    match labels::Selector::from_object(selector) {
        Ok(selector) if selector.is_everything() => NONE.into(),
        Ok(selector) => selector.to_string().into(),
        Err(_) => "<invalid>".into(),
    }
}

/// `spec.selector` where it is a map of labels.
pub(super) fn selector_map(object: &Value) -> Value {
    match object.pointer("/spec/selector").and_then(Value::as_object) {
        Some(map) if !map.is_empty() => labels::Selector::from_map(map).to_string().into(),
        _ => NONE.into(),
    }
}
