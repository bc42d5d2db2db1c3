//! The snapshot service: layers on top of layers, and what is written on top. Source:
//! api/services/snapshots/v1/snapshots.proto.

use std::path::PathBuf;

use containerd_client::services::v1::PluginsRequest;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
    StatSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use containerd_client::types::Mount;
use tonic::transport::Channel;

use super::content::{Labels, MESSAGE};
use super::leases::Lease;
use super::{Containerd, Error, Result, leased, request, unbounded};

/// A snapshot to be made.
#[derive(Debug, Clone)]
pub struct NewSnapshot<'a> {
    pub key: &'a str,
    /// Empty for none.
    pub parent: &'a str,
    pub labels: Labels,
}

/// What a snapshot takes on disk, without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotUsage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The calls that name a snapshotter.
#[derive(Clone)]
pub struct Snapshotter {
    containerd: Containerd,
    name: String,
}

impl Containerd {
    pub fn snapshotter(&self, name: &str) -> Snapshotter {
        Snapshotter { containerd: self.clone(), name: name.to_owned() }
    }
}

impl Snapshotter {
    pub fn name(&self) -> &str {
        &self.name
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.containerd.channel()).max_decoding_message_size(MESSAGE)
    }

    fn attempt(&self, verb: &str, key: &str) -> impl FnOnce(tonic::Status) -> Error {
        Error::of(format!("{verb} snapshot \"{key}\" of {}", self.name))
    }

    /// A writable snapshot.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where there is one with the key, [`Error::NotFound`] where the parent is missing.
    pub async fn prepare(&self, new: NewSnapshot<'_>, lease: Option<&Lease>) -> Result<Vec<Mount>> {
        let failed = self.attempt("prepare", new.key);
        let prepare = PrepareSnapshotRequest {
            snapshotter: self.name.clone(),
            key: new.key.to_owned(),
            parent: new.parent.to_owned(),
            labels: new.labels,
        };
        let call = match lease {
            Some(lease) => leased(unbounded(prepare), lease.header()),
            None => unbounded(prepare),
        };
        Ok(self.client().prepare(call).await.map_err(failed)?.into_inner().mounts)
    }

    /// A read-only snapshot.
    ///
    /// # Errors
    /// As [`Snapshotter::prepare`].
    pub async fn view(&self, new: NewSnapshot<'_>, lease: Option<&Lease>) -> Result<Vec<Mount>> {
        let failed = self.attempt("view", new.key);
        let view = ViewSnapshotRequest {
            snapshotter: self.name.clone(),
            key: new.key.to_owned(),
            parent: new.parent.to_owned(),
            labels: new.labels,
        };
        let call = match lease {
            Some(lease) => leased(unbounded(view), lease.header()),
            None => unbounded(view),
        };
        Ok(self.client().view(call).await.map_err(failed)?.into_inner().mounts)
    }

    /// # Errors
    /// [`Error::NotFound`] where there is none.
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let mounts = MountsRequest { snapshotter: self.name.clone(), key: key.to_owned() };
        let answer = self.client().mounts(request(mounts)).await.map_err(self.attempt("mount", key))?;
        Ok(answer.into_inner().mounts)
    }

    /// Makes the writable snapshot `key` a parent for others, by its new name.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where there is one with the name.
    pub async fn commit(&self, name: &str, key: &str, lease: &Lease) -> Result<()> {
        let commit = CommitSnapshotRequest {
            snapshotter: self.name.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: Labels::new(),
        };
        let call = leased(unbounded(commit), lease.header());
        self.client().commit(call).await.map_err(self.attempt("commit", name))?;
        Ok(())
    }

    async fn stat(&self, key: &str) -> Result<Info> {
        let stat = StatSnapshotRequest { snapshotter: self.name.clone(), key: key.to_owned() };
        let answer = self.client().stat(request(stat)).await.map_err(self.attempt("look up", key))?;
        Ok(answer.into_inner().info.unwrap_or_default())
    }

    /// What the snapshot stands on; empty for nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none with the key.
    pub async fn parent(&self, key: &str) -> Result<String> {
        Ok(self.stat(key).await?.parent)
    }

    /// Whether there is a snapshot with the name.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn exists(&self, key: &str) -> Result<bool> {
        match self.stat(key).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes it; none is fine.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] while others stand on it.
    pub async fn remove(&self, key: &str) -> Result<()> {
        let remove = async || {
            let remove = RemoveSnapshotRequest { snapshotter: self.name.clone(), key: key.to_owned() };
            self.client().remove(unbounded(remove)).await.map_err(self.attempt("remove", key))
        };
        match self.containerd.freeing(remove).await {
            Err(Error::NotFound { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// # Errors
    /// Where containerd fails.
    pub async fn list(&self) -> Result<Vec<Info>> {
        let failed = || Error::of(format!("list snapshots of {}", self.name));
        let list = ListSnapshotsRequest { snapshotter: self.name.clone(), filters: Vec::new() };
        let mut parts = self.client().list(request(list)).await.map_err(failed())?.into_inner();
        let mut all = Vec::new();
        while let Some(part) = parts.message().await.map_err(failed())? {
            all.extend(part.info);
        }
        Ok(all)
    }

    /// Counts the files of a writable snapshot: not cheap.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none.
    pub async fn usage(&self, key: &str) -> Result<SnapshotUsage> {
        let usage = UsageRequest { snapshotter: self.name.clone(), key: key.to_owned() };
        let answer = self.client().usage(unbounded(usage)).await.map_err(self.attempt("measure", key))?.into_inner();
        Ok(SnapshotUsage {
            bytes: u64::try_from(answer.size).unwrap_or(0),
            inodes: u64::try_from(answer.inodes).unwrap_or(0),
        })
    }

    /// The folder in which the snapshotter keeps its files, where it says so.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn root(&self) -> Result<Option<PathBuf>> {
        let filters = vec![format!("type==io.containerd.snapshotter.v1,id=={}", self.name)];
        let mut client = IntrospectionClient::new(self.containerd.channel());
        let answer = client.plugins(request(PluginsRequest { filters })).await;
        let plugins = answer.map_err(Error::of(format!("ask for snapshotter {}", self.name)))?.into_inner().plugins;
        Ok(plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root")).map(PathBuf::from))
    }
}
