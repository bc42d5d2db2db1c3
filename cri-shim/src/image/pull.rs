//! Pull and import: what a name means, and the way from there to an image of containerd.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval};
use tracing::Instrument;

use super::archive::Archive;
use super::catalog::{self, Image};
use super::install::{Installation, Source, names};
use super::layers::Progress;
use super::manifest::Descriptor;
use super::reference::Reference;
use super::registry::{Registry, RegistrySettings};
use super::{Auth, ImageError, Images};
use crate::trace::Stages;

/// How often a pull that takes its time says how far it is.
const REPORT: Duration = Duration::from_secs(10);

impl Images {
    /// Pulls what the reference means now. Who asks for the same with the same credentials meanwhile, gets the same
    /// outcome; the pull goes on as long as one of them waits.
    ///
    /// # Errors
    /// Why not; which host said what.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<Image, ImageError> {
        let reference = Reference::parse(reference)?;
        let key = (reference.to_string(), auth.clone());
        let (span, stages) = (tracing::info_span!("pull", image = %reference), Stages::new("PullImage", &key.0));
        let images = self.clone();
        let work = async move { images.pull_alone(reference, auth).await };
        self.0.pulls.join(key, stages, |_| work.instrument(span)).answer().await
    }

    async fn pull_alone(&self, reference: Reference, auth: Option<Auth>) -> Result<Image, ImageError> {
        let started = Instant::now();
        let settings = RegistrySettings { certs_dir: self.0.settings.certs_dir.clone(), stall: self.0.settings.stall };
        let registry = Registry::open(reference.clone(), &settings, auth.as_ref()).await?;
        let resolved = registry.resolve().await?;
        if let Some(image) = self.unchanged(&reference, &resolved.descriptor).await? {
            return Ok(image);
        }
        let progress = Progress::default();
        let lease = self.0.containerd.lease().await?;
        let what = Installation {
            source: Source::Registry(&registry),
            reference: &reference,
            target: &resolved.descriptor,
            lease: &lease,
            progress: &progress,
        };
        let outcome = reported(&progress, self.install(&what, resolved.bytes)).await;
        let image = match outcome {
            Ok(facts) => self.find(&facts.id).await,
            Err(error) => Err(error),
        };
        lease.end().await;
        let image = image?.ok_or_else(|| ImageError::Incomplete { id: reference.to_string() })?;
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(id = %image.id, size = image.size, fetched = progress.fetched(), milliseconds, "pulled");
        Ok(image)
    }

    /// The image, where all is there that a pull would bring.
    async fn unchanged(&self, reference: &Reference, target: &Descriptor) -> Result<Option<Image>, ImageError> {
        let (records, facts) = self.records().await?;
        let Some(found) = facts.get(&target.digest) else { return Ok(None) };
        let wanted = names(reference, target, &found.id);
        let named = wanted
            .iter()
            .all(|name| records.iter().any(|record| record.name == *name && record.target.digest == target.digest));
        let top = found.chain.last().map(String::as_str).unwrap_or_default();
        if !named || !self.0.snapshotter.exists(top).await? {
            return Ok(None);
        }
        Ok(catalog::images(&records, &facts, &self.0.settings.pinned).remove(&found.id))
    }

    /// Imports the images of an OCI image layout in a tar, unless they are there. Answers with the last of them.
    ///
    /// # Errors
    /// Where the archive cannot be read or containerd fails.
    pub async fn import(&self, archive: Bytes) -> Result<Image, ImageError> {
        let archive = Archive::read(archive)?;
        let mut last = None;
        for (reference, target) in &archive.images {
            last = Some(match self.unchanged(reference, target).await? {
                Some(image) => image,
                None => self.import_one(&archive, reference, target).await?,
            });
        }
        last.ok_or_else(|| ImageError::Archive("it holds no image".to_owned()))
    }

    async fn import_one(
        &self,
        archive: &Archive,
        reference: &Reference,
        target: &Descriptor,
    ) -> Result<Image, ImageError> {
        let lease = self.0.containerd.lease().await?;
        let source = Source::Archive(archive);
        let progress = Progress::default();
        let what = Installation { source, reference, target, lease: &lease, progress: &progress };
        let outcome = match self.install(&what, None).await {
            Ok(facts) => self.find(&facts.id).await,
            Err(error) => Err(error),
        };
        lease.end().await;
        outcome?.ok_or_else(|| ImageError::Incomplete { id: reference.to_string() })
    }
}

/// `work`, with a word now and then about how far it is.
async fn reported<T>(progress: &Progress, work: impl Future<Output = T>) -> T {
    let mut ticks = interval(REPORT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await; // the first is at once
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            _ = ticks.tick() => {
                let (done, total) = progress.state();
                tracing::info!(done, total, "pulling");
            }
        }
    }
}
