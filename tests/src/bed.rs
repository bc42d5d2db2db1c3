//! A cluster of the test's own, and kubectl on it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kernel::netns::Netns;
use serde_json::Value;
use tempfile::TempDir;

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace")
}

/// The folder of the programs under test: BOSUN_BIN, or where the release build puts them.
pub fn programs() -> PathBuf {
    let target = || std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from);
    std::env::var_os("BOSUN_BIN").map_or_else(|| target().join("release"), PathBuf::from)
}

pub fn bosun() -> PathBuf {
    let file = programs().join("bosun");
    assert!(file.exists(), "{} is not built: hack/build, or set BOSUN_BIN", file.display());
    file
}

/// Runs a program to its end.
pub fn output(program: impl AsRef<Path>, words: &[&str]) -> Output {
    let program = program.as_ref();
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `look` finds, as soon as it finds something.
///
/// # Panics
/// After `patience`.
pub fn eventually<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {}s: {what}", patience.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A cluster that goes with this value.
pub struct Cluster {
    pub name: String,
    pub kubeconfig: PathBuf,
    /// Where the test puts its files.
    pub folder: TempDir,
    kind: Kind,
}

/// Who made a cluster, and so who removes it.
enum Kind {
    Ours,
    /// It ran before the test and goes on after it.
    Borrowed,
    /// An upstream control plane with parts of bosun's on its node, by hack/upstream; all of it is inside its network namespace.
    Upstream {
        state: PathBuf,
        kind: &'static str,
    },
}

impl Cluster {
    /// Brings up a cluster, Ready.
    ///
    /// # Panics
    /// Where `bosun up` fails, with what it said.
    pub fn up(name: &str, flags: &[&str]) -> Self {
        let cluster = Self::absent(name);
        let output = cluster.bosun_up(flags);
        assert!(output.status.success(), "bosun up: {}", text(&output.stderr));
        cluster
    }

    /// The cluster that BOSUN_CLUSTER names and that runs already, or a new one.
    pub fn shared(name: &str, flags: &[&str]) -> Self {
        let Ok(name) = std::env::var("BOSUN_CLUSTER") else { return Self::up(name, flags) };
        let state = fs::read_to_string(format!("/var/lib/bosun/{name}/cluster.json")).expect("BOSUN_CLUSTER runs");
        let state: Value = serde_json::from_str(&state).expect("the state is JSON");
        let kubeconfig = state["settings"]["kubeconfig"].as_str().expect("the state names a kubeconfig").into();
        Self { name, kubeconfig, folder: tempfile::tempdir().expect("a temporary folder"), kind: Kind::Borrowed }
    }

    /// Upstream's control plane with a node of which bosun's are those parts that `kind` says, Ready: see hack/upstream.
    /// The peers are built.
    ///
    /// # Panics
    /// Where hack/upstream fails, with what it said.
    pub fn upstream(name: &str, kind: &'static str) -> Self {
        let mut cluster = Self::absent(name);
        let images: Vec<String> = [("pause.tar", images::pause_archive()), ("echo.tar", images::echo_archive())]
            .map(|(name, bytes)| {
                let file = cluster.folder.path().join(name);
                fs::write(&file, bytes).expect("the test's folder takes an archive");
                file.display().to_string()
            })
            .to_vec();
        let state = cluster.folder.path().join("state");
        cluster.kubeconfig = state.join("admin.conf");
        cluster.kind = Kind::Upstream { state, kind };
        let output = cluster.hack_upstream("up", &images.join(" "));
        assert!(output.status.success(), "hack/upstream up: {}", text(&output.stderr));
        cluster
    }

    fn hack_upstream(&self, verb: &str, images: &str) -> Output {
        let Kind::Upstream { state, kind } = &self.kind else { panic!("{} is not upstream's", self.name) };
        let mut command = Command::new(checkout().join("hack/upstream"));
        command.arg(verb).arg(state).arg(kind).stdin(Stdio::null());
        command.env("NAME", &self.name).env("IMAGES", images).env("BOSUN", programs());
        command.output().expect("hack/upstream runs")
    }

    /// A cluster that is not up yet; whatever a test makes of it goes with it.
    pub fn absent(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = folder.path().join("kubeconfig");
        Self { name: format!("{name}-{}", std::process::id()), kubeconfig, folder, kind: Kind::Ours }
    }

    pub fn bosun_up(&self, flags: &[&str]) -> Output {
        let kubeconfig = self.kubeconfig.display().to_string();
        let own = ["up", "--name", &self.name, "--kubeconfig", &kubeconfig];
        output(bosun(), &[&own, flags].concat())
    }

    pub fn bosun(&self, words: &[&str]) -> Output {
        output(bosun(), &[words, &["--name", &self.name]].concat())
    }

    /// The folder of its state.
    pub fn state(&self) -> PathBuf {
        Path::new("/var/lib/bosun").join(&self.name)
    }

    pub fn node(&self) -> String {
        match self.kind {
            Kind::Upstream { .. } => self.name.clone(),
            _ => format!("{}-1", self.name),
        }
    }

    /// All nodes of a cluster of ours, the one with the control plane first.
    pub fn nodes(&self) -> Vec<Node> {
        let state = fs::read(self.state().join("cluster.json")).expect("a state file");
        let state: Value = serde_json::from_slice(&state).expect("the state is JSON");
        let text = |node: &Value, field: &str| node[field].as_str().expect("a node has name and address").to_owned();
        let nodes = state["nodes"].as_array().expect("the cluster has nodes").iter();
        nodes.map(|node| Node { name: text(node, "name"), address: text(node, "address") }).collect()
    }

    /// PID 1 of the first node, as the host numbers it.
    pub fn init(&self) -> u32 {
        let Kind::Upstream { state, .. } = &self.kind else { return self.init_of(&self.node()) };
        let outer = fs::read_to_string(state.join("pid")).expect("hack/upstream wrote its number");
        let outer = outer.trim();
        let inner = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).expect("the node runs");
        inner.trim().parse().expect("unshare has one child")
    }

    /// PID 1 of a node of ours.
    pub fn init_of(&self, node: &str) -> u32 {
        let file = self.state().join("nodes").join(node).join("init.json");
        let init: Value = serde_json::from_slice(&fs::read(file).expect("the node has a PID 1")).expect("it is JSON");
        init["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("it has a number")
    }

    /// The first node's address on the host's side.
    pub fn address(&self) -> String {
        match self.kind {
            Kind::Upstream { .. } => "172.30.0.1".into(),
            _ => self.nodes().swap_remove(0).address,
        }
    }

    /// A program where a user of the cluster is: on the host, or beside an upstream control plane.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let Kind::Upstream { .. } = self.kind else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// What a URL answers a user of the cluster; nothing within 2 s is an empty answer.
    pub fn curl(&self, url: &str) -> String {
        let output = self.command("curl").args(["-s", "--max-time", "2", url]).stdin(Stdio::null()).output();
        text(&output.expect("curl is there: hack/packages").stdout)
    }

    /// Imports an image archive, which names one image, onto the node; what was said about it.
    ///
    /// # Panics
    /// Where it cannot.
    pub fn load(&self, archive: &Path) -> String {
        let archive = archive.display().to_string();
        let output = match self.kind {
            Kind::Upstream { .. } => self.inside(&["ctr", "-n", "k8s.io", "images", "import", &archive]),
            _ => self.bosun(&["image", "load", &archive]),
        };
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    }

    /// Runs a program inside the first node.
    pub fn inside(&self, words: &[&str]) -> Output {
        inside(self.init(), words)
    }

    /// Runs a program inside a node of ours.
    pub fn inside_of(&self, node: &str, words: &[&str]) -> Output {
        inside(self.init_of(node), words)
    }

    /// The network namespace of a node of ours.
    ///
    /// # Panics
    /// Where the node does not run.
    pub fn netns_of(&self, node: &str) -> Netns {
        Netns::open(format!("/proc/{}/ns/net", self.init_of(node))).expect("a node has a network namespace")
    }

    /// kubectl in a namespace of its own, which is made.
    pub fn namespace(&self, name: &str) -> Kubectl<'_> {
        self.prepared(Kubectl { cluster: self, namespace: name.to_owned(), speaks_spdy: false })
    }

    fn prepared<'a>(&'a self, kubectl: Kubectl<'a>) -> Kubectl<'a> {
        kubectl.run(&["create", "namespace", &kubectl.namespace]);
        eventually("the default service account", Duration::from_secs(10), || {
            kubectl.try_run(&["get", "serviceaccount", "default"]).ok()
        });
        kubectl
    }
}

