//! A cluster of three nodes: pods on different nodes, and what a node's end leaves.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use tests::bed::{Cluster, Kubectl, Node, eventually, output, text};
use tests::leaks::Snapshot;

use crate::streams as pod_streams;

pub const FLAGS: &[&str] = &["--nodes", "3"];

/// A pod of the echo server and where it is.
pub struct Placed {
    pub pod: String,
    pub address: String,
    pub node: Node,
}

/// A pod of the echo server on each node, Ready.
pub fn one_on_each(kubectl: &Kubectl<'_>) -> Vec<Placed> {
    let nodes = kubectl.cluster.nodes();
    for (number, node) in nodes.iter().enumerate() {
        let place = format!(r#"{{"spec":{{"nodeSelector":{{"kubernetes.io/hostname":"{}"}}}}}}"#, node.name);
        let name = format!("on-{}", number + 1);
        kubectl.run(&["run", &name, "--image", images::ECHO, "--labels=app=each", "--overrides", &place]);
    }
    placed(kubectl)
}

/// The pods of `one_on_each`, once they are Ready.
fn placed(kubectl: &Kubectl<'_>) -> Vec<Placed> {
    kubectl.run(&["wait", "--for=condition=Ready", "pod", "-l", "app=each", "--timeout=60s"]);
    let nodes = kubectl.cluster.nodes();
    let of = |(number, node): (usize, Node)| {
        let pod = format!("on-{}", number + 1);
        let address = kubectl.field(&format!("pod/{pod}"), "{.status.podIP}");
        Placed { pod, address, node }
    };
    nodes.into_iter().enumerate().map(of).collect()
}

/// A field of what the echo server answered.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.split(&format!("\"{name}\":\"")).nth(1)?.split('"').next()
}

fn get(kubectl: &Kubectl<'_>, from: &str, url: &str) -> Result<String, String> {
    kubectl.try_run(&["exec", from, "--", "/echo", "get", url])
}

/// The pods that answer on a URL, asked until there are `count` of them.
fn answering(what: &str, count: usize, ask: impl Fn() -> Option<String>) {
    let mut seen = BTreeSet::new();
    eventually(what, Duration::from_secs(20), || {
        seen.extend(ask().and_then(|answer| field(&answer, "pod").map(str::to_owned)));
        (seen.len() == count).then_some(())
    });
}

pub fn ready(kubectl: &Kubectl<'_>) {
    let cluster = kubectl.cluster;
    let again = cluster.bosun_up(FLAGS);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(text(&again.stderr).contains("runs already"), "{}", text(&again.stderr));
    let other = cluster.bosun_up(&["--nodes", "2", "--racks", "1"]);
    let said = text(&other.stderr);
    assert!(said.contains("--nodes is 3, asked was 2; --racks is 0, asked was 1"), "{said}");
    let status = text(&cluster.bosun(&["status"]).stdout);
    for node in cluster.nodes() {
        assert!(status.lines().any(|line| [&node.name, &node.address, "Running"].iter().all(|w| line.contains(*w))));
    }
    // Each node has addresses of its own, and gives its pods none but those.
    let nodes = kubectl.json(&["get", "nodes"]);
    let nodes = nodes["items"].as_array().unwrap();
    let range = |node: &Value| node["spec"]["podCIDR"].as_str().unwrap().to_owned();
    assert_eq!(nodes.iter().map(range).collect::<BTreeSet<_>>().len(), 3);
    kubectl.echo("web", 6);
    let pods = kubectl.json(&["get", "pods", "-l", "app=web"]);
    let mut used = BTreeSet::new();
    for pod in pods["items"].as_array().unwrap() {
        let name = pod["spec"]["nodeName"].as_str().unwrap();
        let node = nodes.iter().find(|node| node["metadata"]["name"] == name).unwrap();
        let address: IpAddr = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
        let range = range(node);
        let prefix = range.trim_end_matches("0/24");
        assert!(address.to_string().starts_with(prefix), "{address} on {name} is not of {range}");
        used.insert(name.to_owned());
    }
    assert_eq!(used.len(), 3, "the pods spread");
}

/// Pods reach pods, Services and the API server from every node, and every node's port leads to all of them.
pub fn reach(kubectl: &Kubectl<'_>) {
    let pods = one_on_each(kubectl);
    kubectl.run(&["create", "service", "nodeport", "each", "--tcp=80:8080"]);
    reach_each_other(kubectl, &pods);
}

