//! Nodes as namespaces with pods in them, and the daemon's step on each, on the real kernel.

mod kernel;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use ::kernel::netlink::{Address, Kernel, LinkChange, Neighbour, Network, Route, VethEnd};
use ::kernel::netns::Netns;
use ::kernel::sysctl;
use k8s_openapi::api::core::v1 as core;
use serde_json::json;

use super::diff::{Action, diff};
use super::fabric::Fabric;
use super::model::Node;
use super::plan::{Learned, Model, Plan, plan};
use crate::config::Config;

/// Whether the test may make namespaces; says so aloud when not.
pub fn root(what: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    let root = std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    if !root {
        eprintln!("SKIPPED {what}: needs root");
    }
    root
}

/// A machine with pods of its own.
pub struct Machine {
    pub name: &'static str,
    pub netns: Netns,
    pub addresses: [IpAddr; 2],
    pub number: usize,
    pub pod: Netns,
}

/// Subnets 0 and 1, on a bridge each, behind a router that knows of no pods.
pub struct Bed {
    pub router: Netns,
    pub machines: Vec<Machine>,
    /// What the API knows of the nodes.
    pub nodes: BTreeMap<String, core::Node>,
}

fn open(netns: &Netns) -> Kernel {
    netns.run(|| Kernel::open().unwrap()).unwrap()
}

/// Gives a link its addresses and starts it.
fn start(netns: &Netns, name: &str, addresses: &[String]) {
    let _ = netns.run(|| sysctl::write(&format!("net/ipv6/conf/{name}/accept_dad"), "0")).unwrap();
    let mut network = open(netns);
    let link = network.link(name).unwrap().unwrap().index;
    for net in addresses {
        network.add_address(Address { link, net: net.parse().unwrap() }).unwrap();
    }
    network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
}

fn route(netns: &Netns, to: &str, by: Option<&str>, device: &str) {
    let mut network = open(netns);
    let link = network.link(device).unwrap().unwrap().index;
    network.add_route(&Route::new(to.parse().unwrap(), by.map(|by| by.parse().unwrap()), link)).unwrap();
}

impl Bed {
    /// Machines `a`, `b`, `c` in these subnets.
    pub fn new(subnets: [usize; 3]) -> Self {
        let router = Netns::anonymous().unwrap();
        start(&router, "lo", &[]);
        let mut network = open(&router);
        for subnet in 0..2 {
            network.add_bridge(&format!("br{subnet}"), None).unwrap();
            start(&router, &format!("br{subnet}"), &[four(subnet, 254), six(subnet, 254)]);
        }
        router.run(|| ::kernel::forwarding::enable(true, true).unwrap()).unwrap();
        let mut bed = Self { router, machines: Vec::new(), nodes: BTreeMap::new() };
        for ((number, name), subnet) in (1..).zip(["a", "b", "c"]).zip(subnets) {
            bed.join(name, number, subnet);
        }
        bed
    }

    fn join(&mut self, name: &'static str, number: usize, subnet: usize) {
        let netns = Netns::anonymous().unwrap();
        start(&netns, "lo", &[]);
        let mut network = open(&self.router);
        let bridge = network.link(&format!("br{subnet}")).unwrap().unwrap().index;
        let near = VethEnd { name, master: Some(bridge), ..VethEnd::default() };
        let far = VethEnd { name: "eth0", ..VethEnd::default() };
        network.add_veth(near, far, Some(netns.as_fd()), None).unwrap();
        start(&self.router, name, &[]);
        start(&netns, "eth0", &[four(subnet, number), six(subnet, number)]);
        let plain = |net: String| net.split('/').next().unwrap().to_owned();
        route(&netns, "0.0.0.0/0", Some(&plain(four(subnet, 254))), "eth0");
        route(&netns, "::/0", Some(&plain(six(subnet, 254))), "eth0");
        let addresses = [plain(four(subnet, number)), plain(six(subnet, number))];
        let node = json!({
            "metadata": {"name": name},
            "spec": {"podCIDRs": [format!("10.244.{number}.0/24"), format!("fd00:{number}::/64")]},
            "status": {"addresses": addresses.clone().map(|address| json!({"type": "InternalIP", "address": address}))},
        });
        self.nodes.insert(name.into(), serde_json::from_value(node).unwrap());
        let pod = pod(&netns, number);
        let addresses = addresses.map(|address| address.parse().unwrap());
        self.machines.push(Machine { name, netns, addresses, number, pod });
    }

    pub fn machine(&self, name: &str) -> &Machine {
        self.machines.iter().find(|machine| machine.name == name).unwrap()
    }

    pub fn plan(&self, name: &str, config: &Config) -> Plan {
        self.machine(name).netns.run(|| self.planned(name, config, &mut Fabric::open().unwrap())).unwrap()
    }

