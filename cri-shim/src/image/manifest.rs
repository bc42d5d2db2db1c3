//! Indexes, manifests and configurations, and what they mean for containerd. Source: OCI image specification 1.1,
//! Docker's Image Manifest V2 Schema 2; labels: containerd's docs/garbage-collection.md.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::digest::Digest;
use super::platform::Platform;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// What a manifest or a configuration may have in bytes: registries refuse larger ones than 4 MiB.
pub const LIMIT: usize = 8 << 20;

/// What leads to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub fn new(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: None,
        }
    }

    /// As containerd's API has it.
    pub fn to_containerd(&self) -> containerd_client::types::Descriptor {
        containerd_client::types::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.to_string(),
            size: i64::try_from(self.size).unwrap_or(i64::MAX),
            annotations: self.annotations.clone().unwrap_or_default().into_iter().collect(),
        }
    }

    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_INDEX)
    }
}

/// What stands under a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image for each platform.
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    /// The lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("it is no JSON of a manifest: {0}")]
    Json(String),
    #[error("it is both an index and a manifest, which nobody can mean")]
    Ambiguous,
    #[error("it is a manifest of schema 1, which has no digest to trust; push the image again with a newer client")]
    Schema1,
    #[error("it is neither an index nor a manifest")]
    Neither,
    #[error("it is an index of an index of an index")]
    Deep,
    #[error("it is said to be {0}, but its fields are of another kind")]
    Mislabelled(String),
    #[error("the configuration cannot be read: {0}")]
    Config(String),
    #[error("the configuration has {diff_ids} layers and the manifest {layers}: is it an image to run?")]
    LayerCount { diff_ids: usize, layers: usize },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u64,
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    fs_layers: Option<serde_json::Value>,
}

/// Reads an index or a manifest. Answers also with its media type: what it says of itself, or what its fields say.
///
/// # Errors
/// Where it is neither, or claims to be both (CVE-2021-41190).
pub fn decode(bytes: &[u8]) -> Result<(&'static str, Document), DecodeError> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| DecodeError::Json(error.to_string()))?;
    if raw.fs_layers.is_some() || raw.schema_version == 1 {
        return Err(DecodeError::Schema1);
    }
    let mislabelled = || DecodeError::Mislabelled(raw.media_type.chars().take(200).collect());
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) => {
            let media_type = match raw.media_type.as_str() {
                "" | OCI_INDEX => OCI_INDEX,
                DOCKER_INDEX => DOCKER_INDEX,
                _ => return Err(mislabelled()),
            };
            Ok((media_type, Document::Index(manifests)))
        }
        (None, Some(config), layers) => {
            let media_type = match raw.media_type.as_str() {
                "" if config.media_type.starts_with("application/vnd.docker.") => DOCKER_MANIFEST,
                "" | OCI_MANIFEST => OCI_MANIFEST,
                DOCKER_MANIFEST => DOCKER_MANIFEST,
                _ => return Err(mislabelled()),
            };
            Ok((media_type, Document::Manifest(Manifest { config, layers: layers.unwrap_or_default() })))
        }
        (Some(_), ..) => Err(DecodeError::Ambiguous),
        (None, None, _) => Err(DecodeError::Neither),
    }
}

/// The best image of an index for `host`; one that names no platform where none fits, which then its configuration judges.
pub fn select<'a>(manifests: &'a [Descriptor], host: &Platform) -> Option<&'a Descriptor> {
    let ranked = manifests.iter().filter_map(|manifest| Some((host.rank(manifest.platform.as_ref()?)?, manifest)));
    let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, manifest)| manifest);
    best.or_else(|| manifests.iter().find(|manifest| manifest.platform.is_none()))
}

/// Reads an image's configuration.
///
/// # Errors
/// Where it is none, or not of this manifest.
pub fn decode_config(bytes: &[u8], manifest: &Manifest) -> Result<ImageConfiguration, DecodeError> {
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| DecodeError::Config(error.to_string()))?;
    let (diff_ids, layers) = (config.rootfs().diff_ids(), &manifest.layers);
    if diff_ids.len() != layers.len() || layers.is_empty() {
        return Err(DecodeError::LayerCount { diff_ids: diff_ids.len(), layers: layers.len() });
    }
    if let Some(wrong) = diff_ids.iter().find(|id| Digest::parse(id).is_err()) {
        return Err(DecodeError::Config(format!("\"{wrong}\" is no digest of a layer")));
    }
    Ok(config)
}

/// For each layer the name of it and all below it. Source: OCI image specification 1.1, config.md, "Layer ChainID".
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()).to_string(),
            None => diff_id.clone(),
        };
        chain.push(id);
    }
    chain
}

/// The labels by which the garbage collector gets from an index or a manifest to what it names.
pub fn references(document: &Document) -> BTreeMap<String, String> {
    let label = |what: String, to: &Descriptor| (format!("containerd.io/gc.ref.content.{what}"), to.digest.to_string());
    match document {
        Document::Index(manifests) => {
            manifests.iter().enumerate().map(|(index, to)| label(format!("m.{index}"), to)).collect()
        }
        Document::Manifest(Manifest { config, layers }) => {
            let layers = layers.iter().enumerate().map(|(index, to)| label(format!("l.{index}"), to));
            layers.chain([label("config".to_owned(), config)]).collect()
        }
    }
}

