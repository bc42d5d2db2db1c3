//! The plugins as a runtime runs them, on the real kernel in namespaces of the test's own, and beside the
//! reference plugins where `hack/peers` has built them.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for other code

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kernel::netlink::{Address, Kernel, LinkChange, Network};
use kernel::netns::{self, Netns};
use kernel::nftables::{Nft, Nftables};
use serde_json::{Value, json};

mod cases;
mod collection;
mod policy;
mod reference;
mod routed;
mod side;
mod state;

/// A node's namespace with one address for the outside, pods beside it, and a folder of plugins.
struct Bed {
    folder: PathBuf,
    plugins: PathBuf,
    node: Netns,
}

pub static NEXT: AtomicU32 = AtomicU32::new(0);
const NODE: &str = "192.0.2.1";

impl Bed {
    /// `None` where the test cannot run, said aloud.
    fn new(what: &str, plugins: Option<&Path>) -> Option<Self> {
        let bed = Self::bare(what, plugins)?;
        bed.node
            .run(|| {
                let mut network = Kernel::open().unwrap();
                network.add_bridge("outside", None).unwrap();
                for (name, address) in [("lo", "127.0.0.1/8"), ("outside", "192.0.2.1/24")] {
                    let link = network.link(name).unwrap().unwrap();
                    let _ = network.add_address(Address { link: link.index, net: address.parse().unwrap() });
                    network.change_link(link.index, LinkChange { up: Some(true), ..Default::default() }).unwrap();
                }
            })
            .unwrap();
        Some(bed)
    }

    /// A node without any link that is up.
    fn bare(what: &str, plugins: Option<&Path>) -> Option<Self> {
        if std::fs::metadata("/proc/self/ns/net").is_err() || !is_root() {
            eprintln!("SKIPPED {what}: needs root");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("net-cni-{}-{number}", std::process::id()));
        let own = folder.join("bin");
        if plugins.is_none() {
            let made = Command::new(env!("CARGO_BIN_EXE_bosun-cni")).arg("install").arg(&own).status().unwrap();
            assert!(made.success());
        }
        let node = Netns::anonymous().unwrap();
        Some(Self { plugins: plugins.map_or(own, Path::to_owned), folder, node })
    }

    fn pod(&self, name: &str) -> Netns {
        netns::create(self.folder.join(name)).unwrap()
    }

