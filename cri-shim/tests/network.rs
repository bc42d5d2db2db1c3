//! Pods on a real network, in a network and a mount namespace of the test's own: bosun's plugins, and the reference
//! ones where Debian's containernetworking-plugins has installed them.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for other code

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cri::v1::{PodSandboxConfig, PodSandboxMetadata, PortMapping};
use cri_shim::cni::{Attachment, Network, NetworkSettings};
use cri_shim::sandbox::namespaces::{Defaults, dial, plan};
use cri_shim::stats;
use kernel::namespaces::{Pinned, pin, pinned, unpin};
use kernel::netlink::{Address, Kernel, LinkChange, Network as _};
use kernel::netns::Netns;
use serde_json::{Value, json};

const NODE: &str = "192.0.2.1";
const HOST_PORT: u16 = 8080;

/// A node: its folders, and the thread that runs the test is in its namespaces.
struct Node {
    folder: PathBuf,
    network: Network,
}

struct Pod {
    id: String,
    folder: PathBuf,
    attachment: Attachment,
    address: IpAddr,
}

/// bosun's plugins, installed from the binary that lies beside this test.
fn bosun(folder: &Path) -> Option<PathBuf> {
    let exe = std::env::current_exe().unwrap();
    let program = exe.parent()?.parent()?.join("bosun-cni");
    let plugins = folder.join("bin");
    let made = Command::new(&program).arg("install").arg(&plugins).status().is_ok_and(|status| status.success());
    made.then_some(plugins)
}

/// Runs the test as a node, on a thread whose descendants are all in namespaces of its own.
fn on_a_node(
    what: &str,
    plugins: impl FnOnce(&Path) -> Option<PathBuf> + Send + 'static,
    config: Value,
    test: impl AsyncFnOnce(&Node) + Send + 'static,
) {
    let Ok(netns) = Netns::anonymous() else { return eprintln!("SKIPPED {what}: needs root") };
    let folder = std::env::temp_dir().join(format!("cri-network-{what}-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("conf")).unwrap();
    let Some(bin) = plugins(&folder) else {
        std::fs::remove_dir_all(&folder).unwrap();
        return eprintln!(
            "SKIPPED {what}: its plugins are not there (cargo build -p cni-plugins, containernetworking-plugins)"
        );
    };
    let work = move || {
        netns.enter().unwrap();
        kernel::mount::own_namespace().unwrap();
        outside();
        let mut config = config;
        config["plugins"][0]["ipam"]["dataDir"] = folder.join("ipam").display().to_string().into();
        std::fs::write(folder.join("conf/10-pods.conflist"), config.to_string()).unwrap();
        let settings = NetworkSettings {
            conf_dir: folder.join("conf"),
            bin_dirs: vec![bin],
            cache_dir: folder.join("cache"),
            netns_dir: folder.join("sandboxes"),
            exclusive: true,
            ..NetworkSettings::default()
        };
        let node = Node { network: Network::new(settings), folder: folder.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(&node));
        drop(runtime);
        std::fs::remove_dir_all(&folder).unwrap();
    };
    std::thread::spawn(work).join().unwrap();
}

/// The node's address, for host ports.
fn outside() {
    let mut network = Kernel::open().unwrap();
    network.add_bridge("outside", None).unwrap();
    for (name, address) in [("lo", "127.0.0.1/8"), ("outside", "192.0.2.1/24")] {
        let link = network.link(name).unwrap().unwrap();
        let _ = network.add_address(Address { link: link.index, net: address.parse().unwrap() });
        network.change_link(link.index, LinkChange { up: Some(true), ..Default::default() }).unwrap();
    }
}

impl Node {
    fn ns(&self, id: &str) -> PathBuf {
        self.folder.join("sandboxes").join(id).join("ns")
    }

    /// A sandbox as the shim makes it: namespaces, then the network.
    async fn pod(&self, id: &str, host_port: u16) -> Pod {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: id.into(), namespace: "default".into(), ..Default::default() }),
            hostname: id.into(),
            port_mappings: vec![PortMapping { container_port: 80, host_port: host_port.into(), ..Default::default() }],
            annotations: [("kubernetes.io/ingress-bandwidth".to_owned(), "100M".to_owned())].into(),
            ..Default::default()
        };
        let request = plan(&config, Defaults::default()).unwrap();
        let pinned = pin(&self.ns(id), &request).unwrap();
        let attachment = Attachment::of(id, pinned.net.as_ref().unwrap(), &config).unwrap();
        let outcome = self.network.add(&attachment).await.unwrap();
        Pod { id: id.into(), folder: self.ns(id), attachment, address: outcome.ips[0] }
    }

    async fn end(&self, pod: &Pod) {
        self.network.del(&pod.attachment).await.unwrap();
        unpin(&pod.folder).unwrap();
        std::fs::remove_dir(self.folder.join("sandboxes").join(&pod.id)).unwrap();
    }

    fn links(&self) -> Vec<String> {
        Kernel::open().unwrap().links().unwrap().into_iter().map(|link| link.name).collect()
    }

    fn reserved(&self) -> usize {
        let entries = std::fs::read_dir(self.folder.join("ipam/pods")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().parse::<IpAddr>().is_ok()).count()
    }

    fn cached(&self) -> usize {
        std::fs::read_dir(self.folder.join("cache/results")).map_or(0, Iterator::count)
    }
}