pub fn reach_each_other(kubectl: &Kubectl<'_>, pods: &[Placed]) {
    let cluster = kubectl.cluster;
    let cluster_ip = kubectl.try_run(&["get", "service", "each", "-o", "jsonpath={.spec.clusterIP}"]);
    for from in pods {
        for to in pods {
            let url = format!("http://{}:8080/", to.address);
            let answer = eventually(&format!("{} to reach {}", from.pod, to.pod), Duration::from_secs(10), || {
                get(kubectl, &from.pod, &url).ok()
            });
            assert_eq!(field(&answer, "pod"), Some(&*to.pod));
            // The server's socket is one of both families: `[::ffff:10.244.0.2]:40000`.
            let seen = field(&answer, "from").unwrap();
            assert!(seen.contains(&format!(":{}]:", from.address)), "{} comes as {seen}", from.address);
            let by_node = cluster.inside_of(&from.node.name, &["curl", "-s", "--max-time", "2", &url]);
            assert_eq!(field(&text(&by_node.stdout), "pod"), Some(&*to.pod), "node {} reaches pods", from.node.name);
        }
        // It speaks TLS alone: what matters is that somebody is there.
        let said = get(kubectl, &from.pod, "http://10.96.0.1:443/").unwrap_or_else(|said| said);
        assert!(!said.contains("timed out") && !said.contains("refused") && !said.contains("unreachable"), "{said}");
        if let Ok(ip) = &cluster_ip {
            let url = format!("http://{ip}/");
            answering("all pods by the Service", pods.len(), || get(kubectl, &from.pod, &url).ok());
        }
    }
    if cluster_ip.is_ok() {
        let port = kubectl.field("service/each", "{.spec.ports[0].nodePort}");
        for node in cluster.nodes() {
            let url = format!("http://{}:{port}/", node.address);
            answering("all pods by a node's port", pods.len(), || Some(cluster.curl(&url)));
        }
    }
}

/// The API server finds the agent of every node.
pub fn streams(kubectl: &Kubectl<'_>) {
    for Placed { pod, .. } in one_on_each(kubectl) {
        assert_eq!(kubectl.run(&["exec", &pod, "--", "/echo", "print", "a", "b"]), "a b\n");
        let back = kubectl.with_input(&["exec", "-i", &pod, "--", "/echo", "cat"], "through\n");
        assert_eq!(back.as_deref(), Ok("through\n"));
        assert!(kubectl.run(&["logs", &pod]).starts_with("listening on 8080\n"));
        pod_streams::forward(kubectl, &pod);
    }
}

pub fn images(kubectl: &Kubectl<'_>) {
    let (cluster, nodes) = (kubectl.cluster, kubectl.cluster.nodes());
    let archive = cluster.folder.path().join("echo.tar");
    fs::write(&archive, images::echo_archive()).unwrap();
    let said = cluster.load(&archive);
    assert!(nodes.iter().all(|node| said.contains(&node.name)), "{said}");
    let archive = archive.display().to_string();
    let one = text(&cluster.bosun(&["image", "load", &archive, "--node", &nodes[1].name]).stderr);
    assert!(one.lines().count() == 1 && one.contains(&nodes[1].name), "{one}");
    let none = cluster.bosun(&["image", "load", &archive, "--node", "nosuch"]);
    assert!(!none.status.success() && text(&none.stderr).contains("has no such node"), "{}", text(&none.stderr));
}