fn inside(init: u32, words: &[&str]) -> Output {
    output("nsenter", &[&["-t", &init.to_string(), "-m", "-n", "-p", "-u", "--"], words].concat())
}

/// A node of a cluster of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// Its address on the host's side.
    pub address: String,
}

/// What of a pod tells why it does not run.
const PODS: &str = "custom-columns=NAMESPACE:.metadata.namespace,NAME:.metadata.name,NODE:.spec.nodeName,PHASE:.status.phase,\
                    DELETED:.metadata.deletionTimestamp,READY:.status.conditions[?(@.type==\"Ready\")].status,\
                    STATE:.status.containerStatuses[*].state";

impl Cluster {
    /// After a case failed: what the cluster looks like, and its logs where `down` does not reach them.
    fn keep_evidence(&self) {
        let kubectl = checkout().join(".tools/bin/kubectl");
        for words in [&["get", "pods", "-A", "-o", PODS][..], &["get", "events", "-A", "--sort-by=.lastTimestamp"]] {
            let mut command = self.command(&kubectl);
            command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--request-timeout=5s").args(words);
            let Ok(output) = command.stdin(Stdio::null()).output() else { continue };
            let shown = text(&output.stdout);
            let lines: Vec<&str> = shown.lines().collect();
            eprintln!("-- kubectl {}\n{}", words[1], lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        let kept = checkout().join("target/failed").join(&self.name);
        let copied = fs::create_dir_all(&kept).is_ok()
            && output("cp", &["-r", &format!("{}/.", self.logs().display()), &kept.display().to_string()])
                .status
                .success();
        if copied {
            eprintln!("-- logs of {} are kept in {}", self.name, kept.display());
        }
    }

    fn logs(&self) -> PathBuf {
        match &self.kind {
            Kind::Upstream { state, .. } => state.join("log"),
            _ => self.state().join("logs"),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() && !matches!(self.kind, Kind::Borrowed) {
            self.keep_evidence();
        }
        let output = match self.kind {
            Kind::Borrowed => return,
            Kind::Ours => self.bosun(&["down"]),
            Kind::Upstream { .. } => self.hack_upstream("down", ""),
        };
        if !output.status.success() {
            eprintln!("cluster {} is not down: {}", self.name, text(&output.stderr));
        }
    }
}

/// kubectl of the checkout, in one namespace.
pub struct Kubectl<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
    speaks_spdy: bool,
}

impl<'a> Kubectl<'a> {
    /// One that streams over SPDY instead of WebSocket, in another namespace.
    pub fn over_spdy(&self) -> Kubectl<'a> {
        let namespace = format!("{}-spdy", self.namespace);
        self.cluster.prepared(Kubectl { cluster: self.cluster, namespace, speaks_spdy: true })
    }
}

impl Kubectl<'_> {
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.cluster.command(checkout().join(".tools/bin/kubectl"));
        command.arg("--kubeconfig").arg(&self.cluster.kubeconfig).args(["--namespace", &self.namespace]).args(words);
        // Discovery is kept for one cluster by its address, and the next test's cluster may have the same.
        command.env("KUBECACHEDIR", self.cluster.folder.path().join("cache"));
        if self.speaks_spdy {
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false").env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        }
        command
    }

