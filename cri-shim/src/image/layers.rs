//! Layers into the content store: each from the first host that gives it, gone on with where a connection broke.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::time::sleep;

use super::install::{Installation, Source, layer_reference};
use super::manifest::Descriptor;
use super::registry::failure::{FailureKind, HostFailure, pause};
use super::registry::{Host, Registry};
use super::{ImageError, Images};
use crate::containerd::Error;
use crate::containerd::content::{ContentWriter, Ingest, Labels};

/// Bytes that go to containerd at once: enough to make the calls cheap.
pub(super) const CHUNK: usize = 256 << 10;
/// Broken connections in a row that brought nothing, until a host is given up.
const FRUITLESS: u8 = 5;

/// How far a pull has come, in bytes.
#[derive(Debug, Default)]
pub(super) struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    fetched: AtomicU64,
}

impl Progress {
    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that are there and bytes in all.
    pub(super) fn state(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Bytes that came over the network.
    pub(super) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    fn was_there(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn came(&self, bytes: u64) {
        self.was_there(bytes);
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }
}

enum Fault {
    Host(HostFailure),
    Containerd(Error),
}

impl From<HostFailure> for Fault {
    fn from(failure: HostFailure) -> Self {
        Self::Host(failure)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Containerd(error)
    }
}

/// What to do after a connection broke that brought `gained` bytes, after `fruitless` that brought none: how many
/// fruitless ones there are now, or none to give the host up.
fn after_break(kind: &FailureKind, gained: u64, fruitless: u8) -> Option<u8> {
    match kind {
        FailureKind::Broken(_) if gained > 0 => Some(0),
        FailureKind::Broken(_) if fruitless + 1 < FRUITLESS => Some(fruitless + 1),
        _ => None,
    }
}

impl Images {
    /// Makes sure that a layer is in the content store.
    pub(super) async fn layer(
        &self,
        what: &Installation<'_>,
        layer: &Descriptor,
        diff_id: &str,
    ) -> Result<(), ImageError> {
        let digest = layer.digest.as_str();
        what.lease.hold_content(digest).await?;
        // Another pull may be fetching it.
        let _held = self.0.blobs.lock(digest).await;
        match self.0.containerd.content_info(digest).await {
            Ok(_) => {
                what.progress.was_there(layer.size);
                return Ok(());
            }
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let mut labels = what.source.labels();
        labels.insert("containerd.io/uncompressed".to_owned(), diff_id.to_owned());
        let reference = layer_reference(digest);
        let ingest = Ingest { reference: &reference, total: layer.size, digest };
        match &what.source {
            Source::Archive(archive) => Ok(self.store(ingest, &archive.blob(layer)?, labels).await?),
            Source::Registry(registry) => {
                let download = Download { images: self, registry, layer, ingest, labels, progress: what.progress };
                download.run().await
            }
        }
    }
}

/// A layer on its way from a registry.
struct Download<'a> {
    images: &'a Images,
    registry: &'a Registry,
    layer: &'a Descriptor,
    ingest: Ingest<'a>,
    labels: Labels,
    progress: &'a super::layers::Progress,
}

impl Download<'_> {
    async fn run(&self) -> Result<(), ImageError> {
        let mut failures = Vec::new();
        for host in self.registry.pull_hosts() {
            match self.at(&host).await {
                Ok(()) => return Ok(()),
                Err(Fault::Host(failure)) => failures.push(failure),
                Err(Fault::Containerd(error)) => return Err(error.into()),
            }
        }
        Err(self.registry.failed(failures))
    }

    async fn at(&self, host: &Arc<Host>) -> Result<(), Fault> {
        let mut fruitless = 0;
        // Bytes of another host, or another run, may be at fault where the digest is wrong.
        let mut with_others = None;
        loop {
            let Some(mut writer) = self.images.open(self.ingest).await? else { return Ok(()) };
            let before = writer.offset();
            if with_others.is_none() {
                self.progress.was_there(before);
            }
            let others = *with_others.get_or_insert(before > 0);
            match self.copy(host, &mut writer).await {
                Ok(rest) => match writer.commit(rest, self.labels.clone()).await {
                    Ok(()) => return Ok(()),
                    Err(Error::FailedPrecondition { .. }) => {
                        self.images.0.containerd.content_abort(self.ingest.reference).await?;
                        if !others {
                            let why = format!("bytes whose digest is not {}", self.layer.digest);
                            return Err(host.failure(FailureKind::Wrong(why)).into());
                        }
                        with_others = Some(false);
                    }
                    Err(error) => return Err(error.into()),
                },
                Err(Fault::Host(failure)) => {
                    // Written before the next attempt asks how far this one came.
                    writer.settle().await?;
                    let gained = writer.offset().saturating_sub(before);
                    let Some(now) = after_break(&failure.kind, gained, fruitless) else { return Err(failure.into()) };
                    fruitless = now;
                    tracing::debug!(%failure, at = writer.offset(), layer = %self.layer.digest, "going on");
                    drop(writer);
                    sleep(pause(fruitless)).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Copies up to the end; the last bytes are not written yet but returned.
    async fn copy(&self, host: &Arc<Host>, writer: &mut ContentWriter) -> Result<Bytes, Fault> {
        let (from, size) = (writer.offset(), self.layer.size);
        if from >= size {
            return Ok(Bytes::new());
        }
        let mut blob = host.blob(self.registry.blob_path(self.layer), from, size).await?;
        let mut held = BytesMut::new();
        loop {
            match blob.next().await {
                Ok(Some(part)) => {
                    self.progress.came(part.len() as u64);
                    held.extend_from_slice(&part);
                    if held.len() >= CHUNK {
                        writer.write(held.split().freeze()).await?;
                    }
                }
                Ok(None) => return Ok(held.freeze()),
                Err(failure) => {
                    if !held.is_empty() {
                        writer.write(held.freeze()).await?;
                    }
                    return Err(failure.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_given_up_after_breaks_that_bring_nothing() {
        let broken = FailureKind::Broken("reset".to_owned());
        assert_eq!(after_break(&broken, 1, 4), Some(0));
        assert_eq!(after_break(&broken, 0, 0), Some(1));
        assert_eq!(after_break(&broken, 0, 3), Some(4));
        assert_eq!(after_break(&broken, 0, 4), None);
        assert_eq!(after_break(&FailureKind::Stalled(std::time::Duration::ZERO), 1, 0), None);
        assert_eq!(after_break(&FailureKind::Wrong(String::new()), 1, 0), None);
    }
}
