//! What is wrong with the spec of a pod, or of a pod template.

use api::status::FieldError;
use serde_json::Value;

use super::super::object::list;

/// `path` is where the spec stands, as `spec.template.spec`.
pub(in super::super) fn spec(spec: &Value, path: &str) -> Vec<FieldError> {
    if list(spec, "/containers").is_empty() {
        return vec![FieldError::required(format!("{path}.containers"), "")];
    }
    Vec::new()
}