    fn config(&self, extra: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
            "hairpinMode": true, "mtu": 1400,
            "ipam": {"type": "host-local", "dataDir": self.folder.join("ipam"),
                "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]},
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    /// A plugin on its way; to be called inside the node.
    fn plugin(&self, command: &str, pod: &str, config: &Value) -> Child {
        self.plugin_with(command, pod, config, "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web")
    }

    fn plugin_with(&self, command: &str, pod: &str, config: &Value, args: &str) -> Child {
        let mut child = Command::new(self.plugins.join(config["type"].as_str().unwrap()))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod)
            .env("CNI_NETNS", self.folder.join(pod))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.plugins)
            .env("CNI_ARGS", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        child
    }

    fn call(&self, command: &str, pod: &str, config: &Value) -> (Value, bool) {
        let output = self.node.run(|| self.plugin(command, pod, config).wait_with_output().unwrap()).unwrap();
        (serde_json::from_slice(&output.stdout).unwrap_or_default(), output.status.success())
    }

    fn must(&self, command: &str, pod: &str, config: &Value) -> Value {
        let (value, ok) = self.call(command, pod, config);
        assert!(ok, "{command} {pod}: {value}");
        value
    }

    /// What the node's namespace holds, to be compared before and after.
    fn state(&self) -> String {
        self.node
            .run(|| {
                let mut network = Kernel::open().unwrap();
                let links: Vec<String> = network.links().unwrap().into_iter().map(|link| link.name).collect();
                let tables = ["ip bosun-masquerade", "ip6 bosun-masquerade", "ip bosun-portmap", "ip6 bosun-portmap"];
                let elements = tables.map(|table| {
                    let text = Nft.list(&format!("list table {table}")).unwrap_or_default();
                    text.matches("comment \"").count()
                        - text.matches("containers with").count()
                        - text.matches("own network").count()
                });
                format!("{links:?} {elements:?}")
            })
            .unwrap()
    }

    fn reserved(&self) -> usize {
        std::fs::read_dir(self.folder.join("ipam/pods")).map_or(0, |entries| {
            entries.filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().parse::<IpAddr>().is_ok()).count()
        })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path().is_file() {
                let _ = netns::remove(entry.path());
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Serves `name` on a port inside a namespace until the process ends.
fn serve(netns: &Netns, port: u16, name: &'static str) {
    let listener = netns.run(|| TcpListener::bind(("::", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(format!("{name} saw {from}").as_bytes());
        }
    });
}

fn ask(netns: &Netns, address: &str) -> Result<String, String> {
    netns
        .run(|| {
            let address: SocketAddr = address.parse().unwrap();
            let mut stream =
                TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|error| error.to_string())?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
            Ok(text)
        })
        .unwrap()
}

#[test]
fn every_plugin_tells_its_versions() {
    let Some(bed) = Bed::new("versions", None) else { return };
    for entry in std::fs::read_dir(bed.folder.join("bin")).unwrap() {
        let path = entry.unwrap().path();
        let mut child = Command::new(&path);
        child.env_clear().env("CNI_COMMAND", "VERSION").stdin(Stdio::null());
        let answer: Value = serde_json::from_slice(&child.output().unwrap().stdout).unwrap();
        let versions = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(answer["supportedVersions"], versions, "{}", path.display());
    }
}

#[test]
fn a_pod_gets_its_network_and_leaves_nothing() {
    let Some(bed) = Bed::new("bridge", None) else { return };
    let (one, two) = (bed.pod("one"), bed.pod("two"));
    let config = bed.config(&json!({"ipMasq": true}));
    bed.must("ADD", "two", &config);
    let before = (bed.state(), bed.reserved());

    let result = bed.must("ADD", "one", &config);
    assert_eq!(result["ips"][0], json!({"interface": 2, "address": "10.88.0.3/24", "gateway": "10.88.0.1"}));
    assert_eq!(result["ips"][1]["address"], "fd00:88::3/64");
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    let mut checked = config.clone();
    checked["prevResult"] = result;
    bed.must("CHECK", "one", &checked);

    serve(&one, 80, "one");
    assert_eq!(ask(&two, "10.88.0.3:80"), Ok("one saw 10.88.0.2".into()));
    assert_eq!(ask(&two, "[fd00:88::3]:80"), Ok("one saw fd00:88::2".into()));
    assert_eq!(ask(&bed.node, "10.88.0.3:80"), Ok("one saw 10.88.0.1".into()));

    let (error, ok) = bed.call("ADD", "one", &config);
    assert!(!ok && error["msg"].as_str().unwrap().contains("duplicate allocation"), "{error}");
    bed.must("CHECK", "one", &checked);

    bed.must("DEL", "one", &checked);
    assert_eq!((bed.state(), bed.reserved()), before);
    bed.must("DEL", "one", &config);
    assert!(!bed.call("CHECK", "one", &checked).1);
    netns::remove(bed.folder.join("one")).unwrap();
    bed.must("DEL", "one", &config);
    assert_eq!((bed.state(), bed.reserved()), before);
}

#[test]
fn traffic_beyond_the_network_is_masqueraded() {
    let Some(bed) = Bed::new("ipMasq", None) else { return };
    let pod = bed.pod("one");
    let far = bed.pod("far");
    use std::os::fd::AsFd;
    bed.node
        .run(|| {
            let mut network = Kernel::open().unwrap();
            let outside = network.link("outside").unwrap().unwrap();
            let end = |name| kernel::netlink::VethEnd { name, ..Default::default() };
            let near = kernel::netlink::VethEnd { master: Some(outside.index), ..end("far0") };
            network.add_veth(near, end("eth0"), Some(far.as_fd()), None).unwrap();
            let link = network.link("far0").unwrap().unwrap();
            network.change_link(link.index, LinkChange { up: Some(true), ..Default::default() }).unwrap();
        })
        .unwrap();
    far.run(|| {
        let mut network = Kernel::open().unwrap();
        let link = network.link("eth0").unwrap().unwrap();
        network.add_address(Address { link: link.index, net: "192.0.2.9/24".parse().unwrap() }).unwrap();
        network.change_link(link.index, LinkChange { up: Some(true), ..Default::default() }).unwrap();
    })
    .unwrap();
    serve(&far, 80, "far");
    bed.must("ADD", "one", &bed.config(&json!({"ipMasq": true})));
    assert_eq!(ask(&pod, "192.0.2.9:80"), Ok("far saw 192.0.2.1".into()));
}

#[test]
fn a_half_done_add_is_undone() {
    let Some(bed) = Bed::new("undo", None) else { return };
    bed.pod("one");
    let good = bed.config(&json!({}));
    bed.must("ADD", "one", &good);
    bed.must("DEL", "one", &good);
    let before = (bed.state(), bed.reserved());
    let mut bad = bed.config(&json!({"ipMasq": true}));
    bad["ipam"]["routes"] = json!([{"dst": "10.99.0.0/16", "gw": "10.77.0.1"}]);
    let (error, ok) = bed.call("ADD", "one", &bad);
    assert!(!ok);
    assert!(error["msg"].as_str().unwrap().starts_with("cannot add route to 10.99.0.0/16 by 10.77.0.1"), "{error}");
    assert_eq!((bed.state(), bed.reserved()), before);
    let (error, ok) = bed.call("ADD", "nosuch", &good);
    assert_eq!((error["code"].as_u64(), ok), (Some(3), false));
    let (error, _) = bed.call("ADD", "one", &bed.config(&json!({"vlan": 5000})));
    let text = "vlan is a number from 1 to 4094";
    assert_eq!((error["code"].as_u64(), error["msg"].as_str()), (Some(7), Some(text)));
    assert_eq!((bed.state(), bed.reserved()), before);
}

#[test]
fn each_side_takes_over_the_others_attachments() {
    let Some(peers) = reference::plugins() else { return };
    let Some(ours) = Bed::new("take-over", None) else { return };
    let config = ours.config(&json!({}));
    ours.pod("swap");
    ours.must("ADD", "swap", &config);
    let node = Netns::open(format!("/proc/self/fd/{}", raw(&ours.node))).unwrap();
    let reference = Bed { plugins: peers, folder: ours.folder.clone(), node };
    reference.must("DEL", "swap", &config);
    assert_eq!(ours.reserved(), 0);
    reference.must("ADD", "swap", &config);
    ours.must("DEL", "swap", &config);
    assert_eq!(ours.reserved(), 0);
    std::mem::forget(reference);
}

fn raw(netns: &Netns) -> i32 {
    use std::os::fd::{AsFd, AsRawFd};
    netns.as_fd().as_raw_fd()
}

#[test]
fn hosts_ports_lead_into_the_pod() {
    let Some(bed) = Bed::new("portmap", None) else { return };
    let (one, two) = (bed.pod("one"), bed.pod("two"));
    let config = bed.config(&json!({}));
    let result = bed.must("ADD", "one", &config);
    bed.must("ADD", "two", &config);
    let chained = |mappings: Value, result: &Value| {
        json!({"cniVersion": "1.0.0", "name": "pods", "type": "portmap", "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": mappings}, "prevResult": result})
    };
    let before = bed.state();
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": NODE}]);
    let portmap = chained(ports, &result);
    assert_eq!(bed.must("ADD", "one", &portmap), result, "a chained plugin hands the result on");
    bed.must("CHECK", "one", &portmap);

    serve(&one, 80, "one");
    assert_eq!(ask(&two, "192.0.2.1:8080"), Ok("one saw 10.88.0.1".into()), "from a pod of the same bridge");
    assert_eq!(ask(&one, "192.0.2.1:8080"), Ok("one saw 10.88.0.1".into()), "from the pod itself");
    assert_eq!(ask(&bed.node, "127.0.0.1:8080"), Ok("one saw 10.88.0.1".into()), "from the node's loopback");
    assert!(ask(&bed.node, "192.0.2.1:9090").unwrap().starts_with("one saw "));
    assert!(ask(&bed.node, "127.0.0.1:9090").is_err(), "only on its own address");

    let result_two = bed.must("ADD", "three", &bed_pod(&bed, "three", &config));
    let (error, ok) = bed.call("ADD", "three", &chained(json!([{"hostPort": 8080, "containerPort": 81}]), &result_two));
    assert!(!ok);
    assert_eq!(error["msg"], "host port 8080 is taken by another container");
    bed.must("DEL", "three", &config);

    bed.must("DEL", "one", &portmap);
    bed.must("DEL", "one", &portmap);
    assert_eq!(bed.state(), before);
    assert!(ask(&two, "192.0.2.1:8080").is_err());
    assert!(!bed.call("CHECK", "one", &portmap).1);
}

/// Makes the pod and hands the configuration through.
fn bed_pod(bed: &Bed, name: &str, config: &Value) -> Value {
    bed.pod(name);
    config.clone()
}

/// Our host-local and the reference's, a hundred calls at once on the same files.
#[test]
fn no_address_is_given_twice_by_either() {
    let Some(peers) = reference::plugins() else { return };
    let Some(ours) = Bed::new("host-local at once", None) else { return };
    let node = Netns::open(format!("/proc/self/fd/{}", raw(&ours.node))).unwrap();
    let theirs = Bed { plugins: peers, folder: ours.folder.clone(), node };
    let mut config = ours.config(&json!({"type": "host-local"}));
    config["ipam"]["ranges"] = json!([[{"subnet": "10.88.0.0/25"}]]);
    let ips = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..100 {
            let (bed, config, ips) = (if number % 2 == 0 { &ours } else { &theirs }, &config, &ips);
            scope.spawn(move || {
                let result = bed.must("ADD", &format!("c{number}"), config);
                ips.lock().unwrap().push(result["ips"][0]["address"].as_str().unwrap().to_owned());
            });
        }
    });
    let distinct: std::collections::BTreeSet<String> = ips.into_inner().unwrap().into_iter().collect();
    assert_eq!((distinct.len(), ours.reserved()), (100, 100));
    // Each frees what the other gave.
    for number in 0..100 {
        let bed = if number % 2 == 0 { &theirs } else { &ours };
        bed.must("DEL", &format!("c{number}"), &config);
    }
    assert_eq!(ours.reserved(), 0);
    std::mem::forget(theirs);
}

