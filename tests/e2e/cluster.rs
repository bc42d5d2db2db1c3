//! `bosun up` and `bosun down`: what they make, change, resume and leave.

use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use kernel::netns::Netns;
use serde_json::Value;
use tests::bed::{Cluster, bosun, eventually, output, text};
use tests::leaks::Snapshot;

use crate::{Story, registry, services, streams, workloads};

pub fn up_and_down_leave_nothing() {
    let before = Snapshot::take();
    let cluster = Cluster::up("leaks", &[]);
    let one_pair: Vec<String> = before
        .difference(&Snapshot::take())
        .into_iter()
        .filter(|line| line.starts_with("+ link:") && line.contains(" link/"))
        .collect();
    assert!(one_pair.len() <= 1, "one veth pair is all that the host sees: {one_pair:?}");
    let kubectl = cluster.namespace("leaks");
    kubectl.echo("web", 2);
    kubectl.run(&["expose", "deployment", "web", "--port=80", "--target-port=8080", "--type=NodePort"]);
    drop(kubectl);
    let again = cluster.bosun_up(&[]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    let other = cluster.bosun_up(&["--egress"]);
    assert!(!other.status.success());
    assert!(text(&other.stderr).contains("--egress is false, asked was true"), "{}", text(&other.stderr));
    for _ in 0..2 {
        let down = cluster.bosun(&["down"]);
        assert!(down.status.success(), "{}", text(&down.stderr));
    }
    assert!(!cluster.kubeconfig.exists(), "a kubeconfig made for the cluster goes with it");
    before.assert_same();
}

pub fn two_beside_each_other() {
    let before = Snapshot::take();
    let (one, two) = (Cluster::up("one", &[]), Cluster::up("two", &[]));
    for cluster in [&one, &two] {
        cluster.namespace("beside").pod("server", &[]);
    }
    assert_ne!(one.address(), two.address());
    assert!(one.bosun(&["down"]).status.success());
    assert!(two.bosun(&["status"]).status.success());
    two.namespace("after").pod("server", &[]);
    drop((one, two));
    before.assert_same();
}

/// A machine that the host reaches: a network namespace on a link of its own, gone with this value.
struct Beyond {
    name: String,
    address: &'static str,
}

impl Beyond {
    fn new() -> Self {
        let beyond = Self { name: format!("beyond-{}", std::process::id()), address: "198.18.77.2" };
        let (name, link) = (beyond.name.as_str(), "bosun-beyond");
        for words in [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name eth0 netns {name}"),
            // The kernel would give it an address after a while, in the middle of a comparison.
            format!("link set {link} addrgenmode none"),
            format!("addr add 198.18.77.1/30 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} addr add {}/30 dev eth0", beyond.address),
            format!("-n {name} link set eth0 up"),
        ] {
            let done = output("ip", &words.split(' ').collect::<Vec<_>>());
            assert!(done.status.success(), "ip {words}: {}", text(&done.stderr));
        }
        beyond
    }

    /// Accepts connections on port 80 for as long as the namespace is there.
    fn serve(&self) {
        let listener = Netns::open(format!("/run/netns/{}", self.name)).unwrap();
        let listener = listener.run(|| std::net::TcpListener::bind("0.0.0.0:80")).unwrap().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 512];
                // What is asked for does not matter.
                let _ = stream.read(&mut request);
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nbeyond\n");
            }
        });
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        drop(output("ip", &["link", "del", "bosun-beyond"]));
        drop(output("ip", &["netns", "del", &self.name]));
    }
}

pub fn egress_comes_and_goes() {
    let forwarding = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned();
    let was = forwarding();
    let beyond = Beyond::new();
    beyond.serve();
    let before = Snapshot::take();
    let behind_a_router = ["--egress", "--nodes", "2", "--racks", "2"];
    for (flags, reaches) in [(&["--egress"][..], true), (&behind_a_router, true), (&[], false)] {
        let cluster = Cluster::up("egress", flags);
        let kubectl = cluster.namespace("egress");
        kubectl.pod("client", &[]);
        let url = format!("http://{}/", beyond.address);
        let answer = kubectl.try_run(&["exec", "client", "--", "/echo", "get", &url]);
        assert_eq!(answer.as_deref() == Ok("beyond\n"), reaches, "{flags:?}: {answer:?}");
        if reaches {
            assert_eq!(forwarding(), "1");
        }
        drop(kubectl);
        drop(cluster);
        assert_eq!(forwarding(), was);
        before.assert_same();
    }
}

