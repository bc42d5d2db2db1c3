//! Many pods come and go on three nodes, with network policies and Services over them: everything is as before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use tests::bed::{Cluster, Kubectl, eventually};
use tests::counts::{self, Counts};

use crate::routes::{configure, settled};
use crate::soak;

/// The longest that a closed TCP connection is tracked (net.netfilter.nf_conntrack_tcp_timeout_time_wait), and some.
const TIME_WAIT: Duration = Duration::from_secs(140);
/// A client of the API closes a connection that nobody used for 90 s.
const IDLE: Duration = Duration::from_secs(100);
/// How much of its memory a daemon may keep of pods that are gone, in kB; the API server has their Events for an hour.
const MEMORY: usize = 4 << 10;
const MEMORY_OF_EVENTS: usize = 24 << 10;

pub fn pods(kubectl: &Kubectl<'_>) {
    let is_long = std::env::var_os("BOSUN_LONG").is_some();
    let (batches, size) = if is_long { (10, 51) } else { (2, 30) };
    let cluster = kubectl.cluster;
    configure(kubectl, r#"{"mode":"vxlan"}"#);
    settled(cluster, "vxlan");
    kubectl.apply(OBJECTS);
    // What the first pods of all leave is there for ever: frames of tables, a process's caches.
    batch(kubectl, size);
    let before = at_rest(kubectl);
    let (memory, begin) = (processes(cluster), Instant::now());
    for number in 0..batches {
        batch(kubectl, size);
        println!("{} pods in {:.0} s", (number + 1) * size, begin.elapsed().as_secs_f32());
    }
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let differs = differences(&before, &at_rest(kubectl));
        if differs.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "not as before:\n{}", differs.join("\n"));
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_memory(cluster, &memory);
    no_flows(kubectl, "udp", Duration::from_secs(5));
    if is_long {
        no_flows(kubectl, "tcp", TIME_WAIT);
    }
    configure(kubectl, r#"{"mode":"host-gw"}"#);
    settled(cluster, "host-gw");
}

/// A Service that every node forwards TCP and UDP for, and policies of which each names all the pods in another way.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: many}
spec:
  type: NodePort
  selector: {app: many}
  ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, port: 53, protocol: UDP, targetPort: 5353}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-anywhere}
spec: {podSelector: {matchLabels: {app: many}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: among-themselves}
spec:
  podSelector: {matchLabels: {app: many}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: many}}}], ports: [{port: 8080}]}]
  egress: [{to: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: Exists}]}}]}]
"#;

/// So many pods come, are asked, and go.
fn batch(kubectl: &Kubectl<'_>, size: usize) {
    let image = images::ECHO;
    kubectl.apply(&format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: many}}
spec:
  replicas: {size}
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec:
      containers: [{{name: echo, image: {image}, env: [{{name: UDP_PORT, value: '5353'}}]}}]
"#
    ));
    kubectl.run(&["rollout", "status", "deployment/many", "--timeout=180s"]);
    ask(kubectl);
    kubectl.run(&["scale", "deployment", "many", "--replicas=0"]);
    eventually("the pods to be gone", Duration::from_secs(120), || {
        kubectl.run(&["get", "pods", "-l", "app=many", "-o", "name"]).is_empty().then_some(())
    });
}

/// Leaves flows to many of the pods on every node.
fn ask(kubectl: &Kubectl<'_>) {
    let port = |name: &str| kubectl.field("service/many", &format!("{{.spec.ports[?(@.name==\"{name}\")].nodePort}}"));
    let (tcp, udp) = (port("tcp"), port("udp"));
    for node in kubectl.cluster.nodes() {
        eventually("the Service to answer", Duration::from_secs(20), || {
            (kubectl.cluster.curl(&format!("http://{}:{tcp}/healthz", node.address)) == "ok\n").then_some(())
        });
        let answers = (0..20).filter(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.connect(format!("{}:{udp}", node.address)).unwrap();
            let asked = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 256])).is_ok();
            let answered = kubectl.cluster.curl(&format!("http://{}:{tcp}/healthz", node.address)) == "ok\n";
            asked && answered
        });
        assert!(answers.count() >= 19, "the pods answer by node {}", node.name);
    }
}

/// The counts of each node, once nothing is left over of a pod.
fn at_rest(kubectl: &Kubectl<'_>) -> BTreeMap<String, Counts> {
    let nodes = kubectl.cluster.nodes();
    for node in &nodes {
        soak::at_rest(kubectl, &node.name);
    }
    nodes.into_iter().map(|node| (node.name.clone(), counts::of_node(kubectl.cluster, &node.name))).collect()
}

fn differences(before: &BTreeMap<String, Counts>, after: &BTreeMap<String, Counts>) -> Vec<String> {
    let mut differs = Vec::new();
    for (node, before) in before {
        let after = &after[node];
        let kinds: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for kind in kinds {
            let [was, is] = [before, after].map(|counts| counts.get(kind).copied().unwrap_or(0));
            if was != is {
                differs.push(format!("{node}: {is} {kind}, and there were {was}"));
            }
        }
    }
    differs
}

/// What each daemon has open, and how much memory in kB, by its process.
type Processes = BTreeMap<u32, (String, usize, usize)>;

fn processes(cluster: &Cluster) -> Processes {
    // Freed memory is given back every 15 s.
    std::thread::sleep(Duration::from_secs(16));
    let of = |(pid, words): (u32, String)| {
        let (files, memory) = counts::of_process(pid)?;
        let name = words.split(" --").next().unwrap_or_default().to_owned();
        Some((pid, (name, files, memory)))
    };
    soak::daemons(cluster).into_iter().filter_map(of).collect()
}

/// No daemon keeps files or memory of pods that are gone, once clients have closed the connections that idle.
fn assert_memory(cluster: &Cluster, before: &Processes) {
    let until = Instant::now() + IDLE;
    loop {
        let grown = grown(before, &processes(cluster));
        if grown.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{}", grown.join("\n"));
    }
}

fn grown(before: &Processes, after: &Processes) -> Vec<String> {
    let mut grown = Vec::new();
    for (pid, (name, files, memory)) in before {
        let Some((_, files_after, memory_after)) = after.get(pid) else {
            grown.push(format!("{name} has ended"));
            continue;
        };
        println!("{name}: {files} files and {memory} kB, then {files_after} files and {memory_after} kB");
        let most = if name.contains("apiserver") { MEMORY_OF_EVENTS } else { MEMORY };
        // Connections come and go; a leak is one for each pod.
        if *files_after > files + 10 || *memory_after > memory + most {
            grown.push(format!("{name} has grown from {files} files, {memory} kB to {files_after}, {memory_after} kB"));
        }
    }
    grown
}

/// Waits until no node tracks a flow of a pod that is gone.
fn no_flows(kubectl: &Kubectl<'_>, protocol: &str, patience: Duration) {
    let addresses = kubectl.run(&["get", "pods", "-A", "-o", "jsonpath={.items[*].status.podIP}"]);
    let addresses: BTreeSet<String> = addresses.split(' ').map(str::to_owned).collect();
    let until = Instant::now() + patience;
    for node in kubectl.cluster.nodes() {
        loop {
            let flows = counts::foreign_flows(kubectl.cluster, &node.name, protocol, &addresses);
            if flows.is_empty() {
                break;
            }
            let late = Instant::now() > until;
            assert!(!late, "node {} tracks flows of pods that are gone:\n{}", node.name, flows.join("\n"));
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}
