//! From a source of blobs to an image of containerd: documents, layers, snapshots, names, in this order and under a lease.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use containerd_client::services::v1 as api;
use futures::future::try_join_all;
use tokio::sync::{Semaphore, oneshot};
use tracing::Instrument;

use super::archive::Archive;
use super::catalog::{Facts, MANAGED, PINNED};
use super::facts::{DEPTH, decode, decode_config, facts, select, too_deep};
use super::layers::Progress;
use super::manifest::{self, Descriptor, Document, origin, references, unpacked};
use super::reference::Reference;
use super::registry::{Kind, Registry};
use super::{ImageError, Images};
use crate::containerd::content::{ContentWriter, Ingest, Labels};
use crate::containerd::leases::Lease;
use crate::containerd::{Error, Result as ContainerdResult};

/// After which pause a write is opened again that another holds.
const BETWEEN: Duration = Duration::from_millis(100);

/// Where blobs come from.
pub(super) enum Source<'a> {
    Registry(&'a Registry),
    Archive(&'a Archive),
}

impl Source<'_> {
    /// The label that says where a blob came from.
    pub(super) fn labels(&self) -> Labels {
        match self {
            Self::Registry(registry) => {
                Labels::from([origin(registry.reference().registry(), registry.reference().path())])
            }
            Self::Archive(_) => Labels::new(),
        }
    }

    async fn small(&self, kind: Kind, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
        match self {
            Self::Registry(registry) => registry.small(kind, descriptor).await,
            Self::Archive(archive) => archive.blob(descriptor),
        }
    }
}

/// What is being installed.
pub(super) struct Installation<'a> {
    pub source: Source<'a>,
    pub reference: &'a Reference,
    pub target: &'a Descriptor,
    pub lease: &'a Lease,
    pub progress: &'a Progress,
}

impl Images {
    /// Brings the image into containerd and names it. `given` is the target's document, where it is known already.
    pub(super) async fn install(
        &self,
        what: &Installation<'_>,
        given: Option<Bytes>,
    ) -> Result<Arc<Facts>, ImageError> {
        let facts = Arc::new(self.documents(what, given).await?);
        self.layers(what, &facts).await?;
        self.name(what.reference, what.target, &facts.id).await?;
        let mut known = self.0.facts.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(what.target.digest.clone(), facts.clone());
        Ok(facts)
    }

    /// From the target to the configuration for this machine.
    async fn documents(&self, what: &Installation<'_>, given: Option<Bytes>) -> Result<Facts, ImageError> {
        let reference = what.reference.to_string();
        let (mut current, mut given) = (what.target.clone(), given);
        for _ in 0..DEPTH {
            let labels = |bytes: &[u8]| Ok(references(&decode(&reference, &current, bytes)?));
            let bytes = self.small(what, Kind::Manifests, &current, given.take(), labels).await?;
            match decode(&reference, &current, &bytes)? {
                Document::Index(manifests) => current = select(&reference, &manifests, &self.0.host)?,
                Document::Manifest(manifest) => {
                    let read = |bytes: &[u8]| decode_config(&reference, bytes, &manifest, &self.0.host);
                    let labels = |bytes: &[u8]| {
                        let chain = manifest::chain_ids(read(bytes)?.rootfs().diff_ids());
                        let top = chain.last().map(String::as_str).unwrap_or_default();
                        Ok(BTreeMap::from([unpacked(self.0.snapshotter.name(), top)]))
                    };
                    let bytes = self.small(what, Kind::Blobs, &manifest.config, None, labels).await?;
                    let config = read(&bytes)?;
                    return Ok(facts(&current, manifest, config));
                }
            }
        }
        Err(too_deep(&reference, what.target))
    }

