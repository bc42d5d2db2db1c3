//! Packets through the rules, on the real kernel: a client outside, a node, and pods behind it.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for other code

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use kernel::iptables::{Family, Iptables, Programs, Variant};
use kernel::netlink::{Address, Kernel, LinkChange, Network, Route, VethEnd};
use kernel::netns::Netns;
use kernel::nftables::{Nft, Nftables};
use kernel::{conntrack, sysctl};
use proxy::backend::Backend;
use proxy::iptables::Chains;
use proxy::model::{Endpoint, Facts, Name, NodePorts, PodSource, Protocol, Service, ServicePort, Slice, SlicePort};
use proxy::nftables::Tables;
use proxy::sync::{Change, Proxier, Step};

const VIP: &str = "10.96.0.10";
const NODE: &str = "192.0.2.1";
const CLIENT: &str = "192.0.2.9";

/// Which part of the kernel leads the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nftables,
    Iptables(Variant),
}

const MODES: [Mode; 3] = [Mode::Nftables, Mode::Iptables(Variant::Legacy), Mode::Iptables(Variant::Nft)];

impl Mode {
    fn backend(self) -> Box<dyn Backend> {
        match self {
            Self::Nftables => Box::new(Tables::new(Box::new(Nft))),
            Self::Iptables(variant) => Box::new(Chains::new(Box::new(Programs(variant)))),
        }
    }

    /// What the kernel of this namespace holds, as text.
    fn listing(self) -> String {
        match self {
            Self::Nftables => Nft.list("list ruleset").unwrap(),
            Self::Iptables(variant) => {
                let save = |table| Programs(variant).save(Family::V4, table).unwrap();
                ["nat", "filter", "mangle"].map(save).concat()
            }
        }
    }
}

struct Bed {
    mode: Mode,
    node: Netns,
    client: Netns,
    /// 10.244.1.2 and 10.244.2.2, each with the node at .1.
    pods: [Netns; 2],
    proxier: Proxier,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Joins `far` to the node by a veth, with both addresses and a default route by the node.
fn join(node: &Netns, far: &Netns, name: &str, near_address: &str, far_address: &str) {
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let end = |name| VethEnd { name, ..VethEnd::default() };
    node.run(|| {
        let mut network = Kernel::open().unwrap();
        network.add_veth(end(name), end("eth0"), Some(far.as_fd()), None).unwrap();
        let link = network.link(name).unwrap().unwrap().index;
        network.add_address(Address { link, net: near_address.parse().unwrap() }).unwrap();
        network.change_link(link, up).unwrap();
    })
    .unwrap();
    far.run(|| {
        let mut network = Kernel::open().unwrap();
        let link = network.link("eth0").unwrap().unwrap().index;
        network.add_address(Address { link, net: far_address.parse().unwrap() }).unwrap();
        network.change_link(link, up).unwrap();
        let near: kernel::netlink::IpNetwork = near_address.parse().unwrap();
        network.add_route(&Route::new("0.0.0.0/0".parse().unwrap(), Some(near.ip()), link)).unwrap();
    })
    .unwrap();
}

fn facts() -> Facts {
    Facts {
        node: "n1".into(),
        node_ips: vec![ip(NODE)],
        pods: vec![PodSource::Range("10.244.0.0/16".parse().unwrap())],
        ..Facts::default()
    }
}

impl Bed {
    /// One for each mode.
    fn all(what: &'static str) -> impl Iterator<Item = Self> {
        MODES.into_iter().filter_map(move |mode| Self::new(what, mode))
    }

