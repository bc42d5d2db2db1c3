//! BIRD as the router of each rack: nodes tell it of their pods by BGP, and pods of other racks are reached through it alone.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use kernel::netns::Netns;
use tests::bed::{Cluster, Kubectl, Node, eventually, output, text};
use tests::bird::{self, Bird};
use tests::counts;
use tests::leaks::Snapshot;
use tests::traffic::Traffic;

use crate::routes::{configure, daemon};
use crate::several_nodes::{Placed, one_on_each, reach_each_other};

/// BFD's interval and how many may be missed: silence of three times this is a failure.
const BFD: (Duration, u32) = (Duration::from_millis(200), 3);
const MANY: usize = 100_000;

pub fn racks() {
    if !bird::is_here() {
        println!("SKIPPED bgp-racks: no BIRD (package bird2)");
        return;
    }
    let before = Snapshot::take();
    let cluster = Cluster::up("tor", &["--nodes", "3", "--racks", "2"]);
    let kubectl = cluster.namespace("tor");
    let bed = Bed::new(&cluster);
    let mut routers: Vec<Bird> = (1..=2).map(|rack| bed.router(rack, &bed.graceful(rack))).collect();
    configure(&kubectl, &bed.peers(""));
    let pods = one_on_each(&kubectl);
    kubectl.run(&["create", "service", "nodeport", "each", "--tcp=80:8080"]);
    through_the_routers(&kubectl, &bed, &routers, &pods);
    router_killed(&kubectl, &bed, &mut routers, &pods);
    bfd_fails(&kubectl, &bed, &routers, &pods);
    many_routes(&kubectl, &bed, &routers[0], &pods);
    drop(routers);
    drop(kubectl);
    drop(bed);
    drop(cluster);
    before.assert_same();
}

struct Bed<'a> {
    cluster: &'a Cluster,
    nodes: Vec<Node>,
}

