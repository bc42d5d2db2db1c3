//! One TCP connection between pods of two nodes: how much it carries, how long one byte takes there and back. Beside it the
//! bare path: the same hops (pod, node, switch, node, pod) by veths and a bridge, with plain routes and nothing else.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kernel::netlink::{Address, IpNetwork, Kernel, LinkChange, Network, Route, VethEnd};
use kernel::netns::Netns;
use kernel::sysctl;
use serde_json::{Value, json};
use tests::bed::{Cluster, Kubectl, eventually, text};

use crate::figures::percentile;

const PIECE: usize = 128 << 10;
const EXCHANGES: usize = 20_000;
const PATIENCE: Duration = Duration::from_secs(10);
/// Exchanges and time that are not counted: caches fill, windows open.
const WARM_UP: (usize, Duration) = (1000, Duration::from_secs(1));

/// Where packets begin, and where they end.
struct Path {
    from: Netns,
    to: Netns,
    address: IpAddr,
}

/// # Errors
/// Where the path cannot be made or does not carry.
pub fn bare(time: Duration) -> anyhow::Result<Value> {
    measure(&Bare::new()?.path, time)
}

/// Between two pods, made for it, of the cluster that BOSUN_CLUSTER names.
///
/// # Errors
/// Where the path does not carry.
pub fn across_nodes(mode: &str, time: Duration) -> anyhow::Result<Value> {
    let cluster = Cluster::shared("bench", &[]);
    let nodes = cluster.nodes();
    let [one, other] = &nodes[..] else { anyhow::bail!("the cluster has {} nodes, wanted are 2", nodes.len()) };
    let kubectl = cluster.namespace(&format!("across-{mode}"));
    for (pod, node) in [("one", one), ("other", other)] {
        let place = format!(r#"{{"spec":{{"nodeSelector":{{"kubernetes.io/hostname":"{}"}}}}}}"#, node.name);
        kubectl.pod(pod, &["--overrides", &place]);
    }
    let patch = format!(r#"{{"data":{{"mode":"{mode}"}}}}"#);
    kubectl.run(&["-n", "kube-system", "patch", "configmap", "bosun-net", "--type=merge", "-p", &patch]);
    settled(&cluster, mode);
    measure(&path(&kubectl)?, time)
}

fn path(kubectl: &Kubectl<'_>) -> anyhow::Result<Path> {
    let address = kubectl.field("pod/other", "{.status.podIP}").parse()?;
    Ok(Path { from: kubectl.netns("one"), to: kubectl.netns("other"), address })
}

fn settled(cluster: &Cluster, mode: &str) {
    for node in cluster.nodes() {
        eventually(&format!("{} to have mode {mode}", node.name), Duration::from_secs(30), || {
            let told = text(&cluster.bosun(&["net", "routes", "--node", &node.name]).stdout);
            (told.starts_with(&format!("mode {mode}\n")) && told.contains("  yes")).then_some(())
        });
    }
}

fn measure(path: &Path, time: Duration) -> anyhow::Result<Value> {
    let mut rounds = exchanges(path)?;
    let us = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
    let gbit = throughput(path, time)?;
    Ok(json!({
        "gbit_s": (gbit * 100.0).round() / 100.0,
        "round_trip_p50_us": us(percentile(&mut rounds, 0.5)),
        "round_trip_p99_us": us(percentile(&mut rounds, 0.99)),
    }))
}

/// Both ends of a connection over the path.
fn connected(path: &Path) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = path.to.run(|| TcpListener::bind((path.address, 0)))??;
    let port = listener.local_addr()?.port();
    let near = path.from.connect(&[(path.address, port).into()], PATIENCE).context("connect over the path")?;
    let (far, _) = listener.accept()?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((near, far))
}

fn exchanges(path: &Path) -> anyhow::Result<Vec<Duration>> {
    let (mut near, mut far) = connected(path)?;
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
    });
    let mut rounds = Vec::with_capacity(EXCHANGES);
    for number in 0..WARM_UP.0 + EXCHANGES {
        let begin = Instant::now();
        near.write_all(&[1])?;
        near.read_exact(&mut [0])?;
        if number >= WARM_UP.0 {
            rounds.push(begin.elapsed());
        }
    }
    drop(near);
    echo.join().map_err(|_| anyhow::anyhow!("the echo panicked"))?;
    Ok(rounds)
}