/// The chain that a runtime runs: bridge, then portmap with the bridge's result.
fn chain(bed: &Bed, command: &str, pod: &str, host_port: u16) -> Result<(), Value> {
    let done = |(value, ok): (Value, bool)| if ok { Ok(value) } else { Err(value) };
    let bridge = bed.config(&json!({"ipMasq": true, "cniVersion": "1.1.0"}));
    let mut portmap = json!({"cniVersion": "1.1.0", "name": "pods", "type": "portmap",
        "runtimeConfig": {"portMappings": [{"hostPort": host_port, "containerPort": 80, "protocol": "tcp"}]}});
    if command == "ADD" {
        portmap["prevResult"] = done(bed.call("ADD", pod, &bridge))?;
        return done(bed.call("ADD", pod, &portmap)).map(drop);
    }
    done(bed.call(command, pod, &portmap))?;
    done(bed.call(command, pod, &bridge)).map(drop)
}

#[test]
fn many_at_once_leave_nothing() {
    let Some(bed) = Bed::new("many at once", None) else { return };
    bed.pod("first");
    chain(&bed, "ADD", "first", 9000).unwrap();
    let before = (bed.state(), bed.reserved());
    let pods: Vec<String> = (0..100).map(|number| format!("p{number}")).collect();
    pods.iter().for_each(|pod| drop(bed.pod(pod)));
    for command in ["ADD", "DEL"] {
        std::thread::scope(|scope| {
            for (pod, port) in pods.iter().zip(10_000..) {
                let bed = &bed;
                scope.spawn(move || chain(bed, command, pod, port).unwrap());
            }
        });
        if command == "ADD" {
            assert_eq!(bed.reserved(), before.1 + 200, "two addresses each, none twice");
        }
    }
    assert_eq!((bed.state(), bed.reserved()), before);
}