/// SIGKILL to the node's PID 1 is what a power cut is to a machine.
pub fn power_cut() {
    let before = Snapshot::take();
    let cluster = Cluster::up("cut", &[]);
    let kubectl = cluster.namespace("cut");
    kubectl.echo("web", 2);
    kubectl.run(&["create", "configmap", "written", "--from-literal=a=1"]);
    let first = cluster.init();
    assert!(output("kill", &["-KILL", &first.to_string()]).status.success());
    eventually("the node to be seen as stopped", Duration::from_secs(10), || {
        (!cluster.bosun(&["status"]).status.success()).then_some(())
    });
    let resumed = cluster.bosun_up(&[]);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert_ne!(cluster.init(), first);
    assert_eq!(kubectl.field("configmap/written", "{.data.a}"), "1");
    eventually("the pods to run again", Duration::from_secs(60), || {
        let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
        let runs = |pod: &Value| {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            is_ready(pod)
                && kubectl.try_run(&["exec", name, "--", "/echo", "print", "alive"]).as_deref() == Ok("alive\n")
        };
        (pods["items"].as_array()?.iter().filter(|pod| runs(pod)).count() == 2).then_some(())
    });
    drop(kubectl);
    drop(cluster);
    before.assert_same();
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// Whenever `up` dies, the next one makes a whole cluster of what it left, and `down` removes it.
pub fn killed_in_the_middle() {
    let before = Snapshot::take();
    for millis in [5, 30, 60, 90, 120, 200] {
        let cluster = Cluster::absent("killed");
        let kubeconfig = cluster.kubeconfig.display().to_string();
        let mut up = Command::new(bosun());
        up.args(["up", "--name", &cluster.name, "--kubeconfig", &kubeconfig, "--wait", "0"]);
        let mut up = up.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(millis));
        up.kill().unwrap();
        up.wait().unwrap();
        if millis % 2 == 0 {
            let again = cluster.bosun_up(&["--wait", "0"]);
            assert!(again.status.success(), "after {millis} ms: {}", text(&again.stderr));
        }
        let down = cluster.bosun(&["down"]);
        assert!(down.status.success(), "after {millis} ms: {}", text(&down.stderr));
        before.assert_same();
    }
}

/// `--cri containerd`: the agent over containerd's own CRI plugin.
pub fn containerds_own_cri() {
    let before = Snapshot::take();
    let cluster = Cluster::up("own-cri", &["--cri", "containerd"]);
    let runtime = "{.items[0].status.nodeInfo.containerRuntimeVersion}";
    let runtime = cluster.namespace("which").run(&["get", "nodes", "-o", &format!("jsonpath={runtime}")]);
    assert!(runtime.starts_with("containerd://"), "{runtime}");
    for (name, story) in [
        ("rollout", workloads::rollout as Story),
        ("exec", streams::exec),
        ("host-port", services::host_port),
        ("private", registry::private),
    ] {
        story(&cluster.namespace(name));
    }
    drop(cluster);
    before.assert_same();
}

pub fn bad_input() {
    let before = Snapshot::take();
    let cluster = Cluster::absent("bad");
    let one_line = |words: &[&str], part: &str| {
        let output = cluster.bosun_up(words);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(part), "{words:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "one line says it: {said}");
    };
    one_line(&["--registry-config", "/nosuch"], "--registry-config /nosuch is no folder");
    fs::create_dir(&cluster.kubeconfig).unwrap();
    one_line(&[], "cannot be written: name another with --kubeconfig FILE");
    fs::remove_dir(&cluster.kubeconfig).unwrap();
    let nobody = output("setpriv", &["--reuid=65534", "--clear-groups", &bosun().display().to_string(), "up"]);
    assert!(!nobody.status.success() && text(&nobody.stderr).contains("run it as root"), "{}", text(&nobody.stderr));
    let missing = Command::new(bosun())
        .args(["up", "--name", &cluster.name])
        .env("PATH", "/nosuch")
        .env("HOME", "/root")
        .output()
        .unwrap();
    assert!(
        text(&missing.stderr).contains("containerd is not on PATH: apt-get install containerd"),
        "{}",
        text(&missing.stderr)
    );
    before.assert_same();
}