    fn new(what: &str, mode: Mode) -> Option<Self> {
        let Ok(node) = Netns::anonymous() else {
            eprintln!("SKIPPED {what}: needs root");
            return None;
        };
        let [client, one, two] = [(); 3].map(|()| Netns::anonymous().unwrap());
        join(&node, &client, "client", "192.0.2.1/24", "192.0.2.9/24");
        join(&node, &one, "pod1", "10.244.1.1/24", "10.244.1.2/24");
        join(&node, &two, "pod2", "10.244.2.1/24", "10.244.2.2/24");
        let proxier = node
            .run(|| {
                sysctl::write("net/ipv4/ip_forward", "1").unwrap();
                let mut network = Kernel::open().unwrap();
                // What the node refuses itself comes back by its loopback.
                let lo = network.link("lo").unwrap().unwrap().index;
                network.change_link(lo, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
                let link = network.link("client").unwrap().unwrap().index;
                let any = "0.0.0.0/0".parse().unwrap();
                network.add_route(&Route::new(any, Some(ip(CLIENT)), link)).unwrap();
                Proxier::new(facts(), mode.backend(), Some(Box::new(conntrack::Kernel::open().unwrap())))
            })
            .unwrap();
        let bed = Self { mode, node, client, pods: [one, two], proxier };
        serve(&bed.pods[0], "one");
        serve(&bed.pods[1], "two");
        Some(bed)
    }

    fn left(&self) -> String {
        let mode = self.mode;
        self.node.run(move || mode.listing()).unwrap()
    }

    fn say(&mut self, changes: Vec<Change>) -> Step {
        for change in changes {
            self.proxier.note(change);
        }
        let proxier = &mut self.proxier;
        self.node.run(|| proxier.sync().unwrap()).unwrap()
    }
}

/// Answers on TCP 8080 and UDP 8080 with its name and whom it saw.
fn serve(netns: &Netns, name: &'static str) {
    let (tcp, udp) =
        netns.run(|| (TcpListener::bind("0.0.0.0:8080").unwrap(), UdpSocket::bind("0.0.0.0:8080").unwrap())).unwrap();
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let from = stream.peer_addr().unwrap().ip();
            let _ = stream.write_all(format!("{name} {from}").as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(name.as_bytes(), from);
        }
    });
}

fn ask(from: &Netns, address: &str) -> Result<String, std::io::ErrorKind> {
    from.run(|| {
        let address: SocketAddr = address.parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).map_err(|e| e.kind())?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|e| e.kind())?;
        Ok(text)
    })
    .unwrap()
}

fn asked(from: &Netns, address: &str, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| ask(from, address).unwrap()).collect()
}

fn service() -> Service {
    let port = |name: &str, protocol| ServicePort { name: name.into(), protocol, port: 80, node_port: Some(30080) };
    Service {
        cluster_ips: vec![ip(VIP)],
        ports: vec![port("web", Protocol::Tcp), port("dns", Protocol::Udp)],
        ..Service::default()
    }
}

fn slice(ips: &[&str]) -> Slice {
    let endpoint = |text: &&str| Endpoint {
        ip: ip(text),
        ready: true,
        serving: true,
        terminating: false,
        local: *text == "10.244.1.2",
        zones: None,
        nodes: None,
    };
    let port = |name: &str, protocol| SlicePort { name: name.into(), protocol, port: 8080 };
    Slice {
        ports: vec![port("web", Protocol::Tcp), port("dns", Protocol::Udp)],
        endpoints: ips.iter().map(endpoint).collect(),
    }
}

fn set(service: Service) -> Change {
    Change::Service("a/web".into(), Some(service))
}

fn endpoints(ips: &[&str]) -> Change {
    Change::Slice("a/web".into(), "web-1".into(), Some(slice(ips)))
}

const BOTH: [&str; 2] = ["10.244.1.2", "10.244.2.2"];

fn texts<const N: usize>(list: [&str; N]) -> BTreeSet<String> {
    list.map(str::to_owned).into()
}

#[test]
fn a_cluster_ip_leads_to_its_endpoints() {
    Bed::all("cluster IP").for_each(cluster_ip);
}

