//! Reading containerd's names and what is behind them.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use containerd_client::services::v1 as api;
use oci_spec::image::ImageConfiguration;

use super::catalog::{Facts, PINNED, Record};
use super::digest::Digest;
use super::manifest::{self, DecodeError, Descriptor, Document, Manifest, chain_ids};
use super::platform::Platform;
use super::{ImageError, Images, Records};
use crate::containerd;

/// Indexes that may lead to indexes.
pub(super) const DEPTH: usize = 3;

impl Images {
    /// All names, and facts about those targets whose content is there.
    pub(super) async fn records(&self) -> Result<Records, ImageError> {
        let records: Vec<_> = self.0.containerd.images_list().await?.into_iter().filter_map(record).collect();
        let known = self.known_facts();
        let mut facts = HashMap::new();
        for Record { name, target, .. } in &records {
            if facts.contains_key(&target.digest) {
                continue;
            }
            let found = match known.get(&target.digest) {
                Some(known) => Some(known.clone()),
                None => self.read_facts(name, target).await?,
            };
            facts.extend(found.map(|found| (target.digest.clone(), found)));
        }
        *self.0.facts.lock().unwrap_or_else(PoisonError::into_inner) = facts.clone();
        Ok((records, facts))
    }

    fn known_facts(&self) -> HashMap<Digest, Arc<Facts>> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The facts behind a target; none where it is no image for this machine or its content is not there.
    async fn read_facts(&self, name: &str, target: &Descriptor) -> Result<Option<Arc<Facts>>, ImageError> {
        match self.load_facts(name, target).await {
            Ok(facts) => Ok(Some(Arc::new(facts))),
            Err(
                ImageError::Containerd(containerd::Error::NotFound { .. })
                | ImageError::Platform { .. }
                | ImageError::Decode { .. },
            ) => {
                tracing::debug!(name, "not shown: it is no whole image for this machine");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&self, digest: &Digest) -> containerd::Result<Bytes> {
        self.0.containerd.content_read(digest.as_str(), manifest::LIMIT).await
    }

    async fn load_facts(&self, name: &str, target: &Descriptor) -> Result<Facts, ImageError> {
        let mut current = target.clone();
        for _ in 0..DEPTH {
            let document = decode(name, &current, &self.read(&current.digest).await?)?;
            match document {
                Document::Index(manifests) => current = select(name, &manifests, &self.0.host)?,
                Document::Manifest(manifest) => {
                    let config = self.read(&manifest.config.digest).await?;
                    let config = decode_config(name, &config, &manifest, &self.0.host)?;
                    return Ok(facts(&current, manifest, config));
                }
            }
        }
        Err(too_deep(name, target))
    }
}

/// What is known about an image whose documents were read.
pub(super) fn facts(at: &Descriptor, manifest: Manifest, config: ImageConfiguration) -> Facts {
    let layers = manifest.layers.iter().map(|layer| layer.size);
    Facts {
        id: manifest.config.digest.to_string(),
        size: layers.fold(at.size.saturating_add(manifest.config.size), u64::saturating_add),
        manifest: at.digest.clone(),
        layers: manifest.layers,
        chain: chain_ids(config.rootfs().diff_ids()),
        config: Arc::new(config),
    }
}

/// The document behind a descriptor, which must be of the descriptor's kind.
pub(super) fn decode(reference: &str, of: &Descriptor, bytes: &[u8]) -> Result<Document, ImageError> {
    let decoded = manifest::decode(bytes).and_then(|(_, document)| match &document {
        Document::Index(_) if !of.is_index() => Err(DecodeError::Mislabelled(of.media_type.clone())),
        Document::Manifest(_) if of.is_index() => Err(DecodeError::Mislabelled(of.media_type.clone())),
        _ => Ok(document),
    });
    decoded.map_err(|why| ImageError::Decode { reference: reference.to_owned(), digest: of.digest.clone(), why })
}

/// The image of an index for this machine.
pub(super) fn select(reference: &str, manifests: &[Descriptor], host: &Platform) -> Result<Descriptor, ImageError> {
    manifest::select(manifests, host).cloned().ok_or_else(|| {
        let offered = manifests.iter().filter_map(|manifest| manifest.platform.as_ref());
        let offered: Vec<_> = offered.filter(|platform| platform.os != "unknown").map(ToString::to_string).collect();
        let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
        ImageError::Platform { reference: reference.to_owned(), platform: host.clone(), offered }
    })
}

/// A configuration, which must be for this machine where it says for which it is.
pub(super) fn decode_config(
    reference: &str,
    bytes: &[u8],
    manifest: &Manifest,
    host: &Platform,
) -> Result<ImageConfiguration, ImageError> {
    let digest = manifest.config.digest.clone();
    let config = manifest::decode_config(bytes, manifest);
    let config = config.map_err(|why| ImageError::Decode { reference: reference.to_owned(), digest, why })?;
    let own = Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone(),
    };
    if own.architecture.is_empty() || host.rank(&own).is_some() {
        return Ok(config);
    }
    let (reference, offered) = (reference.to_owned(), own.to_string());
    Err(ImageError::Platform { reference, platform: host.clone(), offered })
}

pub(super) fn too_deep(reference: &str, target: &Descriptor) -> ImageError {
    let (reference, digest) = (reference.to_owned(), target.digest.clone());
    ImageError::Decode { reference, digest, why: DecodeError::Deep }
}

/// A name whose target can be one of ours.
fn record(image: api::Image) -> Option<Record> {
    let target = image.target?;
    let descriptor = Descriptor {
        media_type: target.media_type,
        digest: Digest::parse(&target.digest).ok()?,
        size: u64::try_from(target.size).ok()?,
        platform: None,
        annotations: None,
    };
    let pinned = image.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
    Some(Record { name: image.name, target: descriptor, pinned })
}
