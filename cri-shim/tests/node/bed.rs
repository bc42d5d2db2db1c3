//! A node for a test: containerd, a pod network and the shim, in namespaces of the test's own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use cri::{ImageServiceClient, RuntimeServiceClient};
use cri_shim::containerd::Containerd;
use cri_shim::image::{ImageSettings, Images};
use hyper_util::rt::TokioIo;
use lifecycle::Stop;
use serde_json::json;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::archive;

/// Says that this process is the one inside, and where the node's folder is.
const INSIDE: &str = "BOSUN_TEST_NODE";
/// Says that this process is the shim.
const SHIM: &str = "BOSUN_TEST_SHIM";
/// Says that this process is the keeper, and what its socket is.
const KEEPER: &str = "BOSUN_TEST_KEEPER";
const SOCKET: &str = "/run/node/cri.sock";
/// Mounts as TESTBEDS of the project has them: own /proc, /run and /sys, the machine's cgroups.
const SETUP: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir /run/cg && mount --rbind /sys/fs/cgroup /run/cg
mount -t sysfs sysfs /sys
mount --rbind /run/cg /sys/fs/cgroup && umount -l /run/cg
mount --make-rshared /
ip link set lo up
exec "$@"
"#;

/// The image that tests run.
pub const IMAGE: &str = "test.local/busybox:1";

/// A machine with containerd; the shim is started on it as often as a test likes.
pub struct Node {
    pub folder: PathBuf,
    /// What a node has on its disk: containerd's root and the shim's.
    pub disk: PathBuf,
    pub containerd: Containerd,
    name: String,
    daemon: Child,
}

