//! Images for tests, as OCI archives made of what is installed.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A layer with busybox and its applets, and a few accounts.
pub fn busybox(name: &str) -> Vec<u8> {
    let program = std::fs::read("/usr/bin/busybox").or_else(|_| std::fs::read("/bin/busybox")).unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    for folder in ["bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"] {
        append(&mut layer, folder, tar::EntryType::Directory, 0o755, &[]);
    }
    append(&mut layer, "bin/busybox", tar::EntryType::Regular, 0o755, &program);
    for applet in
        ["sh", "echo", "sleep", "cat", "true", "false", "hostname", "id", "ls", "ps", "kill", "head", "dd", "seq"]
    {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    append(
        &mut layer,
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:0::/:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n",
    );
    append(&mut layer, "etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\nweb:x:1001:\nlog:x:5:web\n");
    let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "StopSignal": "SIGTERM" });
    image(name, &layer.into_inner().unwrap(), &config)
}

/// The pause image, whose program is busybox's sleep: it ends by SIGKILL as pause does.
pub fn pause() -> &'static [u8] {
    let program = std::fs::read("/usr/bin/busybox").or_else(|_| std::fs::read("/bin/busybox")).unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "busybox", tar::EntryType::Regular, 0o755, &program);
    for folder in ["proc/", "sys/", "dev/"] {
        append(&mut layer, folder, tar::EntryType::Directory, 0o755, &[]);
    }
    let config = json!({ "Entrypoint": ["/busybox", "sleep", "100000"] });
    image(cri_shim::run::PAUSE_IMAGE, &layer.into_inner().unwrap(), &config).leak()
}

/// An image of `count` layers of so many bytes each, and no program.
pub fn large(count: u8, size: usize) -> Vec<u8> {
    let layer = |n: u8| {
        let mut layer = tar::Builder::new(Vec::new());
        append(&mut layer, &format!("file{n}"), tar::EntryType::Regular, 0o644, &vec![n; size]);
        layer.into_inner().unwrap()
    };
    image_of("large", &(0..count).map(layer).collect::<Vec<_>>(), &json!({}))
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content).unwrap();
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn image(name: &str, layer: &[u8], config: &Value) -> Vec<u8> {
    image_of(name, &[layer.to_vec()], config)
}

fn image_of(name: &str, layers: &[Vec<u8>], config: &Value) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut blob = |media_type: &str, bytes: &[u8]| {
        let hex = digest(bytes);
        append(&mut archive, &format!("blobs/sha256/{hex}"), tar::EntryType::Regular, 0o644, bytes);
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    };
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
    let layers: Vec<_> = layers.iter().map(|layer| blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
    let mut manifest = blob(media_type, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    append(&mut archive, "index.json", tar::EntryType::Regular, 0o644, index.to_string().as_bytes());
    append(&mut archive, "oci-layout", tar::EntryType::Regular, 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    archive.into_inner().unwrap()
}
