//! What is written down about a container: its record in containerd, when it began, and how it ended.

use std::path::{Path, PathBuf};

use cri::v1::{ContainerConfig, ContainerMetadata, LinuxContainerResources};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::message;

/// The extension's name, which carries the record's version.
pub const EXTENSION: &str = "bosun.container.v1";
pub const KIND: &str = "container";

/// A container as it was asked for, and what was found out when it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox: String,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    #[serde(with = "message")]
    pub config: ContainerConfig,
    pub image: ImageNames,
    pub stop_signal: StopSignal,
    pub user: User,
    /// `None`: it writes no log.
    pub log_path: Option<PathBuf>,
    /// Where its cgroup is, as its spec says: `/kubepods/pod1/ID` or `slice:prefix:name`.
    pub cgroup: String,
    /// Keys of the snapshots of its image volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
}

/// The signal that asks a container to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSignal {
    pub number: u32,
    /// The CRI's value for it.
    pub cri: i32,
}

/// How an image is called in the answers about a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageNames {
    /// By tag where it has one.
    pub name: String,
    /// By digest of the manifest where it has one.
    pub reference: String,
    /// The digest of its configuration.
    pub id: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// Why a container ended, in the words that the kubelet and people know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    Completed,
    Error,
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// It never began.
    StartError,
    /// It ended while nobody looked, and what it left is gone.
    Unknown,
}

impl Reason {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// How a container ended. Kept durably before its task is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    pub code: i32,
    /// Nanoseconds since 1970; 0 for one that never began.
    pub started_at: i64,
    pub finished_at: i64,
    pub reason: Reason,
    #[serde(default)]
    pub message: String,
}

/// That a container began. Lies on a tmpfs: a reboot ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    pub started_at: i64,
    /// Kills for want of memory in its pod before.
    #[serde(default)]
    pub pod_oom_kills: u64,
}

/// Reads what [`keep`] wrote. `None` where it is not there or cannot be read, which counts as not there.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    let text = std::fs::read(path).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!("{} is passed over: cannot read it: {error}", path.display()))
        .ok()
}

/// Writes a checkpoint that is whole or absent; the folder is made.
///
/// # Errors
/// Where the disk refuses.
pub fn keep<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(std::io::Error::from).map_err(Error::io("write", path))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
    }
    lifecycle::file::write_atomic(path, &text, 0o600).map_err(Error::io("keep", path))
}

impl ContainerRecord {
    pub fn metadata(&self) -> ContainerMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    pub fn resources(&self) -> LinuxContainerResources {
        self.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
    }

    /// The same container with the resources that `update` names.
    pub fn with_resources(&self, update: &LinuxContainerResources) -> Self {
        let mut record = self.clone();
        let linux = record.config.linux.get_or_insert_default();
        linux.resources = Some(merge(&linux.resources.take().unwrap_or_default(), update));
        record
    }
}

/// A field that is zero or empty in an update is left as it is: so the kubelet means it.
fn merge(old: &LinuxContainerResources, update: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: &str, old: &str| if new.is_empty() { old.to_owned() } else { new.to_owned() };
    let mut unified = old.unified.clone();
    unified.extend(update.unified.clone());
    let huge = &update.hugepage_limits;
    LinuxContainerResources {
        cpu_period: number(update.cpu_period, old.cpu_period),
        cpu_quota: number(update.cpu_quota, old.cpu_quota),
        cpu_shares: number(update.cpu_shares, old.cpu_shares),
        memory_limit_in_bytes: number(update.memory_limit_in_bytes, old.memory_limit_in_bytes),
        oom_score_adj: number(update.oom_score_adj, old.oom_score_adj),
        cpuset_cpus: text(&update.cpuset_cpus, &old.cpuset_cpus),
        cpuset_mems: text(&update.cpuset_mems, &old.cpuset_mems),
        hugepage_limits: if huge.is_empty() { old.hugepage_limits.clone() } else { huge.clone() },
        unified,
        memory_swap_limit_in_bytes: number(update.memory_swap_limit_in_bytes, old.memory_swap_limit_in_bytes),
    }
}

/// What makes a request for a container the same as another: sandbox, name and attempt.
pub fn name(sandbox: &str, metadata: &ContainerMetadata) -> String {
    format!("{sandbox}/{}/{}", metadata.name, metadata.attempt)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record() -> ContainerRecord {
        let metadata = ContainerMetadata { name: "app".into(), attempt: 1 };
        ContainerRecord {
            id: "cd".repeat(32),
            sandbox: "ab".repeat(32),
            created_at: 8,
            config: ContainerConfig { metadata: Some(metadata), ..ContainerConfig::default() },
            image: ImageNames { name: "r/i:1".into(), reference: "r/i@sha256:1".into(), id: "sha256:2".into() },
            stop_signal: StopSignal { number: 15, cri: cri::v1::Signal::Sigterm.into() },
            user: User { uid: 1000, gid: 1000, groups: vec![5] },
            log_path: Some("/var/log/pods/p/app/1.log".into()),
            cgroup: "/pod/cd".into(),
            volumes: Vec::new(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = record();
        let extension = crate::record::to_extension(EXTENSION, &record).unwrap();
        let read: ContainerRecord = crate::record::from_extension(EXTENSION, &record.id, &extension).unwrap();
        assert_eq!(read, record);
        let broken = prost_types::Any { value: b"[]".to_vec(), ..extension };
        let error = crate::record::from_extension::<ContainerRecord>(EXTENSION, "x", &broken).unwrap_err();
        assert!(error.to_string().starts_with("cannot read the bosun.container.v1 record of x: "), "{error}");
    }

    #[test]
    fn an_exit_is_kept_and_read_and_garbage_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c1/exit.json");
        let exit = Exit { code: 137, started_at: 1, finished_at: 2, reason: Reason::OomKilled, message: String::new() };
        keep(&path, &exit).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"OOMKilled\""));
        assert_eq!(read::<Exit>(&path), Some(exit));
        std::fs::write(&path, b"{").unwrap();
        assert_eq!(read::<Exit>(&path), None);
    }

    #[test]
    fn an_update_leaves_what_it_does_not_name() {
        let old = LinuxContainerResources { cpu_shares: 512, memory_limit_in_bytes: 1 << 20, ..Default::default() };
        let mut record = record();
        record.config.linux.get_or_insert_default().resources = Some(old.clone());
        let update = LinuxContainerResources { memory_limit_in_bytes: 2 << 20, ..Default::default() };
        let merged = record.with_resources(&update).resources();
        assert_eq!(merged, LinuxContainerResources { memory_limit_in_bytes: 2 << 20, ..old });
    }
}
