//! Policies on the real kernel: every packet between nine pods under each set of policies, and what no table says.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for other code

mod bed;
mod cases;

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kernel::conntrack::{self, Conntrack, Flow};
use kernel::netlink::{Address, Kernel, Network};
use kernel::netns::Netns;
use kernel::nftables::{Nft, Nftables};
use kernel::socket;
use net::policy::decide::{Packet, decide};
use net::policy::model::{Model, Name, Pod, Policy, Protocol};
use net::policy::plan::Change;
use net::policy::sync::{self, Met, Step};
use serde_json::{Value, json};

use bed::{Bed, PODS, Probe, addresses, every_probe, ip, objects, pod};

fn read(object: &Value) -> (Name, Policy) {
    let object = serde_json::from_value(object.clone()).unwrap();
    let (policy, errors) = Policy::read(&object);
    assert_eq!(errors, [], "{object:?}");
    (Name::of(&object), policy)
}

fn packet(probe: &Probe) -> Packet {
    let of = |pod| if probe.six { addresses(pod).1 } else { addresses(pod).0 };
    let protocol = if probe.udp { Protocol::Udp } else { Protocol::Tcp };
    Packet { source: of(probe.from), destination: of(probe.to), protocol: Some(protocol), port: probe.port }
}

/// The decision agrees with the table's own words.
#[test]
fn the_decision_knows_the_truth_table() {
    let mut cases = 0;
    for case in cases::all() {
        let mut model = Model::default();
        for change in objects() {
            match change {
                Change::Pod(name, Some(pod)) => drop(model.pods.insert(name, pod)),
                Change::Namespace(name, Some(labels)) => drop(model.namespaces.insert(name, labels)),
                _ => {}
            }
        }
        model.policies = case.policies.iter().map(read).collect();
        for probe in every_probe() {
            let said = decide(&model, &packet(&probe)).passes();
            assert_eq!(said, (case.passes)(&probe), "{}: {probe:?} {} {}", case.name, PODS[probe.from], PODS[probe.to]);
        }
        cases += 1;
    }
    assert!(cases >= 60, "{cases} cases");
}

#[test]
fn every_pair_meets_the_truth_table() {
    let Some(mut bed) = Bed::new("truth table") else { return };
    let started = Instant::now();
    let probes = every_probe();
    let mut present: HashSet<Name> = HashSet::new();
    let mut wrong = Vec::new();
    for case in cases::all() {
        let wanted: Vec<(Name, Policy)> = case.policies.iter().map(read).collect();
        let gone: Vec<Name> = present.drain().filter(|name| !wanted.iter().any(|(own, _)| own == name)).collect();
        bed.note(gone.into_iter().map(|name| Change::Policy(name, None)));
        for (name, policy) in wanted {
            present.insert(name.clone());
            bed.keeper.note(Change::Policy(name, Some(policy)));
        }
        bed.sync();
        let reached = bed.reached(&probes, &case.passes);
        for probe in &probes {
            if reached.contains(probe) != (case.passes)(probe) {
                wrong.push(format!("{}: {} to {} {probe:?}", case.name, PODS[probe.from], PODS[probe.to]));
            }
        }
    }
    eprintln!(
        "{} packets for each of {} sets of policies in {:?}",
        probes.len(),
        cases::all().len(),
        started.elapsed()
    );
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}

fn deny(namespace: &str, types: &[&str]) -> Change {
    let object = json!({"metadata": {"namespace": namespace, "name": "deny"},
        "spec": {"podSelector": {}, "policyTypes": types}});
    let (name, policy) = read(&object);
    Change::Policy(name, Some(policy))
}

fn connect(from: &Netns, to: IpAddr, port: u16) -> Result<TcpStream, io::ErrorKind> {
    let goal = SocketAddr::new(to, port);
    from.run(|| TcpStream::connect_timeout(&goal, Duration::from_millis(400)).map_err(|error| error.kind())).unwrap()
}

