//! An OCI image layout in a tar. Source: OCI image specification 1.1, image-layout.md; the names as containerd's import
//! reads them.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;

use super::ImageError;
use super::digest::Digest;
use super::manifest::Descriptor;
use super::reference::Reference;

const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The archive's images and where in it their blobs are.
#[derive(Debug, Clone, PartialEq)]
pub struct Archive {
    bytes: Bytes,
    blobs: HashMap<Digest, Range<usize>>,
    /// Each name and what it leads to.
    pub images: Vec<(Reference, Descriptor)>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

impl Archive {
    /// # Errors
    /// Where it is no tar of an image layout, or holds no image with a name.
    pub fn read(bytes: Bytes) -> Result<Self, ImageError> {
        let failed = |why: String| ImageError::Archive(why);
        let mut blobs = HashMap::new();
        let mut index = None;
        for entry in tar::Archive::new(bytes.as_ref()).entries().map_err(|error| failed(error.to_string()))? {
            let entry = entry.map_err(|error| failed(error.to_string()))?;
            let path = entry.path().map_err(|error| failed(error.to_string()))?.to_string_lossy().into_owned();
            let start = usize::try_from(entry.raw_file_position()).unwrap_or(usize::MAX);
            let end = start.saturating_add(usize::try_from(entry.size()).unwrap_or(usize::MAX));
            if end > bytes.len() {
                return Err(failed(format!("{path} ends after the archive")));
            }
            match path.trim_start_matches("./") {
                "index.json" => index = Some(start..end),
                path => {
                    let digest = path.strip_prefix("blobs/").map(|path| path.replacen('/', ":", 1));
                    let digest = digest.and_then(|digest| Digest::parse(&digest).ok());
                    blobs.extend(digest.map(|digest| (digest, start..end)));
                }
            }
        }
        let index = index.ok_or_else(|| failed("it has no index.json: only OCI image layouts are read".to_owned()))?;
        let Index { manifests } =
            serde_json::from_slice(&bytes[index]).map_err(|error| failed(format!("index.json: {error}")))?;
        let images =
            manifests.into_iter().filter_map(|manifest| Some((name(&manifest)?, manifest))).collect::<Vec<_>>();
        if images.is_empty() {
            return Err(failed("index.json names no image".to_owned()));
        }
        Ok(Self { bytes, blobs, images })
    }

    /// A blob, with its digest proven.
    ///
    /// # Errors
    /// Where it is not there, or another.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
        let digest = &descriptor.digest;
        let range = self.blobs.get(digest).ok_or_else(|| ImageError::Archive(format!("it has no blob {digest}")))?;
        let blob = self.bytes.slice(range.clone());
        if digest.fits(&blob) { Ok(blob) } else { Err(ImageError::Archive(format!("its blob {digest} is another"))) }
    }
}

fn name(manifest: &Descriptor) -> Option<Reference> {
    let annotations = manifest.annotations.as_ref()?;
    let full = |key| annotations.get(key).and_then(|name| Reference::parse(name).ok());
    // The second is a bare tag in many archives, which names nothing.
    full(NAME).or_else(|| annotations.get(REF_NAME).filter(|name| name.contains('/')).and_then(|_| full(REF_NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::OCI_MANIFEST;
    use proptest::prelude::*;
    use serde_json::json;

    fn tar_of(files: &[(&str, &[u8])]) -> Bytes {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, path, *bytes).unwrap();
        }
        builder.into_inner().unwrap().into()
    }

    fn index(name: &str, digest: &Digest) -> Vec<u8> {
        let manifest = json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 4, "annotations": { NAME: name, REF_NAME: "1" } });
        json!({ "manifests": [manifest] }).to_string().into_bytes()
    }

    #[test]
    fn names_lead_to_blobs() {
        let digest = Digest::of(b"blob");
        let path = format!("blobs/sha256/{}", digest.hex());
        let archive = tar_of(&[("./index.json", &index("a.b/c:1", &digest)), (&path, b"blob"), ("oci-layout", b"{}")]);
        let archive = Archive::read(archive).unwrap();
        assert_eq!(archive.images.len(), 1);
        let (name, target) = &archive.images[0];
        assert_eq!(name.to_string(), "a.b/c:1");
        assert_eq!(archive.blob(target).unwrap(), Bytes::from_static(b"blob"));
        assert!(archive.blob(&Descriptor::new("", b"other")).is_err());
    }

    #[test]
    fn what_is_no_layout_or_lies_is_refused() {
        let digest = Digest::of(b"blob");
        let path = format!("blobs/sha256/{}", digest.hex());
        for archive in [
            Bytes::from_static(b"no tar at all"),
            tar_of(&[("manifest.json", b"[]")]),
            tar_of(&[("index.json", b"{}")]),
            tar_of(&[("index.json", &index("", &digest))]),
        ] {
            assert!(Archive::read(archive).is_err());
        }
        let lying = tar_of(&[("index.json", &index("a.b/c", &digest)), (&path, b"else")]);
        let lying = Archive::read(lying).unwrap();
        assert!(lying.blob(&lying.images[0].1).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), place in 0_usize..1500, byte: u8) {
            let _ = Archive::read(bytes.clone().into());
            let mut near = tar_of(&[("index.json", &index("a.b/c", &Digest::of(&bytes)))]).to_vec();
            let place = place.min(near.len() - 1);
            near[place] = byte;
            bytes.clear();
            let _ = Archive::read(near.into());
        }
    }
}