/// A plugin killed at any moment leaves what DEL removes, and, where no DEL comes, GC.
#[test]
fn a_killed_add_is_cleaned_up() {
    let Some(bed) = Bed::new("killed ADD", None) else { return };
    bed.pod("first");
    chain(&bed, "ADD", "first", 9000).unwrap();
    let before = (bed.state(), bed.reserved());
    let bridge = bed.config(&json!({"ipMasq": true, "cniVersion": "1.1.0"}));
    for (number, after) in (0..24).map(|number| (number, Duration::from_micros(500 * number))) {
        let pod = format!("k{number}");
        bed.pod(&pod);
        let killed = || {
            let mut child = bed.plugin("ADD", &pod, &bridge);
            std::thread::sleep(after);
            let _ = child.kill();
            let _ = child.wait();
        };
        bed.node.run(killed).unwrap();
        match number % 2 {
            0 => drop(bed.must("DEL", &pod, &bridge)),
            // A link without an alias has no owner that GC could read, but goes with its pod's namespace.
            _ => netns::remove(bed.folder.join(&pod)).unwrap(),
        }
    }
    bed.pod("lost");
    chain(&bed, "ADD", "lost", 9001).unwrap();
    // What a killed nft was about to do is done or not within a moment.
    std::thread::sleep(Duration::from_millis(100));
    for kind in ["portmap", "bridge"] {
        let mut gc = bridge.clone();
        gc["type"] = json!(kind);
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "first", "ifname": "eth0"}]);
        bed.must("STATUS", "", &gc);
        bed.must("GC", "", &gc);
    }
    // The kernel takes its time with namespaces.
    let deadline = Instant::now() + Duration::from_secs(10);
    while (bed.state(), bed.reserved()) != before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((bed.state(), bed.reserved()), before);
}