impl<'a> Bed<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, nodes: cluster.nodes() }
    }

    /// `172.30.N.HOST` of the cluster: a rack has 32 addresses, of which the first is the router's.
    fn address(&self, host: u8) -> Ipv4Addr {
        let node: Ipv4Addr = self.nodes[0].address.parse().unwrap();
        let [a, b, c, _] = node.octets();
        Ipv4Addr::new(a, b, c, host)
    }

    fn of_rack(&self, rack: u8) -> impl Iterator<Item = &Node> {
        let of = move |node: &&Node| node.address.parse::<Ipv4Addr>().unwrap().octets()[3] / 32 == rack;
        self.nodes.iter().filter(of)
    }

    fn namespace(&self, rack: u8) -> Netns {
        Netns::open(self.cluster.state().join("racks").join(rack.to_string())).unwrap()
    }

    fn router(&self, rack: u8, config: &str) -> Bird {
        Bird::start(self.namespace(rack), self.cluster.folder.path().join(format!("bird-{rack}")), config)
    }

    /// The router's configuration: a session with each node of the rack, one with the other rack's router, and all that
    /// they tell in the kernel.
    fn config(&self, rack: u8, more: &str) -> String {
        let (own, uplink) = (self.address(rack * 32 + 1), self.address(1 + rack));
        let other = 3 - rack;
        let asn = |rack: u8| 65000 + u32::from(rack);
        let mut config = format!(
            "log stderr all;\nrouter id {uplink};\nprotocol device {{ scan time 2; }}
            protocol kernel {{ persist; ipv4 {{ import none; export where source = RTS_BGP; }}; }}
            protocol bfd {{ interface \"*\" {{ interval {interval} ms; multiplier {multiplier}; }}; }}
            protocol static many {{ disabled; ipv4;\ninclude \"many.conf\";\n}}
            protocol bgp spine {{ local {uplink} as {}; neighbor {} as {}; {RETRY} {more}
                ipv4 {{ import all; export where source = RTS_BGP; next hop self; }}; }}\n",
            asn(rack),
            self.address(1 + other),
            asn(other),
            interval = BFD.0.as_millis(),
            multiplier = BFD.1,
        );
        for (number, node) in self.of_rack(rack).enumerate() {
            // The first node of a rack is told of everything.
            let export = if number == 0 { "all" } else { "where source = RTS_BGP" };
            let (address, asn) = (&node.address, asn(rack));
            let session = format!(
                "protocol bgp node{number} {{ local {own} as {asn}; neighbor {address} as 64512; {RETRY} {more}
                    ipv4 {{ import all; export {export}; }}; }}\n"
            );
            config += &session;
        }
        config
    }

    fn graceful(&self, rack: u8) -> String {
        let folder = self.cluster.folder.path().join(format!("bird-{rack}"));
        fs::create_dir_all(&folder).unwrap();
        let mut many = String::new();
        for index in 0..MANY as u32 {
            writeln!(many, "route {}/24 blackhole;", Ipv4Addr::from(0x1400_0000 + (index << 8))).unwrap();
        }
        fs::write(folder.join("many.conf"), many).unwrap();
        self.config(rack, "graceful restart on; graceful restart time 60;")
    }

    /// The ConfigMap: no mesh, and each rack's nodes speak with its router. All nodes have one AS number, so that one rack
    /// hears its own from the other.
    fn peers(&self, more: &str) -> String {
        let peer = |rack: u8| {
            format!(
                "- name: rack-{rack}\\n  nodeSelector: topology.kubernetes.io/zone in (rack-{rack})\\n  peerIP: {}\\n  \
                 asNumber: {}\\n  numAllowedLocalASNumbers: 1\\n{more}",
                self.address(rack * 32 + 1),
                65000 + u32::from(rack)
            )
        };
        let peers = peer(1) + &peer(2);
        format!(r#"{{"mode": "bgp", "nodeToNodeMeshEnabled": "false", "peers": "{peers}"}}"#)
    }

    /// The routes of BGP in a node's kernel.
    fn learned(&self, node: &Node) -> Vec<String> {
        let shown = self.cluster.inside_of(&node.name, &["ip", "-o", "route", "show", "proto", "81"]);
        text(&shown.stdout).lines().filter(|line| !line.starts_with("blackhole")).map(str::to_owned).collect()
    }
}

const RETRY: &str = "connect retry time 1; connect delay time 1; error wait time 1, 2; error forget time 1;";

fn range(placed: &Placed) -> String {
    format!("{}.0/24", placed.address.rsplit_once('.').unwrap().0)
}

/// Every node has every other's range by its router, and the routers by one another.
fn converged(bed: &Bed<'_>, pods: &[Placed]) {
    for (rack, node) in (1..=2).flat_map(|rack| bed.of_rack(rack).map(move |node| (rack, node))) {
        let router = bed.address(rack * 32 + 1);
        eventually(&format!("{} to have all ranges", node.name), Duration::from_secs(60), || {
            let learned = bed.learned(node);
            let others = pods.iter().filter(|placed| placed.node != *node);
            let has = |placed: &Placed| {
                let neighbour = bed.of_rack(rack).any(|other| *other == placed.node);
                // RFC 4271 section 5.1.3: on one link the next hop is the one that told it.
                let gateway = if neighbour { placed.node.address.clone() } else { router.to_string() };
                learned.iter().any(|line| line.starts_with(&format!("{} via {gateway} ", range(placed))))
            };
            others.clone().all(has).then_some(())
        });
    }
}

fn through_the_routers(kubectl: &Kubectl<'_>, bed: &Bed<'_>, routers: &[Bird], pods: &[Placed]) {
    converged(bed, pods);
    for placed in pods {
        for router in routers {
            let shown = router.ask(&format!("show route {}", range(placed)));
            assert!(shown.contains("[AS"), "BIRD knows {}: {shown}", range(placed));
        }
        let peers = text(&bed.cluster.bosun(&["net", "peers", "--node", &placed.node.name]).stdout);
        assert!(peers.contains("Established") && peers.contains("rack-"), "{peers}");
        assert_eq!(peers.lines().count(), 2, "the router of its rack alone: {peers}");
    }
    reach_each_other(kubectl, pods);
}

/// Pods of both racks talk while the router's BIRD is killed and comes back.
fn router_killed(kubectl: &Kubectl<'_>, bed: &Bed<'_>, routers: &mut [Bird], pods: &[Placed]) {
    let inside: Vec<Netns> = pods.iter().map(|placed| kubectl.netns(&placed.pod)).collect();
    let addresses: Vec<IpAddr> = pods.iter().map(|placed| placed.address.parse().unwrap()).collect();
    let mut traffic = Traffic::default();
    traffic.transfer("transfer from rack 1 to rack 2", &inside[0], (&inside[1], addresses[1]));
    traffic.connections("connections from rack 1 to rack 2", &inside[0], SocketAddr::new(addresses[1], 8080));
    traffic.connections("connections from rack 2 to rack 1", &inside[1], SocketAddr::new(addresses[2], 8080));
    for rack in 0..routers.len() {
        let before = bed.learned(&pods[0].node);
        routers[rack].kill();
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(bed.learned(&pods[0].node), before, "the routes of a router that restarts stay");
        routers[rack].recover();
        converged(bed, pods);
        // Routes that were kept say nothing of sessions; the routers' own between them must stand before the other restarts.
        for router in routers.iter() {
            eventually("all sessions of a router", Duration::from_secs(60), || {
                let shown = router.ask("show protocols");
                (shown.contains("Established") && !shown.contains(" start ")).then_some(())
            });
        }
        std::thread::sleep(Duration::from_secs(2));
    }
    traffic.end();
}

/// Silence between a node and its router, whose link stays up: BFD ends the session within its time, and the other rack
/// hears of it.
fn bfd_fails(kubectl: &Kubectl<'_>, bed: &Bed<'_>, routers: &[Bird], pods: &[Placed]) {
    // With graceful restart a failure would count as a restart: RFC 5882 section 4.3.2.1.
    for (router, rack) in routers.iter().zip(1..) {
        router.configure(&bed.config(rack, "graceful restart off; bfd on;"));
    }
    let (interval, multiplier) = (format!("{}ms", BFD.0.as_millis()), BFD.1);
    let bfd = format!("  bfd: {{minTxInterval: {interval}, minRxInterval: {interval}, multiplier: {multiplier}}}\\n");
    configure(kubectl, &bed.peers(&bfd));
    for node in &bed.nodes {
        eventually(&format!("BFD of {}", node.name), Duration::from_secs(60), || {
            let peers = text(&bed.cluster.bosun(&["net", "peers", "--node", &node.name]).stdout);
            (peers.contains("Established") && peers.contains("Up")).then_some(())
        });
    }
    converged(bed, pods);
    let lost = range(&pods[1]);
    let nft = |script: &str| {
        let done = bed.namespace(2).run(|| output("nft", &[script])).unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
    };
    nft("add table bridge cut; add chain bridge cut in { type filter hook input priority 0; policy drop; }");
    let begin = Instant::now();
    for (node, what, wanted) in [(&pods[1].node, "its own routes", None), (&pods[0].node, "the way there", Some(&lost))]
    {
        eventually(&format!("{} to lose {what}", node.name), BFD.0 * BFD.1 + Duration::from_secs(3), || {
            let learned = bed.learned(node);
            let there = |line: &&String| wanted.is_none_or(|range| line.starts_with(range.as_str()));
            learned.iter().find(there).is_none().then_some(())
        });
        println!("BFD: {} lost {what} after {} ms", node.name, begin.elapsed().as_millis());
    }
    nft("delete table bridge cut");
    converged(bed, pods);
    reach_each_other(kubectl, pods);
}

/// So many routes of a router through the daemon into a node's kernel, and back out; a daemon that restarts leaves them.
fn many_routes(kubectl: &Kubectl<'_>, bed: &Bed<'_>, router: &Bird, pods: &[Placed]) {
    let (cluster, node) = (bed.cluster, &bed.nodes[0]);
    router.configure(&bed.graceful(1));
    configure(kubectl, &bed.peers(""));
    eventually("a session without BFD", Duration::from_secs(60), || {
        let peers = text(&cluster.bosun(&["net", "peers", "--node", &node.name]).stdout);
        (peers.contains("Established") && !peers.contains("Up")).then_some(())
    });
    converged(bed, pods);
    let own = bed.learned(node).len();
    let counted = |what: &str, wanted: usize| {
        let begin = Instant::now();
        eventually(what, Duration::from_secs(120), || (bed.learned(node).len() == wanted).then_some(()));
        println!("{what}: {:.1} s", begin.elapsed().as_secs_f32());
    };
    let memory = || counts::of_process(host_pid(cluster, node)).map(|(_, kilobytes)| kilobytes / 1024);
    println!("the daemon has {:?} MB", memory());
    router.ask("enable many");
    counted("100 000 routes in the kernel", own + MANY);
    println!("the daemon has {:?} MB", memory());
    let pid = daemon(cluster, node).unwrap();
    assert!(cluster.inside_of(&node.name, &["kill", "-KILL", &pid]).status.success());
    let begin = Instant::now();
    let told = || text(&cluster.bosun(&["net", "peers", "--node", &node.name]).stdout);
    let is_back = |said: &str| said.contains("Established") && said.contains(&format!(" {} ", own + MANY));
    while !is_back(&told()) {
        assert_eq!(bed.learned(node).len(), own + MANY, "routes stay while the daemon is away and until End-of-RIB");
        assert!(begin.elapsed() < Duration::from_secs(60), "another daemon learns them again: {}", told());
    }
    println!("another daemon has all again after {:.1} s", begin.elapsed().as_secs_f32());
    assert_eq!(bed.learned(node).len(), own + MANY);
    router.ask("disable many");
    counted("all of them withdrawn", own);
    // What was freed goes back every 15 s.
    std::thread::sleep(Duration::from_secs(16));
    println!("the daemon has {:?} MB", memory());
}

/// The net daemon of a node, as the host numbers it.
fn host_pid(cluster: &Cluster, node: &Node) -> u32 {
    let group = format!("/bosun/{}/{}/", cluster.name, node.name);
    let of_node = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&group));
    let found =
        crate::soak::daemons(cluster).into_iter().find(|(pid, words)| words.starts_with("bosun net ") && of_node(*pid));
    found.expect("the node has a net daemon").0
}
