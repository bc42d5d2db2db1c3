//! Image names, and which of a pod's credentials fit their registries.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What a registry may want to see.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub server: String,
    pub username: String,
    pub password: String,
    pub identity_token: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Credential").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Credential {
    /// Tells credentials apart without giving them away: SHA-256, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.server, &self.username, &self.password, &self.identity_token] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Credentials by the registry, and path there, that they are for.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    entries: Vec<(String, Credential)>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

impl Keyring {
    /// Takes what a secret of a docker type holds; any other content counts as nothing.
    pub fn add(&mut self, secret: &Secret) {
        let Some(data) = &secret.data else { return };
        let auths = if let Some(config) = data.get(".dockerconfigjson") {
            serde_json::from_slice::<DockerConfig>(&config.0).map(|config| config.auths)
        } else if let Some(config) = data.get(".dockercfg") {
            serde_json::from_slice(&config.0)
        } else {
            return;
        };
        for (server, auth) in auths.unwrap_or_default() {
            self.entries.push((registry_key(&server), credential(server, auth)));
        }
        // The longest key first: the one that says most about where it fits.
        self.entries.sort_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then(one.cmp(other)));
    }

    /// What fits the image, the closest first.
    pub fn matching(&self, image: &str) -> Vec<Credential> {
        let (host, path) = host_and_path(image);
        self.entries
            .iter()
            .filter(|(key, _)| fits(key, &host, &path))
            .map(|(_, credential)| credential.clone())
            .collect()
    }
}

fn credential(server: String, auth: DockerAuth) -> Credential {
    let (mut username, mut password) = (auth.username, auth.password);
    let decoded = STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    if let Some((user, word)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
        (username, password) = (user.to_string(), word.to_string());
    }
    Credential { server, username, password, identity_token: auth.identitytoken }
}

/// A key without scheme and API version: `registry.example:5000/team`.
fn registry_key(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    if bare == "docker.io" { "index.docker.io".into() } else { bare.to_string() }
}

fn fits(key: &str, host: &str, path: &str) -> bool {
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let (key_name, key_port) = key_host.rsplit_once(':').unwrap_or((key_host, ""));
    let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
    let (key_parts, parts) = (key_name.split('.'), name.split('.'));
    key_port == port
        && key_parts.clone().count() == parts.clone().count()
        && key_parts.zip(parts).all(|(pattern, part)| glob(pattern, part))
        && path.starts_with(key_path)
}

/// `*` stands for any characters within one part of a host name.
fn glob(pattern: &str, part: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == part,
        Some((head, tail)) => part.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| glob(tail, &rest[at..]))
        }),
    }
}

/// The registry's host and the repository, without tag and digest.
fn host_and_path(image: &str) -> (String, String) {
    let name = image.split('@').next().unwrap_or(image);
    let name = match name.rsplit_once(':') {
        Some((head, tag)) if !tag.contains('/') => head,
        _ => name,
    };
    match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            let host = if host == "docker.io" { "index.docker.io" } else { host };
            (host.to_string(), path.to_string())
        }
        Some(_) => ("index.docker.io".into(), name.to_string()),
        None => ("index.docker.io".into(), format!("library/{name}")),
    }
}

/// The name with `:latest` where it has neither tag nor digest; `None` where it is not a name of an image.
pub fn with_tag(image: &str) -> Option<String> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (repository, tag) = match name.rsplit_once(':') {
        Some((head, tag)) if !tag.contains('/') => (head, Some(tag)),
        _ => (name, None),
    };
    let (host, path) = match repository.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), path),
        _ => (None, repository),
    };
    let component = |part: &str| {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        part.chars().all(inside) && ends(part.chars().next()) && ends(part.chars().next_back())
    };
    let host_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    let tag_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let valid = path.split('/').all(component)
        && host.is_none_or(|host| host.chars().all(host_char))
        && tag.is_none_or(|tag| !tag.is_empty() && tag.len() <= 128 && tag.chars().all(tag_char))
        && digest.is_none_or(|digest| digest.split_once(':').is_some_and(|(_, hex)| hex.len() >= 32));
    valid.then(|| if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn keyring(json: &str) -> Keyring {
        let data = BTreeMap::from([(".dockerconfigjson".to_string(), ByteString(json.as_bytes().to_vec()))]);
        let mut keyring = Keyring::default();
        keyring.add(&Secret { data: Some(data), ..Secret::default() });
        keyring
    }

    #[test]
    fn the_longest_match_comes_first() {
        let keyring = keyring(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
                "reg.example:5000": {"username": "all", "password": "p"},
                "reg.example:5000/team": {"username": "team", "password": "p"},
                "*.cloud.example": {"username": "any", "password": "p"}}}"#,
        );
        let users = |image: &str| -> Vec<String> { keyring.matching(image).into_iter().map(|c| c.username).collect() };
        assert_eq!(users("reg.example:5000/team/app:1"), ["team", "all"]);
        assert_eq!(users("reg.example:5000/other"), ["all"]);
        assert_eq!(users("reg.example/team/app"), Vec::<String>::new());
        assert_eq!(users("busybox"), ["hub"]);
        assert_eq!(users("docker.io/library/busybox:1"), ["hub"]);
        assert_eq!(users("eu.cloud.example/x"), ["any"]);
        assert_eq!(users("a.b.cloud.example/x"), Vec::<String>::new());
    }

    #[test]
    fn names() {
        let digest = format!("a/b@sha256:{}", "0".repeat(64));
        assert_eq!(with_tag("busybox").as_deref(), Some("busybox:latest"));
        assert_eq!(with_tag("localhost:5000/a/b").as_deref(), Some("localhost:5000/a/b:latest"));
        assert_eq!(with_tag("a/b:1.2").as_deref(), Some("a/b:1.2"));
        assert_eq!(with_tag(&digest), Some(digest));
        for wrong in ["", "Upper/case", "a b", "a:", "-a"] {
            assert_eq!(with_tag(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_fingerprint_tells_credentials_apart() {
        let make = |user: &str, password: &str| Credential {
            server: "s".into(),
            username: user.into(),
            password: password.into(),
            identity_token: String::new(),
        };
        assert_ne!(make("ab", "c").fingerprint(), make("a", "bc").fingerprint());
        assert!(!format!("{:?}", make("ab", "secret")).contains("secret"));
    }
}
