//! The guest as a node: containerd, a pod network, `bosun cri`, and a client of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cri::RuntimeServiceClient;
use cri::v1::*;
use tests::bed::{output, programs, text};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

pub const IMAGE: &str = "test.local/busybox:1";
const CONTAINERD: &str = "/run/containerd/containerd.sock";
const SOCKET: &str = "/run/bosun/cri.sock";
/// The guest's disk.
const DISK: &str = "/mnt";
const APPLETS: [&str; 14] =
    ["sh", "sleep", "cat", "echo", "id", "stat", "tail", "touch", "hostname", "true", "ip", "kill", "sync", "mount"];

/// Who makes control groups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    Systemd,
}

impl Driver {
    /// The control group below which those of pods are.
    pub fn groups(self) -> &'static Path {
        Path::new(match self {
            Self::Cgroupfs => "/sys/fs/cgroup/pods",
            Self::Systemd => "/sys/fs/cgroup/pods.slice",
        })
    }

    /// A pod's parent, as the kubelet names it.
    fn parent(self, pod: &str) -> String {
        match self {
            Self::Cgroupfs => format!("/pods/{pod}"),
            Self::Systemd => format!("/pods.slice/pods-{}.slice", pod.replace('-', "_")),
        }
    }

    /// The name of a container's group in its pod's.
    fn group(self, container: &str) -> String {
        match self {
            Self::Cgroupfs => container.to_owned(),
            Self::Systemd => format!("cri-containerd-{container}.scope"),
        }
    }

    /// The kubelet's part of a pod's end.
    fn remove(self, group: &Path) {
        match self {
            Self::Cgroupfs => fs::remove_dir(group).unwrap(),
            Self::Systemd => {
                let slice = group.file_name().unwrap().to_string_lossy();
                let stopped = output("systemctl", &["stop", &slice]);
                assert!(stopped.status.success(), "stop {slice}: {}", text(&stopped.stderr));
            }
        }
    }
}

pub struct Node {
    pub driver: Driver,
    pub runtime: RuntimeServiceClient<Channel>,
    _containerd: Child,
    _shim: Child,
}

/// A container that runs, and its pod.
pub struct Pod {
    pub sandbox: String,
    pub container: String,
    pub config: PodSandboxConfig,
    /// The container's control group.
    pub group: PathBuf,
}