/// Gbit of payload a second, as they arrive.
fn throughput(path: &Path, time: Duration) -> anyhow::Result<f64> {
    let (mut near, mut far) = connected(path)?;
    let source = std::thread::spawn(move || {
        let piece = vec![7; PIECE];
        let end = Instant::now() + WARM_UP.1 + time;
        while Instant::now() < end && near.write_all(&piece).is_ok() {}
    });
    let mut piece = vec![0; PIECE];
    let (begin, mut counted) = (Instant::now() + WARM_UP.1, 0_u64);
    let mut last = begin;
    loop {
        match far.read(&mut piece).context("read from the path")? {
            0 => break,
            size if Instant::now() >= begin => {
                counted += size as u64;
                last = Instant::now();
            }
            _ => {}
        }
    }
    source.join().map_err(|_| anyhow::anyhow!("the source panicked"))?;
    ensure!(counted > 0, "nothing came over the path");
    Ok(counted as f64 * 8.0 / 1e9 / (last - begin).as_secs_f64())
}

/// Five namespaces in a row: pod, node, switch, node, pod. Those between the pods live as long as links lead into them.
struct Bare {
    path: Path,
    _between: [Netns; 3],
}

impl Bare {
    fn new() -> anyhow::Result<Self> {
        let [from, to, one, other, switch] = [(); 5].map(|()| Netns::anonymous());
        let (from, to, nodes, switch) = (from?, to?, [one?, other?], switch?);
        let bridge = switch.run(|| -> anyhow::Result<u32> {
            let mut network = Kernel::open()?;
            network.add_bridge("nodes", None)?;
            up(&mut network, "nodes")
        })??;
        for (own, (pod, node)) in (1..).zip([&from, &to].into_iter().zip(&nodes)) {
            let port = format!("node{own}");
            switch.run(|| -> anyhow::Result<u32> {
                let mut network = Kernel::open()?;
                let end = VethEnd { master: Some(bridge), ..named(&port) };
                network.add_veth(end, named("eth0"), Some(node.as_fd()), None)?;
                up(&mut network, &port)
            })??;
            node.run(|| configure_node(own, pod))??;
            pod.run(|| -> anyhow::Result<()> {
                let mut network = Kernel::open()?;
                let link = addressed(&mut network, "eth0", &format!("198.51.{own}.2/24"))?;
                route(&mut network, "0.0.0.0/0", &format!("198.51.{own}.1"), link)
            })??;
        }
        let [one, other] = nodes;
        Ok(Self { path: Path { from, to, address: [198, 51, 2, 2].into() }, _between: [one, other, switch] })
    }
}

/// In the namespace of the node of the first or second pod, which has its link to the switch.
fn configure_node(own: u8, pod: &Netns) -> anyhow::Result<()> {
    let other = 3 - own;
    let mut network = Kernel::open()?;
    network.add_veth(named("pod"), named("eth0"), Some(pod.as_fd()), None)?;
    let outer = addressed(&mut network, "eth0", &format!("192.0.2.{own}/24"))?;
    addressed(&mut network, "pod", &format!("198.51.{own}.1/24"))?;
    route(&mut network, &format!("198.51.{other}.0/24"), &format!("192.0.2.{other}"), outer)?;
    sysctl::write("net/ipv4/ip_forward", "1")?;
    Ok(())
}

fn named(name: &str) -> VethEnd<'_> {
    VethEnd { name, ..VethEnd::default() }
}

fn up(network: &mut Kernel, name: &str) -> anyhow::Result<u32> {
    let link = network.link(name)?.with_context(|| format!("there is no link {name}"))?.index;
    network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() })?;
    Ok(link)
}

fn addressed(network: &mut Kernel, name: &str, net: &str) -> anyhow::Result<u32> {
    let link = up(network, name)?;
    network.add_address(Address { link, net: net.parse()? })?;
    Ok(link)
}

fn route(network: &mut Kernel, to: &str, gateway: &str, link: u32) -> anyhow::Result<()> {
    Ok(network.add_route(&Route::new(to.parse::<IpNetwork>()?, Some(gateway.parse()?), link))?)
}
