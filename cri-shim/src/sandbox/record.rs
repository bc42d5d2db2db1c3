//! What is written down about a pod sandbox: its record in containerd, which never changes, and its life beside its
//! namespaces, which ends with them.

use std::net::IpAddr;
use std::path::Path;

use cri::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::message;

/// The extension's name, which carries the record's version.
pub const EXTENSION: &str = "bosun.sandbox.v1";
/// The label by which containerd's users tell sandboxes from containers; the name is that of containerd's own CRI.
pub const KIND_LABEL: &str = "io.cri-containerd.kind";
pub const KIND: &str = "sandbox";

/// A pod sandbox as it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecord {
    pub id: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// The runtime handler's name as it was asked for: empty for the default one.
    #[serde(default)]
    pub handler: String,
    /// The pod's SELinux level, where the policy has levels and the config names none.
    #[serde(default)]
    pub selinux_level: Option<String>,
    #[serde(with = "message")]
    pub config: PodSandboxConfig,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being made. After a restart of ours: half-made.
    Making,
    Ready,
    /// To be torn down, or being torn down.
    Stopping,
    /// Torn down: it holds nothing of the kernel and the network any more.
    Stopped,
}

/// What a reboot ends. It lies on a tmpfs beside the namespaces that it speaks of, and is written before anything
/// is made, so that what is half-made can be found and undone even where containerd has no record yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Life {
    pub phase: Phase,
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The stages of its making, for people.
    #[serde(default)]
    pub trace: String,
    pub record: SandboxRecord,
}

impl Life {
    /// `None` where there is none, or one that cannot be read: then nothing is known of it, as after a reboot.
    pub fn read(path: &Path) -> Option<Self> {
        let text = std::fs::read(path).ok()?;
        match serde_json::from_slice(&text) {
            Ok(life) => Some(life),
            Err(error) => {
                tracing::warn!("the pod sandbox of {} counts as stopped: cannot read it: {error}", path.display());
                None
            }
        }
    }

    /// # Errors
    /// Where the folder is not there or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(std::io::Error::from).map_err(Error::io("write", path))?;
        lifecycle::file::write_atomic(path, &text, 0o600).map_err(Error::io("keep", path))
    }
}

impl SandboxRecord {
    pub fn metadata(&self) -> PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// How the pod shares namespaces; unset means the pod's own network and IPC.
    pub fn namespaces(&self) -> NamespaceOption {
        let security = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
    }

    pub fn host_network(&self) -> bool {
        self.namespaces().network() == NamespaceMode::Node
    }

    pub fn host_ipc(&self) -> bool {
        self.namespaces().ipc() == NamespaceMode::Node
    }

    /// A PID namespace that all containers share needs a process that lives as long as the pod.
    pub fn needs_pause(&self) -> bool {
        self.namespaces().pid() == NamespaceMode::Pod
    }

    pub fn cgroup_parent(&self) -> &str {
        self.config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str())
    }
}

/// What makes a request for a sandbox the same as another: pod and attempt.
pub fn name(metadata: &PodSandboxMetadata) -> String {
    let PodSandboxMetadata { name, uid, namespace, attempt } = metadata;
    format!("{namespace}/{name}/{uid}/{attempt}")
}

/// # Errors
/// What the request lacks.
pub fn validate(config: &PodSandboxConfig) -> Result<()> {
    let Some(metadata) = &config.metadata else {
        return Err(Error::Invalid("the pod sandbox's config has no metadata".to_owned()));
    };
    if metadata.name.is_empty() || metadata.namespace.is_empty() || metadata.uid.is_empty() {
        let what = format!("name {:?}, namespace {:?}, uid {:?}", metadata.name, metadata.namespace, metadata.uid);
        return Err(Error::Invalid(format!("a pod sandbox needs a name, a namespace and a uid, and has {what}")));
    }
    if config.hostname.len() > 64 {
        return Err(Error::Invalid(format!("the hostname {:?} is longer than 64 bytes", config.hostname)));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use cri::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    pub(crate) fn record(namespaces: NamespaceOption) -> SandboxRecord {
        let metadata =
            PodSandboxMetadata { name: "web".into(), namespace: "default".into(), uid: "u1".into(), attempt: 2 };
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces),
            ..LinuxSandboxSecurityContext::default()
        };
        let linux = LinuxPodSandboxConfig { security_context: Some(security), ..LinuxPodSandboxConfig::default() };
        let config = PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..PodSandboxConfig::default() };
        SandboxRecord { id: "ab".repeat(32), created_at: 7, handler: String::new(), selinux_level: None, config }
    }

    #[test]
    fn a_record_and_a_life_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("life.json");
        let record = record(NamespaceOption::default());
        let life = Life { phase: Phase::Ready, ips: vec!["10.1.2.3".parse().unwrap()], trace: String::new(), record };
        life.write(&path).unwrap();
        assert_eq!(Life::read(&path), Some(life));
        std::fs::write(&path, b"{").unwrap();
        assert_eq!(Life::read(&path), None);
    }

    #[test]
    fn only_a_shared_pid_namespace_needs_pause() {
        let with = |pid: NamespaceMode| record(NamespaceOption { pid: pid.into(), ..NamespaceOption::default() });
        assert!(with(NamespaceMode::Pod).needs_pause());
        assert!(!with(NamespaceMode::Container).needs_pause());
        assert!(!with(NamespaceMode::Node).needs_pause());
    }

    #[test]
    fn a_request_is_named_by_pod_and_attempt_and_must_name_a_pod() {
        let record = record(NamespaceOption::default());
        assert_eq!(name(&record.metadata()), "default/web/u1/2");
        assert!(validate(&record.config).is_ok());
        assert!(validate(&PodSandboxConfig::default()).is_err());
    }
}
