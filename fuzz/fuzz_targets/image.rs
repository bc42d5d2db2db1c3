//! What an image says of itself is read or refused: its configuration, and, apart by a zero byte, its passwd and group
//! files, in which its user is looked up.
#![no_main]

use cri::v1::{ContainerConfig, LinuxContainerSecurityContext};
use cri_shim::container::spec::{Accounts, stop_signal, user};
use cri_shim::image::manifest::{self, Document, chain_ids};

const MANIFEST: &str = r#"{"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
    "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000", "size": 2}, "layers": [
    {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 2,
    "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000"}]}"#;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (_, Document::Manifest(manifest)) = manifest::decode(MANIFEST.as_bytes()).expect("a manifest") else { return };
    let mut parts = bytes.splitn(3, |byte| *byte == 0).map(<[u8]>::to_vec);
    let Ok(image) = manifest::decode_config(&parts.next().unwrap_or_default(), &manifest) else { return };
    chain_ids(image.rootfs().diff_ids());
    let config = image.config().clone().unwrap_or_default();
    let _ = stop_signal(&ContainerConfig::default(), &config);
    let accounts = Accounts { passwd: parts.next().unwrap_or_default(), group: parts.next().unwrap_or_default() };
    let _ = user(&LinuxContainerSecurityContext::default(), &config, &accounts);
});
