//! Where a pod may run.

use api::names;
use api::status::FieldError;
use serde_json::Value;

use super::super::super::check;
use super::super::super::object::{list, number, text};

pub(super) fn tolerations(spec: &Value, path: &str) -> Vec<FieldError> {
    let listed = list(spec, "/tolerations").iter().enumerate();
    listed.flat_map(|(i, toleration)| one_toleration(toleration, &format!("{path}.tolerations[{i}]"))).collect()
}

fn one_toleration(toleration: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let field = |name: &str| toleration[name].as_str().unwrap_or_default();
    let (key, operator, value, effect) = (field("key"), field("operator"), field("value"), field("effect"));
    if !key.is_empty() {
        errors.extend(check::by_rule(format!("{path}.key"), key, names::qualified));
    }
    if key.is_empty() && operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.push(FieldError::invalid(format!("{path}.operator"), operator, why));
    }
    if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.push(FieldError::invalid(format!("{path}.effect"), effect, why));
    }
    match operator {
        "" | "Equal" => {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(format!("{path}.operator"), value, wrong.join(";")));
            }
        }
        "Exists" if !value.is_empty() => {
            let why = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(format!("{path}.operator"), value, why));
        }
        "Exists" => {}
        other => errors.push(FieldError::not_supported(format!("{path}.operator"), other, &["Equal", "Exists"])),
    }
    if !effect.is_empty() {
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        errors.extend(check::one_of(format!("{path}.effect"), effect, &effects));
    }
    errors
}

pub(super) fn affinity(affinity: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let node = format!("{path}.nodeAffinity");
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    let must = &affinity["nodeAffinity"][required];
    if !must.is_null() {
        let path = format!("{node}.{required}.nodeSelectorTerms");
        let terms = list(must, "/nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(FieldError::required(path.clone(), "must have at least one node selector term"));
        }
        for (i, term) in terms.iter().enumerate() {
            errors.extend(node_term(term, &format!("{path}[{i}]")));
        }
    }
    for (i, term) in list(&affinity["nodeAffinity"], &format!("/{preferred}")).iter().enumerate() {
        let path = format!("{node}.{preferred}[{i}]");
        errors.extend(weight(term, &path));
        errors.extend(node_term(&term["preference"], &format!("{path}.preference")));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (i, term) in list(&affinity[kind], &format!("/{required}")).iter().enumerate() {
            errors.extend(pod_term(term, &format!("{path}.{kind}.{required}[{i}]")));
        }
        for (i, term) in list(&affinity[kind], &format!("/{preferred}")).iter().enumerate() {
            let path = format!("{path}.{kind}.{preferred}[{i}]");
            errors.extend(weight(term, &path));
            errors.extend(pod_term(&term["podAffinityTerm"], &format!("{path}.podAffinityTerm")));
        }
    }
    errors
}

fn weight(term: &Value, path: &str) -> Option<FieldError> {
    let weight = number(term, "/weight");
    (!(1..=100).contains(&weight))
        .then(|| FieldError::invalid(format!("{path}.weight"), weight, "must be in the range 1-100"))
}

fn node_term(term: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, requirement) in list(term, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = list(requirement, "/values").len();
        let wrong = match text(requirement, "/operator") {
            "In" | "NotIn" if values == 0 => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                Some(FieldError::required(format!("{path}.values"), why))
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                Some(FieldError::forbidden(format!("{path}.values"), why))
            }
            "Gt" | "Lt" if values != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                Some(FieldError::required(format!("{path}.values"), why))
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => None,
            other => Some(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator")),
        };
        errors.extend(wrong);
        errors.extend(check::by_rule(format!("{path}.key"), text(requirement, "/key"), names::qualified));
    }
    errors
}

fn pod_term(term: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = check::selector(&term["labelSelector"], &format!("{path}.labelSelector"));
    match text(term, "/topologyKey") {
        "" => errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty")),
        key => errors.extend(check::by_rule(format!("{path}.topologyKey"), key, names::qualified)),
    }
    errors
}

pub(super) fn spread(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, constraint) in list(spec, "/topologySpreadConstraints").iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{i}]");
        let skew = number(constraint, "/maxSkew");
        if skew <= 0 {
            errors.push(FieldError::invalid(format!("{path}.maxSkew"), skew, "must be greater than zero"));
        }
        match text(constraint, "/topologyKey") {
            "" => errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty")),
            key => errors.extend(check::by_rule(format!("{path}.topologyKey"), key, names::qualified)),
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        let action = text(constraint, "/whenUnsatisfiable");
        errors.extend(check::one_of(format!("{path}.whenUnsatisfiable"), action, &actions));
        errors.extend(check::selector(&constraint["labelSelector"], &format!("{path}.labelSelector")));
    }
    errors
}
