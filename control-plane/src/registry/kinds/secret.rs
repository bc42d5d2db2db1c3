//! Secrets.

use api::status::FieldError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::object::{child, fill, remove, text};
use super::{ROW, cells, check};
use crate::registry::{Resource, Strategy};

pub(super) static SECRETS: Resource = Resource {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    columns: &[
        cells::column("Type", "string", "Used to facilitate programmatic handling of secret data.", |o, _| {
            text(o, "/type").into()
        }),
        cells::column("Data", "string", "Number of entries in data.", |o, _| cells::count(o, "data").into()),
        cells::AGE,
    ],
    selectable: &["type"],
    strategy: &Secrets,
    ..ROW
};

struct Secrets;

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        fill(object, "type", "Opaque");
        let Some(Value::Object(plain)) = object.get("stringData").cloned() else { return };
        remove(object, "stringData");
        let Some(data) = child(object, "data").and_then(Value::as_object_mut) else { return };
        for (key, value) in plain {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = check::name(object, api::names::dns_subdomain);
        errors.extend(check::data_keys(object, "data"));
        errors.extend(check::data_size(object, &["data"], "data"));
        errors.extend(required_keys(object));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if text(new, "/type") != text(old, "/type") {
            errors.push(FieldError::invalid("type", text(new, "/type"), "field is immutable"));
        }
        errors.extend(check::immutable_data(new, old, &["data"]));
        errors
    }
}

fn required_keys(object: &Value) -> Vec<FieldError> {
    let lacks = |key: &str| object["data"].get(key).is_none();
    let missing = |keys: &[&str]| -> Vec<FieldError> {
        let absent = keys.iter().filter(|key| lacks(key));
        absent.map(|key| FieldError::required(format!("data[{key}]"), "")).collect()
    };
    match text(object, "/type") {
        "kubernetes.io/service-account-token" => {
            match api::meta::annotation(object, "kubernetes.io/service-account.name") {
                None | Some("") => {
                    vec![FieldError::required("metadata.annotations[kubernetes.io/service-account.name]", "")]
                }
                Some(_) => Vec::new(),
            }
        }
        "kubernetes.io/dockerconfigjson" => json_key(object, ".dockerconfigjson"),
        "kubernetes.io/dockercfg" => json_key(object, ".dockercfg"),
        "kubernetes.io/basic-auth" if lacks("username") && lacks("password") => missing(&["username", "password"]),
        "kubernetes.io/ssh-auth" => missing(&["ssh-privatekey"]),
        "kubernetes.io/tls" => missing(&["tls.crt", "tls.key"]),
        _ => Vec::new(),
    }
}

/// A key that must be there and hold JSON.
fn json_key(object: &Value, key: &str) -> Vec<FieldError> {
    let field = format!("data[{key}]");
    let Some(value) = object["data"].get(key).and_then(Value::as_str) else {
        return vec![FieldError::required(field, "")];
    };
    let bytes = STANDARD.decode(value).unwrap_or_default();
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(_) => Vec::new(),
        // The value is secret.
        Err(error) => vec![FieldError::invalid(field, "<secret contents redacted>", error.to_string())],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn string_data_moves_into_data() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        Secrets.default(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "eQ==", "b": "eg=="}, "type": "Opaque"}));
    }

    #[test]
    fn types_have_their_keys() {
        let said = |kind: &str, data: Value| -> Vec<String> {
            let secret = json!({"metadata": {"name": "a"}, "type": kind, "data": data});
            Secrets.validate(&secret).iter().map(ToString::to_string).collect()
        };
        assert_eq!(said("kubernetes.io/tls", json!({"tls.crt": ""})), ["data[tls.key]: Required value"]);
        assert_eq!(said("kubernetes.io/dockerconfigjson", json!({})), ["data[.dockerconfigjson]: Required value"]);
        assert!(said("Opaque", json!({"a": "eA=="})).is_empty());
    }
}
