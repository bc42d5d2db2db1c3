//! Two nodes, four pods, an outside client, each a network namespace:
//!
//! ```text
//!              client .9 ---+--- .1 node1 --- a 10.244.1.2 (8080, 8081)
//!   192.0.2.0/24, 2001:db8::/64 |          \-- b 10.244.1.3
//!                           +--- .2 node2 --- c 10.244.2.2
//!                                          \-- d 10.244.2.3
//! ```
//!
//! The client's default route is node1. On each node a proxy runs, all of one kind.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kernel::ipvs::Ipvs;
use kernel::netlink::{Kernel, Network, VethEnd};
use kernel::netns::Netns;
use kernel::sysctl;
use tests::api_server::{Objects, PORT};
use tests::bed::{bosun, eventually};

pub const PLACES: [&str; 7] = ["client", "node1", "node2", "a", "b", "c", "d"];

/// Which proxy runs on the bed's nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Upstream,
    Bosun,
}

pub struct Bed {
    pub side: Side,
    /// Lines for the end of the proxies' configuration.
    pub settings: String,
    /// Fields of its section `ipvs`.
    pub ipvs: String,
    /// By [`PLACES`].
    places: Vec<Arc<Netns>>,
    _lan: Netns,
    folder: PathBuf,
    proxies: Vec<Child>,
}

/// `ip` commands, one a line, in a namespace.
fn ip(netns: &Netns, commands: &str) {
    let done = netns.run(|| {
        let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip runs");
        child.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("ip reads");
        child.wait().expect("ip ends")
    });
    assert!(done.expect("the namespace is there").success(), "{commands}");
}

fn join(near: &Netns, far: &Netns, name: &str, far_name: &str) {
    let end = |name| VethEnd { name, ..VethEnd::default() };
    let made = near.run(|| Kernel::open().unwrap().add_veth(end(name), end(far_name), Some(far.as_fd()), None));
    made.unwrap().unwrap();
}

impl Bed {
    pub fn new(side: Side, folder: &Path) -> Self {
        let folder = folder.join(format!("{side:?}"));
        fs::create_dir_all(&folder).unwrap();
        let lan = Netns::anonymous().unwrap();
        let places: Vec<Arc<Netns>> = PLACES.iter().map(|_| Arc::new(Netns::anonymous().unwrap())).collect();
        let (settings, ipvs) = (String::new(), String::new());
        let bed = Self { side, settings, ipvs, places, _lan: lan, folder, proxies: Vec::new() };
        bed.wire();
        for (name, port) in [("a", 8080), ("a", 8081), ("b", 8080), ("c", 8080), ("d", 8080), ("node2", 9090)] {
            serve(bed.place(name), name, port);
        }
        bed
    }

    pub fn place(&self, name: &str) -> &Arc<Netns> {
        &self.places[PLACES.iter().position(|place| *place == name).expect("a place of the bed")]
    }

