//! Layers of the content store into snapshots, one on top of the other.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::catalog::Facts;
use super::reference::Reference;
use super::{ImageError, Images};
use crate::containerd::content::Labels;
use crate::containerd::leases::Lease;
use crate::containerd::snapshots::NewSnapshot;
use crate::containerd::{Error, Result as ContainerdResult};

/// Tells a snapshotter which layers a snapshot is for; those that fetch by themselves ask for it.
const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

static COUNTER: AtomicU64 = AtomicU64::new(0);

impl Images {
    /// The lowest layer that is not unpacked. What is below is held.
    pub(super) async fn first_missing(&self, chain: &[String], lease: &Lease) -> ContainerdResult<usize> {
        for (index, id) in chain.iter().enumerate().rev() {
            if self.hold_snapshot(id, lease).await? {
                return Ok(index + 1);
            }
        }
        Ok(0)
    }

    /// Holds a snapshot, if it is there.
    async fn hold_snapshot(&self, id: &str, lease: &Lease) -> ContainerdResult<bool> {
        let snapshotter = &self.0.snapshotter;
        if !snapshotter.exists(id).await? {
            return Ok(false);
        }
        lease.hold_snapshot(snapshotter.name(), id).await?;
        // It may have gone before it was held.
        snapshotter.exists(id).await
    }

    /// Unpacks layer `index` of the image on top of those below, which must be unpacked.
    pub(super) async fn unpack_layer(
        &self,
        reference: &Reference,
        facts: &Facts,
        index: usize,
        lease: &Lease,
    ) -> Result<(), ImageError> {
        let (snapshotter, chain_id) = (&self.0.snapshotter, &facts.chain[index]);
        let _held = self.0.chains.lock(chain_id).await;
        if self.hold_snapshot(chain_id, lease).await? {
            return Ok(());
        }
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let key = format!("extract-{nanos}-{} {chain_id}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let parent = if index == 0 { "" } else { &facts.chain[index - 1] };
        let labels = Labels::from([(SNAPSHOT_REF.to_owned(), chain_id.clone())]);
        let mounts = match snapshotter.prepare(NewSnapshot { key: &key, parent, labels }, Some(lease)).await {
            Ok(mounts) => mounts,
            // A snapshotter that had it by itself.
            Err(Error::AlreadyExists { .. }) if self.hold_snapshot(chain_id, lease).await? => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let outcome = self.fill(reference, facts, index, mounts).await;
        let outcome = match outcome {
            Ok(()) => snapshotter.commit(chain_id, &key, lease).await.map_err(ImageError::from),
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            // The lease takes it too, later.
            if let Err(error) = snapshotter.remove(&key).await {
                tracing::debug!(%error, "a half-unpacked layer stays until the pull ends");
            }
        }
        match outcome {
            Err(ImageError::Containerd(Error::AlreadyExists { .. })) => {
                self.hold_snapshot(chain_id, lease).await?;
                Ok(())
            }
            other => other,
        }
    }

    async fn fill(
        &self,
        reference: &Reference,
        facts: &Facts,
        index: usize,
        mounts: Vec<containerd_client::types::Mount>,
    ) -> Result<(), ImageError> {
        let (layer, wanted) = (&facts.layers[index], &facts.config.rootfs().diff_ids()[index]);
        let found = self.0.containerd.diff_apply(layer.to_containerd(), mounts).await?;
        if found == *wanted {
            return Ok(());
        }
        let (reference, wanted) = (reference.to_string(), wanted.clone());
        Err(ImageError::Layer { reference, layer: layer.digest.clone(), wanted, found })
    }
}