fn cluster_ip(mut bed: Bed) {
    assert_eq!(bed.say(vec![set(service()), endpoints(&BOTH)]), Step::Full { services: 1 });
    let vip = format!("{VIP}:80");
    // From outside the pods' range the node's address goes on, so that answers come back here.
    assert_eq!(asked(&bed.client, &vip, 30), texts(["one 10.244.1.1", "two 10.244.2.1"]));
    // A pod keeps its address, except towards itself.
    assert_eq!(asked(&bed.pods[0], &vip, 30), texts(["one 10.244.1.1", "two 10.244.1.2"]));
    assert_eq!(asked(&bed.node, &vip, 30), texts(["one 10.244.1.1", "two 10.244.2.1"]));
    if bed.mode == Mode::Nftables {
        assert_eq!(ask(&bed.pods[0], &format!("{VIP}:81")), Err(std::io::ErrorKind::ConnectionRefused));
    }

    assert_eq!(bed.say(vec![endpoints(&["10.244.2.2"])]), Step::Partial { services: 1 });
    assert_eq!(asked(&bed.client, &vip, 10), texts(["two 10.244.2.1"]));
    bed.say(vec![endpoints(&[])]);
    assert_eq!(ask(&bed.pods[0], &vip), Err(std::io::ErrorKind::ConnectionRefused), "{:?} {}", bed.mode, bed.left());
    assert_eq!(ask(&bed.node, &vip), Err(std::io::ErrorKind::ConnectionRefused));
    bed.say(vec![endpoints(&BOTH)]);
    assert_eq!(asked(&bed.client, &vip, 30).len(), 2);
    bed.say(vec![Change::Service("a/web".into(), None)]);
    let left = bed.left();
    assert!(!left.contains(VIP) && !left.contains("10.244.1.2"), "{left}");
}

#[test]
fn node_ports_and_external_addresses_follow_their_policy() {
    Bed::all("node port").for_each(node_ports);
}

fn node_ports(mut bed: Bed) {
    let mut wanted = service();
    wanted.external_ips = vec![ip("203.0.113.7")];
    bed.say(vec![set(wanted.clone()), endpoints(&BOTH)]);
    let port = format!("{NODE}:30080");
    assert_eq!(asked(&bed.client, &port, 30), texts(["one 10.244.1.1", "two 10.244.2.1"]));
    assert_eq!(asked(&bed.client, "203.0.113.7:80", 30), texts(["one 10.244.1.1", "two 10.244.2.1"]));
    assert_eq!(asked(&bed.node, &port, 30).len(), 2);
    assert!(ask(&bed.client, "10.244.1.1:30080").is_err(), "only on the primary address");

    wanted.external_local = true;
    bed.say(vec![set(wanted.clone())]);
    assert_eq!(asked(&bed.client, &port, 10), texts(["one 192.0.2.9"]), "here only, and the source is kept");
    assert_eq!(asked(&bed.client, "203.0.113.7:80", 10), texts(["one 192.0.2.9"]));
    assert_eq!(asked(&bed.pods[0], &port, 30).len(), 2, "pods are spared the detour");

    bed.say(vec![endpoints(&["10.244.2.2"])]);
    assert_eq!(ask(&bed.client, &port), Err(std::io::ErrorKind::TimedOut), "dropped, for another node to answer");
    bed.say(vec![endpoints(&[])]);
    assert_eq!(ask(&bed.client, &port), Err(std::io::ErrorKind::ConnectionRefused));

    wanted.external_local = false;
    wanted.load_balancer_ips = vec![ip("203.0.113.7")];
    wanted.source_ranges = vec!["198.51.100.0/24".parse().unwrap(), "10.244.2.0/24".parse().unwrap()];
    bed.say(vec![set(wanted.clone()), endpoints(&BOTH)]);
    assert_eq!(ask(&bed.client, "203.0.113.7:80"), Err(std::io::ErrorKind::TimedOut), "not in the allowed ranges");
    assert_eq!(asked(&bed.pods[1], "203.0.113.7:80", 30).len(), 2);
    assert_eq!(ask(&bed.node, "203.0.113.7:80"), Err(std::io::ErrorKind::TimedOut), "the node is not in them");
    wanted.source_ranges = vec!["192.0.2.0/24".parse().unwrap()];
    bed.say(vec![set(wanted)]);
    assert_eq!(asked(&bed.client, "203.0.113.7:80", 30).len(), 2);
}