/// The label by which the garbage collector gets from a configuration to the unpacked image.
pub fn unpacked(snapshotter: &str, chain_id: &str) -> (String, String) {
    (format!("containerd.io/gc.ref.snapshot.{snapshotter}"), chain_id.to_owned())
}

/// The label that says which repository a blob came from, as containerd writes it.
pub fn origin(registry: &str, path: &str) -> (String, String) {
    (format!("containerd.io/distribution.source.{registry}"), path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn descriptor(media_type: &str, text: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": Digest::of(text.as_bytes()), "size": text.len() })
    }

    fn read(value: &serde_json::Value) -> Result<(&'static str, Document), DecodeError> {
        decode(value.to_string().as_bytes())
    }

    #[test]
    fn both_families_of_media_types_are_read() {
        let config = descriptor("application/vnd.docker.container.image.v1+json", "c");
        let layers = json!([descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", "l")]);
        let (kind, document) = read(&json!({ "schemaVersion": 2, "config": config, "layers": layers })).unwrap();
        assert_eq!(kind, DOCKER_MANIFEST);
        let Document::Manifest(manifest) = &document else { panic!("{document:?}") };
        assert_eq!((manifest.layers.len(), manifest.config.size), (1, 1));
        assert_eq!(
            references(&document),
            BTreeMap::from([
                ("containerd.io/gc.ref.content.config".to_owned(), Digest::of(b"c").to_string()),
                ("containerd.io/gc.ref.content.l.0".to_owned(), Digest::of(b"l").to_string()),
            ])
        );
        let (kind, document) = read(&json!({ "manifests": [descriptor(OCI_MANIFEST, "m")] })).unwrap();
        assert_eq!(kind, OCI_INDEX);
        assert_eq!(references(&document).keys().collect::<Vec<_>>(), ["containerd.io/gc.ref.content.m.0"]);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let d = descriptor("x", "x");
        let both = json!({ "manifests": [], "config": d, "layers": [] });
        assert_eq!(read(&both), Err(DecodeError::Ambiguous));
        let mislabelled = json!({ "mediaType": OCI_MANIFEST, "manifests": [] });
        assert_eq!(read(&mislabelled), Err(DecodeError::Mislabelled(OCI_MANIFEST.to_owned())));
        assert_eq!(read(&json!({ "schemaVersion": 1, "fsLayers": [] })), Err(DecodeError::Schema1));
        assert_eq!(read(&json!({})), Err(DecodeError::Neither));
        assert!(matches!(decode(b"<html>"), Err(DecodeError::Json(_))));
        let negative = json!({ "config": { "digest": Digest::of(b""), "size": -1 }, "layers": [] });
        assert!(matches!(read(&negative), Err(DecodeError::Json(_))));
    }

    #[test]
    fn the_image_of_this_platform_is_selected() {
        let of = |name: &str, platform: Option<&str>| {
            let mut descriptor = Descriptor::new(OCI_MANIFEST, name.as_bytes());
            descriptor.platform = platform.map(|platform| Platform {
                os: "linux".to_owned(),
                architecture: platform.to_owned(),
                variant: None,
            });
            descriptor
        };
        let host = Platform { os: "linux".to_owned(), architecture: "arm64".to_owned(), variant: None };
        let all = [of("a", Some("unknown")), of("b", Some("arm")), of("c", Some("arm64")), of("d", None)];
        assert_eq!(select(&all, &host), Some(&all[2]));
        assert_eq!(select(&all[..2], &host), Some(&all[1]));
        assert_eq!(select(&[all[0].clone(), all[3].clone()], &host), Some(&all[3]));
        assert_eq!(select(&all[..1], &host), None);
    }

    #[test]
    fn a_chain_names_each_layer_with_all_below() {
        let ids = [Digest::of(b"a").to_string(), Digest::of(b"b").to_string(), Digest::of(b"c").to_string()];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes()).to_string());
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], ids[2]).as_bytes()).to_string());
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn a_configuration_must_fit_its_manifest() {
        let manifest = Manifest { config: Descriptor::new("c", b"c"), layers: vec![Descriptor::new("l", b"l")] };
        let config = |ids: &[&str]| {
            let config = json!({ "architecture": "amd64", "os": "linux", "created": null,
                "config": { "User": "1:2", "Env": null, "Volumes": null, "Labels": null, "ExposedPorts": null },
                "rootfs": { "type": "layers", "diff_ids": ids }, "history": null });
            decode_config(config.to_string().as_bytes(), &manifest)
        };
        let id = Digest::of(b"x").to_string();
        assert!(config(&[&id]).is_ok(), "{:?}", config(&[&id]));
        assert_eq!(config(&[]), Err(DecodeError::LayerCount { diff_ids: 0, layers: 1 }));
        assert!(matches!(config(&["../../etc"]), Err(DecodeError::Config(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn what_looks_like_json_does_not_either(text in "[{}\\[\\]\":,a-z0-9]{0,120}") {
            let _ = decode(text.as_bytes());
        }
    }
}
