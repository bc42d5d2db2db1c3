//! The plugin `routed` as a runtime runs it, on the real kernel in namespaces of the test's own.

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kernel::netlink::{Address, Kernel, LinkChange, Neighbour, Network, VethEnd};
use kernel::netns::{self, Netns};
use kernel::nftables::{Nft, Nftables};
use kernel::sysctl;
use serde_json::{Value, json};

use super::ask;

/// A node without a default route, a machine beside it that knows the way to the node's pods, and a folder of plugins.
struct Bed {
    own: super::Bed,
    beside: Netns,
}

impl std::ops::Deref for Bed {
    type Target = super::Bed;

    fn deref(&self) -> &Self::Target {
        &self.own
    }
}

impl Bed {
    /// `None` where the test cannot run, said aloud.
    fn new(what: &str) -> Option<Self> {
        let own = super::Bed::bare(what, None)?;
        let (node, beside) = (&own.node, Netns::anonymous().unwrap());
        let ends = ["eth0", "eth0"].map(|name| VethEnd { name, ..VethEnd::default() });
        node.run(|| Kernel::open().unwrap().add_veth(ends[0], ends[1], Some(beside.as_fd()), None).unwrap()).unwrap();
        for (netns, addresses) in
            [(node, ["192.0.2.1/24", "2001:db8::1/64"]), (&beside, ["192.0.2.9/24", "2001:db8::9/64"])]
        {
            // Without the second in which a fresh machine looks whether another has its address.
            netns.run(|| sysctl::write("net/ipv6/conf/eth0/accept_dad", "0").unwrap()).unwrap();
            let mut network = netns.run(|| Kernel::open().unwrap()).unwrap();
            for name in ["lo", "eth0"] {
                let link = network.link(name).unwrap().unwrap().index;
                network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
            }
            let link = network.link("eth0").unwrap().unwrap().index;
            for net in addresses {
                network.add_address(Address { link, net: net.parse().unwrap() }).unwrap();
            }
        }
        let mut network = beside.run(|| Kernel::open().unwrap()).unwrap();
        let link = network.link("eth0").unwrap().unwrap().index;
        for (destination, gateway) in [("10.244.1.0/24", "192.0.2.1"), ("fd00:1::/64", "2001:db8::1")] {
            let route = kernel::netlink::Route::new(destination.parse().unwrap(), gateway.parse().ok(), link);
            network.add_route(&route).unwrap();
        }
        Some(Self { own, beside })
    }

    fn config(&self, ranges: &[&str]) -> Value {
        let ranges: Vec<Value> = ranges.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        json!({"cniVersion": "1.1.0", "name": "pods", "type": "routed", "mtu": 1400,
            "ipam": {"type": "host-local", "dataDir": self.folder.join("ipam"), "ranges": ranges}})
    }

    /// What the node holds, to be compared before and after.
    fn state(&self) -> String {
        let mut network = self.node.run(|| Kernel::open().unwrap()).unwrap();
        let links: Vec<String> = network.links().unwrap().into_iter().map(|link| link.name).collect();
        let mut routes: Vec<String> = network.routes().unwrap().iter().map(|r| r.destination.to_string()).collect();
        // A link's own, which come when its other end is up.
        routes.retain(|route| !route.starts_with("fe80"));
        routes.sort();
        let neighbours = network.neighbours().unwrap().len();
        let reserved = std::fs::read_dir(self.folder.join("ipam/pods")).map_or(0, |entries| {
            let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
            entries.map(name).filter(|name| name.parse::<std::net::IpAddr>().is_ok()).count()
        });
        format!("{links:?} {routes:?} {neighbours} neighbours, {reserved} addresses")
    }
}

/// Says on a port of the namespace who asks, until the process ends.
fn serve(netns: &Netns) {
    let listener = netns.run(|| TcpListener::bind(("::", 80)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(from.to_string().as_bytes());
        }
    });
}

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:1::/64"];

