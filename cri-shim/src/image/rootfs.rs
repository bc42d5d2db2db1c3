//! A container's root: a snapshot on top of an image.

use containerd_client::types::Mount;

use super::catalog::{Facts, Image};
use super::reference::Reference;
use super::{ImageError, Images};
use crate::containerd::Error;
use crate::containerd::content::Labels;
use crate::containerd::snapshots::NewSnapshot;

/// How a root is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootfsOptions {
    /// Nothing can be written, as for an image volume. A container whose root is read-only still has a writable snapshot.
    pub read_only: bool,
    /// For the snapshotter, and for the garbage collector.
    pub labels: Labels,
}

impl Images {
    /// The mounts of the snapshot `key` on top of the image. A second call with the key answers with the same.
    ///
    /// Nothing holds the snapshot: make the container that names it as its snapshot key before, or give it the label
    /// `containerd.io/gc.root`, else the garbage collector takes it.
    ///
    /// # Errors
    /// [`ImageError::Incomplete`] where the image went away meanwhile.
    pub async fn prepare_rootfs(
        &self,
        image: &Image,
        key: &str,
        options: RootfsOptions,
    ) -> Result<Vec<Mount>, ImageError> {
        match self.snapshot(image, key, &options).await {
            Err(Error::NotFound { .. }) => {}
            other => return Ok(other?),
        }
        let lease = self.0.containerd.lease().await?;
        let outcome = match self.unpack_again(image, &lease).await {
            Ok(()) => self.snapshot(image, key, &options).await.map_err(ImageError::from),
            Err(ImageError::Containerd(Error::NotFound { .. })) => Err(ImageError::Incomplete { id: image.id.clone() }),
            Err(error) => Err(error),
        };
        lease.end().await;
        outcome
    }

    async fn snapshot(&self, image: &Image, key: &str, options: &RootfsOptions) -> Result<Vec<Mount>, Error> {
        let snapshotter = &self.0.snapshotter;
        let new = NewSnapshot { key, parent: &image.chain_id, labels: options.labels.clone() };
        let made =
            if options.read_only { snapshotter.view(new, None).await } else { snapshotter.prepare(new, None).await };
        match made {
            Err(Error::AlreadyExists { .. }) => snapshotter.mounts(key).await,
            other => other,
        }
    }

    /// Unpacks an image whose content is there but whose snapshots are not, as one that another client pulled.
    async fn unpack_again(&self, image: &Image, lease: &crate::containerd::leases::Lease) -> Result<(), ImageError> {
        let (_, facts) = self.records().await?;
        let gone = || ImageError::Incomplete { id: image.id.clone() };
        let facts: &Facts = facts.get(&image.target.digest).ok_or_else(gone)?;
        let name = image.tags.first().or(image.digests.first()).ok_or_else(gone)?;
        let reference = Reference::parse(name)?;
        let start = self.first_missing(&facts.chain, lease).await?;
        for (index, layer) in facts.layers.iter().enumerate().skip(start) {
            lease.hold_content(layer.digest.as_str()).await?;
            self.0.containerd.content_info(layer.digest.as_str()).await?;
            self.unpack_layer(&reference, facts, index, lease).await?;
        }
        // As a pull says it: with the image, its snapshots stay.
        if let Some(top) = facts.chain.last() {
            let labels = Labels::from([super::manifest::unpacked(self.0.snapshotter.name(), top)]);
            self.0.containerd.content_label(&facts.id, labels).await?;
        }
        Ok(())
    }

    /// Removes a container's root; none is fine.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn remove_rootfs(&self, key: &str) -> Result<(), ImageError> {
        self.0.usages.forget(key);
        Ok(self.0.snapshotter.remove(key).await?)
    }
}