    /// What a shell script prints on a terminal; in it `$KUBECTL` is this kubectl.
    pub fn on_terminal(&self, script: &str) -> String {
        let command = self.command(&[]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        let mut terminal = Command::new("script");
        terminal.args(["-qec", script, "/dev/null"]).env("KUBECTL", words.join(" "));
        terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        // `script` ends with its input.
        let output = terminal.stdin(Stdio::piped()).output().expect("script is there: hack/packages");
        text(&output.stdout)
    }

    /// What it prints, or what it complains about.
    pub fn try_run(&self, words: &[&str]) -> Result<String, String> {
        self.with_input(words, "")
    }

    /// # Panics
    /// Where kubectl fails, with what it complains about.
    pub fn run(&self, words: &[&str]) -> String {
        self.try_run(words).unwrap_or_else(|said| panic!("kubectl {}: {said}", words.join(" ")))
    }

    /// What kubectl complains about.
    ///
    /// # Panics
    /// Where it does not.
    pub fn fails(&self, words: &[&str]) -> String {
        match self.try_run(words) {
            Err(said) => said,
            Ok(said) => panic!("kubectl {} did not fail: {said}", words.join(" ")),
        }
    }

    pub fn with_input(&self, words: &[&str], input: &str) -> Result<String, String> {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is in .tools/bin: hack/tools");
        child.stdin.take().expect("its input is piped").write_all(input.as_bytes()).expect("kubectl reads its input");
        let output = child.wait_with_output().expect("kubectl ends");
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr) + &text(&output.stdout))
        }
    }

    pub fn apply(&self, manifest: &str) -> String {
        self.with_input(&["apply", "-f", "-"], manifest).unwrap_or_else(|said| panic!("kubectl apply: {said}"))
    }

    pub fn json(&self, words: &[&str]) -> Value {
        let text = self.run(&[words, &["-o", "json"]].concat());
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// One field by JSONPath, as `{.spec.replicas}`.
    pub fn field(&self, object: &str, path: &str) -> String {
        self.run(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    /// The network namespace of a pod that runs on a node of ours under `bosun cri`.
    ///
    /// # Panics
    /// Where it has none.
    pub fn netns(&self, pod: &str) -> Netns {
        let node = self.field(&format!("pod/{pod}"), "{.spec.nodeName}");
        let label = |name: &str, value: &str| format!("labels.\"io.{name}\"=={value}");
        let filter = [
            label("cri-containerd.kind", "sandbox"),
            label("kubernetes.pod.name", pod),
            label("kubernetes.pod.namespace", &self.namespace),
        ];
        let words = ["ctr", "-n", "k8s.io", "containers", "ls", "-q", &filter.join(",")];
        let ids = text(&self.cluster.inside_of(&node, &words).stdout);
        let root = format!("/proc/{}/root/run/bosun-cri/sandboxes", self.cluster.init_of(&node));
        let mut found = ids.lines().filter_map(|id| Netns::open(format!("{root}/{id}/ns/net")).ok());
        found.next().unwrap_or_else(|| panic!("pod {pod} has no sandbox on {node} among {ids:?}"))
    }

    /// A kubectl that goes on, its output in `file`.
    pub fn spawn(&self, words: &[&str], file: &Path) -> Running {
        let out = fs::File::create(file).expect("a file for the output");
        let mut command = self.command(words);
        command.stdin(Stdio::null()).stderr(out.try_clone().expect("a second descriptor")).stdout(out);
        Running(command.spawn().expect("kubectl is in .tools/bin: hack/tools"))
    }

    /// A deployment of the echo server, rolled out.
    pub fn echo(&self, name: &str, replicas: u32) {
        let replicas = format!("--replicas={replicas}");
        self.run(&["create", "deployment", name, "--image", images::ECHO, &replicas]);
        self.run(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
    }

    /// A pod of the echo server, Ready.
    pub fn pod(&self, name: &str, flags: &[&str]) {
        self.run(&[&["run", name, "--image", images::ECHO], flags].concat());
        self.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    }
}

impl Drop for Kubectl<'_> {
    fn drop(&mut self) {
        // Gone with the cluster in any case; sooner spares the node.
        drop(self.try_run(&["delete", "namespace", &self.namespace, "--wait=false"]));
    }
}

/// A program that ends with this value.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
