//! Traffic between nodes while the daemons that made its way die: what the kernel holds carries it on.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kernel::netns::Netns;
use tests::bed::{Cluster, Kubectl, Node, eventually, output, text};
use tests::traffic::Traffic;

use crate::routes::{configure, settled};
use crate::several_nodes::{Placed, one_on_each};
use crate::soak::daemons;

fn is_long() -> bool {
    std::env::var_os("BOSUN_LONG").is_some()
}

/// Net daemon and proxy of every node get SIGKILL again and again while Services change, in each mode.
pub fn killed(kubectl: &Kubectl<'_>) {
    let length = Duration::from_secs(if is_long() { 20 } else { 8 });
    let pods = one_on_each(kubectl);
    kubectl.run(&["create", "service", "nodeport", "each", "--tcp=80:8080"]);
    for mode in ["vxlan", "bgp", "host-gw"] {
        configure(kubectl, &format!(r#"{{"mode":"{mode}"}}"#));
        settled(kubectl.cluster, mode);
        // A supervisor waits longer from death to death.
        eventually("all daemons to be there", Duration::from_secs(20), || {
            (victims(kubectl.cluster).len() == 2 * pods.len()).then_some(())
        });
        println!("mode {mode}");
        let traffic = everywhere(kubectl, &pods);
        let kills = kill(kubectl, length);
        traffic.end();
        assert!(kills >= 2 * pods.len(), "only {kills} daemons were killed");
        println!("{kills} daemons were killed");
    }
    settled(kubectl.cluster, "host-gw");
    answers_everywhere(kubectl, &pods, "last");
}

/// Transfers, sessions and new connections: pod to pod, by cluster IP and by node port, from pods, nodes and outside.
fn everywhere(kubectl: &Kubectl<'_>, pods: &[Placed]) -> Traffic {
    let cluster = kubectl.cluster;
    let cluster_ip = SocketAddr::new(kubectl.field("service/each", "{.spec.clusterIP}").parse().unwrap(), 80);
    let node_port = kubectl.field("service/each", "{.spec.ports[0].nodePort}").parse().unwrap();
    answers_everywhere(kubectl, pods, "each");
    let inside: Vec<(Netns, IpAddr)> =
        pods.iter().map(|placed| (kubectl.netns(&placed.pod), placed.address.parse().unwrap())).collect();
    let outside = Netns::current().unwrap();
    let mut traffic = Traffic::default();
    for (number, placed) in pods.iter().enumerate() {
        let ((from, _), (to, address)) = (&inside[number], &inside[(number + 1) % pods.len()]);
        let (pod, next) = (&placed.pod, &pods[(number + 1) % pods.len()].pod);
        let on_node = cluster.netns_of(&placed.node.name);
        let by_port = SocketAddr::new(placed.node.address.parse().unwrap(), node_port);
        traffic.transfer(&format!("transfer from {pod} to {next}"), from, (to, *address));
        traffic.session(&format!("session of {pod} with the cluster IP"), from, cluster_ip);
        traffic.session(&format!("session with the port of node {}", number + 1), &outside, by_port);
        traffic.connections(&format!("connections from {pod} to {next}"), from, SocketAddr::new(*address, 8080));
        traffic.connections(&format!("connections from {pod} to the cluster IP"), from, cluster_ip);
        traffic.connections(&format!("connections from node {} to the cluster IP", number + 1), &on_node, cluster_ip);
        traffic.connections(&format!("connections to the port of node {}", number + 1), &outside, by_port);
    }
    traffic
}

/// Kills every net daemon and proxy there is each second, between them Services come and go; how many died.
fn kill(kubectl: &Kubectl<'_>, length: Duration) -> usize {
    let (mut kills, end) = (0, Instant::now() + length);
    for round in 0.. {
        let next = Instant::now() + Duration::from_secs(1);
        for pid in victims(kubectl.cluster) {
            // It may have ended by itself.
            kills += usize::from(output("kill", &["-KILL", &pid.to_string()]).status.success());
        }
        let is_last = Instant::now() >= end;
        let name = if is_last { "last".into() } else { format!("passing-{round}") };
        service(kubectl, &name);
        drop(kubectl.try_run(&["delete", "service", &format!("passing-{}", round - 1), "--wait=false"]));
        if is_last {
            break;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    kills
}

/// Net daemons and proxies.
fn victims(cluster: &Cluster) -> Vec<u32> {
    let is_victim = |words: &str| ["bosun net ", "bosun proxy "].iter().any(|daemon| words.starts_with(daemon));
    daemons(cluster).into_iter().filter(|(_, words)| is_victim(words)).map(|(pid, _)| pid).collect()
}

/// A Service of the pods of `one_on_each`.
fn service(kubectl: &Kubectl<'_>, name: &str) {
    let object = format!(
        r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "{name}"}}, "spec": {{
            "type": "NodePort", "selector": {{"app": "each"}}, "ports": [{{"port": 80, "targetPort": 8080}}]}}}}"#
    );
    kubectl.apply(&object);
}

