//! The `Status` object with which the API answers when it does not answer with an object.
//!
//! Source: k8s.io/apimachinery `meta/v1` Status, and the API conventions, "Response Status Kind".

use serde_json::{Value, json};

/// One failed field of a validation: what `Status.details.causes` carries, in the API's own words.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Path from the object's root, as `spec.containers[0].image`.
    pub field: String,
    pub kind: FieldErrorKind,
    /// The offending value as JSON, where the message shows one.
    pub value: Option<Value>,
    pub detail: String,
}

/// `metav1.CauseType` with the words that `field.Error` prints for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    Required,
    Invalid,
    Duplicate,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
    TypeInvalid,
    Internal,
}

impl FieldErrorKind {
    /// The machine-readable reason, as in `Status.details.causes[].reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
            Self::Internal => "Internal error",
        }
    }
}

impl FieldError {
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), kind: FieldErrorKind::Required, value: None, detail: detail.into() }
    }
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), kind: FieldErrorKind::Invalid, value: Some(value.into()), detail: detail.into() }
    }
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), kind: FieldErrorKind::Forbidden, value: None, detail: detail.into() }
    }
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self { field: field.into(), kind: FieldErrorKind::Duplicate, value: Some(value.into()), detail: String::new() }
    }
    /// `supported` in the order in which the message lists them.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let listed: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = format!("supported values: {}", listed.join(", "));
        Self { field: field.into(), kind: FieldErrorKind::NotSupported, value: Some(value.into()), detail }
    }

    /// The message without the field's name, as it stands in a cause.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if let Some(value) = &self.value {
            text.push_str(&format!(": {value}"));
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A failure as the API reports it. `Display` is the message.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    /// `metav1.StatusReason`, as `NotFound`.
    pub reason: &'static str,
    pub message: String,
    /// `Status.details`, or null.
    pub details: Value,
    /// `Status.metadata`: where to go on with a list that broke off. Null elsewhere.
    pub list_metadata: Value,
}

impl Status {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, list_metadata: Value::Null }
    }

    /// `resource` is the qualified plural, as `deployments.apps` or `pods`.
    pub fn not_found(resource: &str, name: &str) -> Self {
        Self::about(404, "NotFound", format!("{resource} {name:?} not found"), resource, name)
    }
    pub fn already_exists(resource: &str, name: &str) -> Self {
        Self::about(409, "AlreadyExists", format!("{resource} {name:?} already exists"), resource, name)
    }
    pub fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::about(409, "Conflict", message, resource, name)
    }
    /// A write that carried an older resourceVersion than what is stored.
    pub fn stale(resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }
    pub fn forbidden(resource: &str, name: &str, why: &str) -> Self {
        let message = match name {
            "" => format!("{resource} is forbidden: {why}"),
            _ => format!("{resource} {name:?} is forbidden: {why}"),
        };
        Self::about(403, "Forbidden", message, resource, name)
    }
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }
    /// A list or watch from a revision that compaction has removed.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }
    pub fn too_many_requests(message: impl Into<String>) -> Self {
        Self::new(429, "TooManyRequests", message)
    }
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 422, with one cause for each field. `kind` is `Pod`, or `Deployment.apps` with its group.
    pub fn invalid(kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let listed: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = match listed.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut status = Self::about(422, "Invalid", format!("{kind} {name:?} is invalid: {text}"), kind, name);
        let (plain, group) = kind.split_once('.').unwrap_or((kind, ""));
        let causes: Vec<Value> =
            errors.iter().map(|e| json!({"reason": e.kind.reason(), "message": e.body(), "field": e.field})).collect();
        status.details = json!({"name": name, "group": group, "kind": plain, "causes": causes});
        if group.is_empty() {
            drop_key(&mut status.details, "group");
        }
        status
    }

    fn about(code: u16, reason: &'static str, message: String, resource: &str, name: &str) -> Self {
        let (plain, group) = resource.split_once('.').unwrap_or((resource, ""));
        let mut details = json!({"name": name, "group": group, "kind": plain});
        for (key, text) in [("group", group), ("name", name)] {
            if text.is_empty() {
                drop_key(&mut details, key);
            }
        }
        Self { code, reason, message, details, list_metadata: Value::Null }
    }

    /// The object as it goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": self.message, "reason": self.reason,
            "details": self.details, "code": self.code,
        });
        if self.details.is_null() {
            drop_key(&mut value, "details");
        }
        if !self.list_metadata.is_null() {
            value["metadata"] = self.list_metadata.clone();
        }
        value
    }
}

fn drop_key(value: &mut Value, key: &str) {
    if let Some(map) = value.as_object_mut() {
        map.shift_remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_speaks_as_the_api_does() {
        let errors = [FieldError::required("spec.containers", ""), FieldError::invalid("metadata.name", "A", "bad")];
        let status = Status::invalid("Pod", "a", &errors);
        assert_eq!(
            status.message,
            "Pod \"a\" is invalid: [spec.containers: Required value, metadata.name: Invalid value: \"A\": bad]"
        );
        assert_eq!(status.details["causes"][1]["reason"], "FieldValueInvalid");
        assert_eq!(status.details.get("group"), None);
    }

    #[test]
    fn not_found_names_resource_and_group() {
        let value = Status::not_found("deployments.apps", "web").to_value();
        assert_eq!(value["message"], "deployments.apps \"web\" not found");
        assert_eq!(value["details"], json!({"name": "web", "group": "apps", "kind": "deployments"}));
    }
}
