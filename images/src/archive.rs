//! An OCI image layout in a tar, from one static program. Source: OCI image specification 1.1, image-layout.md and config.md.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// What an image is made of.
pub struct Image<'a> {
    /// Full references; the archive's index has an entry for each.
    pub names: &'a [&'a str],
    /// Where the program stands, without the leading slash; it is the entry point.
    pub path: &'a str,
    pub program: &'a [u8],
    /// Further names of the program, as hard links: paths without the leading slash.
    pub links: &'a [&'a str],
    /// `UID:GID`, or empty for root.
    pub user: &'a str,
    /// As `8080/tcp`.
    pub ports: &'a [&'a str],
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The bytes of the archive; equal for equal images.
pub fn build(image: &Image<'_>) -> Vec<u8> {
    let layer = tar_of(&[(image.path.to_owned(), 0o755, image.program.to_vec())], image.path, image.links);
    let config = config(image, &digest(&layer)).to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": image.names.iter().map(|name| named(descriptor(MANIFEST, &manifest), name)).collect::<Vec<_>>(),
    });
    let files = [
        ("oci-layout".to_owned(), 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), 0o644, index.to_string().into_bytes()),
        (blob(&config), 0o644, config),
        (blob(&manifest), 0o644, manifest),
        (blob(&layer), 0o644, layer),
    ];
    tar_of(&files, "", &[])
}

fn config(image: &Image<'_>, layer: &str) -> Value {
    let mut run = json!({ "Entrypoint": [format!("/{}", image.path)], "Env": ["PATH=/:/bin"] });
    if !image.user.is_empty() {
        run["User"] = image.user.into();
    }
    if !image.ports.is_empty() {
        run["ExposedPorts"] =
            image.ports.iter().map(|port| ((*port).to_owned(), json!({}))).collect::<Map<_, _>>().into();
    }
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    })
}

/// Go's name for the processor, which the specification asks for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob(bytes: &[u8]) -> String {
    format!("blobs/{}", digest(bytes).replace(':', "/"))
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

fn named(mut descriptor: Value, name: &str) -> Value {
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    descriptor["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
    descriptor
}

/// A tar whose bytes depend on its entries alone: time 0, owner 0. `links` are hard links to `target`.
fn tar_of(files: &[(String, u32, Vec<u8>)], target: &str, links: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, bytes) in files {
        let mut header = header(*mode, bytes.len() as u64);
        builder.append_data(&mut header, path, bytes.as_slice()).expect("writing a tar into memory");
    }
    for link in links {
        let mut header = header(0o755, 0);
        header.set_entry_type(tar::EntryType::Link);
        builder.append_link(&mut header, link, target).expect("writing a tar into memory");
    }
    builder.into_inner().expect("writing a tar into memory")
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn read(archive: &[u8], path: &str) -> Vec<u8> {
        let mut archive = tar::Archive::new(archive);
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let mut entry =
            entries.find(|e| e.path().unwrap().to_str() == Some(path)).unwrap_or_else(|| panic!("no {path}"));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn follow(archive: &[u8], descriptor: &Value) -> Vec<u8> {
        let name = descriptor["digest"].as_str().unwrap();
        let bytes = read(archive, &format!("blobs/{}", name.replace(':', "/")));
        assert_eq!((digest(&bytes).as_str(), bytes.len()), (name, descriptor["size"].as_u64().unwrap() as usize));
        bytes
    }

    #[test]
    fn every_digest_leads_to_its_bytes_down_to_the_program() {
        let image = Image {
            names: &["a.b/c:1", "d.e/f:2"],
            path: "run",
            program: b"ELF",
            links: &["b"],
            user: "1:1",
            ports: &["80/tcp"],
        };
        let archive = build(&image);
        let index: Value = serde_json::from_slice(&read(&archive, "index.json")).unwrap();
        let names: Vec<_> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| &m["annotations"]["io.containerd.image.name"])
            .collect();
        assert_eq!(names, ["a.b/c:1", "d.e/f:2"]);
        let manifest: Value = serde_json::from_slice(&follow(&archive, &index["manifests"][1])).unwrap();
        let config: Value = serde_json::from_slice(&follow(&archive, &manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/run"]));
        assert_eq!(config["config"]["ExposedPorts"], json!({ "80/tcp": {} }));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(read(&follow(&archive, &manifest["layers"][0]), "run"), b"ELF");
        assert_eq!(archive, build(&image));
    }
}
