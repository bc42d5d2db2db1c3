//! A cluster of the test's own, and kubectl on it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

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
    is_ours: bool,
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
        Self { name, kubeconfig, folder: tempfile::tempdir().expect("a temporary folder"), is_ours: false }
    }

    /// A cluster that is not up yet; whatever a test makes of it goes with it.
    pub fn absent(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = folder.path().join("kubeconfig");
        Self { name: format!("{name}-{}", std::process::id()), kubeconfig, folder, is_ours: true }
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
        format!("{}-1", self.name)
    }

    /// PID 1 of the node, as the host numbers it.
    pub fn init(&self) -> u32 {
        let file = self.state().join("nodes").join(self.node()).join("init.json");
        let init: Value = serde_json::from_slice(&fs::read(file).expect("the node has a PID 1")).expect("it is JSON");
        init["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("it has a number")
    }

    /// The node's address on the host's side.
    pub fn address(&self) -> String {
        let state: Value = serde_json::from_slice(&fs::read(self.state().join("cluster.json")).expect("a state file"))
            .expect("the state is JSON");
        state["nodes"][0]["address"].as_str().expect("the node has an address").to_owned()
    }

    /// Runs a program inside the node.
    pub fn inside(&self, words: &[&str]) -> Output {
        let pid = self.init().to_string();
        output("nsenter", &[&["-t", &pid, "-m", "-n", "-p", "-u", "--"], words].concat())
    }

    /// kubectl in a namespace of its own, which is made.
    pub fn namespace(&self, name: &str) -> Kubectl<'_> {
        let kubectl = Kubectl { cluster: self, namespace: name.to_owned() };
        kubectl.run(&["create", "namespace", name]);
        eventually("the default service account", Duration::from_secs(10), || {
            kubectl.try_run(&["get", "serviceaccount", "default"]).ok()
        });
        kubectl
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        let output = self.bosun(&["down"]);
        if !output.status.success() {
            eprintln!("bosun down --name {}: {}", self.name, text(&output.stderr));
        }
    }
}

/// kubectl of the checkout, in one namespace.
pub struct Kubectl<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
}

impl Kubectl<'_> {
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(checkout().join(".tools/bin/kubectl"));
        command.arg("--kubeconfig").arg(&self.cluster.kubeconfig).args(["--namespace", &self.namespace]).args(words);
        // Discovery is kept for one cluster by its address, and the next test's cluster may have the same.
        command.env("KUBECACHEDIR", self.cluster.folder.path().join("cache"));
        command
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
