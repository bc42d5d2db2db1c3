//! A node with nine pods, three in each of three namespaces, some on a bridge and some routed, with addresses of both
//! families and servers on TCP and UDP 80 and 81.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Duration;

use kernel::conntrack;
use kernel::netlink::{Address, Kernel, LinkChange, Network, Route, VethEnd};
use kernel::netns::Netns;
use kernel::nftables::{Nft, Nftables};
use kernel::sysctl;
use net::policy::model::{Attachment, Labels, Name, NamedPort, Pod, Protocol};
use net::policy::plan::Change;
use net::policy::sync::{Keeper, Step};

pub const NODE: &str = "n1";
/// The first five are on the bridge, the others routed.
pub const PODS: [&str; 9] = ["x/a", "x/b", "y/a", "y/b", "z/a", "x/c", "y/c", "z/b", "z/c"];
const BRIDGED: usize = 5;
pub const PORTS: [u16; 2] = [80, 81];

/// One packet that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Probe {
    pub from: usize,
    pub to: usize,
    pub udp: bool,
    pub port: u16,
    pub six: bool,
}

pub struct Bed {
    pub node: Netns,
    pub pods: Vec<Member>,
    pub keeper: Keeper,
    round: u16,
}

pub struct Member {
    pub netns: Netns,
    pub four: IpAddr,
    pub six: IpAddr,
    pub link: String,
    orders: mpsc::Sender<Order>,
}

struct Order {
    probes: Vec<(Probe, SocketAddr)>,
    round: u16,
    patience: Duration,
    answer: mpsc::Sender<Vec<Probe>>,
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn addresses(pod: usize) -> (IpAddr, IpAddr) {
    let host = if pod < BRIDGED { 10 + pod } else { 130 + pod };
    (ip(&format!("10.244.1.{host}")), ip(&format!("fd00:244::{host}")))
}

impl Bed {
    /// `None` where the test cannot run, said aloud.
    pub fn new(what: &str) -> Option<Self> {
        let Ok(node) = Netns::anonymous() else {
            eprintln!("SKIPPED {what}: needs root");
            return None;
        };
        let prepared = node.run(prepare_node).unwrap();
        if let Err(error) = prepared {
            eprintln!("SKIPPED {what}: {error}");
            return None;
        }
        let pods = (0..PODS.len()).map(|pod| Member::join(&node, pod)).collect();
        let mut bed = Self { node, pods, keeper: Keeper::new(NODE, Box::new(Nft), None), round: 0 };
        bed.note(objects());
        bed.attach_all();
        bed.sync();
        Some(bed)
    }

    pub fn note(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.keeper.note(change);
        }
    }

    pub fn attach_all(&mut self) {
        let all: Vec<Change> = (0..PODS.len()).map(|pod| Change::Attached(self.attachment(pod))).collect();
        self.note(all);
    }

    pub fn attachment(&self, pod: usize) -> Attachment {
        let (namespace, name) = PODS[pod].split_once('/').unwrap();
        let member = &self.pods[pod];
        Attachment {
            container: format!("c{pod}").into(),
            link: member.link.as_str().into(),
            namespace: namespace.into(),
            pod: name.into(),
            uid: PODS[pod].into(),
            addresses: [member.four, member.six].into(),
        }
    }

    pub fn sync(&mut self) -> Step {
        let keeper = &mut self.keeper;
        self.node.run(|| keeper.sync().unwrap()).unwrap()
    }

    /// Ends the flows that the policies do not allow any more; how many there were.
    pub fn end_flows(&mut self) -> usize {
        let keeper = &mut self.keeper;
        let own = HashSet::from(["10.244.1.1", "fd00:244::1"].map(ip));
        self.node.run(|| keeper.end_flows(own).unwrap()).unwrap()
    }

    /// A keeper as a new process has it.
    pub fn begin_anew(&mut self) {
        let conntrack = self.node.run(|| conntrack::Kernel::open().unwrap()).unwrap();
        self.keeper = Keeper::new(NODE, Box::new(Nft), Some(Box::new(conntrack)));
        self.note(objects());
        for pod in 0..PODS.len() {
            let attachment = self.attachment(pod);
            self.keeper.found(attachment);
        }
    }

    pub fn list(&self, command: &str) -> String {
        self.node.run(|| Nft.list(command).unwrap()).unwrap()
    }