impl Pod {
    fn netns(&self) -> Netns {
        Netns::open(&self.attachment.netns).unwrap()
    }

    /// Answers one connection to port 80 with the pod's name.
    fn serve(&self) -> std::thread::JoinHandle<()> {
        let (listener, name) =
            (self.netns().run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap(), self.id.clone());
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(name.as_bytes()).unwrap())
    }
}

fn heard(stream: std::io::Result<std::net::TcpStream>) -> String {
    let mut text = String::new();
    let mut stream = stream.unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// `checks_ports`: the reference portmap 1.1.1 looks for the IPv4 rules in the IPv6 table when it checks a pod with
/// ports.
async fn two_pods(node: &Node, checks_ports: bool) {
    let second = Duration::from_secs(5);
    node.network.status().await.unwrap();
    let before = node.links();
    let (one, two) = (node.pod("one", 0).await, node.pod("two", HOST_PORT).await);
    assert_ne!(one.address, two.address);
    assert!(one.address.is_ipv4());
    assert_eq!((node.reserved(), node.cached()), (4, 2));

    let server = two.serve();
    let there = SocketAddr::from((two.address, 80));
    assert_eq!(heard(one.netns().connect(&[there], second)), "two", "from pod to pod");
    server.join().unwrap();
    let server = two.serve();
    let port = SocketAddr::from((NODE.parse::<IpAddr>().unwrap(), HOST_PORT));
    assert_eq!(heard(one.netns().connect(&[port], second)), "two", "by the host port");
    server.join().unwrap();
    let server = two.serve();
    let dialled = dial(Some(&two.attachment.netns), 80).await.unwrap().into_std().unwrap();
    dialled.set_nonblocking(false).unwrap();
    assert_eq!(heard(Ok(dialled)), "two", "by the pod's loopback");
    server.join().unwrap();

    let counted = stats::links(&two.attachment.netns);
    assert!(counted.iter().any(|link| link.name == "eth0" && link.rx_bytes > 0 && link.tx_bytes > 0), "{counted:?}");

    node.network.check(&one.attachment).await.unwrap();
    if checks_ports {
        node.network.check(&two.attachment).await.unwrap();
    }
    one.netns()
        .run(|| {
            let mut network = Kernel::open().unwrap();
            let index = network.link("eth0").unwrap().unwrap().index;
            let addresses = network.addresses().unwrap();
            for address in addresses.into_iter().filter(|address| address.link == index && address.net.is_ipv4()) {
                assert!(network.delete_address(address).unwrap());
            }
        })
        .unwrap();
    let error = node.network.check(&one.attachment).await.unwrap_err().to_string();
    assert!(error.contains("failed CHECK"), "{error}");

    node.end(&one).await;
    // The second goes as after a reboot: its namespace first.
    unpin(&two.folder).unwrap();
    assert_eq!(pinned(&two.folder), Pinned::default());
    node.end(&two).await;
    node.network.del(&two.attachment).await.unwrap();
    assert_eq!((node.reserved(), node.cached()), (0, 0));
    let bridge = "cni-test";
    let after: Vec<String> =
        node.links().into_iter().filter(|name| name != bridge && !name.starts_with("ifb")).collect();
    assert_eq!(after, before);
}

fn list(version: &str, more: Value) -> Value {
    let mut plugins = vec![json!({
        "type": "bridge", "bridge": "cni-test", "isDefaultGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]},
    })];
    plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
    plugins.extend(more.as_array().cloned().unwrap_or_default());
    json!({"cniVersion": version, "name": "pods", "plugins": plugins})
}

#[test]
fn bosuns_plugins_join_pods() {
    on_a_node("bosun", bosun, list("1.1.0", json!([])), async |node: &Node| two_pods(node, true).await);
}

#[test]
fn the_reference_plugins_join_pods() {
    let there = |_: &Path| Some(PathBuf::from("/usr/lib/cni")).filter(|folder| folder.join("bridge").exists());
    // Theirs of version 1.1 speak 1.0.0 at most. The bandwidth plugin shapes a pod by the annotation that each has.
    let more = json!([{"type": "bandwidth", "capabilities": {"bandwidth": true}}]);
    on_a_node("reference", there, list("1.0.0", more), async |node: &Node| two_pods(node, false).await);
}

#[test]
fn what_a_dead_pod_held_is_collected() {
    on_a_node("gc", bosun, list("1.1.0", json!([])), async |node: &Node| {
        let (one, two) = (node.pod("one", 0).await, node.pod("two", 0).await);
        // As another process finds it whose predecessor lost a pod: the namespace is gone, and for one pod the cache
        // too.
        unpin(&one.folder).unwrap();
        let fresh = || {
            Network::new(NetworkSettings {
                conf_dir: node.folder.join("conf"),
                bin_dirs: vec![node.folder.join("bin")],
                cache_dir: node.folder.join("cache"),
                netns_dir: node.folder.join("sandboxes"),
                exclusive: true,
                ..NetworkSettings::default()
            })
        };
        fresh().gc(BTreeSet::from(["two".to_owned()])).await.unwrap();
        assert_eq!((node.reserved(), node.cached()), (2, 1));
        node.network.check(&two.attachment).await.unwrap();
        std::fs::remove_dir_all(node.folder.join("cache")).unwrap();
        unpin(&two.folder).unwrap();
        fresh().gc(BTreeSet::new()).await.unwrap();
        assert_eq!(node.reserved(), 0);
    });
}
