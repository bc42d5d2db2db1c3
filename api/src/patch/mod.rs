//! The three patches of the API: JSON (RFC 6902), merge (RFC 7386) and strategic merge. All of them leave the object as
//! it was where they fail.

mod strategic;

use serde_json::Value;

pub use strategic::strategic;

/// Operations that one JSON patch may have.
const OPERATION_LIMIT: usize = 10_000;

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// 400: the body is no patch.
    #[error("{0}")]
    Malformed(String),
    /// 413.
    #[error("The allowed maximum operations in a JSON patch is {OPERATION_LIMIT}, got {0}")]
    TooManyOperations(usize),
    /// 422: the patch does not fit this object, as after a failed `test`.
    #[error("the server rejected our request due to an error in our request: {0}")]
    DoesNotFit(String),
}

impl Error {
    /// The answer to the client.
    pub fn status(&self) -> crate::status::Status {
        use crate::status::Status;
        match self {
            Self::Malformed(_) => Status::bad_request(self.to_string()),
            Self::TooManyOperations(_) => Status::too_large(self.to_string()),
            Self::DoesNotFit(_) => Status::new(422, "Invalid", self.to_string()),
        }
    }
}

/// RFC 6902. `patch` is a list of operations.
///
/// # Errors
/// Where it is none, or an operation fails.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), Error> {
    if let Some(count) = patch.as_array().map(Vec::len).filter(|count| *count > OPERATION_LIMIT) {
        return Err(Error::TooManyOperations(count));
    }
    let operations: json_patch::Patch = serde::Deserialize::deserialize(patch)
        .map_err(|e| Error::Malformed(format!("error decoding JSON patch: {e}")))?;
    json_patch::patch(object, &operations).map_err(|e| Error::DoesNotFit(e.to_string()))
}

/// RFC 7386: what the patch has replaces, null removes, lists are replaced as a whole.
///
/// # Errors
/// Where the patch is no object: the result would be no API object.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), Error> {
    if !patch.is_object() {
        return Err(Error::Malformed("a merge patch must be a JSON object".into()));
    }
    json_patch::merge(object, patch);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failed_test_changes_nothing() {
        let mut object = json!({"a": 1, "l": []});
        let patch = json!([{"op": "replace", "path": "/a", "value": 2}, {"op": "test", "path": "/a", "value": 3}]);
        let error = json(&mut object, &patch).expect_err("test fails");
        assert_eq!(error.status().code, 422);
        assert_eq!(object, json!({"a": 1, "l": []}));
        assert_eq!(json(&mut object, &json!([{"op": "add", "path": "/l/-", "value": 1}])), Ok(()));
        assert_eq!(object, json!({"a": 1, "l": [1]}));
        assert_eq!(json(&mut object, &json!({"a": 1})).expect_err("no list").status().code, 400);
    }

    #[test]
    fn merge_removes_by_null() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "l": [1]});
        assert_eq!(merge(&mut object, &json!({"a": {"b": null, "d": {"e": null}}, "l": [2]})), Ok(()));
        assert_eq!(object, json!({"a": {"c": 2, "d": {}}, "l": [2]}));
    }
}
