//! Events, in both groups. They are stored once, as `v1` (see `registry::events`).

use std::time::Duration;

use api::status::FieldError;
use serde_json::Value;

use super::object::{number, text};
use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy};

/// How long an event is kept.
const KEPT: Duration = Duration::from_secs(3600);

pub(super) static EVENTS: Resource = Resource { columns: COLUMNS, strategy: &Events { core: true }, ..SHARED };

/// Selectors and columns of this row read the event as `v1`: the table is made before the fields are renamed.
pub(super) static NEW_EVENTS: Resource =
    Resource { group: "events.k8s.io", columns: NEW_COLUMNS, strategy: &Events { core: false }, ..SHARED };

const SHARED: Resource = Resource {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    expires_after: Some(KEPT),
    ..ROW
};

macro_rules! columns {
    ($names:expr) => {
        &[
            cells::column("Last Seen", "string", "When the event was last seen.", |o, now| {
                last_seen(&$names, o, now).into()
            }),
            cells::column("Type", "string", "Type of this event (Normal, Warning).", |o, _| text(o, "/type").into()),
            cells::column("Reason", "string", "Why the action was taken.", |o, _| text(o, "/reason").into()),
            cells::column("Object", "string", "The object that this event is about.", |o, _| target(&$names, o).into()),
            cells::wide("Subobject", "The part of the object, as a field path.", |o, _| {
                o[$names.about]["fieldPath"].as_str().unwrap_or_default().into()
            }),
            cells::wide("Source", "Who reports the event.", |o, _| source(&$names, o).into()),
            cells::column("Message", "string", "What happened.", |o, _| {
                o[$names.message].as_str().unwrap_or_default().trim().into()
            }),
            cells::wide("First Seen", "When the event was first seen.", |o, now| first_seen(&$names, o, now).into()),
            cells::wide("Count", "How often it happened.", |o, _| count(&$names, o).into()),
            cells::wide("Name", "Name of the event.", |o, _| api::meta::name(o).into()),
        ]
    };
}

/// What a group calls the fields.
struct Names {
    about: &'static str,
    message: &'static str,
    source: &'static str,
    controller: &'static str,
    first: &'static str,
    last: &'static str,
    count: &'static str,
}

const CORE: Names = Names {
    about: "involvedObject",
    message: "message",
    source: "source",
    controller: "reportingComponent",
    first: "/firstTimestamp",
    last: "/lastTimestamp",
    count: "/count",
};
const NEW: Names = Names {
    about: "regarding",
    message: "note",
    source: "deprecatedSource",
    controller: "reportingController",
    first: "/deprecatedFirstTimestamp",
    last: "/deprecatedLastTimestamp",
    count: "/deprecatedCount",
};

const COLUMNS: &[crate::registry::Column] = columns!(CORE);
const NEW_COLUMNS: &[crate::registry::Column] = columns!(NEW);

fn first_seen(names: &Names, event: &Value, now: i64) -> String {
    let first = cells::since_field(event, names.first, now).or_else(|| cells::since_field(event, "/eventTime", now));
    first.unwrap_or_else(|| "<unknown>".into())
}

fn last_seen(names: &Names, event: &Value, now: i64) -> String {
    let series = cells::since_field(event, "/series/lastObservedTime", now);
    let last = series.or_else(|| cells::since_field(event, names.last, now));
    last.unwrap_or_else(|| first_seen(names, event, now))
}

fn count(names: &Names, event: &Value) -> i64 {
    match event.get("series") {
        Some(series) if series.is_object() => number(series, "/count"),
        _ => number(event, names.count).max(1),
    }
}

/// As `pod/web-x2k4b`.
fn target(names: &Names, event: &Value) -> String {
    let about = &event[names.about];
    let kind = text(about, "/kind").to_lowercase();
    match text(about, "/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(names: &Names, event: &Value) -> String {
    let or = |first: &str, other: &str| if first.is_empty() { other.to_owned() } else { first.to_owned() };
    let source = &event[names.source];
    let component = or(text(source, "/component"), event[names.controller].as_str().unwrap_or_default());
    match or(text(source, "/host"), text(event, "/reportingInstance")) {
        host if host.is_empty() => component,
        host => format!("{component}, {host}"),
    }
}

struct Events {
    core: bool,
}

impl Strategy for Events {
    fn validate(&self, event: &Value) -> Vec<FieldError> {
        let mut errors = check::name(event, api::names::dns_subdomain);
        let names = if self.core { &CORE } else { &NEW };
        let about = text(event, &format!("/{}/namespace", names.about));
        let namespace = api::meta::namespace(event);
        let path = format!("{}.namespace", names.about);
        // An event on an object of cluster scope lies in "default".
        let fits = if about.is_empty() { matches!(namespace, "default" | "kube-system") } else { about == namespace };
        if !fits {
            errors.push(FieldError::invalid(path, about, "does not match event.namespace"));
        }
        if !self.core || !text(event, "/eventTime").is_empty() {
            errors.extend(modern(event, names));
        }
        errors
    }
}

/// The rules for events that carry `eventTime`.
fn modern(event: &Value, names: &Names) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if text(event, "/eventTime").is_empty() {
        errors.push(FieldError::required("eventTime", ""));
    }
    for (field, limit) in [(names.controller, 128), ("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let value = event[field].as_str().unwrap_or_default();
        if value.is_empty() {
            errors.push(FieldError::required(field, ""));
        } else if value.len() > limit {
            errors.push(FieldError::invalid(field, value, format!("can have at most {limit} characters")));
        }
    }
    let message = event[names.message].as_str().unwrap_or_default();
    if message.len() > 1024 {
        errors.push(FieldError::invalid(names.message, "", "can have at most 1024 characters"));
    }
    match text(event, "/type") {
        "Normal" | "Warning" => {}
        other => errors.push(FieldError::invalid("type", other, format!("has invalid value: {other}"))),
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_groups_print_the_same() {
        let old = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "a"}, "message": "m\n",
            "source": {"component": "kubelet", "host": "n"}, "firstTimestamp": "1970-01-01T00:00:10Z",
            "lastTimestamp": "1970-01-01T00:01:00Z", "count": 3, "type": "Normal", "reason": "Pulled"});
        let new = crate::registry::events::from_core(&old);
        let cells = |columns: &[crate::registry::Column], o| -> Vec<Value> {
            columns.iter().map(|c| (c.cell)(o, 70)).collect()
        };
        let want = json!(["10s", "Normal", "Pulled", "pod/a", "", "kubelet, n", "m", "60s", 3, "e"]);
        assert_eq!(Value::Array(cells(COLUMNS, &old)), want);
        assert_eq!(Value::Array(cells(NEW_COLUMNS, &new)), want);
    }
}
