//! The net daemon on a cluster of three nodes: each mode, what its death and others' hands do to the kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::bed::{Cluster, Kubectl, Node, eventually, text};

use crate::several_nodes::{Placed, one_on_each, reach_each_other};

const CONFIG: [&str; 4] = ["--namespace", "kube-system", "configmap", "bosun-net"];

pub fn configure(kubectl: &Kubectl<'_>, data: &str) {
    let patch = format!(r#"{{"data":{data}}}"#);
    kubectl.run(&[&["patch"], &CONFIG[..], &["--type=merge", "-p", &patch]].concat());
}

fn routes(cluster: &Cluster, node: &Node) -> String {
    text(&cluster.bosun(&["net", "routes", "--node", &node.name]).stdout)
}

/// Waits until the daemon of each node has done with that mode.
pub fn settled(cluster: &Cluster, mode: &str) {
    for node in cluster.nodes() {
        let what = format!("node {} to have mode {mode}", node.name);
        eventually(&what, Duration::from_secs(20), || {
            let told = routes(cluster, &node);
            let done = told.starts_with(&format!("mode {mode}\n")) && told.matches("  yes").count() == 2;
            (done && !told.contains("problem:")).then_some(())
        });
    }
}

/// What the daemon keeps in the kernel of a node, as iproute2 and nft say it.
fn kernel(cluster: &Cluster, node: &Node) -> String {
    let commands: [&[&str]; 5] = [
        &["ip", "route", "show", "proto", "81"],
        &["ip", "-d", "link", "show", "type", "vxlan"],
        // Without a tunnel these fail, and say nothing.
        &["ip", "neigh", "show", "dev", "flannel.1", "nud", "permanent"],
        &["bridge", "fdb", "show", "dev", "flannel.1"],
        &["nft", "-s", "list", "table", "inet", "bosun-net"],
    ];
    let mut lines: Vec<String> = Vec::new();
    for command in commands {
        lines.extend(text(&cluster.inside_of(&node.name, command).stdout).lines().map(str::to_owned));
    }
    lines.sort();
    lines.join("\n")
}

pub fn daemon(cluster: &Cluster, node: &Node) -> Option<String> {
    let found = text(&cluster.inside_of(&node.name, &["pgrep", "-f", "^[^ ]*bosun net "]).stdout);
    Some(found.trim().to_owned()).filter(|pid| !pid.is_empty())
}

/// Every mode one after another on a running cluster; pods of before and of after reach one another.
pub fn modes(kubectl: &Kubectl<'_>) {
    let cluster = kubectl.cluster;
    let pods = one_on_each(kubectl);
    kubectl.run(&["create", "service", "nodeport", "each", "--tcp=80:8080"]);
    for mode in ["vxlan", "vxlan-cross-subnet", "bgp", "host-gw"] {
        configure(kubectl, &format!(r#"{{"mode":"{mode}"}}"#));
        settled(cluster, mode);
        reach_each_other(kubectl, &pods);
        let tunnels = text(&cluster.inside_of(&pods[0].node.name, &["ip", "link", "show", "type", "vxlan"]).stdout);
        assert_eq!(tunnels.contains("flannel.1"), mode.starts_with("vxlan"), "{mode}: {tunnels}");
        if mode == "bgp" {
            let peers = text(&cluster.bosun(&["net", "peers"]).stdout);
            assert_eq!(peers.matches("Established").count(), 2, "{peers}");
        }
    }
    let has = "jsonpath={.items[*].status.conditions[?(@.type=='NetworkUnavailable')].status}";
    assert_eq!(kubectl.run(&["get", "nodes", "-o", has]), "False False False");
    let left = kubectl.run(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.annotations}"]);
    assert!(!left.contains("flannel"), "annotations go with their tunnels: {left}");
}

/// SIGKILL, again and again, in each mode: the kernel stays as it is, what comes after it changes nothing, and no request
/// to a pod of another node fails.
pub fn killed(kubectl: &Kubectl<'_>) {
    let cluster = kubectl.cluster;
    let pods = one_on_each(kubectl);
    for mode in ["vxlan", "bgp", "host-gw"] {
        configure(kubectl, &format!(r#"{{"mode":"{mode}"}}"#));
        settled(cluster, mode);
        let node = &pods[1].node;
        let before = kernel(cluster, node);
        assert!(before.contains("10.244."), "{before}");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| asked(cluster, &pods[1], &pods[0], &over));
            for _ in 0..3 {
                let pid = eventually("a daemon", Duration::from_secs(20), || daemon(cluster, node));
                assert!(cluster.inside_of(&node.name, &["kill", "-KILL", &pid]).status.success());
                assert_eq!(kernel(cluster, node), before, "{mode}: while it is dead");
                eventually("another daemon", Duration::from_secs(20), || {
                    daemon(cluster, node).filter(|new| *new != pid)
                });
                settled(cluster, mode);
                assert_eq!(kernel(cluster, node), before, "{mode}: after its restart");
            }
            over.store(true, Ordering::Relaxed);
            let asked = asking.join().unwrap();
            assert!(asked > 10, "{mode}: {asked} requests");
        });
    }
}

/// Asks from the one's node for the other's pod, and the other way, until it is over; how often.
fn asked(cluster: &Cluster, one: &Placed, other: &Placed, over: &AtomicBool) -> usize {
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        for (from, to) in [(one, other), (other, one)] {
            let url = format!("http://{}:8080/", to.address);
            let answer = cluster.inside_of(&from.node.name, &["curl", "-s", "--max-time", "2", &url]);
            if !answer.status.success() {
                over.store(true, Ordering::Relaxed);
                panic!("{} does not reach {} any more", from.node.name, to.pod);
            }
            count += 1;
        }
    }
    count
}

/// What others remove comes back, and a node's end is followed within a second.
pub fn repaired(kubectl: &Kubectl<'_>) {
    let cluster = kubectl.cluster;
    let nodes = cluster.nodes();
    configure(kubectl, r#"{"mode":"vxlan"}"#);
    settled(cluster, "vxlan");
    let before = kernel(cluster, &nodes[0]);
    for (command, patience) in [
        ("ip route flush proto 81", 2),
        ("ip link del flannel.1", 2),
        ("ip link set flannel.1 down", 2),
        ("nft delete table inet bosun-net", 10),
        ("nft flush chain inet bosun-net postrouting", 10),
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        assert!(cluster.inside_of(&nodes[0].name, &words).status.success(), "{command}");
        eventually(&format!("{command} to be undone"), Duration::from_secs(patience), || {
            (without_index(&kernel(cluster, &nodes[0])) == without_index(&before)).then_some(())
        });
    }
    configure(kubectl, r#"{"mode":"host-gw"}"#);
    settled(cluster, "host-gw");
}

/// A node that is added, readdressed, gone: the other nodes' kernels follow within a second.
pub fn followed(kubectl: &Kubectl<'_>) {
    let cluster = kubectl.cluster;
    let nodes = cluster.nodes();
    configure(kubectl, r#"{"mode":"host-gw"}"#);
    settled(cluster, "host-gw");
    let lan = nodes[0].address.rsplit_once('.').unwrap().0;
    let ghost = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"ghost"},"spec":{"podCIDR":"10.244.200.0/24","podCIDRs":["10.244.200.0/24"]}}"#;
    kubectl.with_input(&["create", "-f", "-"], ghost).unwrap();
    let address = |host: &str| {
        let status = format!(r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{lan}.{host}"}}]}}}}"#);
        kubectl.run(&["patch", "node", "ghost", "--subresource=status", "--type=merge", "-p", &status]);
    };
    let within_a_second = |what: &str, wanted: Option<String>| {
        let changed = Instant::now();
        for node in &nodes {
            eventually(what, Duration::from_secs(1), || {
                let route = text(&cluster.inside_of(&node.name, &["ip", "route", "show", "10.244.200.0/24"]).stdout);
                match &wanted {
                    Some(gateway) => route.contains(&format!("via {gateway} ")),
                    None => route.is_empty(),
                }
                .then_some(())
            });
        }
        eprintln!("{what}: {} nodes within {} ms", nodes.len(), changed.elapsed().as_millis());
    };
    address("98");
    within_a_second("a node that is added", Some(format!("{lan}.98")));
    address("99");
    within_a_second("a node that moves", Some(format!("{lan}.99")));
    kubectl.run(&["delete", "node", "ghost", "--wait=false"]);
    within_a_second("a node that is gone", None);
}

/// A link that was made anew has another index.
fn without_index(kernel: &str) -> Vec<String> {
    let bare = |line: &str| match line.split_once(": ") {
        Some((number, rest)) if number.parse::<u32>().is_ok() => rest.to_owned(),
        _ => line.to_owned(),
    };
    let mut lines: Vec<String> = kernel.lines().map(bare).collect();
    lines.sort();
    lines
}

/// One line names key and remedy, on every node, and what was said before goes on.
pub fn bad_config(kubectl: &Kubectl<'_>) {
    let cluster = kubectl.cluster;
    configure(kubectl, r#"{"mode":"host-gw"}"#);
    settled(cluster, "host-gw");
    let before = kernel(cluster, &cluster.nodes()[0]);
    configure(kubectl, r#"{"natOutgoing":"perhaps"}"#);
    let told = "natOutgoing: \"perhaps\" must be true or false; what was said before it still holds";
    for node in cluster.nodes() {
        eventually("an Event of the node", Duration::from_secs(20), || {
            let field = format!("--field-selector=involvedObject.name={}", node.name);
            let events = kubectl.run(&["get", "events", "--namespace", "default", &field]);
            events.contains(told).then_some(())
        });
        assert!(routes(cluster, &node).contains(told));
    }
    assert_eq!(kernel(cluster, &cluster.nodes()[0]), before);
    configure(kubectl, r#"{"natOutgoing":null}"#);
    settled(cluster, "host-gw");
}
