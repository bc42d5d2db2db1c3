//! The file with which kubectl and every other client finds a cluster and shows who it is.

use crate::pki::Identity;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// One cluster, one user, one context.
pub struct Kubeconfig<'a> {
    /// The context's and the cluster's name, as `bosun-dev`.
    pub name: &'a str,
    /// As `kubernetes-admin`.
    pub user: &'a str,
    /// As `https://172.31.0.2:6443`.
    pub server: &'a str,
    /// The authority that the server's certificate is checked against.
    pub ca_pem: &'a str,
    pub identity: &'a Identity,
}

impl Kubeconfig<'_> {
    /// The file as a value (`v1` Config), for whoever merges it into another.
    pub fn to_value(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self.name, "cluster": {
                "certificate-authority-data": STANDARD.encode(self.ca_pem),
                "server": self.server,
            }}],
            "contexts": [{"name": self.name, "context": {"cluster": self.name, "user": self.user}}],
            "current-context": self.name,
            "users": [{"name": self.user, "user": {
                "client-certificate-data": STANDARD.encode(&self.identity.cert_pem),
                "client-key-data": STANDARD.encode(&self.identity.key_pem),
            }}],
        })
    }

    /// The file's text in the form that kubectl writes. Save it with mode 0600.
    pub fn to_yaml(&self) -> String {
        to_yaml(&self.to_value())
    }
}

/// Block style for what a kubeconfig holds: maps, lists of maps, and scalars. Strings stand as JSON, which is YAML too.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (position, (key, value)) in map.iter().enumerate() {
                // The first key of a list's element stands behind its dash.
                let first_of_element = position == 0 && text.ends_with("- ");
                if !first_of_element {
                    text.push_str(&" ".repeat(indent));
                }
                text.push_str(&scalar(&Value::String(key.clone())));
                text.push(':');
                child(value, indent, text);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for element in list {
                text.push_str(&" ".repeat(indent));
                text.push_str("- ");
                block(element, indent + 2, text);
            }
        }
        leaf => {
            text.push_str(&scalar(leaf));
            text.push('\n');
        }
    }
}

fn child(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            block(value, indent + 2, text);
        }
        Value::Array(list) if !list.is_empty() => {
            text.push('\n');
            block(value, indent, text);
        }
        leaf => {
            text.push(' ');
            block(leaf, indent, text);
        }
    }
}

/// Bare where nothing in the text could be read as anything but a string.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let made_of = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:+=@".contains(c));
    let word = text.to_ascii_lowercase();
    let special = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&word.as_str());
    starts && made_of && !special && !text.ends_with(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_kubectl_reads() {
        let identity = Identity { cert_pem: "C".into(), key_pem: "K".into() };
        let config = Kubeconfig {
            name: "bosun-dev",
            user: "kubernetes-admin",
            server: "https://172.31.0.2:6443",
            ca_pem: "A",
            identity: &identity,
        };
        let text = "apiVersion: v1\nkind: Config\nclusters:\n- name: bosun-dev\n  cluster:\n    \
            certificate-authority-data: QQ==\n    server: https://172.31.0.2:6443\ncontexts:\n- name: bosun-dev\n  \
            context:\n    cluster: bosun-dev\n    user: kubernetes-admin\ncurrent-context: bosun-dev\nusers:\n\
            - name: kubernetes-admin\n  user:\n    client-certificate-data: Qw==\n    client-key-data: Sw==\n";
        assert_eq!(config.to_yaml(), text);
    }

    #[test]
    fn odd_values_stay_what_they_are() {
        let value = json!({"a": "true", "b": true, "c": [], "d": {}, "e": "x: y", "f": ["1", 1]});
        let text = "a: \"true\"\nb: true\nc: []\nd: {}\ne: \"x: y\"\nf:\n- \"1\"\n- 1\n";
        assert_eq!(to_yaml(&value), text);
    }
}