#[test]
fn the_node_reaches_its_isolated_pods_and_they_it() {
    let Some(mut bed) = Bed::new("node") else { return };
    let all = ["x", "y", "z"].map(|namespace| deny(namespace, &["Ingress", "Egress"]));
    bed.note(all);
    bed.sync();
    let listener = bed.node.run(|| TcpListener::bind("[::]:9090").unwrap()).unwrap();
    for member in &bed.pods {
        connect(&bed.node, member.four, 80).unwrap();
        connect(&bed.node, member.six, 80).unwrap();
        connect(&member.netns, ip("10.244.1.1"), 9090).unwrap();
    }
    drop(listener);
    let drops = bed.node.run(|| sync::drops(&Nft).unwrap()).unwrap();
    assert!(drops.values().all(|count| *count == 0), "{drops:?}");
}

#[test]
fn a_drop_is_counted_and_named() {
    let Some(mut bed) = Bed::new("counters") else { return };
    bed.keeper.note(deny("x", &["Ingress"]));
    bed.keeper.note(deny("y", &["Egress"]));
    bed.sync();
    for (from, to) in [(4, 0), (4, 5), (2, 4)] {
        let error = connect(&bed.pods[from].netns, bed.pods[to].four, 80).unwrap_err();
        assert_eq!(error, io::ErrorKind::TimedOut, "{} to {}", PODS[from], PODS[to]);
    }
    let drops = bed.node.run(|| sync::drops(&Nft).unwrap()).unwrap();
    for who in ["ingress of x/a", "ingress of x/c", "egress of y/a"] {
        assert!(drops.get(who).is_some_and(|count| *count > 0), "{who}: {drops:?}");
    }
    assert_eq!(drops["ingress of x/b"], 0);
    let met = bed.node.run(|| sync::met(&Nft).unwrap()).unwrap();
    for (from, to) in [(4, 0), (4, 5), (2, 4)] {
        let dropped = |met: &Met| {
            (met.source, met.destination, met.protocol, met.port) == (bed.pods[from].four, bed.pods[to].four, 6, 80)
        };
        assert!(met.iter().any(|met| dropped(met) && met.remembered > 40_000), "of a minute: {met:?}");
    }
    let text = bed.list("list table inet bosun-policy");
    assert!(text.contains("drop comment \"ingress not allowed by deny\""), "{text}");
}

