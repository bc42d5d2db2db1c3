//! The programs of a node and how each is called.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use kernel::process::{Namespaces, inherit};

use super::config::{self, file};
use super::folders::PLUGINS;
use super::supervise::Spec;
use super::supervisor::Program;
use super::{containerd, registries};
use crate::cluster::{Cluster, Cri, Node, Paths};
use crate::relay::Secret;

/// What the registry relay is started with.
pub struct Relay {
    /// Where it runs.
    pub host: Namespaces,
    /// Where it listens: in the node.
    pub listener: TcpListener,
    pub address: SocketAddr,
    pub secret: Secret,
}

/// Everything that the node runs, in the order in which it starts.
///
/// # Errors
/// Where it is not known which program this is.
pub fn programs(cluster: &Cluster, node: &Node, relay: Relay) -> anyhow::Result<Vec<Program>> {
    let bosun = std::env::current_exe()?;
    let ours = |words: Vec<OsString>| {
        let bosun = bosun.clone();
        move || {
            let mut command = Command::new(&bosun);
            command.args(&words);
            Ok(command)
        }
    };
    let paths = cluster.paths();
    let relay = Rc::new(relay);
    let proxied = Rc::clone(&relay);
    let mut programs = vec![
        program("relay", 0, None, move || relay_command(&relay)),
        program("containerd", 0, None, {
            let relay = Rc::clone(&proxied);
            move || Ok(containerd_command(&relay))
        }),
        Program {
            spec: Spec { name: IMAGES, once: true, after: None, phase: 2 },
            command: Box::new(ours(words(&["node-images"]))),
        },
        program("agent", 2, Some(IMAGES), ours(agent(cluster, node))),
        program("net", 2, None, ours(net(&paths, node))),
        program("proxy", 2, None, ours(words(&["proxy", "--config", &file("proxy.yaml").to_string_lossy()]))),
    ];
    // The first node holds it.
    if cluster.nodes.first() == Some(node) {
        programs.push(program("control-plane", 1, None, ours(control_plane(cluster, node))));
        programs.push(Program {
            spec: Spec { name: "pod-network", once: true, after: None, phase: 2 },
            command: Box::new(ours(words(&["node-pod-network", "--cluster", &cluster.name]))),
        });
    }
    if cluster.settings.cri == Cri::Bosun {
        let command = ours(cri(cluster, node));
        programs.push(program("cri", 1, None, move || command().map(|command| behind(&proxied, command))));
    }
    Ok(programs)
}

/// The job that must have succeeded before a pod can start.
const IMAGES: &str = "images";

fn program(
    name: &'static str,
    phase: u8,
    after: Option<&'static str>,
    command: impl Fn() -> io::Result<Command> + 'static,
) -> Program {
    Program { spec: Spec { name, once: false, after, phase }, command: Box::new(command) }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn flag(name: &str, value: impl AsRef<Path>) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value.as_ref());
    flag
}

fn relay_command(relay: &Relay) -> io::Result<Command> {
    // By its open file: the host's mount namespace may know this program by another path.
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["relay", "--listener", &relay.listener.as_raw_fd().to_string()]);
    command.env("BOSUN_RELAY_SECRET", relay.secret.as_str());
    inherit(&mut command, &relay.listener);
    relay.host.enter(&mut command)?;
    Ok(command)
}

fn containerd_command(relay: &Relay) -> Command {
    let mut command = Command::new("containerd");
    command.arg("--config").arg(containerd::config_file());
    behind(relay, command)
}

fn cri(cluster: &Cluster, node: &Node) -> Vec<OsString> {
    vec![
        "cri".into(),
        flag("listen", config::runtime_endpoint(cluster)),
        flag("containerd", containerd::SOCKET),
        flag("cni-bin-dir", PLUGINS),
        flag("registry-config", registries::CERTS),
        flag("root", cluster.paths().node(&node.name).join("cri")),
        flag("state", "/run/bosun-cri"),
        flag("cgroup-driver", "cgroupfs"),
        // Nobody else makes pods in the node's network.
        "--cni-exclusive".into(),
    ]
}

/// A program that reaches registries through the relay.
fn behind(relay: &Relay, mut command: Command) -> Command {
    let proxy = format!("http://bosun:{}@{}", relay.secret.as_str(), relay.address);
    for name in ["HTTP_PROXY", "HTTPS_PROXY"] {
        command.env(name, &proxy).env_remove(name.to_lowercase());
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    command
}

fn control_plane(cluster: &Cluster, node: &Node) -> Vec<OsString> {
    let paths = cluster.paths();
    let certificate = |file: &str| paths.certificate(file);
    vec![
        "apiserver".into(),
        flag("advertise-address", node.address.to_string()),
        flag("secure-port", "6443"),
        flag("data-dir", paths.store()),
        flag("client-ca-file", certificate("ca.crt")),
        flag("tls-cert-file", certificate("apiserver.crt")),
        flag("tls-private-key-file", certificate("apiserver.key")),
        flag("kubelet-certificate-authority", certificate("ca.crt")),
        flag("kubelet-client-certificate", certificate("apiserver-kubelet-client.crt")),
        flag("kubelet-client-key", certificate("apiserver-kubelet-client.key")),
        // No DNS knows the node's name.
        flag("kubelet-preferred-address-types", "InternalIP,Hostname"),
        flag("service-account-key-file", certificate("sa.pub")),
        flag("service-account-signing-key-file", certificate("sa.key")),
        flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        flag("service-cluster-ip-range", config::service_networks(cluster)),
        "+".into(),
        "scheduler".into(),
        flag("kubeconfig", paths.kubeconfig("scheduler")),
        "+".into(),
        "controller-manager".into(),
        flag("kubeconfig", paths.kubeconfig("controller-manager")),
        flag("root-ca-file", certificate("ca.crt")),
        flag("allocate-node-cidrs", "true"),
        flag("cluster-cidr", config::pod_networks(cluster)),
    ]
}

fn agent(cluster: &Cluster, node: &Node) -> Vec<OsString> {
    let node_ips: Vec<String> = cluster.addresses_of(node).iter().map(ToString::to_string).collect();
    let mut words = vec![
        "agent".into(),
        flag("config", file("kubelet.yaml")),
        flag("kubeconfig", cluster.paths().node(&node.name).join("kubelet.conf")),
        flag("hostname-override", &node.name),
        flag("node-ip", node_ips.join(",")),
    ];
    words.extend(cluster.rack_of(node).map(|rack| flag("node-labels", format!("{ZONE}={}", rack.zone()))));
    words
}

/// The well-known label by which topology hints and node selectors tell racks apart.
const ZONE: &str = "topology.kubernetes.io/zone";

fn net(paths: &Paths, node: &Node) -> Vec<OsString> {
    vec![
        "net".into(),
        flag("kubeconfig", paths.node(&node.name).join("net.conf")),
        flag("hostname-override", &node.name),
        flag("cni-conf-dir", "/etc/cni/net.d"),
    ]
}
