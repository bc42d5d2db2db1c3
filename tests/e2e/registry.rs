//! Images: archives onto the node, and pulls through the relay from a registry on the host's loopback.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use images::archive::{Image, build};
use tests::bed::{Cluster, Kubectl, Running, eventually, output, text};

/// Debian's static busybox as an image on the node: what kubectl cp needs inside a container. Nothing, and a line
/// that says so, where the package is not there.
pub fn busybox(cluster: &Cluster) -> Option<String> {
    let Ok(program) = fs::read("/bin/busybox") else {
        println!("SKIPPED: /bin/busybox is not there: apt-get install busybox-static");
        return None;
    };
    let name = "tests.local/busybox:1";
    let links = ["bin/sh", "bin/tar", "bin/cat", "bin/sleep", "bin/stty", "bin/wget"];
    let image = Image { names: &[name], path: "bin/busybox", program: &program, links: &links, user: "", ports: &[] };
    load_bytes(cluster, &build(&image));
    Some(name.to_owned())
}

fn load_bytes(cluster: &Cluster, archive: &[u8]) -> String {
    let file = cluster.folder.path().join("image.tar");
    fs::write(&file, archive).unwrap();
    cluster.load(&file)
}

pub fn load(kubectl: &Kubectl<'_>) {
    let name = "tests.local/loaded:1";
    let program = fs::read("/proc/self/exe").unwrap();
    let image = Image { names: &[name], path: "p", program: &program[..64], links: &[], user: "", ports: &[] };
    let said = load_bytes(kubectl.cluster, &build(&image));
    assert!(said.contains(&format!("loaded {name} onto node {}", kubectl.cluster.node())), "{said}");
    let output = kubectl.cluster.inside(&["ctr", "-n", "k8s.io", "images", "ls", "-q"]);
    assert!(text(&output.stdout).lines().any(|line| line == name));
    let file = kubectl.cluster.folder.path().join("no-image");
    fs::write(&file, "nothing").unwrap();
    let output = kubectl.cluster.bosun(&["image", "load", &file.display().to_string()]);
    assert!(!output.status.success());
    assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
}

/// Debian's docker-registry on the host's loopback, on a port of its own.
struct Registry {
    port: u16,
    _process: Running,
}

/// Who may use a private registry.
const USER: &str = "captain:hunter2";
const HTPASSWD: &str = "captain:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";

impl Registry {
    /// A private one asks for USER.
    fn start(folder: &Path, is_private: bool) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = |name: &str| folder.join(format!("registry-{port}-{name}"));
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            file("store").display()
        );
        if is_private {
            fs::write(file("htpasswd"), HTPASSWD).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: ship, path: {}}}}}\n", file("htpasswd").display());
        }
        fs::write(file("config"), config).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file("config")).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Running(command.spawn().expect("apt-get install docker-registry"));
        let url = format!("http://127.0.0.1:{port}/v2/");
        eventually("the registry to serve", Duration::from_secs(10), || {
            output("curl", &["-sf", "-u", USER, &url]).status.success().then_some(())
        });
        Self { port, _process: process }
    }

    /// Pushes the echo image from the node's store, where it does not stay under the name returned.
    fn with_echo(&self, cluster: &Cluster, repository: &str) -> String {
        let name = format!("127.0.0.1:{}/{repository}", self.port);
        let socket = format!("/proc/{}/root/run/containerd/containerd.sock", cluster.init());
        let ctr = |words: &[&str]| {
            let output = output("ctr", &[&["-a", &socket, "-n", "k8s.io", "images"], words].concat());
            assert!(output.status.success(), "ctr {words:?}: {}", text(&output.stderr));
        };
        ctr(&["tag", images::ECHO, &name]);
        ctr(&["push", "--plain-http", "--user", USER, &name]);
        ctr(&["rm", &name]);
        name
    }
}

fn awaits_ready(kubectl: &Kubectl<'_>, pod: &str) {
    kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=30s"]);
}

