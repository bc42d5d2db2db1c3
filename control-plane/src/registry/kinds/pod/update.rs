//! What a running pod may still change.

use api::names;
use api::status::FieldError;
use serde_json::Value;

use super::super::object::{list, list_mut, put, remove};

/// Ten years would do; the API allows this many seconds.
const LONGEST_DEADLINE: i64 = i32::MAX as i64;

pub(super) fn check(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for containers in ["containers", "initContainers"] {
        let pointer = format!("/spec/{containers}");
        if list(new, &pointer).len() != list(old, &pointer).len() {
            errors.push(FieldError::forbidden(
                format!("spec.{containers}"),
                "pod updates may not add or remove containers",
            ));
            return errors;
        }
        for (i, container) in list(new, &pointer).iter().enumerate() {
            if container["image"].as_str().is_none_or(str::is_empty) {
                errors.push(FieldError::required(format!("spec.{containers}[{i}].image"), ""));
            }
        }
    }
    errors.extend(deadline(&new["spec"]["activeDeadlineSeconds"], &old["spec"]["activeDeadlineSeconds"]));
    errors.extend(tolerations(list(new, "/spec/tolerations"), list(old, "/spec/tolerations")));
    errors.extend(gates(list(new, "/spec/schedulingGates"), list(old, "/spec/schedulingGates")));
    let changed = differing(&allowed(new, old), &old["spec"]);
    if !changed.is_empty() {
        let why = format!(
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{}",
            changed.join("\n")
        );
        errors.push(FieldError::forbidden("spec", why));
    }
    errors
}

fn deadline(new: &Value, old: &Value) -> Option<FieldError> {
    let field = "spec.activeDeadlineSeconds";
    match (new.as_i64(), old.as_i64()) {
        (Some(seconds), _) if !(0..=LONGEST_DEADLINE).contains(&seconds) => {
            Some(FieldError::invalid(field, seconds, names::between(0, LONGEST_DEADLINE)))
        }
        (Some(seconds), Some(before)) if seconds > before => {
            Some(FieldError::invalid(field, seconds, "must be less than or equal to previous value"))
        }
        (None, Some(_)) => {
            Some(FieldError::invalid(field, Value::Null, "must not update from a positive integer to nil value"))
        }
        _ => None,
    }
}

fn tolerations(new: &[Value], old: &[Value]) -> Option<FieldError> {
    let identity = |toleration: &Value| {
        let mut identity = toleration.clone();
        remove(&mut identity, "tolerationSeconds");
        identity
    };
    let kept = old.iter().all(|before| new.iter().any(|toleration| identity(toleration) == identity(before)));
    let why = "existing toleration can not be modified except its tolerationSeconds";
    (!kept).then(|| FieldError::forbidden("spec.tolerations", why))
}

fn gates(new: &[Value], old: &[Value]) -> Vec<FieldError> {
    let added = new.iter().enumerate().filter(|(_, gate)| !old.contains(gate));
    added
        .map(|(i, gate)| {
            let why = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                gate["name"].as_str().unwrap_or_default()
            );
            FieldError::forbidden(format!("spec.schedulingGates[{i}].name"), why)
        })
        .collect()
}

/// The new spec, with everything that may change as it was.
fn allowed(new: &Value, old: &Value) -> Value {
    let mut spec = new["spec"].clone();
    for containers in ["containers", "initContainers"] {
        let before = list(old, &format!("/spec/{containers}"));
        for (container, before) in list_mut(&mut spec, containers).iter_mut().zip(before) {
            put(container, "image", before["image"].clone());
        }
    }
    let gated = !list(old, "/spec/schedulingGates").is_empty();
    let mut fields = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    if gated {
        fields.extend(["nodeSelector", "affinity"]);
    }
    let negative = old["spec"]["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0);
    if negative && spec["terminationGracePeriodSeconds"] == 1 {
        fields.push("terminationGracePeriodSeconds");
    }
    for field in fields {
        match old["spec"].get(field) {
            Some(before) => put(&mut spec, field, before.clone()),
            None => remove(&mut spec, field),
        }
    }
    spec
}

/// The fields of two specs that differ, one a line, for people to read.
fn differing(new: &Value, old: &Value) -> Vec<String> {
    let (Some(after), Some(before)) = (new.as_object(), old.as_object()) else { return Vec::new() };
    let mut names: Vec<&String> = after.keys().chain(before.keys()).collect();
    names.sort();
    names.dedup();
    let line = |name: &&String| {
        let show = |side: Option<&Value>| side.map_or_else(|| "null".to_owned(), Value::to_string);
        format!("  {name}: {} -> {}", show(before.get(*name)), show(after.get(*name)))
    };
    names.iter().filter(|name| after.get(**name) != before.get(**name)).map(line).collect()
}