    fn wire(&self) {
        ip(&self._lan, "link add lan type bridge\nlink set lan up\nlink set lo up\n");
        for (name, host) in [("node1", 1), ("node2", 2), ("client", 9)] {
            let place = self.place(name);
            join(&self._lan, place, name, "eth0");
            ip(&self._lan, &format!("link set {name} master lan up\n"));
            ip(
                place,
                &format!(
                    "link set lo up\nlink set eth0 up\naddress add 192.0.2.{host}/24 dev eth0\n\
                     address add 2001:db8::{host}/64 dev eth0 nodad\n"
                ),
            );
        }
        for (node, number, pods) in [("node1", 1, ["a", "b"]), ("node2", 2, ["c", "d"])] {
            let place = self.place(node);
            place
                .run(|| {
                    let ons = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].map(|name| (name, "1"));
                    // Each refusal is to be seen.
                    let limits = ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"].map(|name| (name, "0"));
                    for (name, value) in [ons, limits].concat() {
                        sysctl::write(name, value).unwrap();
                    }
                })
                .unwrap();
            for (at, pod) in pods.into_iter().enumerate() {
                let host = at + 2;
                join(place, self.place(pod), &format!("veth{pod}"), "eth0");
                ip(
                    place,
                    &format!(
                        "link set veth{pod} up\naddress add 10.244.{number}.1/32 dev veth{pod}\n\
                         address add fd00:244:{number}::1/128 dev veth{pod} nodad\n\
                         route add 10.244.{number}.{host}/32 dev veth{pod}\n\
                         route add fd00:244:{number}::{host}/128 dev veth{pod}\n"
                    ),
                );
                ip(
                    self.place(pod),
                    &format!(
                        "link set lo up\nlink set eth0 up\naddress add 10.244.{number}.{host}/32 dev eth0\n\
                         address add fd00:244:{number}::{host}/128 dev eth0 nodad\n\
                         route add 10.244.{number}.1/32 dev eth0\nroute add default via 10.244.{number}.1\n\
                         route add fd00:244:{number}::1/128 dev eth0\nroute add default via fd00:244:{number}::1\n"
                    ),
                );
            }
            let other = 3 - number;
            ip(
                place,
                &format!(
                    "route add 10.244.{other}.0/24 via 192.0.2.{other}\nroute add default via 192.0.2.9\n\
                     route add fd00:244:{other}::/64 via 2001:db8::{other}\nroute add default via 2001:db8::9\n"
                ),
            );
        }
        ip(self.place("client"), "route add default via 192.0.2.1\nroute add default via 2001:db8::1\n");
    }

    /// Serves `objects` on each node and starts its proxy; returns when each is healthy: bosun's when it has written its
    /// rules, kube-proxy's when it has begun.
    pub fn start(&mut self, objects: &Arc<Objects>, mode: &str, path: &str) {
        for node in ["node1", "node2"] {
            let listener = self.place(node).run(|| TcpListener::bind(("127.0.0.1", PORT)));
            // Taken where an earlier mode began.
            if let Ok(listener) = listener.unwrap() {
                objects.serve(listener);
            }
            let child = self.run(node, mode, path);
            self.proxies.push(child);
        }
        for node in ["node1", "node2"] {
            let place = self.place(node);
            let ready = || super::probe::http(place, "127.0.0.1:10256".parse().unwrap(), "/healthz");
            let patience = Duration::from_secs(60);
            eventually(&format!("{:?} on {node} is healthy, {}", self.side, self.folder.display()), patience, || {
                ready().filter(|(status, _)| *status == 200)
            });
        }
    }

    fn run(&self, node: &str, mode: &str, path: &str) -> Child {
        let file = |name: &str| self.folder.join(format!("{node}-{mode}.{name}"));
        fs::write(
            file("conf"),
            format!(
                "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: 'http://127.0.0.1:{PORT}'}}\n\
                 users:\n- name: u\n  user: {{}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\ncurrent-context: c\n"
            ),
        )
        .unwrap();
        let periods = "minSyncPeriod: 100ms, syncPeriod: 30s";
        let sections = match mode {
            "ipvs" => format!("ipvs: {{{periods}, {}}}", self.ipvs),
            _ => format!("{mode}: {{{periods}}}\nipvs: {{{}}}", self.ipvs),
        };
        fs::write(
            file("yaml"),
            format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
                 clientConnection: {{kubeconfig: {}, contentType: application/json, acceptContentTypes: application/json}}\n\
                 clusterCIDR: 10.244.0.0/16,fd00:244::/32\nhostnameOverride: {node}\n\
                 conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n\
                 {sections}\n{}",
                file("conf").display(),
                self.settings
            ),
        )
        .unwrap();
        let log = File::create(file("log")).unwrap();
        let mut command = match self.side {
            Side::Bosun => {
                let mut command = Command::new(bosun());
                command.arg("proxy");
                command
            }
            Side::Upstream => Command::new(super::peers().join("kube-proxy")),
        };
        command.arg("--config").arg(file("yaml")).env("PATH", path);
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null());
        self.place(node).run(move || command.spawn()).unwrap().expect("the proxy starts")
    }

    /// When a node's proxy ended its last sync, of the family that is behind: seconds since 1970.
    pub fn last_sync(&self, node: &str) -> Option<f64> {
        let metrics = super::probe::http(self.place(node), "127.0.0.1:10249".parse().unwrap(), "/metrics")?.1;
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).reduce(f64::min)
    }

    /// Kills the proxies; what they wrote stays.
    pub fn stop(&mut self) {
        for mut child in self.proxies.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What the kernel of a node holds of any backend, as text; virtual servers as `TCP 10.96.0.1:80`.
    pub fn rules(&self, node: &str) -> String {
        let list = |words: &[&str]| -> String {
            let run = || Command::new(words[0]).args(&words[1..]).output();
            let output = self.place(node).run(run).unwrap();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        let all: [&[&str]; 7] = [
            &["nft", "list", "ruleset"],
            &["iptables-nft-save"],
            &["ip6tables-nft-save"],
            &["iptables-legacy-save"],
            &["ip6tables-legacy-save"],
            &["ipset", "list", "-n"],
            &["ip", "-o", "address"],
        ];
        let servers = self.place(node).run(servers).unwrap();
        all.map(list).concat() + &servers.join("\n")
    }

    /// `bosun proxy --cleanup` on a node, with the configuration that its proxy had last in `mode`.
    pub fn clean(&self, node: &str, mode: &str, path: &str) {
        let config = self.folder.join(format!("{node}-{mode}.yaml"));
        let run = || {
            let mut command = Command::new(bosun());
            command.args(["proxy", "--cleanup", "--config"]).arg(&config).env("PATH", path).output()
        };
        let output = self.place(node).run(run).unwrap().unwrap();
        assert!(output.status.success(), "--cleanup: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The virtual servers of this thread's namespace; none where the kernel has no IPVS.
fn servers() -> Vec<String> {
    let found = kernel::ipvs::Kernel::open().and_then(|mut ipvs| ipvs.servers()).unwrap_or_default();
    let word = |protocol| if protocol == 6 { "TCP" } else { "UDP" };
    found.iter().map(|(server, _)| format!("{} {}", word(server.protocol), server.address)).collect()
}

/// Answers on TCP and UDP with its name and whom it saw.
pub fn serve(netns: &Netns, name: &'static str, port: u16) {
    let bound = netns.run(|| {
        let any: SocketAddr = ([0u16; 8], port).into();
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    });
    let (tcp, udp) = bound.unwrap();
    let said = move |from: SocketAddr| {
        let own = if port == 8081 { "2" } else { "" };
        format!("{name}{own} sees {}", from.ip().to_canonical())
    };
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let from = stream.peer_addr();
            let _ = from.and_then(|from| stream.write_all(said(from).as_bytes()));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(said(from).as_bytes(), from);
        }
    });
}