/// A shim that serves, as a process of its own.
pub struct Served {
    process: Option<Child>,
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

/// Runs `test` as PID 1's child of a machine of its own: this program starts itself again in there. `name` is the test's.
pub fn on_a_node(name: &str, test: impl AsyncFnOnce(&mut Node)) {
    on_a_node_with(name, None, test);
}

/// As [`on_a_node`], with a disk of its own: a tmpfs of these options.
pub fn on_a_node_with(name: &str, disk: Option<&str>, test: impl AsyncFnOnce(&mut Node)) {
    if let Some(socket) = std::env::var_os(KEEPER) {
        return cri_shim::keeper::serve(Path::new(&socket)).unwrap();
    }
    if let Some(folder) = std::env::var_os(INSIDE) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = Path::new(&folder);
        return runtime.block_on(async {
            if std::env::var_os(SHIM).is_some() {
                return shim(folder, name).await;
            }
            std::fs::create_dir_all(disk_in(folder)).unwrap();
            if let Some(options) = disk {
                kernel::mount::mount("tmpfs", "tmpfs", &disk_in(folder), options).unwrap();
            }
            let mut node = Node::start(folder, name).await;
            test(&mut node).await;
        });
    }
    for program in ["containerd", "runc", "busybox", "ip"] {
        if !on_path(program) {
            return eprintln!("SKIPPED {name}: {program} is not installed");
        }
    }
    if !kernel::process::has_capability(21).unwrap_or(false) {
        return eprintln!("SKIPPED {name}: needs root");
    }
    let folder = std::env::temp_dir().join(format!("cri-node-{}-{}", name.replace("::", "-"), std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let this = std::env::current_exe().unwrap();
    let mut inside = Command::new("unshare");
    inside.args(["-m", "-n", "-i", "-u", "-p", "-f", "--mount-proc", "--kill-child", "sh", "-c", SETUP, "node"]);
    inside.arg(this).args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(INSIDE, &folder);
    let status = inside.status().unwrap();
    let _ = std::fs::remove_dir_all(&folder);
    kernel::cgroup::Cgroups::detect().unwrap().remove(&cgroup(&folder)).unwrap();
    assert!(status.success(), "inside the node: {status}");
}

/// The control group of all pods of the node in whose folder `path` lies.
pub fn cgroup(path: &Path) -> String {
    let mut names = path.iter().filter_map(|name| name.to_str());
    let node = names.find(|name| name.starts_with("cri-node-")).unwrap();
    format!("/bosun-test-{node}")
}

fn disk_in(folder: &Path) -> PathBuf {
    folder.join("disk")
}

pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

impl Node {
    async fn start(folder: &Path, name: &str) -> Self {
        let state = Path::new("/run/node");
        std::fs::create_dir_all(state).unwrap();
        let config = folder.join("containerd.toml");
        // Its own CRI plugin would look at our containers.
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            disk_in(folder).join("containerd"),
            state.join("containerd"),
            state.join("containerd.sock")
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(folder.join("containerd.log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config).stdout(Stdio::null()).stderr(log).process_group(0);
        let daemon = command.spawn().unwrap();
        let containerd = Containerd::new(&state.join("containerd.sock"));
        until("containerd answers", async || containerd.version().await.is_ok()).await;
        let disk = disk_in(folder);
        let node = Self { folder: folder.to_owned(), disk, containerd, name: name.to_owned(), daemon };
        node.images().import(archive::busybox(IMAGE).into()).await.unwrap();
        node.network();
        node
    }

    fn images(&self) -> Images {
        let settings = ImageSettings {
            snapshotter: "overlayfs".into(),
            certs_dir: None,
            max_concurrent_downloads: 3,
            stall: Duration::from_secs(10),
            pinned: Vec::new(),
            root: self.disk.join("containerd"),
        };
        Images::new(self.containerd.clone(), settings)
    }

    /// A plugin of a few lines that gives every pod the address that its name hashes to: the pod network has tests of its own.
    fn network(&self) {
        let (conf, bin) = (self.folder.join("conf"), self.folder.join("bin"));
        std::fs::create_dir_all(&conf).unwrap();
        std::fs::create_dir_all(&bin).unwrap();
        let list = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [{ "type": "toy", "log": self.folder.join("cni.log") }],
        });
        std::fs::write(conf.join("10-pods.conflist"), list.to_string()).unwrap();
        let script = include_str!("toy-cni.sh").replace("LOG", &self.folder.join("cni.log").display().to_string());
        std::fs::write(bin.join("toy"), script).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(bin.join("toy"), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What plugins were called for: verb and container id.
    pub fn network_calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join("cni.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn root(&self) -> PathBuf {
        self.disk.join("root")
    }

    pub fn state(&self) -> PathBuf {
        PathBuf::from("/run/node/cri")
    }

    pub async fn serve(&self) -> Served {
        self.serve_under(&[]).await
    }

    /// The shim as the child of a program that `words` start, such as a tracer.
    pub async fn serve_under(&self, words: &[&str]) -> Served {
        let this = std::env::current_exe().unwrap();
        let words: Vec<_> = words.iter().map(std::ffi::OsStr::new).chain([this.as_os_str()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["--exact", &self.name, "--nocapture"]).env(SHIM, "1").process_group(0);
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("shim.log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let _ = std::fs::remove_file(SOCKET);
        let mut process = command.spawn().unwrap();
        let ready = async || UnixStream::connect(SOCKET).await.is_ok();
        let begun = Instant::now();
        while !ready().await && process.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the shim does not serve");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let connect = service_fn(|_: Uri| async { UnixStream::connect(SOCKET).await.map(TokioIo::new) });
        let channel = Endpoint::from_static("http://cri").connect_with_connector_lazy(connect);
        // What the kubelet takes.
        let runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20);
        Served { process: Some(process), runtime, images: ImageServiceClient::new(channel) }
    }

    /// Stops containerd as an update does, and starts it again.
    pub async fn restart_containerd(&mut self) {
        kernel::process::kill(self.daemon.id(), kernel::process::Signal::SIGTERM).unwrap();
        self.daemon.wait().unwrap();
        let log = std::fs::File::options().append(true).open(self.folder.join("containerd.log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.folder.join("containerd.toml")).stdout(Stdio::null()).stderr(log);
        self.daemon = command.process_group(0).spawn().unwrap();
        until("containerd answers again", async || self.containerd.version().await.is_ok()).await;
    }
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    options: cri_shim::Options,
}

/// The shim itself.
async fn shim(folder: &Path, name: &str) {
    lifecycle::install_crypto();
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).init();
    let stop = Stop::new();
    stop.at_signals().unwrap();
    let words = [
        ("--listen", format!("unix://{SOCKET}")),
        ("--containerd", "/run/node/containerd.sock".into()),
        ("--cni-conf-dir", folder.join("conf").display().to_string()),
        ("--cni-bin-dir", folder.join("bin").display().to_string()),
        ("--cni-cache-dir", disk_in(folder).join("cni").display().to_string()),
        ("--root", disk_in(folder).join("root").display().to_string()),
        ("--state", "/run/node/cri".into()),
    ];
    let words = words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    let options = Flags::parse_from(std::iter::once("cri".to_owned()).chain(words)).options;
    let this = std::env::current_exe().unwrap();
    // The test harness takes no flag of ours.
    let keeper = format!("{KEEPER}=$2 exec {} --exact {name} --nocapture", this.display());
    let keeper = ["sh", "-c", &keeper, "keeper"].map(Into::into).to_vec();
    let carried = cri_shim::Carried { pause: archive::pause(), keeper };
    cri_shim::run(options, carried, stop).await.unwrap();
}

impl Served {
    fn process(&mut self) -> &mut Child {
        self.process.as_mut().unwrap()
    }

    /// Another client of the same shim.
    pub fn clone_client(&self) -> Self {
        Self { process: None, runtime: self.runtime.clone(), images: self.images.clone() }
    }

    /// Its proportional share of memory, as the kernel tells it.
    pub fn memory(&mut self) -> String {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process().id())).unwrap();
        rollup.lines().find(|line| line.starts_with("Pss:")).unwrap().to_owned()
    }

    /// Ends the shim and nothing else.
    pub async fn end(self) {
        assert!(self.ends().await);
    }

    /// Whether the shim ends well when it is asked to.
    pub async fn ends(mut self) -> bool {
        kernel::process::kill(self.process().id(), kernel::process::Signal::SIGTERM).unwrap();
        self.process().wait().unwrap().success()
    }

    /// Ends the shim in the middle of whatever it does.
    pub async fn kill(mut self) {
        self.process().kill().unwrap();
        self.process().wait().unwrap();
    }

    /// Whether the shim ends by itself, soon.
    pub async fn dies(&mut self) -> bool {
        for _ in 0..200 {
            if self.process().try_wait().unwrap().is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

/// Waits up to half a minute.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
