//! The environment of a container.

use api::names;
use api::status::FieldError;
use serde_json::Value;

use super::super::super::check;
use super::super::super::object::{list, text};

const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn variables(container: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, variable) in list(container, "/env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        match text(variable, "/name") {
            "" => errors.push(FieldError::required(format!("{path}.name"), "")),
            name => errors.extend(check::by_rule(format!("{path}.name"), name, names::env_name)),
        }
        if !variable["valueFrom"].is_null() {
            errors.extend(value_from(variable, &format!("{path}.valueFrom")));
        }
    }
    errors
}

fn value_from(variable: &Value, path: &str) -> Vec<FieldError> {
    let source = &variable["valueFrom"];
    let mut errors = Vec::new();
    let mut count = 0;
    for kind in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        if source[kind].is_null() {
            continue;
        }
        count += 1;
        let path = format!("{path}.{kind}");
        match kind {
            "fieldRef" => errors.extend(field(&source[kind], &path, FIELDS)),
            "resourceFieldRef" => errors.extend(resource(&source[kind], &path)),
            "configMapKeyRef" | "secretKeyRef" => errors.extend(key(&source[kind], &path)),
            _ => {}
        }
    }
    let wrong = |why: &str| FieldError::invalid(path, "", why);
    if count == 0 {
        let kinds = "`fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        errors.push(wrong(&format!("must specify one of: {kinds}")));
    } else if !text(variable, "/value").is_empty() {
        errors.push(wrong("may not be specified when `value` is not empty"));
    } else if count > 1 {
        errors.push(wrong("may not have more than one field specified at a time"));
    }
    errors
}

/// A field of the pod, as `metadata.labels['app']`.
pub(super) fn field(reference: &Value, path: &str, known: &[&str]) -> Vec<FieldError> {
    let wanted = text(reference, "/fieldPath");
    if wanted.is_empty() {
        return vec![FieldError::required(format!("{path}.fieldPath"), "")];
    }
    if let Some((map, key)) = wanted.strip_suffix("']").and_then(|rest| rest.split_once("['")) {
        return match map {
            "metadata.annotations" => check::by_rule(path, &key.to_lowercase(), names::qualified),
            "metadata.labels" => check::by_rule(path, key, names::qualified),
            _ => vec![FieldError::invalid(path, map, "does not support subscript")],
        };
    }
    if known.contains(&wanted) || matches!(wanted, "spec.host") {
        return Vec::new();
    }
    if matches!(wanted, "metadata.labels" | "metadata.annotations") || FIELDS.contains(&wanted) {
        return vec![FieldError::not_supported(format!("{path}.fieldPath"), wanted, known)];
    }
    let why = format!("error converting fieldPath: field label not supported: {wanted}");
    vec![FieldError::invalid(format!("{path}.fieldPath"), wanted, why)]
}

/// A request or limit of a container.
pub(super) fn resource(reference: &Value, path: &str) -> Vec<FieldError> {
    match text(reference, "/resource") {
        "" => vec![FieldError::required(format!("{path}.resource"), "")],
        name if name.contains(".hugepages-") => Vec::new(),
        name => check::one_of(format!("{path}.resource"), name, RESOURCES).into_iter().collect(),
    }
}

fn key(reference: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = check::by_rule(format!("{path}.name"), text(reference, "/name"), names::dns_subdomain);
    match text(reference, "/key") {
        "" => errors.push(FieldError::required(format!("{path}.key"), "")),
        key => errors.extend(check::by_rule(format!("{path}.key"), key, names::config_key)),
    }
    errors
}

pub(super) fn sources(container: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let listed = format!("{path}.envFrom");
    for (i, source) in list(container, "/envFrom").iter().enumerate() {
        let path = format!("{listed}[{i}]");
        match text(source, "/prefix") {
            "" => {}
            prefix => errors.extend(check::by_rule(format!("{path}.prefix"), prefix, names::env_name)),
        }
        let set: Vec<&str> = ["configMapRef", "secretRef"].into_iter().filter(|k| !source[*k].is_null()).collect();
        for kind in &set {
            let field = format!("{path}.{kind}.name");
            match source[*kind]["name"].as_str().unwrap_or_default() {
                "" => errors.push(FieldError::required(field, "")),
                name => errors.extend(check::by_rule(field, name, names::dns_subdomain)),
            }
        }
        match set.len() {
            0 => errors.push(FieldError::invalid(
                listed.clone(),
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => {
                let why = "may not have more than one field specified at a time";
                errors.push(FieldError::invalid(listed.clone(), "", why));
            }
        }
    }
    errors
}
