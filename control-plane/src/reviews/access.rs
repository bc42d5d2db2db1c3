//! SubjectAccessReview, LocalSubjectAccessReview, SelfSubjectAccessReview and SelfSubjectRulesReview
//! (`authorization.k8s.io/v1`).

use api::status::{FieldError, Status};
use serde_json::{Value, json};

use crate::authz;
use crate::identity::{Attributes, User};
use crate::ports::Decision;
use crate::server::Server;

/// Whether the subject may, in the review's status. `asker` is the subject of a SelfSubjectAccessReview.
///
/// # Errors
/// 422 where the review does not ask one thing about one subject.
pub async fn review(
    server: &Server,
    kind: &str,
    asker: &User,
    namespace: &str,
    mut review: Value,
) -> Result<Value, Status> {
    let errors = validate(kind, namespace, &review["spec"]);
    if !errors.is_empty() {
        return Err(Status::invalid(&format!("{kind}.authorization.k8s.io"), "", &errors));
    }
    let subject = if kind == "SelfSubjectAccessReview" { asker.clone() } else { subject(&review["spec"]) };
    let decision = server.ports.authorizer.authorize(server, &subject, &attributes(&review["spec"])).await;
    let (allowed, reason) = match decision {
        Decision::Allow(reason) => (true, reason),
        Decision::Deny(reason) => (false, reason),
    };
    review["status"] = json!({"allowed": allowed});
    if !reason.is_empty() {
        review["status"]["reason"] = reason.into();
    }
    Ok(review)
}

/// All that the asker may: `kubectl auth can-i --list`.
///
/// # Errors
/// Where the review names no namespace.
pub fn rules_review(asker: &User, mut review: Value) -> Result<Value, Status> {
    if review["spec"]["namespace"].as_str().is_none_or(str::is_empty) {
        return Err(Status::bad_request("no namespace on request"));
    }
    let namespace = review["spec"]["namespace"].as_str();
    let (resource, non_resource) = authz::rules_of(asker);
    let resource: Vec<Value> = resource
        .into_iter()
        .filter(|rule| rule.namespace.is_none() || rule.namespace == namespace)
        .map(|rule| {
            let mut value = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                value["resourceNames"] = rule.names.into();
            }
            value
        })
        .collect();
    let non_resource: Vec<Value> =
        non_resource.into_iter().map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths})).collect();
    review["status"] = json!({"resourceRules": resource, "nonResourceRules": non_resource, "incomplete": false});
    Ok(review)
}

fn validate(kind: &str, namespace: &str, spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_null() == path.is_null() {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid("spec", path.clone(), why));
    }
    let nobody = text(spec, "user").is_empty() && spec["groups"].as_array().is_none_or(Vec::is_empty);
    if kind != "SelfSubjectAccessReview" && nobody {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    if kind == "LocalSubjectAccessReview" {
        if !resource.is_null() && text(resource, "namespace") != namespace {
            let given = text(resource, "namespace");
            errors.push(FieldError::invalid(
                "spec.resourceAttributes.namespace",
                given,
                "must match metadata.namespace",
            ));
        }
        if !path.is_null() {
            let why = "disallowed on this kind of request";
            errors.push(FieldError::invalid("spec.nonResourceAttributes", path.clone(), why));
        }
    }
    errors
}

fn subject(spec: &Value) -> User {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra = spec["extra"].as_object().into_iter().flatten().map(|(key, values)| (key.clone(), strings(values)));
    User {
        name: text(spec, "user").into(),
        uid: text(spec, "uid").into(),
        groups: strings(&spec["groups"]),
        extra: extra.collect(),
    }
}

fn attributes(spec: &Value) -> Attributes {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let of = |field: &str| text(resource, field).to_owned();
    if resource.is_null() {
        return Attributes {
            verb: text(path, "verb").into(),
            path: text(path, "path").into(),
            ..Attributes::default()
        };
    }
    Attributes {
        verb: of("verb"),
        group: of("group"),
        version: of("version"),
        resource: of("resource"),
        subresource: of("subresource"),
        namespace: of("namespace"),
        name: of("name"),
        path: String::new(),
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_asks_one_thing_about_somebody() {
        let messages = |kind: &str, spec: Value| -> Vec<String> {
            validate(kind, "ns", &spec).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            messages("SubjectAccessReview", json!({})),
            [
                "spec: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            ]
        );
        assert!(messages("SelfSubjectAccessReview", json!({"resourceAttributes": {"verb": "get"}})).is_empty());
        let other = json!({"user": "x", "resourceAttributes": {"namespace": "other"}});
        assert_eq!(messages("LocalSubjectAccessReview", other).len(), 1);
    }

    #[test]
    fn rules_are_listed() {
        let user = User { name: "jane".into(), groups: vec!["system:authenticated".into()], ..User::default() };
        let review = rules_review(&user, json!({"spec": {"namespace": "default"}})).unwrap();
        assert_eq!(review["status"]["resourceRules"][1]["resources"], json!(["selfsubjectreviews"]));
        assert_eq!(rules_review(&user, json!({"spec": {}})).unwrap_err().code, 400);
    }
}