#[test]
fn a_fresh_process_finds_everything_right_and_flows_go_on() {
    let Some(mut bed) = Bed::new("restart") else { return };
    let allow = json!({"metadata": {"namespace": "x", "name": "p"}, "spec": {"podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}, {"ipBlock": {"cidr": "10.9.0.0/16",
            "except": ["10.9.1.0/24"]}}], "ports": [{"port": "serve-80-tcp"}, {"port": 80, "endPort": 90}]}]}});
    let (name, policy) = read(&allow);
    bed.keeper.note(Change::Policy(name.clone(), Some(policy.clone())));
    bed.keeper.note(deny("y", &["Egress", "Ingress"]));
    bed.sync();
    bed.keeper.note(Change::Policy(Name::new("y", "deny"), None));
    assert_eq!(bed.sync(), Step::Partial);
    let listener = bed.pods[0].netns.run(|| TcpListener::bind("0.0.0.0:85").unwrap()).unwrap();
    let mut flow = connect(&bed.pods[2].netns, bed.pods[0].four, 85).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let before = bed.list("list table inet bosun-policy");

    bed.begin_anew();
    bed.keeper.note(Change::Policy(name.clone(), Some(policy)));
    assert_eq!(bed.sync(), Step::Nothing);
    assert_eq!(bed.list("list table inet bosun-policy"), before);

    // What another hand took away comes back; what it put there goes.
    bed.node
        .run(|| {
            Nft.apply("flush set inet bosun-policy own4\nadd element inet bosun-policy guarded { \"other\" }").unwrap();
        })
        .unwrap();
    bed.keeper.doubt();
    assert_eq!(bed.sync(), Step::Whole, "the two families' sets differ, so that nothing of it is trusted");
    let chain = before.lines().find_map(|line| line.trim().strip_prefix("chain allow-")).unwrap();
    let removal = format!("flush map inet bosun-policy ingress4\nflush chain inet bosun-policy allow-{chain}");
    bed.node.run(|| Nft.apply(removal.trim_end_matches(" {")).unwrap()).unwrap();
    bed.keeper.doubt();
    assert_eq!(bed.sync(), Step::Adopted);
    connect(&bed.pods[4].netns, bed.pods[0].four, 80).unwrap_err();

    assert_eq!(bed.end_flows(), 0);
    flow.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    flow.write_all(b"ping").unwrap();
    far.read_exact(&mut [0; 4]).unwrap();
    far.write_all(b"pong").unwrap();
    flow.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn flows_that_a_policy_comes_to_forbid_end_and_others_go_on() {
    let Some(mut bed) = Bed::new("flows") else { return };
    bed.begin_anew();
    bed.sync();
    // From x/b on the bridge to x/a on it, to routed x/c, and from the node to x/a.
    let open = |from: &Netns, to: usize| {
        let listener = bed.pods[to].netns.run(|| TcpListener::bind("0.0.0.0:0").unwrap()).unwrap();
        let near = connect(from, bed.pods[to].four, listener.local_addr().unwrap().port()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        far.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        (near, far)
    };
    let mut forbidden = [open(&bed.pods[1].netns, 0), open(&bed.pods[4].netns, 5)];
    let mut allowed = [open(&bed.node, 0), open(&bed.pods[0].netns, 4), open(&bed.pods[2].netns, 5)];
    let passes = |(near, far): &mut (TcpStream, TcpStream)| {
        near.write_all(b"ping").unwrap();
        far.read_exact(&mut [0; 4]).is_ok()
    };
    forbidden.iter_mut().chain(&mut allowed).for_each(|flow| assert!(passes(flow)));
    let allow = json!({"metadata": {"namespace": "x", "name": "p"}, "spec": {"podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]}});
    let (name, policy) = read(&allow);
    bed.keeper.note(Change::Policy(name, Some(policy)));
    bed.sync();
    assert!(bed.keeper.is_stricter());
    assert_eq!(bed.end_flows(), 2);
    forbidden.iter_mut().for_each(|flow| assert!(!passes(flow)));
    allowed.iter_mut().for_each(|flow| assert!(passes(flow)));
    assert!(!bed.keeper.is_stricter());
    assert_eq!(bed.end_flows(), 0);

    // Another pod gets the address: nothing of the old one's is established.
    let link = bed.pods[4].link.clone();
    bed.keeper.note(Change::Detached(link.as_str().into()));
    bed.sync();
    assert!(bed.keeper.has_moved());
    assert!(bed.end_flows() >= 1);
    let count = bed.node.run(|| conntrack::Kernel::open().unwrap().flows(6).unwrap()).unwrap();
    let of_old = |flow: &&Flow| [flow.original.source, flow.original.destination].contains(&bed.pods[4].four);
    assert_eq!(count.iter().filter(of_old).count(), 0);
}

/// Pings that go on and on are each one flow, by their identifier.
#[test]
fn pings_that_a_policy_comes_to_forbid_end() {
    let Some(mut bed) = Bed::new("pings") else { return };
    bed.begin_anew();
    bed.sync();
    let pings = [false, true].map(|six| {
        [(1, 0), (4, 5), (2, 5)]
            .map(|(from, to)| Ping::new(&bed.pods[from].netns, if six { bed.pods[to].six } else { bed.pods[to].four }))
    });
    for [one, two, three] in &pings {
        assert!([one, two, three].iter().all(|ping| ping.is_answered()), "{}", one.goal);
    }
    let allow = |ports: Value| {
        read(&json!({"metadata": {"namespace": "x", "name": "p"}, "spec": {"podSelector": {},
            "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}], "ports": ports}]}}))
    };
    let (name, policy) = allow(json!([]));
    bed.keeper.note(Change::Policy(name, Some(policy)));
    bed.sync();
    assert_eq!(bed.end_flows(), 4);
    for [one, two, three] in &pings {
        assert!(!one.is_answered() && !two.is_answered(), "{}", one.goal);
        assert!(three.is_answered(), "a rule without ports allows it: {}", three.goal);
    }
    let (name, policy) = allow(json!([{"port": 80}]));
    bed.keeper.note(Change::Policy(name, Some(policy)));
    bed.sync();
    assert_eq!(bed.end_flows(), 2);
    assert!(pings.iter().all(|[.., three]| !three.is_answered()));
}

struct Ping {
    socket: UdpSocket,
    goal: IpAddr,
}

impl Ping {
    fn new(from: &Netns, goal: IpAddr) -> Self {
        let six = goal.is_ipv6();
        let socket = from.run(|| socket::raw(if six { 58 } else { 1 }, six).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self { socket, goal }
    }

    /// An echo request, and whether its reply comes.
    fn is_answered(&self) -> bool {
        // Type, code, checksum, identifier, number; with IPv6 the kernel makes the checksum.
        let (request, reply) = match self.goal {
            IpAddr::V4(_) => ([8, 0, 0xe5, 0xf8, 0x12, 0x00, 0, 7], [0, 0, 0xed, 0xf8, 0x12, 0x00, 0, 7]),
            IpAddr::V6(_) => ([128, 0, 0, 0, 0x12, 0x00, 0, 7], [129, 0, 0, 0, 0x12, 0x00, 0, 7]),
        };
        self.socket.send_to(&request, (self.goal, 0)).unwrap();
        let until = Instant::now() + Duration::from_millis(400);
        let mut buffer = [0; 128];
        while Instant::now() < until {
            let Ok(length) = self.socket.recv(&mut buffer) else { continue };
            let packet = &buffer[..length][if self.goal.is_ipv4() { 20 } else { 0 }..];
            if packet[0] == reply[0] && packet[4..] == reply[4..] {
                return true;
            }
        }
        false
    }
}

/// An INIT, as RFC 9260 section 3.3.2 has it.
fn sctp(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9]);
    // CRC32c, section 6.8.
    let crc = packet.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    });
    packet[8..12].copy_from_slice(&(!crc).to_le_bytes());
    packet
}

/// Also where the kernel has no SCTP: packets of our own making, from and to raw sockets.
#[test]
fn sctp_is_judged_by_its_ports() {
    let Some(mut bed) = Bed::new("SCTP") else { return };
    let from = bed.pods[2].netns.run(|| socket::raw(132, false).unwrap()).unwrap();
    let to = bed.pods[5].netns.run(|| socket::raw(132, false).unwrap()).unwrap();
    to.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let goal = bed.pods[5].four;
    let mut source = 30_000;
    let mut arrives = |port: u16| {
        source += 1;
        from.send_to(&sctp(source, port), (goal, 0)).unwrap();
        let mut packet = [0; 128];
        let met = to.recv(&mut packet).is_ok();
        assert!(!met || packet[20..24] == [source.to_be_bytes(), port.to_be_bytes()].concat());
        met
    };
    assert!(arrives(7777), "before any policy");
    let allow = |ports: Value| {
        read(&json!({"metadata": {"namespace": "x", "name": "p"},
            "spec": {"podSelector": {}, "ingress": [{"ports": ports}]}}))
    };
    for (ports, passing) in [
        (json!([{"protocol": "SCTP", "port": 7777}]), [true, false]),
        (json!([{"protocol": "SCTP", "port": 7770, "endPort": 7778}]), [true, true]),
        (json!([{"protocol": "SCTP"}]), [true, true]),
        (json!([{"port": 7777}, {"protocol": "UDP", "port": 7778}]), [false, false]),
    ] {
        let (name, policy) = allow(ports.clone());
        bed.keeper.note(Change::Policy(name, Some(policy)));
        bed.sync();
        assert_eq!([arrives(7777), arrives(7778)], passing, "{ports}");
    }
    let met = bed.node.run(|| sync::met(&Nft).unwrap()).unwrap();
    assert!(met.iter().any(|met| (met.protocol, met.port, met.destination) == (132, 7777, goal)), "{met:?}");
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    let Some(bed) = Bed::new("spoofing") else { return };
    let target = bed.pods[4].netns.run(|| UdpSocket::bind("[::]:7000").unwrap()).unwrap();
    target.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let heard = || target.recv_from(&mut [0; 8]).ok().map(|(_, from)| from.ip().to_canonical());
    for sender in [0, 5] {
        let own = &bed.pods[sender];
        for (foreign, goal) in [("10.244.1.77", bed.pods[4].four), ("fd00:244::77", bed.pods[4].six)] {
            own.netns
                .run(|| {
                    let mut network = Kernel::open().unwrap();
                    let link = network.link("eth0").unwrap().unwrap().index;
                    let bits = if foreign.contains(':') { 128 } else { 32 };
                    network.add_address(Address { link, net: format!("{foreign}/{bits}").parse().unwrap() }).unwrap();
                })
                .unwrap();
            let send = |from: IpAddr| {
                let socket = own.netns.run(|| UdpSocket::bind((from, 0)).unwrap()).unwrap();
                socket.send_to(b"x", (goal, 7000)).unwrap();
            };
            send(if goal.is_ipv4() { own.four } else { own.six });
            assert_eq!(heard(), Some(if goal.is_ipv4() { own.four } else { own.six }), "{}", PODS[sender]);
            send(ip(foreign));
            assert_eq!(heard(), None, "{} as {foreign}", PODS[sender]);
        }
    }
    let drops = bed.node.run(|| sync::drops(&Nft).unwrap()).unwrap();
    assert!(drops["what pods sent from addresses not their own"] >= 4, "{drops:?}");
}

#[test]
fn a_bridge_brings_an_isolated_pod_only_what_is_sent_to_it() {
    let Some(mut bed) = Bed::new("flooding") else { return };
    let target = bed.pods[1].netns.run(|| UdpSocket::bind("[::]:7000").unwrap()).unwrap();
    target.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let heard = || target.recv_from(&mut [0; 8]).is_ok();
    let shout = |goal: &str| {
        let goal: SocketAddr = goal.parse().unwrap();
        let from = if goal.is_ipv4() { bed.pods[0].four } else { bed.pods[0].six };
        let socket = bed.pods[0].netns.run(|| UdpSocket::bind((from, 0)).unwrap()).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"x", goal).unwrap();
    };
    shout("10.244.1.127:7000");
    assert!(heard(), "a broadcast, while nobody is isolated");
    bed.keeper.note(deny("x", &["Ingress"]));
    let keeper = &mut bed.keeper;
    bed.node.run(|| keeper.sync().unwrap()).unwrap();
    shout("10.244.1.127:7000");
    assert!(!heard(), "a broadcast");
}

/// A Service's address is translated before the policies look, and the source only after.
#[test]
fn policies_see_the_pod_behind_a_service() {
    let Some(mut bed) = Bed::new("service") else { return };
    let rules = "table ip proxy {
  chain prerouting { type nat hook prerouting priority -100; ip daddr 10.96.0.1 dnat to 10.244.1.10; }
  chain postrouting { type nat hook postrouting priority 100; ip daddr 10.244.1.10 masquerade; }
}";
    bed.node.run(|| Nft.apply(rules).unwrap()).unwrap();
    let allow = json!({"metadata": {"namespace": "x", "name": "p"}, "spec": {"podSelector": {"matchLabels": {"pod": "a"}},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]}});
    let (name, policy) = read(&allow);
    bed.keeper.note(Change::Policy(name, Some(policy)));
    bed.sync();
    for (from, member) in bed.pods.iter().enumerate().skip(1) {
        let outcome = connect(&member.netns, ip("10.96.0.1"), 80).map(drop);
        assert_eq!(outcome.is_ok(), PODS[from].starts_with('y'), "{}", PODS[from]);
    }
    // A pod reaches itself by its Service.
    connect(&bed.pods[0].netns, ip("10.96.0.1"), 80).unwrap();
}

#[test]
fn a_finished_pod_loses_what_its_labels_gave() {
    let Some(mut bed) = Bed::new("finished") else { return };
    let allow = json!({"metadata": {"namespace": "x", "name": "p"}, "spec": {"podSelector": {"matchLabels": {"pod": "a"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}]}});
    let (name, policy) = read(&allow);
    bed.keeper.note(Change::Policy(name, Some(policy)));
    bed.sync();
    connect(&bed.pods[1].netns, bed.pods[0].four, 80).unwrap();
    let (name, own) = pod(1);
    bed.keeper.note(Change::Pod(name, Some(Pod { finished: true, ..own })));
    assert_eq!(bed.sync(), Step::Partial);
    connect(&bed.pods[1].netns, bed.pods[0].four, 80).unwrap_err();
}