    fn planned(&self, me: &str, config: &Config, fabric: &mut Fabric) -> Plan {
        let nodes: BTreeMap<String, Node> =
            self.nodes.iter().map(|(name, node)| (name.clone(), Node::read(node))).collect();
        let interfaces = fabric.interfaces().unwrap();
        let learned = Learned::new();
        plan(&Model { me, nodes: &nodes, config, interfaces: &interfaces, learned: &learned }).unwrap()
    }

    /// What a daemon that starts on the node does, up to its action `limit`; its annotations are written.
    pub fn keep(&mut self, name: &str, config: &Config, limit: usize) -> Vec<Action> {
        let (plan, mut actions) = self
            .machine(name)
            .netns
            .run(|| {
                let mut fabric = Fabric::open().unwrap();
                let plan = self.planned(name, config, &mut fabric);
                let actions = diff(&fabric.read().unwrap(), &plan.state);
                for action in actions.iter().take(limit) {
                    fabric.apply(action).unwrap_or_else(|error| panic!("{name}: {action:?}: {error}"));
                }
                (plan, actions)
            })
            .unwrap();
        let annotations = self.nodes.get_mut(name).unwrap().metadata.annotations.get_or_insert_default();
        for (key, value) in plan.annotations {
            match value {
                Some(value) => drop(annotations.insert(key.to_owned(), value)),
                None => drop(annotations.remove(key)),
            }
        }
        actions.truncate(limit);
        actions
    }

    /// Every daemon does what it does until none has anything to do.
    pub fn settle(&mut self, config: &Config) {
        let names: Vec<&str> = self.machines.iter().map(|machine| machine.name).collect();
        for _ in 0..3 {
            let acted: usize = names.iter().map(|name| self.keep(name, config, usize::MAX).len()).sum();
            if acted == 0 {
                return;
            }
        }
        panic!("there is always more to do");
    }

    /// Each pod asks each pod of another machine, by both families; who asks is seen with its own address.
    pub fn assert_pods_reach_pods(&self) {
        for from in &self.machines {
            for to in self.machines.iter().filter(|to| to.name != from.name) {
                let said = [
                    ask(&from.pod, &format!("10.244.{}.2:80", to.number)),
                    ask(&from.pod, &format!("[fd00:{}::2]:80", to.number)),
                ];
                let expected = [Ok(format!("10.244.{}.2", from.number)), Ok(format!("fd00:{}::2", from.number))];
                assert_eq!(said, expected, "{} to {}", from.name, to.name);
            }
        }
    }
}

pub fn four(subnet: usize, host: usize) -> String {
    format!("{}.{host}/24", ["192.0.2", "198.51.100"][subnet])
}

pub fn six(subnet: usize, host: usize) -> String {
    format!("2001:db8:{subnet}::{host}/64")
}

/// A pod as the plugin `routed` makes it, with a server that says who asks.
pub fn pod(node: &Netns, number: usize) -> Netns {
    let pod = Netns::anonymous().unwrap();
    let mut network = open(node);
    let ends = ["pod", "eth0"].map(|name| VethEnd { name, ..VethEnd::default() });
    network.add_veth(ends[0], ends[1], Some(pod.as_fd()), None).unwrap();
    start(node, "pod", &["fe80::1/64".into()]);
    let addresses = [format!("10.244.{number}.2/32"), format!("fd00:{number}::2/128")];
    start(&pod, "eth0", &addresses);
    start(&pod, "lo", &[]);
    let mut inner = open(&pod);
    let (outside, inside) = (network.link("pod").unwrap().unwrap(), inner.link("eth0").unwrap().unwrap());
    for gateway in ["169.254.1.1", "fe80::1"] {
        let address = gateway.parse().unwrap();
        inner.set_neighbour(Neighbour { link: inside.index, address, mac: outside.mac.unwrap() }).unwrap();
    }
    route(&pod, "169.254.1.1/32", None, "eth0");
    route(&pod, "0.0.0.0/0", Some("169.254.1.1"), "eth0");
    route(&pod, "::/0", Some("fe80::1"), "eth0");
    for address in &addresses {
        let ip = address.split('/').next().unwrap().parse().unwrap();
        network.set_neighbour(Neighbour { link: outside.index, address: ip, mac: inside.mac.unwrap() }).unwrap();
        route(node, address, None, "pod");
    }
    serve(&pod);
    pod
}

pub fn serve(netns: &Netns) {
    let listener = netns.run(|| TcpListener::bind(("::", 80)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(from.to_string().as_bytes());
        }
    });
}

/// What the server there saw as the sender.
pub fn ask(netns: &Netns, address: &str) -> Result<String, String> {
    let dial = || {
        let address: SocketAddr = address.parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    };
    netns.run(dial).unwrap()
}
