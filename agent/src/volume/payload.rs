//! The files that belong in a volume now.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use bytes::Bytes;
use k8s_openapi::api::core::v1::{KeyToPath, Pod};

use super::Inner;
use super::downward;
use super::error::Cause;
use super::objects::{Content, Key, Kind, ObjectError};
use super::sources::FileSource;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub data: Bytes,
    pub mode: u32,
    /// The user that owns it; root if `None`.
    pub owner: Option<u32>,
}

/// Files by their path in the volume.
pub(super) type Payload = BTreeMap<String, File>;

/// Gathers the files of all sources; a later source wins where two name the same path.
///
/// # Errors
/// Where an object that is not optional, or a key of it, is missing, or a token is refused.
pub(super) async fn collect(volumes: &Inner, pod: &Pod, sources: &[FileSource]) -> Result<Payload, Cause> {
    let mut payload = Payload::new();
    for source in sources {
        match source {
            FileSource::Object { kind, name, items, optional, mode } => {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let key = Key::new(*kind, namespace, name);
                let content = match volumes.objects.mounted(&key, super::uid(pod)).await {
                    Ok(content) => content,
                    Err(ObjectError::NotFound { .. }) if *optional => continue,
                    Err(error) => return Err(error.into()),
                };
                payload.extend(project(&content, *kind, items, Choice { optional: *optional, mode: *mode })?);
            }
            FileSource::Downward { files, mode } => {
                for file in files {
                    let data = downward::file(pod, file, &volumes.node)?.into();
                    let mode = file.mode.map_or(*mode, |m| u32::try_from(m).unwrap_or(0) & 0o777);
                    payload.insert(checked(&file.path)?, File { data, mode, owner: None });
                }
            }
            FileSource::Token { projection, mode } => {
                let token = volumes.tokens.get(pod, projection).await.map_err(Cause::Token)?;
                let path = checked(&projection.path)?;
                payload.insert(path, token_file(pod, token, *mode));
            }
        }
    }
    Ok(payload)
}

/// A token belongs to the user that all containers run as, and to nobody else; with an fsGroup the group may read it.
fn token_file(pod: &Pod, token: String, mode: u32) -> File {
    let owner = super::ownership::common_user(pod);
    let has_group = super::ownership::Group::of(pod, true).is_some();
    let mode = if owner.is_some() || has_group { 0o600 } else { mode };
    File { data: token.into(), mode, owner }
}

#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub optional: bool,
    pub mode: u32,
}

/// All keys of an object as files, or the chosen ones at the paths given for them.
pub(super) fn project(content: &Content, kind: Kind, items: &[KeyToPath], choice: Choice) -> Result<Payload, Cause> {
    let file = |data: &Bytes, mode| File { data: data.clone(), mode, owner: None };
    if items.is_empty() {
        return Ok(content.data.iter().map(|(key, data)| (key.clone(), file(data, choice.mode))).collect());
    }
    let mut payload = Payload::new();
    for item in items {
        let Some(data) = content.data.get(&item.key) else {
            if choice.optional {
                continue;
            }
            return Err(match kind {
                Kind::ConfigMap => Cause::MissingConfigKey(item.key.clone()),
                Kind::Secret => Cause::MissingSecretKey(item.key.clone()),
            });
        };
        let mode = item.mode.map_or(choice.mode, |m| u32::try_from(m).unwrap_or(0) & 0o777);
        payload.insert(checked(&item.path)?, file(data, mode));
    }
    Ok(payload)
}

/// A path in a volume: relative, without `..` anywhere nor at the start of its first part, which is ours.
fn checked(path: &str) -> Result<String, Cause> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if !plain || path.is_empty() || path.starts_with("..") {
        return Err(Cause::InvalidPath(path.into()));
    }
    Ok(path.trim_end_matches('/').to_owned())
}