/// Waits until the Service answers by its cluster IP and its node port on every node.
fn answers_everywhere(kubectl: &Kubectl<'_>, pods: &[Placed], service: &str) {
    let cluster = kubectl.cluster;
    let ip = kubectl.field(&format!("service/{service}"), "{.spec.clusterIP}");
    let port = kubectl.field(&format!("service/{service}"), "{.spec.ports[0].nodePort}");
    for Placed { node, .. } in pods {
        eventually(&format!("{service} by node {}", node.name), Duration::from_secs(30), || {
            let by_port = cluster.curl(&format!("http://{}:{port}/healthz", node.address));
            (by_port == "ok\n" && by_cluster_ip(cluster, node, &ip)).then_some(())
        });
    }
}

fn by_cluster_ip(cluster: &Cluster, node: &Node, ip: &str) -> bool {
    let url = format!("http://{ip}/healthz");
    text(&cluster.inside_of(&node.name, &["curl", "-s", "--max-time", "2", &url]).stdout) == "ok\n"
}

/// The proxies' processes stand still while Services and endpoints change, then die: the next ones begin with other rules
/// than the kernel holds. What did not change does not notice, what did is right on every node.
pub fn proxy_restarted(kubectl: &Kubectl<'_>) {
    let cluster = kubectl.cluster;
    let pods = one_on_each(kubectl);
    service(kubectl, "each");
    configure(kubectl, r#"{"mode":"host-gw"}"#);
    settled(cluster, "host-gw");
    for mode in if is_long() { &["nftables", "iptables"][..] } else { &["nftables"] } {
        println!("proxy in mode {mode}");
        proxies(cluster, mode, "-KILL");
        service(kubectl, "gone");
        answers_everywhere(kubectl, &pods, "gone");
        let gone = kubectl.field("service/gone", "{.spec.clusterIP}");
        let traffic = everywhere(kubectl, &pods);
        proxies(cluster, mode, "-STOP");
        kubectl.run(&["delete", "service", "gone"]);
        service(kubectl, &format!("new-{mode}"));
        // Pods that join behind the Service that is asked; none goes.
        let join = format!("joined-{mode}");
        kubectl.pod(&join, &["--labels=app=each"]);
        proxies(cluster, mode, "-KILL");
        answers_everywhere(kubectl, &pods, &format!("new-{mode}"));
        for Placed { node, .. } in &pods {
            eventually("the Service that is gone to be gone", Duration::from_secs(20), || {
                (!by_cluster_ip(cluster, node, &gone)).then_some(())
            });
        }
        std::thread::sleep(Duration::from_secs(2));
        traffic.end();
        kubectl.run(&["delete", "pod", &join, "--grace-period=1"]);
    }
    proxies(cluster, "nftables", "-KILL");
    answers_everywhere(kubectl, &pods, "each");
}

/// Sends a signal to all proxies; those that come after them run in `mode`.
fn proxies(cluster: &Cluster, mode: &str, signal: &str) {
    for node in cluster.nodes() {
        let file = format!("/proc/{}/root/run/bosun/proxy.yaml", cluster.init_of(&node.name));
        let config = std::fs::read_to_string(&file).unwrap();
        let changed: Vec<String> = config
            .lines()
            .map(|line| if line.starts_with("mode:") { format!("mode: {mode}\n") } else { format!("{line}\n") })
            .collect();
        std::fs::write(&file, changed.concat()).unwrap();
    }
    let found: Vec<u32> = daemons(cluster)
        .into_iter()
        .filter(|(_, words)| words.starts_with("bosun proxy "))
        .map(|(pid, _)| pid)
        .collect();
    assert!(!found.is_empty(), "the nodes have proxies");
    for pid in found {
        assert!(output("kill", &[signal, &pid.to_string()]).status.success());
    }
}