#[test]
fn pods_node_and_neighbours_reach_one_another() {
    let Some(bed) = Bed::new("routed") else { return };
    let config = bed.config(&DUAL);
    bed.must("STATUS", "", &config);
    let before = bed.state();
    let (one, two) = (bed.pod("one"), bed.pod("two"));
    let result = bed.must("ADD", "one", &config);
    assert_eq!(result["ips"][0], json!({"interface": 1, "address": "10.244.1.2/32", "gateway": "169.254.1.1"}));
    assert_eq!(result["ips"][1], json!({"interface": 1, "address": "fd00:1::2/128", "gateway": "fe80::1"}));
    assert_eq!(result["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1"}));
    assert_eq!((&result["interfaces"][1]["name"], &result["interfaces"][1]["mtu"]), (&json!("eth0"), &json!(1400)));
    let host = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
    bed.must("ADD", "two", &config);
    for netns in [&one, &two, &bed.beside, &bed.node] {
        serve(netns);
    }
    for (from, to, seen) in [
        (&one, "10.244.1.3:80", "10.244.1.2"),
        (&two, "10.244.1.2:80", "10.244.1.3"),
        (&one, "[fd00:1::3]:80", "fd00:1::2"),
        (&one, "192.0.2.1:80", "10.244.1.2"),
        (&one, "[2001:db8::1]:80", "fd00:1::2"),
        (&bed.node, "10.244.1.2:80", "192.0.2.1"),
        (&bed.node, "[fd00:1::2]:80", "2001:db8::1"),
        (&one, "192.0.2.9:80", "10.244.1.2"),
        (&one, "[2001:db8::9]:80", "fd00:1::2"),
        (&bed.beside, "10.244.1.2:80", "192.0.2.9"),
        (&bed.beside, "[fd00:1::2]:80", "2001:db8::9"),
    ] {
        assert_eq!(ask(from, to), Ok(seen.to_owned()), "{to}");
    }
    let read = |name: String| bed.node.run(|| sysctl::read(&name).unwrap()).unwrap();
    assert_eq!(read(format!("net/ipv4/conf/{host}/rp_filter")), "1");

    let mut checked = config.clone();
    checked["prevResult"] = result;
    bed.must("CHECK", "one", &checked);
    let mut network = one.run(|| Kernel::open().unwrap()).unwrap();
    let link = network.link("eth0").unwrap().unwrap().index;
    let gateways: Vec<Neighbour> = network.neighbours().unwrap().into_iter().filter(|n| n.link == link).collect();
    let gateway = gateways.iter().find(|neighbour| neighbour.address.is_ipv4()).unwrap();
    network.delete_neighbour(*gateway).unwrap();
    let (error, ok) = bed.call("CHECK", "one", &checked);
    assert_eq!((ok, error["msg"].as_str()), (false, Some("interface eth0 lacks the neighbour 169.254.1.1")));

    bed.must("DEL", "one", &checked);
    bed.must("DEL", "one", &config);
    bed.must("DEL", "two", &config);
    assert_eq!(bed.state(), before);
}

/// A Service that leads back to the pod that asks: what the proxy does, in three rules.
#[test]
fn a_pod_reaches_itself_by_a_service() {
    let Some(bed) = Bed::new("hairpin") else { return };
    let config = bed.config(&DUAL);
    let one = bed.pod("one");
    bed.must("ADD", "one", &config);
    serve(&one);
    let rules = "table inet routed-test {
        chain nat { type nat hook prerouting priority -100;
            ip daddr 10.96.0.1 dnat ip to 10.244.1.2
            ip6 daddr fd00:96::1 dnat ip6 to fd00:1::2
        }
        chain back { type nat hook postrouting priority 100;
            ip saddr 10.244.1.2 ip daddr 10.244.1.2 masquerade
            ip6 saddr fd00:1::2 ip6 daddr fd00:1::2 masquerade
        }
    }";
    bed.node.run(|| Nft.apply(rules).unwrap()).unwrap();
    assert_eq!(ask(&one, "10.96.0.1:80"), Ok("192.0.2.1".into()));
    assert_eq!(ask(&one, "[fd00:96::1]:80"), Ok("2001:db8::1".into()));
    bed.must("DEL", "one", &config);
}

