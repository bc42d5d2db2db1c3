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
    let links = ["bin/sh", "bin/tar", "bin/cat", "bin/sleep", "bin/stty"];
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
fn registry(folder: &Path) -> (u16, Running) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = folder.join("registry.yaml");
    let store = folder.join("registry");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
        store.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running(command.spawn().expect("apt-get install docker-registry"));
    let url = format!("http://127.0.0.1:{port}/v2/");
    eventually("the registry to serve", Duration::from_secs(10), || {
        output("curl", &["-sf", &url]).status.success().then_some(())
    });
    (port, running)
}

pub fn pull(kubectl: &Kubectl<'_>) {
    let (port, _registry) = registry(kubectl.cluster.folder.path());
    let name = format!("127.0.0.1:{port}/team/echo:1");
    let socket = format!("/proc/{}/root/run/containerd/containerd.sock", kubectl.cluster.init());
    let ctr = |words: &[&str]| {
        let output = output("ctr", &[&["-a", &socket, "-n", "k8s.io", "images"], words].concat());
        assert!(output.status.success(), "ctr {words:?}: {}", text(&output.stderr));
    };
    ctr(&["tag", images::ECHO, &name]);
    ctr(&["push", "--plain-http", &name]);
    ctr(&["rm", &name]);
    kubectl.run(&["run", "pulled", "--image", &name]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/pulled", "--timeout=30s"]);
    let events = kubectl.run(&["events", "--for", "pod/pulled"]);
    assert!(events.contains(&format!("Successfully pulled image \"{name}\"")), "{events}");
    let by_name = format!("localhost:{port}/team/echo:1");
    kubectl.run(&["run", "by-name", "--image", &by_name]);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/by-name", "--timeout=30s"]);
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
