//! Images: what is there, what is pulled and how it becomes a container's root.
//!
//! | file | what |
//! |---|---|
//! | [`reference`], [`digest`], [`platform`], [`manifest`] | what names, documents and platforms mean |
//! | [`registry`] | hosts.toml, proxies, credentials, and what comes over the network |
//! | `install`, `layers`, `unpack` | a pulled or imported image into containerd, under a lease |
//! | [`catalog`] | containerd's names as the CRI's images |
//! | `rootfs`, `usage` | a container's snapshot, and what snapshots take |
//!
//! containerd is authoritative for all of it, and keeps images as its own CRI plugin does: under `REPOSITORY:TAG`,
//! `REPOSITORY@DIGEST` and the digest of the configuration, which is the image's identifier. Only facts about content are
//! remembered, which cannot change. An unfinished layer stays a day, and the next pull goes on with it.

pub mod archive;
pub mod catalog;
pub mod digest;
mod error;
mod facts;
mod install;
mod layers;
mod locks;
pub mod manifest;
pub mod platform;
mod pull;
pub mod reference;
pub mod registry;
mod rootfs;
#[cfg(test)]
mod tests;
mod unpack;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::OnceCell;

use self::catalog::{Facts, Record};
pub use self::catalog::{Image, User};
use self::digest::Digest;
pub use self::error::ImageError;
use self::locks::Locks;
use self::platform::Platform;
pub use self::registry::auth::Auth;
pub use self::rootfs::RootfsOptions;
pub use self::usage::{FsUsage, Usage};
use crate::containerd::Containerd;
use crate::containerd::snapshots::Snapshotter;
use crate::flight::Flights;

/// How images are kept and fetched.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// As `overlayfs`.
    pub snapshotter: String,
    /// Where the folders with `hosts.toml` are; several with colons between.
    pub certs_dir: Option<PathBuf>,
    /// Layers of one image that are fetched at once; at least one is.
    pub max_concurrent_downloads: usize,
    /// Without a byte for this long a host is given up.
    pub stall: Duration,
    /// Full references that the kubelet must not collect.
    pub pinned: Vec<String>,
    /// containerd's root, for where a snapshotter's files are if it does not say it itself.
    pub root: PathBuf,
}

/// The images of one containerd and one snapshotter. Cloning shares everything.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

type Pulled = Result<Image, ImageError>;

struct Inner {
    containerd: Containerd,
    snapshotter: Snapshotter,
    settings: ImageSettings,
    host: Platform,
    /// By target; what is not listed any more is forgotten.
    facts: Mutex<HashMap<Digest, Arc<Facts>>>,
    pulls: Flights<(String, Option<Auth>), Pulled>,
    /// A blob is fetched, and a layer unpacked, by one at a time.
    blobs: Locks,
    chains: Locks,
    usages: usage::Cache,
    mount_point: OnceCell<PathBuf>,
}

impl Images {
    /// Nothing is asked of containerd yet.
    pub fn new(containerd: Containerd, settings: ImageSettings) -> Self {
        Self(Arc::new(Inner {
            snapshotter: containerd.snapshotter(&settings.snapshotter),
            containerd,
            settings,
            host: Platform::host(),
            facts: Mutex::default(),
            pulls: Flights::default(),
            blobs: Locks::default(),
            chains: Locks::default(),
            usages: usage::Cache::default(),
            mount_point: OnceCell::new(),
        }))
    }

    /// Gives up what an earlier run left unfinished; to be called once, before any pull. Layers that came in part stay.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn restore(&self) -> Result<(), ImageError> {
        let left = self.0.containerd.leases_end_ours().await?;
        if left > 0 {
            tracing::info!(left, "gave up unfinished work of an earlier run");
        }
        Ok(())
    }

    /// All images that are wholly there, by identifier.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn list(&self) -> Result<BTreeMap<String, Image>, ImageError> {
        let (records, facts) = self.records().await?;
        Ok(catalog::images(&records, &facts, &self.0.settings.pinned))
    }

    /// The image that is meant: by full or truncated identifier, by tag, by digest, or both.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn find(&self, wanted: &str) -> Result<Option<Image>, ImageError> {
        Ok(catalog::lookup(&self.list().await?, wanted).cloned())
    }

    /// Removes an image with all its names, and its files as far as nothing else needs them. None is fine.
    ///
    /// # Errors
    /// Where containerd fails; what was removed until then is.
    pub async fn remove(&self, wanted: &str) -> Result<(), ImageError> {
        let (records, facts) = self.records().await?;
        let images = catalog::images(&records, &facts, &[]);
        let Some(image) = catalog::lookup(&images, wanted) else { return Ok(()) };
        let mut names = catalog::names(&records, &facts, &image.id).peekable();
        while let Some(name) = names.next() {
            // The last one waits until the space is free: the kubelet looks at it next.
            self.0.containerd.image_delete(name, names.peek().is_none()).await?;
        }
        tracing::info!(image = %image.id, "removed");
        Ok(())
    }

    /// Where the snapshotter keeps its files.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn mount_point(&self) -> Result<PathBuf, ImageError> {
        let ask = || async {
            let told = self.0.snapshotter.root().await?;
            let name = format!("io.containerd.snapshotter.v1.{}", self.0.snapshotter.name());
            Ok(told.unwrap_or_else(|| self.0.settings.root.join(name)))
        };
        self.0.mount_point.get_or_try_init(ask).await.cloned()
    }
}

/// Names, and facts about what they lead to.
type Records = (Vec<Record>, HashMap<Digest, Arc<Facts>>);