    /// Those of the probes that got an answer. What should pass and does not is tried again, for a busy machine.
    pub fn reached(&mut self, probes: &[Probe], expected: &dyn Fn(&Probe) -> bool) -> HashSet<Probe> {
        let mut reached = self.send(probes, Duration::from_millis(250));
        for _ in 0..3 {
            let missing: Vec<Probe> =
                probes.iter().copied().filter(|probe| expected(probe) && !reached.contains(probe)).collect();
            if missing.is_empty() {
                break;
            }
            reached.extend(self.send(&missing, Duration::from_secs(1)));
        }
        reached
    }

    fn send(&mut self, probes: &[Probe], patience: Duration) -> HashSet<Probe> {
        self.round += 1;
        let (answer, answers) = mpsc::channel();
        for (from, member) in self.pods.iter().enumerate() {
            let own = probes.iter().filter(|probe| probe.from == from).map(|probe| {
                let to = &self.pods[probe.to];
                (*probe, SocketAddr::new(if probe.six { to.six } else { to.four }, probe.port))
            });
            let order = Order { probes: own.collect(), round: self.round, patience, answer: answer.clone() };
            member.orders.send(order).unwrap();
        }
        drop(answer);
        answers.iter().flatten().collect()
    }
}

/// Every packet that the servers of all pods can answer.
pub fn every_probe() -> Vec<Probe> {
    let mut all = Vec::new();
    for from in 0..PODS.len() {
        for to in (0..PODS.len()).filter(|to| *to != from) {
            for port in PORTS {
                for (udp, six) in [(false, false), (false, true), (true, false), (true, true)] {
                    all.push(Probe { from, to, udp, port, six });
                }
            }
        }
    }
    all
}

pub fn pod(number: usize) -> (Name, Pod) {
    let (namespace, name) = PODS[number].split_once('/').unwrap();
    let port = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
    let odd = if namespace == "x" { 80 } else { 81 };
    let mut labels = vec![("pod", name)];
    labels.extend((name == "a").then_some(("tier", "front")));
    let (four, six) = addresses(number);
    let pod = Pod {
        uid: PODS[number].into(),
        labels: Labels::new(labels.into_iter()),
        ips: [four, six].into(),
        node: NODE.into(),
        ports: [
            port("serve-80-tcp", Protocol::Tcp, 80),
            port("serve-81-udp", Protocol::Udp, 81),
            port("odd", Protocol::Tcp, odd),
        ]
        .into(),
        ..Pod::default()
    };
    (Name::new(namespace, name), pod)
}

pub fn objects() -> Vec<Change> {
    let namespace = |name: &str| {
        let labels = [("ns", name), ("team", "dev")];
        let count = if name == "z" { 1 } else { 2 };
        Change::Namespace(name.into(), Some(Labels::new(labels.into_iter().take(count))))
    };
    let mut all: Vec<Change> = ["x", "y", "z"].map(namespace).into();
    all.extend((0..PODS.len()).map(pod).map(|(name, pod)| Change::Pod(name, Some(pod))));
    all
}

fn up(network: &mut Kernel, name: &str, addresses: &[&str]) -> u32 {
    let link = network.link(name).unwrap().unwrap().index;
    for address in addresses {
        network.add_address(Address { link, net: address.parse().unwrap() }).unwrap();
    }
    network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    link
}

fn no_detection() {
    for name in ["all", "default"] {
        sysctl::write(&format!("net/ipv6/conf/{name}/accept_dad"), "0").unwrap();
    }
}

fn prepare_node() -> Result<(), sysctl::Error> {
    no_detection();
    for name in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        sysctl::write(name, "1")?;
    }
    sysctl::write("net/ipv4/ip_forward", "1")?;
    sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
    let mut network = Kernel::open().unwrap();
    up(&mut network, "lo", &[]);
    network.add_bridge("cni0", None).unwrap();
    up(&mut network, "cni0", &["10.244.1.1/25", "fd00:244::1/120"]);
    Ok(())
}

