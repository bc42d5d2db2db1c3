//! A containerd of the test's own, and images to pull.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::containerd::Containerd;
use crate::image::digest::Digest;
use crate::image::manifest::OCI_MANIFEST;
use crate::image::registry::fake::{Ending, Fake, Reply, Seen};
use crate::image::{ImageSettings, Images};

pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
pub const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// A containerd in mount and PID namespaces of its own.
pub struct Bed {
    pub folder: tempfile::TempDir,
    pub containerd: Containerd,
    child: Child,
}

impl Drop for Bed {
    fn drop(&mut self) {
        // unshare takes containerd with it, and the namespace its mounts.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bed {
    /// None, said aloud, where this cannot run.
    pub async fn start() -> Option<Self> {
        lifecycle::install_crypto();
        // CAP_SYS_ADMIN, for namespaces and mounts.
        if !kernel::process::has_capability(21).unwrap() {
            eprintln!("SKIPPED images on a containerd: needs root");
            return None;
        }
        if !Path::new("/usr/bin/containerd").exists() {
            eprintln!("SKIPPED images on a containerd: there is no /usr/bin/containerd");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.zfs\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.gc.v1.scheduler\"]\nschedule_delay = \"0ms\"\nstartup_delay = \"10ms\"\n",
            at("root"),
            at("state"),
            at("c.sock"),
            at("t.sock")
        );
        std::fs::write(at("config.toml"), config).unwrap();
        let script = "mount --make-rprivate / && mount -t proc proc /proc && exec containerd --config $0";
        let log = std::fs::File::create(at("log")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["-m", "-p", "-f", "--kill-child", "bash", "-c", script]).arg(at("config.toml"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let bed = Self { containerd: Containerd::new(&at("c.sock")), folder, child };
        for _ in 0..300 {
            if bed.containerd.images_list().await.is_ok() {
                return Some(bed);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("containerd does not answer: {}", std::fs::read_to_string(bed.folder.path().join("log")).unwrap());
    }

    /// Images whose registry `a.test` is these hosts, in turn.
    pub fn images(&self, hosts: &[&Fake]) -> Images {
        let certs = self.folder.path().join("certs");
        let lines: Vec<_> = hosts.iter().map(|host| format!("[host.\"http://{}\"]\n", host.address)).collect();
        std::fs::create_dir_all(certs.join("a.test")).unwrap();
        // The registry itself is no host of this test.
        let server = "server = \"http://127.0.0.1:1\"\ncapabilities = [\"push\"]\n";
        std::fs::write(certs.join("a.test/hosts.toml"), format!("{server}{}", lines.concat())).unwrap();
        Images::new(self.containerd.clone(), self.settings(Some(certs)))
    }

    pub fn settings(&self, certs_dir: Option<PathBuf>) -> ImageSettings {
        ImageSettings {
            snapshotter: "overlayfs".to_owned(),
            certs_dir,
            max_concurrent_downloads: 3,
            stall: Duration::from_secs(2),
            pinned: vec!["a.test/pinned:1".to_owned()],
            root: self.folder.path().join("root"),
        }
    }

    /// Has containerd collect garbage, and waits for it.
    pub async fn collect_garbage(&self) {
        let image = containerd_client::services::v1::Image {
            name: "collect".to_owned(),
            target: Some(crate::image::manifest::Descriptor::new(OCI_MANIFEST, b"collect").to_containerd()),
            ..Default::default()
        };
        self.containerd.image_put(image).await.unwrap();
        self.containerd.image_delete("collect", true).await.unwrap();
    }

    /// The names in containerd's image store.
    pub async fn names(&self) -> Vec<String> {
        self.containerd.images_list().await.unwrap().into_iter().map(|image| image.name).collect()
    }

    /// How many snapshots there are.
    pub async fn snapshots(&self) -> usize {
        self.containerd.snapshotter("overlayfs").list().await.unwrap().len()
    }

    /// How many leases of ours there are.
    pub async fn leases(&self) -> usize {
        self.containerd.leases_end_ours().await.unwrap()
    }

    /// Whether the content store has the blob.
    pub async fn has(&self, digest: &Digest) -> bool {
        self.containerd.content_info(digest.as_str()).await.is_ok()
    }
}

/// A layer with one file, and what compresses it.
pub struct Layer {
    pub media_type: &'static str,
    pub tar: Vec<u8>,
    pub blob: Bytes,
}

impl Layer {
    pub fn new(media_type: &'static str, name: &str, content: &[u8]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
        let tar = builder.into_inner().unwrap();
        let blob = match media_type {
            PLAIN => tar.clone(),
            ZSTD => piped("zstd", &tar),
            _ => piped("gzip", &tar),
        };
        Self { media_type, tar, blob: blob.into() }
    }
}

fn piped(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let mut child = command.args(["-q", "-c", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let feed = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// An image, as a registry has it.
#[derive(Clone)]
pub struct TestImage {
    pub blobs: BTreeMap<String, Bytes>,
    pub manifest: Bytes,
    pub id: String,
    pub layers: Vec<Digest>,
}

impl TestImage {
    pub fn new(layers: &[Layer]) -> Self {
        Self::with_diff_ids(layers, &layers.iter().map(|layer| Digest::of(&layer.tar)).collect::<Vec<_>>())
    }

    pub fn with_diff_ids(layers: &[Layer], diff_ids: &[Digest]) -> Self {
        let host = crate::image::platform::Platform::host();
        let config = json!({ "architecture": host.architecture, "os": "linux", "variant": host.variant,
            "config": { "User": "1003:users", "Labels": { "a": "b" }, "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config: Bytes = config.to_string().into();
        let descriptor =
            |kind: &str, blob: &Bytes| json!({ "mediaType": kind, "digest": Digest::of(blob), "size": blob.len() });
        let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| descriptor(layer.media_type, &layer.blob)).collect::<Vec<_>>() });
        let mut blobs: BTreeMap<_, _> =
            layers.iter().map(|layer| (Digest::of(&layer.blob).to_string(), layer.blob.clone())).collect();
        let id = Digest::of(&config).to_string();
        blobs.insert(id.clone(), config);
        let layers = layers.iter().map(|layer| Digest::of(&layer.blob)).collect();
        Self { blobs, manifest: manifest.to_string().into(), id, layers }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// How a registry that behaves answers.
    pub fn answer(&self, seen: &Seen) -> Reply {
        if seen.path.contains("/manifests/") {
            let body = if seen.method == "HEAD" { Bytes::new() } else { self.manifest.clone() };
            return Reply::new(200, body)
                .with("content-type", OCI_MANIFEST)
                .with("content-length", self.manifest.len().to_string())
                .with("docker-content-digest", self.digest().to_string());
        }
        let name = seen.path.rsplit('/').next().unwrap();
        let Some(blob) = self.blobs.get(name) else { return Reply::new(404, "") };
        match from(seen) {
            0 => Reply::new(200, blob.clone()),
            from => Reply::new(206, blob.slice(from..))
                .with("content-range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
        }
    }

    /// Serves it, with something done to each answer.
    pub async fn serve(&self, change: impl Fn(&Seen, Reply) -> Reply + Send + Sync + 'static) -> Fake {
        let image = Arc::new(self.clone());
        Fake::start(move |seen| change(seen, image.answer(seen))).await
    }
}

/// The first byte that is asked for.
pub fn from(seen: &Seen) -> usize {
    let range = seen.range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
    range.map(|from| from.parse().unwrap()).unwrap_or_default()
}

/// The answer up to `bytes`, and then an end of that kind.
pub fn cut(reply: Reply, bytes: usize, ending: Ending) -> Reply {
    if reply.body.len() <= bytes {
        return reply;
    }
    let length = reply.body.len().to_string();
    let body = reply.body.slice(..bytes);
    Reply { body, ..reply }.with("content-length", length).ending(ending)
}