#[test]
fn a_client_with_affinity_stays() {
    Bed::all("affinity").for_each(affinity);
}

fn affinity(mut bed: Bed) {
    let sticky = Service { affinity: Some(60), ..service() };
    bed.say(vec![set(sticky), endpoints(&BOTH)]);
    let vip = format!("{VIP}:80");
    let first = asked(&bed.client, &vip, 20);
    assert_eq!(first.len(), 1);
    assert_eq!(asked(&bed.client, &format!("{NODE}:30080"), 10), first, "the node port leads to the same");
    let other = if first.first().unwrap().starts_with("one") { BOTH[1] } else { BOTH[0] };
    bed.say(vec![endpoints(&[other])]);
    assert!(asked(&bed.client, &vip, 10).is_disjoint(&first));
    bed.say(vec![Change::Service("a/web".into(), None)]);
    let left = bed.left();
    assert!(!left.contains("clients-") && !left.contains("affinity-") && !left.contains("recent"), "{left}");
}

#[test]
fn udp_flows_leave_an_endpoint_that_is_gone() {
    Bed::all("UDP").for_each(udp_flows);
}

fn udp_flows(mut bed: Bed) {
    bed.say(vec![set(service()), endpoints(&["10.244.1.2"])]);
    let socket = bed.client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let ask = || {
        let mut buffer = [0; 16];
        socket.send_to(b"?", format!("{VIP}:80")).unwrap();
        socket.recv(&mut buffer).map(|size| String::from_utf8_lossy(&buffer[..size]).into_owned())
    };
    assert_eq!(ask().unwrap(), "one");
    bed.say(vec![endpoints(&BOTH)]);
    assert_eq!(ask().unwrap(), "one", "a flow keeps a living endpoint");
    bed.say(vec![endpoints(&["10.244.2.2"])]);
    assert_eq!(ask().unwrap(), "two");
}

#[test]
fn a_new_process_takes_over_and_connections_go_on() {
    Bed::all("restart").for_each(restart);
}

fn restart(mut bed: Bed) {
    bed.say(vec![set(service()), endpoints(&["10.244.1.2"])]);
    let listener = bed.pods[0].run(|| TcpListener::bind("0.0.0.0:9090").unwrap()).unwrap();
    let mut long = service();
    long.ports = vec![ServicePort { name: "long".into(), protocol: Protocol::Tcp, port: 90, node_port: None }];
    let mut content = slice(&["10.244.1.2"]);
    content.ports = vec![SlicePort { name: "long".into(), protocol: Protocol::Tcp, port: 9090 }];
    let changes = || vec![set(long.clone()), Change::Slice("a/web".into(), "web-1".into(), Some(content.clone()))];
    bed.say(changes());
    let mut stream = bed.client.run(|| TcpStream::connect(format!("{VIP}:90")).unwrap()).unwrap();
    let (mut other, _) = listener.accept().unwrap();
    let mode = bed.mode;
    bed.proxier = bed.node.run(|| Proxier::new(facts(), mode.backend(), None)).unwrap();
    bed.say(changes());
    stream.write_all(b"still").unwrap();
    let mut buffer = [0; 5];
    other.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    other.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"still");
}

