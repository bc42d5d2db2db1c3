//! `bosun up` and `bosun down`: what they make, change, resume and leave.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::bed::{Cluster, bosun, eventually, output, text};
use tests::leaks::Snapshot;

fn assert_nothing_leaked(before: &Snapshot) {
    let left = eventually("the kernel to let go of everything", Duration::from_secs(10), || {
        let left = before.difference(&Snapshot::take());
        left.is_empty().then_some(left).or_else(|| {
            std::thread::sleep(Duration::from_millis(400));
            None
        })
    });
    assert!(left.is_empty());
}

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
    assert_nothing_leaked(&before);
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
    assert_nothing_leaked(&before);
}

pub fn egress_rules_come_and_go() {
    let before = Snapshot::take();
    let forwarding = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned();
    let was = forwarding();
    let cluster = Cluster::up("egress", &["--wait", "0", "--egress"]);
    assert_eq!(forwarding(), "1");
    let rules = text(&output("nft", &["list", "ruleset"]).stdout);
    assert!(rules.contains("masquerade") && rules.contains(&cluster.name.replace('-', "_")), "{rules}");
    drop(cluster);
    assert_eq!(forwarding(), was);
    assert_nothing_leaked(&before);
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
    eventually("the deployment to be available again", Duration::from_secs(60), || {
        let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
        let ready = pods["items"].as_array()?.iter().filter(|pod| is_ready(pod)).count();
        (ready == 2).then_some(())
    });
    let answer = kubectl.run(&["exec", "deployment/web", "--", "/echo", "print", "alive"]);
    assert_eq!(answer, "alive\n");
    drop(kubectl);
    drop(cluster);
    assert_nothing_leaked(&before);
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
        assert_nothing_leaked(&before);
    }
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
    assert_nothing_leaked(&before);
}