pub fn drain(kubectl: &Kubectl<'_>) {
    let node = kubectl.cluster.nodes().swap_remove(2).name;
    kubectl.echo("web", 6);
    let on_node = || {
        let field = format!("spec.nodeName={node}");
        kubectl.run(&["get", "pods", "-l", "app=web", "--field-selector", &field, "-o", "name"]).lines().count()
    };
    assert!(on_node() > 0);
    kubectl.run(&["drain", &node, "--pod-selector=app=web", "--timeout=60s"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(on_node(), 0, "the pods are on the other nodes");
    kubectl.run(&["uncordon", &node]);
    kubectl.run(&["scale", "deployment", "web", "--replicas=9"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert!(on_node() > 0, "the node takes pods again");
}

pub fn agent_killed(kubectl: &Kubectl<'_>) {
    let (cluster, pods) = (kubectl.cluster, one_on_each(kubectl));
    let node = &pods[1].node.name;
    let agent = || {
        let found = text(&cluster.inside_of(node, &["pgrep", "-f", "^[^ ]*bosun agent"]).stdout);
        Some(found.trim().to_owned()).filter(|pid| !pid.is_empty())
    };
    let container = || kubectl.field(&format!("pod/{}", pods[1].pod), "{.status.containerStatuses[0].containerID}");
    let (before, pid) = (container(), agent().expect("the agent runs"));
    assert!(cluster.inside_of(node, &["kill", "-KILL", &pid]).status.success());
    eventually("another agent", Duration::from_secs(20), || agent().filter(|new| *new != pid));
    reach_each_other(kubectl, &pods);
    let place = format!(r#"{{"spec":{{"nodeSelector":{{"kubernetes.io/hostname":"{node}"}}}}}}"#);
    kubectl.pod("after", &["--overrides", &place]);
    assert_eq!(container(), before, "no container was restarted");
}

/// SIGKILL to a node's PID 1 is what a power cut is to a machine.
fn cut(cluster: &Cluster, nodes: &[&Node]) {
    for node in nodes {
        let pid = cluster.init_of(&node.name).to_string();
        assert!(output("kill", &["-KILL", &pid]).status.success());
    }
    eventually("the nodes to be seen as stopped", Duration::from_secs(10), || {
        let status = text(&cluster.bosun(&["status"]).stdout);
        (status.lines().filter(|line| line.contains("Stopped")).count() == nodes.len()).then_some(())
    });
}

fn resume(cluster: &Cluster, flags: &[&str]) {
    let resumed = cluster.bosun_up(flags);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
}

/// Waits until the containers of pods that died with their node were started again.
fn started_again(kubectl: &Kubectl<'_>, pods: &[&Placed]) {
    for Placed { pod, .. } in pods {
        eventually("the pod to run again", Duration::from_secs(60), || {
            let alive = kubectl.try_run(&["exec", pod, "--", "/echo", "print", "alive"]);
            (alive.as_deref() == Ok("alive\n")).then_some(())
        });
    }
}

pub fn reboot(kubectl: &Kubectl<'_>) {
    let (cluster, pods) = (kubectl.cluster, one_on_each(kubectl));
    cut(cluster, &[&pods[2].node]);
    // The others do not miss it.
    reach_each_other(kubectl, &pods[..2]);
    resume(cluster, FLAGS);
    started_again(kubectl, &[&pods[2]]);
    reach_each_other(kubectl, &placed(kubectl));
}

pub fn power_cut(kubectl: &Kubectl<'_>) {
    let (cluster, pods) = (kubectl.cluster, one_on_each(kubectl));
    cut(cluster, &pods.iter().map(|placed| &placed.node).collect::<Vec<_>>());
    resume(cluster, FLAGS);
    started_again(kubectl, &pods.iter().collect::<Vec<_>>());
    reach_each_other(kubectl, &placed(kubectl));
}

/// Behind routers, and gone without a trace.
pub fn racks() {
    let before = Snapshot::take();
    let flags = ["--nodes", "3", "--racks", "2"];
    let cluster = Cluster::up("racks", &flags);
    let kubectl = cluster.namespace("racks");
    let zones = kubectl.run(&["get", "nodes", "-L", "topology.kubernetes.io/zone", "--no-headers"]);
    let zones: Vec<&str> = zones.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(zones, ["rack-1", "rack-2", "rack-1"]);
    let subnet = |node: &Node| node.address.rsplit('.').next().unwrap().parse::<u8>().unwrap() / 32;
    let nodes = cluster.nodes();
    assert_eq!(nodes.iter().map(subnet).collect::<Vec<_>>(), [1, 2, 1], "a rack is a subnet: {nodes:?}");
    assert!(text(&cluster.bosun_up(&["--nodes", "3"]).stderr).contains("--racks is 2, asked was 0"));
    let pods = one_on_each(&kubectl);
    kubectl.run(&["create", "service", "nodeport", "each", "--tcp=80:8080"]);
    reach_each_other(&kubectl, &pods);
    // All of a rack.
    cut(&cluster, &[&pods[1].node]);
    resume(&cluster, &flags);
    started_again(&kubectl, &[&pods[1]]);
    reach_each_other(&kubectl, &placed(&kubectl));
    drop(kubectl);
    drop(cluster);
    before.assert_same();
}