/// What a mode leaves, another sweeps; and nothing remains in the end.
#[test]
fn backends_follow_one_another() {
    let Some(mut bed) = Bed::new("switching", Mode::Nftables) else { return };
    bed.say(vec![set(service()), endpoints(&BOTH)]);
    for mode in MODES {
        let proxier = bed.node.run(|| {
            MODES.into_iter().filter(|other| *other != mode).for_each(|other| other.backend().remove().unwrap());
            Proxier::new(facts(), mode.backend(), None)
        });
        bed.proxier = proxier.unwrap();
        bed.say(vec![set(service()), endpoints(&BOTH)]);
        assert_eq!(asked(&bed.client, &format!("{VIP}:80"), 30).len(), 2, "{mode:?}");
        bed.mode = mode;
        assert!(bed.left().to_lowercase().contains("bosun-"), "{mode:?}");
        bed.node.run(|| mode.backend().remove().unwrap()).unwrap();
        let left = bed.left();
        assert!(!left.to_lowercase().contains("bosun-"), "{mode:?}: {left}");
    }
}

#[test]
fn localhost_node_ports_stay_closed_to_neighbours() {
    let modes = MODES.into_iter().filter(|mode| *mode != Mode::Nftables);
    for mut bed in modes.filter_map(|mode| Bed::new("localhost node ports", mode)) {
        let facts = Facts { node_ports: NodePorts::Localhost, ..facts() };
        bed.say(vec![Change::Facts(facts), set(service()), endpoints(&BOTH)]);
        bed.node.run(|| sysctl::write("net/ipv4/conf/all/route_localnet", "1").unwrap()).unwrap();
        assert_eq!(asked(&bed.node, "127.0.0.1:30080", 30).len(), 2);
        serve(&bed.node, "node");
        assert_eq!(asked(&bed.node, "127.0.0.1:8080", 1), texts(["node 127.0.0.1"]));
        let reach = bed.client.run(|| {
            sysctl::write("net/ipv4/conf/all/route_localnet", "1").unwrap();
            let mut network = Kernel::open().unwrap();
            let link = network.link("eth0").unwrap().unwrap().index;
            let lo = network.link("lo").unwrap().unwrap().index;
            let own = Address { link: lo, net: "127.0.0.1/8".parse().unwrap() };
            let _ = network.delete_address(own);
            network.add_route(&Route::new("127.0.0.1/32".parse().unwrap(), Some(ip(NODE)), link)).unwrap();
        });
        reach.unwrap();
        assert!(ask(&bed.client, "127.0.0.1:8080").is_err());
    }
}

/// The aims are for a release build; this one only says what it took and fails where it is out of proportion.
#[test]
fn ten_thousand_services() {
    let Some(mut bed) = Bed::new("10 000 services", Mode::Nftables) else { return };
    let name = |n: usize| Name::from(format!("a/s{n}"));
    let own = |n: usize| {
        let port = ServicePort { name: "web".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        Service {
            cluster_ips: vec![ip(&format!("10.97.{}.{}", n / 250, n % 250 + 1))],
            ports: vec![port],
            ..Service::default()
        }
    };
    let mut changes = Vec::new();
    for n in 0..10_000 {
        changes.push(Change::Service(name(n), Some(own(n))));
        changes.push(Change::Slice(name(n), "s".into(), Some(slice(&BOTH))));
    }
    let started = Instant::now();
    assert_eq!(bed.say(changes), Step::Full { services: 10_000 });
    let whole = started.elapsed();
    assert_eq!(asked(&bed.client, "10.97.39.250:80", 20).len(), 2);
    let started = Instant::now();
    bed.say(vec![Change::Slice(name(9_999), "s".into(), Some(slice(&["10.244.2.2"])))]);
    let one = started.elapsed();
    assert_eq!(asked(&bed.client, "10.97.39.250:80", 10), texts(["two 10.244.2.1"]));
    eprintln!("10 000 services: {whole:?} to programmed, {one:?} for one endpoint's change");
    assert!(whole < Duration::from_secs(10) && one < Duration::from_millis(500));
}