    /// A small blob, from the store or else from the source into the store, with the labels that its bytes ask for.
    async fn small(
        &self,
        what: &Installation<'_>,
        kind: Kind,
        descriptor: &Descriptor,
        given: Option<Bytes>,
        labels: impl Fn(&[u8]) -> Result<BTreeMap<String, String>, ImageError>,
    ) -> Result<Bytes, ImageError> {
        let (containerd, digest) = (&self.0.containerd, descriptor.digest.as_str());
        // Held first: from then on what is there stays.
        what.lease.hold_content(digest).await?;
        match containerd.content_read(digest, manifest::LIMIT).await {
            Ok(bytes) => {
                let wanted: Labels = labels(&bytes)?.into_iter().collect();
                let has = containerd.content_info(digest).await?.labels;
                if wanted.iter().any(|(key, value)| has.get(key) != Some(value)) {
                    containerd.content_label(digest, wanted).await?;
                }
                return Ok(bytes);
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let bytes = match given {
            Some(bytes) => bytes,
            None => what.source.small(kind, descriptor).await?,
        };
        let mut wanted: Labels = labels(&bytes)?.into_iter().collect();
        wanted.extend(what.source.labels());
        let reference = format!("{}-{digest}", if kind == Kind::Manifests { "manifest" } else { "config" });
        self.store(Ingest { reference: &reference, total: bytes.len() as u64, digest }, &bytes, wanted).await?;
        Ok(bytes)
    }

    /// Writes a whole blob, or the rest of it.
    pub(super) async fn store(&self, ingest: Ingest<'_>, bytes: &Bytes, labels: Labels) -> ContainerdResult<()> {
        let Some(mut writer) = self.open(ingest).await? else {
            return self.0.containerd.content_label(ingest.digest, labels).await;
        };
        let outcome = async {
            let mut rest = bytes.slice(usize::try_from(writer.offset()).unwrap_or(usize::MAX).min(bytes.len())..);
            while rest.len() > super::layers::CHUNK {
                writer.write(rest.split_to(super::layers::CHUNK)).await?;
            }
            writer.commit(rest, labels).await
        };
        let outcome = outcome.await;
        // What another run wrote before was wrong, or what was written fills the disk.
        if let Err(Error::FailedPrecondition { .. } | Error::NoSpace { .. }) = outcome {
            self.0.containerd.content_abort(ingest.reference).await?;
        }
        outcome
    }

    /// Opens a write, as soon as nobody else holds it: another client may be fetching the same. None where the store has
    /// the blob.
    pub(super) async fn open(&self, ingest: Ingest<'_>) -> ContainerdResult<Option<ContentWriter>> {
        let deadline = Instant::now() + self.0.settings.stall;
        loop {
            match self.0.containerd.content_write(ingest, None).await {
                Ok(writer) => return Ok(Some(writer)),
                Err(Error::AlreadyExists { .. }) => return Ok(None),
                Err(Error::Unavailable { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
            // Whether it is the write that is held, or containerd that is gone.
            match self.0.containerd.content_info(ingest.digest).await {
                Err(Error::NotFound { .. }) | Ok(_) => tokio::time::sleep(BETWEEN).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Fetches the layers that are not unpacked yet and unpacks each as soon as it and all below are there.
    async fn layers(&self, what: &Installation<'_>, facts: &Facts) -> Result<(), ImageError> {
        let start = self.first_missing(&facts.chain, what.lease).await?;
        let layers = &facts.layers[start..];
        // What a manifest says of sizes may be anything.
        what.progress.expect(layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size)));
        let (here, coming): (Vec<_>, Vec<_>) = layers.iter().map(|_| oneshot::channel::<()>()).unzip();
        // It lets in the lowest layer first.
        let places = Semaphore::new(self.0.settings.max_concurrent_downloads.max(1));
        let fetches = layers.iter().zip(&facts.config.rootfs().diff_ids()[start..]).zip(here);
        let fetches = fetches.map(|((layer, diff_id), here)| self.layer_in_turn(what, layer, diff_id, &places, here));
        let fetch = try_join_all(fetches.collect::<Vec<_>>());
        let unpack = async {
            for (index, here) in (start..).zip(coming) {
                if here.await.is_err() {
                    // The fetching failed, and says it.
                    std::future::pending::<()>().await;
                }
                let span = tracing::debug_span!("unpack", layer = %facts.layers[index].digest);
                self.unpack_layer(what.reference, facts, index, what.lease).instrument(span).await?;
            }
            Ok(())
        };
        let outcome = futures::try_join!(fetch, unpack).map(drop);
        if outcome.as_ref().is_err_and(ImageError::is_no_space) {
            self.give_up(layers).await;
        }
        outcome
    }

    /// Throws away what came of layers. Else it would stay for a day, to be gone on with, and keep a full disk full.
    async fn give_up(&self, layers: &[Descriptor]) {
        for layer in layers {
            let digest = layer.digest.as_str();
            // Another pull may be fetching it.
            let Some(_held) = self.0.blobs.try_lock(digest) else { continue };
            if let Err(error) = self.0.containerd.content_abort(&layer_reference(digest)).await {
                tracing::warn!(%error, "what came of a layer stays on the full disk");
            }
        }
    }

    async fn layer_in_turn(
        &self,
        what: &Installation<'_>,
        layer: &Descriptor,
        diff_id: &str,
        places: &Semaphore,
        here: oneshot::Sender<()>,
    ) -> Result<(), ImageError> {
        // Nobody closes it.
        let _place = places.acquire().await;
        let span = tracing::debug_span!("fetch", layer = %layer.digest, size = layer.size);
        self.layer(what, layer, diff_id).instrument(span).await?;
        // Nobody waits any more where the unpacking failed, which then says it.
        let _ = here.send(());
        Ok(())
    }

    async fn name(&self, reference: &Reference, target: &Descriptor, id: &str) -> Result<(), ImageError> {
        let mut labels = Labels::from([(MANAGED.0.to_owned(), MANAGED.1.to_owned())]);
        if self.0.settings.pinned.contains(&reference.to_string()) {
            labels.insert(PINNED.0.to_owned(), PINNED.1.to_owned());
        }
        for name in names(reference, target, id) {
            let target = Some(target.to_containerd());
            let image = api::Image { name, labels: labels.clone(), target, ..api::Image::default() };
            self.0.containerd.image_put(image).await?;
        }
        Ok(())
    }
}

/// Under which a layer's bytes are written until they are all there.
pub(super) fn layer_reference(digest: &str) -> String {
    format!("layer-{digest}")
}

/// The names under which an image is kept. The reference is the last: when it is there, all are.
pub(super) fn names(reference: &Reference, target: &Descriptor, id: &str) -> Vec<String> {
    [Some(id.to_owned()), Some(reference.at(&target.digest)), reference.tagged()].into_iter().flatten().collect()
}