#[test]
fn a_source_that_is_not_the_pods_gets_nowhere() {
    let Some(bed) = Bed::new("spoofing") else { return };
    let config = bed.config(&DUAL[..1]);
    let one = bed.pod("one");
    bed.must("ADD", "one", &config);
    serve(&bed.beside);
    let mut network = one.run(|| Kernel::open().unwrap()).unwrap();
    let link = network.link("eth0").unwrap().unwrap().index;
    // The machine beside would answer 10.244.1.77 by the node, so that only the node's filter keeps it away.
    network.add_address(Address { link, net: "10.244.1.77/32".parse().unwrap() }).unwrap();
    let heard = bed.beside.run(|| std::net::UdpSocket::bind("192.0.2.9:5000").unwrap()).unwrap();
    heard.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let send = |from: &str| {
        let socket = one.run(|| std::net::UdpSocket::bind((from, 0)).unwrap()).unwrap();
        socket.send_to(b"x", "192.0.2.9:5000").unwrap();
        heard.recv_from(&mut [0; 8]).map(|(_, from)| from.ip().to_string()).ok()
    };
    assert_eq!(send("10.244.1.2"), Some("10.244.1.2".into()));
    assert_eq!(send("10.244.1.77"), None);
}

#[test]
fn one_family_alone_and_bad_calls() {
    let Some(bed) = Bed::new("routed families") else { return };
    let before = bed.state();
    for (pod, ranges, gateways) in [("four", &DUAL[..1], ["169.254.1.1"]), ("six", &DUAL[1..], ["fe80::1"])] {
        bed.pod(pod);
        let result = bed.must("ADD", pod, &bed.config(ranges));
        let told: Vec<&str> =
            result["ips"].as_array().unwrap().iter().map(|ip| ip["gateway"].as_str().unwrap()).collect();
        assert_eq!(told, gateways);
        bed.must("DEL", pod, &bed.config(ranges));
    }
    let mut none = bed.config(&DUAL);
    none.as_object_mut().unwrap().shift_remove("ipam");
    let (error, ok) = bed.call("ADD", "four", &none);
    assert_eq!((error["code"].as_u64(), ok), (Some(7), false), "{error}");
    assert_eq!(error["msg"], "routed needs addresses: name an IPAM plugin in ipam.type");
    let (error, _) = bed.call("ADD", "nosuch", &bed.config(&DUAL));
    assert_eq!(error["code"], 3);
    // A route that is in the way: nothing stays of the attempt.
    let mut network = bed.node.run(|| Kernel::open().unwrap()).unwrap();
    let lo = network.link("lo").unwrap().unwrap().index;
    for address in ["10.244.1.2/32", "10.244.1.3/32"] {
        network.add_route(&kernel::netlink::Route::new(address.parse().unwrap(), None, lo)).unwrap();
    }
    let with = bed.state();
    let (error, ok) = bed.call("ADD", "four", &bed.config(&DUAL[..1]));
    assert!(!ok && error["msg"].as_str().unwrap().starts_with("cannot add route to 10.244.1.2/32"), "{error}");
    assert_eq!(bed.state(), with);
    assert_ne!(with, before);
}

/// A plugin killed at any moment leaves what DEL removes, and, where no DEL comes, GC.
#[test]
fn a_killed_add_is_cleaned_up() {
    let Some(bed) = Bed::new("killed ADD") else { return };
    let config = bed.config(&DUAL);
    bed.pod("first");
    bed.must("ADD", "first", &config);
    let before = bed.state();
    for number in 0..40 {
        let pod = format!("k{number}");
        bed.pod(&pod);
        let killed = || {
            let mut child = bed.plugin("ADD", &pod, &config);
            std::thread::sleep(Duration::from_micros(200 * number));
            let _ = child.kill();
            let _ = child.wait();
        };
        bed.node.run(killed).unwrap();
        match number % 2 {
            0 => drop(bed.must("DEL", &pod, &config)),
            // A link without an alias has no owner that GC could read, but goes with its pod's namespace.
            _ => netns::remove(bed.folder.join(&pod)).unwrap(),
        }
    }
    bed.pod("lost");
    bed.must("ADD", "lost", &config);
    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "first", "ifname": "eth0"}]);
    bed.must("GC", "", &gc);
    // The kernel takes its time with namespaces.
    let deadline = Instant::now() + Duration::from_secs(10);
    while bed.state() != before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(bed.state(), before);
}