impl Node {
    pub async fn start(driver: Driver) -> Self {
        for module in ["bridge", "veth"] {
            let loaded = output("modprobe", &[module]);
            assert!(loaded.status.success(), "modprobe {module}: {}", text(&loaded.stderr));
        }
        network();
        let containerd = containerd();
        import();
        let shim = shim();
        let channel = Endpoint::from_shared(format!("unix://{SOCKET}")).unwrap().connect_lazy();
        let node = Self { driver, runtime: RuntimeServiceClient::new(channel), _containerd: containerd, _shim: shim };
        let begun = Instant::now();
        while let Some(why) = node.lacks().await {
            if begun.elapsed() > Duration::from_secs(30) {
                node.tell();
                panic!("bosun cri is not ready: {why}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        node
    }

    async fn lacks(&self) -> Option<String> {
        match self.runtime.clone().status(StatusRequest::default()).await {
            Ok(answer) => {
                let conditions = answer.into_inner().status.unwrap().conditions;
                conditions.into_iter().find(|one| !one.status).map(|one| one.message)
            }
            Err(status) => Some(status.to_string()),
        }
    }

    /// What the daemons said, for a reader who wonders why a story failed.
    pub fn tell(&self) {
        for log in ["cri.log", "containerd.log"] {
            let said = fs::read_to_string(Path::new(DISK).join(log)).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            println!("== the end of {log}\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }

    /// A pod whose container runs `script`; `change` adds to both configs.
    pub async fn run(&self, name: &str, script: &str, change: impl Fn(&mut Configs)) -> Pod {
        let mut configs = configs(name, script, self.driver);
        change(&mut configs);
        let sandbox = self.sandbox(&configs).await.unwrap();
        let container = self.container(&sandbox, &configs).await.unwrap();
        let request = StartContainerRequest { container_id: container.clone() };
        self.runtime.clone().start_container(request).await.unwrap();
        let parent = configs.pod.linux.as_ref().unwrap().cgroup_parent.trim_start_matches('/');
        let group = Path::new("/sys/fs/cgroup").join(parent).join(self.driver.group(&container));
        Pod { sandbox, container, config: configs.pod, group }
    }

    pub async fn sandbox(&self, configs: &Configs) -> Result<String, Status> {
        let request =
            RunPodSandboxRequest { config: Some(configs.pod.clone()), runtime_handler: configs.handler.to_owned() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn container(&self, sandbox: &str, configs: &Configs) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(configs.container.clone()),
            sandbox_config: Some(configs.pod.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub async fn status(&self, pod: &Pod) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: pod.container.clone(), verbose: false };
        self.runtime.clone().container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// The container's status once it has ended.
    pub async fn ended(&self, pod: &Pod) -> ContainerStatus {
        let begun = Instant::now();
        loop {
            let status = self.status(pod).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a command in the container says; it must succeed.
    pub async fn exec(&self, pod: &Pod, script: &str) -> String {
        let cmd = ["sh", "-c", script].map(str::to_owned).into();
        let request = ExecSyncRequest { container_id: pod.container.clone(), cmd, timeout: 20 };
        let done = self.runtime.clone().exec_sync(request).await.unwrap().into_inner();
        assert_eq!(done.exit_code, 0, "{script}: {}", text(&done.stderr));
        text(&done.stdout).trim().to_owned()
    }

    pub async fn remove(&self, pod: Pod) {
        let mut runtime = self.runtime.clone();
        let request = StopContainerRequest { container_id: pod.container.clone(), timeout: 0 };
        runtime.stop_container(request).await.unwrap();
        self.remove_sandbox(pod.sandbox).await;
        self.driver.remove(pod.group.parent().unwrap());
    }

    pub async fn remove_sandbox(&self, id: String) {
        let mut runtime = self.runtime.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        runtime.stop_pod_sandbox(request).await.unwrap();
        let request = RemovePodSandboxRequest { pod_sandbox_id: id };
        runtime.remove_pod_sandbox(request).await.unwrap();
    }
}

impl Pod {
    /// Where the limits and processes are: in a scope, crun has a group of its own for them.
    fn own_group(&self) -> PathBuf {
        Some(self.group.join("container")).filter(|group| group.exists()).unwrap_or_else(|| self.group.clone())
    }

    /// A file of the container's control group.
    pub fn reads(&self, file: &str) -> String {
        let path = self.own_group().join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    /// The container's first process.
    pub fn pid(&self) -> u32 {
        self.reads("cgroup.procs").lines().next().unwrap().parse().unwrap()
    }
}

pub struct Configs {
    /// The runtime handler; crun where it is empty.
    pub handler: &'static str,
    pub pod: PodSandboxConfig,
    pub container: ContainerConfig,
}

impl Configs {
    pub fn resources(&mut self) -> &mut LinuxContainerResources {
        let linux = self.container.linux.get_or_insert_default();
        linux.resources.get_or_insert_default()
    }

    /// For both, as the kubelet does.
    pub fn namespaces(&mut self, options: &NamespaceOption) {
        let pod = self.pod.linux.get_or_insert_default().security_context.get_or_insert_default();
        pod.namespace_options = Some(options.clone());
        let container = self.container.linux.get_or_insert_default().security_context.get_or_insert_default();
        container.namespace_options = Some(options.clone());
    }
}

/// What the kubelet asks for: a PID namespace for each container, the others for the pod.
pub fn own_pids() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

pub fn configs(name: &str, script: &str, driver: Driver) -> Configs {
    let metadata = PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "default".into(), attempt: 0 };
    let linux = LinuxPodSandboxConfig { cgroup_parent: driver.parent(name), ..LinuxPodSandboxConfig::default() };
    let pod = PodSandboxConfig {
        metadata: Some(metadata),
        hostname: name.into(),
        log_directory: format!("{DISK}/logs/{name}"),
        linux: Some(linux),
        ..PodSandboxConfig::default()
    };
    let container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
        command: ["sh", "-c", script].map(str::to_owned).into(),
        log_path: "main.log".into(),
        ..ContainerConfig::default()
    };
    let mut all = Configs { handler: "", pod, container };
    all.namespaces(&own_pids());
    all
}

fn disk(path: &str) -> PathBuf {
    let path = Path::new(DISK).join(path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn network() {
    let plugins = disk("plugins");
    for name in ["bridge", "host-local", "loopback"] {
        symlink(programs().join("bosun-cni"), plugins.join(name)).unwrap();
    }
    let ipam = r#"{"type":"host-local","ranges":[[{"subnet":"10.244.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}"#;
    let bridge = format!(r#"{{"type":"bridge","bridge":"cni0","isGateway":true,"ipam":{ipam}}}"#);
    let list = format!(r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[{bridge}]}}"#);
    fs::write(disk("conf").join("10-pods.conflist"), list).unwrap();
}

fn log(name: &str) -> fs::File {
    fs::File::create(Path::new(DISK).join(name)).unwrap()
}

fn containerd() -> Child {
    let config = disk("etc").join("containerd.toml");
    let off = r#"disabled_plugins = ["io.containerd.grpc.v1.cri"]"#;
    let root = disk("containerd");
    let text =
        format!("version = 2\nroot = {root:?}\nstate = \"/run/containerd\"\n{off}\n[grpc]\naddress = {CONTAINERD:?}\n");
    fs::write(&config, text).unwrap();
    let mut command = Command::new("containerd");
    command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log("containerd.log"));
    command.spawn().unwrap()
}

fn import() {
    let links: Vec<String> = APPLETS.iter().map(|applet| format!("bin/{applet}")).collect();
    let image = images::archive::Image {
        names: &[IMAGE],
        path: "bin/busybox",
        program: &fs::read("/usr/bin/busybox").or_else(|_| fs::read("/bin/busybox")).unwrap(),
        links: &links.iter().map(String::as_str).collect::<Vec<_>>(),
        user: "",
        ports: &[],
    };
    let file = Path::new(DISK).join("image.tar");
    fs::write(&file, images::archive::build(&image)).unwrap();
    let file = file.display().to_string();
    tests::bed::eventually("containerd takes an image", Duration::from_secs(30), || {
        let done = output("ctr", &["-n", "k8s.io", "images", "import", &file]);
        done.status.success().then_some(())
    });
}

fn shim() -> Child {
    let (conf, plugins, cache, root) = (disk("conf"), disk("plugins"), disk("cni"), disk("cri"));
    let mut command = Command::new(programs().join("bosun"));
    command.args(["cri", "--runtime-handler", "crun=/usr/bin/crun", "--runtime-handler", "runc=runc"]);
    command.args(["--containerd", CONTAINERD]);
    command.args(["--listen", &format!("unix://{SOCKET}"), "--state", "/run/bosun-cri"]);
    for (flag, folder) in
        [("--cni-conf-dir", conf), ("--cni-bin-dir", plugins), ("--cni-cache-dir", cache), ("--root", root)]
    {
        command.arg(flag).arg(folder);
    }
    let said = log("cri.log");
    command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()
}
