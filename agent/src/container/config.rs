//! The CRI's configuration of one container.

use super::expand::expand;
use super::hash;
use super::resources;
use super::security::{self, ImageUser, SeccompDefaults, SecurityError};
use crate::config::Config;
use crate::pod::spec;
use crate::pod::view::{CONTAINER_HASH, CONTAINER_NAME, TERMINATION_MESSAGE_PATH, TERMINATION_MESSAGE_POLICY};
use crate::sandbox;
use cri::v1::{ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, Mount};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What the configuration is made from besides the pod.
#[derive(Debug)]
pub struct Parts<'a> {
    pub config: &'a Config,
    /// The folder of the agent's own state (`--root-dir`).
    pub root_dir: &'a Path,
    pub attempt: u32,
    /// The image's id in the runtime.
    pub image_ref: &'a str,
    pub image_user: &'a ImageUser,
    pub env: &'a BTreeMap<String, String>,
    pub mounts: Vec<Mount>,
    pub memory_capacity: i64,
}

/// Where a container without another wish leaves its last words.
pub const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

/// What the CRI is asked to create.
///
/// # Errors
/// Where the security contexts do not allow it.
pub fn build(pod: &Pod, container: &Container, parts: Parts<'_>) -> Result<ContainerConfig, SecurityError> {
    security::check_non_root(pod, container, parts.image_user)?;
    let folder = parts.root_dir.join("seccomp");
    let seccomp = SeccompDefaults { runtime_default: parts.config.seccomp_default, folder: &folder };
    let words = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, |name| parts.env.get(name).cloned())).collect()
    };
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: parts.attempt }),
        image: Some(ImageSpec {
            image: parts.image_ref.into(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command: words(&container.command),
        args: words(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: parts
            .env
            .iter()
            .map(|(key, value)| KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        mounts: parts.mounts,
        labels: labels(pod, container),
        annotations: annotations(container, parts.attempt),
        log_path: format!("{}/{}.log", container.name, parts.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::linux(pod, container, parts.config, parts.memory_capacity)),
            security_context: Some(security::merged(pod, container, parts.image_user, &seccomp)?),
        }),
        ..ContainerConfig::default()
    })
}

fn labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let mut labels = sandbox::pod_labels(pod);
    labels.insert(CONTAINER_NAME.into(), container.name.clone());
    labels
}

fn annotations(container: &Container, attempt: u32) -> HashMap<String, String> {
    let path = container.termination_message_path.clone().filter(|path| !path.is_empty());
    HashMap::from([
        (CONTAINER_HASH.into(), hash(container)),
        ("io.kubernetes.container.restartCount".into(), attempt.to_string()),
        (TERMINATION_MESSAGE_PATH.into(), path.unwrap_or_else(|| DEFAULT_MESSAGE_PATH.into())),
        (
            TERMINATION_MESSAGE_POLICY.into(),
            container.termination_message_policy.clone().unwrap_or_else(|| "File".into()),
        ),
    ])
}

/// The pod's own folder below the root folder.
pub fn pod_folder(root_dir: &Path, pod: &Pod) -> std::path::PathBuf {
    root_dir.join("pods").join(spec::uid(pod))
}