/// A private image is pulled by those who have the credentials. That it is present then lends it to nobody else.
pub fn private(kubectl: &Kubectl<'_>) {
    let registry = Registry::start(kubectl.cluster.folder.path(), true);
    let name = registry.with_echo(kubectl.cluster, "private/echo:1");
    let (user, password) = USER.split_once(':').unwrap();
    let (server, user) = (format!("--docker-server=127.0.0.1:{}", registry.port), format!("--docker-username={user}"));
    let password = format!("--docker-password={password}");
    kubectl.run(&["create", "secret", "docker-registry", "ship", &server, &user, &password]);
    let with_secret = r#"{"spec": {"imagePullSecrets": [{"name": "ship"}]}}"#;
    kubectl.run(&["run", "stranger", "--image", &name]);
    is_refused(kubectl, "stranger");
    kubectl.run(&["run", "member", "--image", &name, "--overrides", with_secret]);
    awaits_ready(kubectl, "member");
    kubectl.run(&["run", "borrower", "--image", &name]);
    is_refused(kubectl, "borrower");
    kubectl.run(&["run", "other-member", "--image", &name, "--overrides", with_secret]);
    awaits_ready(kubectl, "other-member");
}

fn is_refused(kubectl: &Kubectl<'_>, pod: &str) {
    let shown = |text: &str| text.contains("ErrImagePull") || text.contains("ImagePullBackOff");
    eventually("the pull to be refused", Duration::from_secs(30), || {
        shown(&kubectl.run(&["get", "pod", pod])).then_some(())
    });
    let events = kubectl.run(&["events", "--for", &format!("pod/{pod}")]);
    assert!(events.contains("denies access"), "{events}");
}

/// containerd's certs.d folder of the user's: there a registry's name leads to a port of the host's loopback.
pub fn by_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(folder.path(), false);
    let certs = folder.path().join("certs.d");
    fs::create_dir_all(certs.join("fleet.test")).unwrap();
    let hosts = format!("[host.\"http://127.0.0.1:{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", registry.port);
    fs::write(certs.join("fleet.test/hosts.toml"), hosts).unwrap();
    let cluster = Cluster::up("certs", &["--registry-config", &certs.display().to_string()]);
    let kubectl = cluster.namespace("certs");
    registry.with_echo(&cluster, "team/echo:1");
    kubectl.run(&["run", "pulled", "--image", "fleet.test/team/echo:1"]);
    awaits_ready(&kubectl, "pulled");
}

pub fn pull(kubectl: &Kubectl<'_>) {
    let registry = Registry::start(kubectl.cluster.folder.path(), false);
    let port = registry.port;
    let name = registry.with_echo(kubectl.cluster, "team/echo:1");
    kubectl.run(&["run", "pulled", "--image", &name]);
    awaits_ready(kubectl, "pulled");
    let events = kubectl.run(&["events", "--for", "pod/pulled"]);
    assert!(events.contains(&format!("Successfully pulled image \"{name}\"")), "{events}");
    let by_name = format!("localhost:{port}/team/echo:1");
    kubectl.run(&["run", "by-name", "--image", &by_name]);
    awaits_ready(kubectl, "by-name");
    // TEST-NET-1: an address that nobody answers on.
    kubectl.run(&["run", "unreachable", "--image", "192.0.2.77:5000/a:1"]);
    eventually("ErrImagePull within 5 s", Duration::from_secs(5), || {
        kubectl.run(&["get", "pod", "unreachable"]).contains("ErrImagePull").then_some(())
    });
    let events = kubectl.run(&["events", "--for", "pod/unreachable"]);
    assert!(events.contains("the host cannot reach 192.0.2.77:5000"), "{events}");
    the_relay_is_not_for_pods(kubectl);
}

fn the_relay_is_not_for_pods(kubectl: &Kubectl<'_>) {
    let toml = kubectl.cluster.inside(&["cat", "/run/bosun/certs.d/_default/hosts.toml"]);
    let toml = text(&toml.stdout);
    let relay = toml.split("http://").nth(1).and_then(|rest| rest.split('"').next()).expect("the relay's address");
    let answer = kubectl.cluster.inside(&[
        "curl",
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        &format!("http://{relay}/v2/?ns=localhost:1"),
    ]);
    assert_eq!(text(&answer.stdout), "407", "a pod in the node's network reaches the port, and gets nothing");
}
