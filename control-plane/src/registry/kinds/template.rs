//! Pod templates of workloads.

use api::labels::Selector;
use api::status::FieldError;
use serde_json::Value;

use super::check;
use super::object::list;
use super::pod::validate;

/// `spec.selector` and `spec.template` of a workload whose pods always restart. `kind` is as `deployment`.
pub(super) fn check(workload: &Value, kind: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (selector, template) = (&workload["spec"]["selector"], &workload["spec"]["template"]);
    let empty = list(selector, "/matchExpressions").is_empty()
        && selector["matchLabels"].as_object().is_none_or(serde_json::Map::is_empty);
    if selector.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        errors.extend(check::selector(selector, "spec.selector"));
        if empty {
            errors.push(FieldError::invalid(
                "spec.selector",
                selector.clone(),
                format!("empty selector is invalid for {kind}"),
            ));
        }
    }
    let labels = &template["metadata"]["labels"];
    match Selector::from_object(selector) {
        Ok(parsed) if !empty && !parsed.matches(labels) => {
            let why = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), why));
        }
        _ => {}
    }
    errors.extend(check::labels(labels, "spec.template.labels"));
    errors.extend(validate::spec(&template["spec"], "spec.template.spec"));
    let policy = template["spec"]["restartPolicy"].as_str().unwrap_or_default();
    if policy != "Always" && ["OnFailure", "Never"].contains(&policy) {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", why));
    }
    errors
}

/// `spec.selector` never changes.
pub(super) fn same_selector(new: &Value, old: &Value) -> Option<FieldError> {
    let (after, before) = (&new["spec"]["selector"], &old["spec"]["selector"]);
    (after != before).then(|| FieldError::invalid("spec.selector", after.clone(), "field is immutable"))
}