impl Member {
    fn join(node: &Netns, pod: usize) -> Self {
        let netns = Netns::anonymous().unwrap();
        netns.run(no_detection).unwrap();
        let (four, six) = addresses(pod);
        let link = format!("pod{pod}");
        let bridged = pod < BRIDGED;
        node.run(|| {
            let mut network = Kernel::open().unwrap();
            let bridge = network.link("cni0").unwrap().unwrap().index;
            let near = VethEnd { name: &link, master: bridged.then_some(bridge), ..VethEnd::default() };
            let far = VethEnd { name: "eth0", ..VethEnd::default() };
            network.add_veth(near, far, Some(netns.as_fd()), None).unwrap();
            if bridged {
                let port = network.link(&link).unwrap().unwrap().index;
                network.set_hairpin(port, true).unwrap();
            }
            let own: &[&str] = if bridged { &[] } else { &["169.254.1.1/32", "fe80::1/64"] };
            let index = up(&mut network, &link, own);
            for (ip, bits) in [(four, 32), (six, 128)].into_iter().filter(|_| !bridged) {
                network.add_route(&Route::new(format!("{ip}/{bits}").parse().unwrap(), None, index)).unwrap();
            }
        })
        .unwrap();
        netns.run(|| Self::configure(bridged, four, six)).unwrap();
        serve(&netns);
        let orders = prober(&netns);
        Self { netns, four, six, link, orders }
    }

    fn configure(bridged: bool, four: IpAddr, six: IpAddr) {
        let mut network = Kernel::open().unwrap();
        up(&mut network, "lo", &[]);
        let bits = if bridged { (25, 120) } else { (32, 128) };
        let own = [format!("{four}/{}", bits.0), format!("{six}/{}", bits.1)];
        let link = up(&mut network, "eth0", &[&own[0], &own[1]]);
        let gateways = if bridged { ["10.244.1.1", "fd00:244::1"] } else { ["169.254.1.1", "fe80::1"] };
        if !bridged {
            network.add_route(&Route::new("169.254.1.1/32".parse().unwrap(), None, link)).unwrap();
        }
        for (any, gateway) in ["0.0.0.0/0", "::/0"].into_iter().zip(gateways) {
            network.add_route(&Route::new(any.parse().unwrap(), Some(ip(gateway)), link)).unwrap();
        }
    }
}

fn serve(netns: &Netns) {
    for port in PORTS {
        let any: SocketAddr = format!("[::]:{port}").parse().unwrap();
        let (tcp, udp) = netns.run(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())).unwrap();
        std::thread::spawn(move || tcp.incoming().for_each(drop));
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((size, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..size], from);
            }
        });
    }
}

/// A thread that stays in the pod's namespace and tries what it is told, all at once.
fn prober(netns: &Netns) -> mpsc::Sender<Order> {
    let (orders, inbox) = mpsc::channel::<Order>();
    let here = Netns::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&netns.as_fd()))).unwrap();
    std::thread::spawn(move || {
        here.enter().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for order in inbox {
            let _ = order.answer.send(runtime.block_on(try_all(&order)));
        }
    });
    orders
}

async fn try_all(order: &Order) -> Vec<Probe> {
    let (udp, tcp): (Vec<_>, Vec<_>) = order.probes.iter().copied().partition(|(probe, _)| probe.udp);
    let connections = tcp.iter().map(|(probe, goal)| async move {
        let connected = tokio::time::timeout(order.patience, tokio::net::TcpStream::connect(goal)).await;
        matches!(connected, Ok(Ok(_))).then_some(*probe)
    });
    let connections = futures::future::join_all(connections);
    // A port of its own for each round, so that no flow of an earlier round lets a packet pass.
    let datagrams = [("0.0.0.0", 20_000, false), ("::", 40_000, true)].map(|(any, base, six)| {
        let local = SocketAddr::new(ip(any), base + order.round);
        let own: Vec<_> = udp.iter().copied().filter(|(probe, _)| probe.six == six).collect();
        async move { datagrams(local, &own, order.patience).await.unwrap() }
    });
    let [four, six] = datagrams;
    let (connected, four, six) = futures::join!(connections, four, six);
    connected.into_iter().flatten().chain(four).chain(six).collect()
}

async fn datagrams(local: SocketAddr, probes: &[(Probe, SocketAddr)], patience: Duration) -> io::Result<Vec<Probe>> {
    let socket = tokio::net::UdpSocket::bind(local).await?;
    for (_, goal) in probes {
        // A refusal of an earlier datagram is reported by a later call.
        let _ = socket.send_to(b"?", goal).await;
    }
    let mut reached = Vec::new();
    let mut buffer = [0; 8];
    let until = tokio::time::Instant::now() + patience;
    while reached.len() < probes.len() {
        let Ok(received) = tokio::time::timeout_at(until, socket.recv_from(&mut buffer)).await else { break };
        let Ok((_, from)) = received else { continue };
        reached.extend(probes.iter().find(|(_, goal)| *goal == from).map(|(probe, _)| *probe));
    }
    Ok(reached)
}
