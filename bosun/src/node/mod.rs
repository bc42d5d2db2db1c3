//! `bosun node`: PID 1 of a node. It makes the node's view of the machine, then supervises containerd and the daemons.

mod config;
mod containerd;
mod daemons;
pub mod folders;
pub mod images;
mod log;
mod mounts;
pub mod pod_network;
mod registries;
mod shims;
mod supervise;
mod supervisor;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use kernel::cgroup::Cgroups;
use kernel::process::{Identity, Namespaces, Signal, Signals};

use crate::cluster::{Cluster, Node};
use crate::relay::Secret;
use crate::up::network;

pub use containerd::SOCKET;

/// What `up` says once the node has its interface.
pub const GO: &str = "go";
/// What the node answers once it is set up; anything else is why it is not.
pub const READY: &str = "ready";

#[derive(Args)]
pub struct Options {
    /// The cluster's name
    #[arg(long)]
    cluster: String,
    /// The node's name
    #[arg(long)]
    node: String,
}

/// # Errors
/// Where the node cannot be set up; `up` is told too.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let signals = Signals::block(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD])?;
    let mut up = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut word = String::new();
    BufReader::new(&up).read_line(&mut word)?;
    anyhow::ensure!(word.trim_end() == GO, "`bosun up` ended before the node could begin");
    let said = set_up(options).and_then(|supervisor| Ok((supervisor, writeln!(up, "{READY}")?)));
    match said {
        Ok((mut supervisor, ())) => {
            drop(up);
            supervisor.run(&signals);
            Ok(())
        }
        Err(error) => {
            // Its own log says it as well, for when nobody listens.
            let _ = writeln!(up, "{error:#}");
            Err(error)
        }
    }
}

fn set_up(options: &Options) -> anyhow::Result<supervisor::Supervisor> {
    let cluster = Cluster::load(&options.cluster)?;
    let cluster = cluster.with_context(|| format!("there is no cluster {}", options.cluster))?;
    let node = cluster.nodes.iter().find(|node| node.name == options.node);
    let node = node.with_context(|| format!("the cluster has no node {}", options.node))?.clone();
    let paths = cluster.paths();

    // All this while /proc is the host's: its numbers, and who our parent is.
    let own = Identity::own()?;
    let host = Namespaces::open(Path::new(&format!("/proc/{}", parent()?)))?;
    let text = serde_json::to_string(&own)?;
    lifecycle::file::write_atomic(&paths.init(&node.name), text.as_bytes(), 0o600)?;
    let resolv_conf = config::host_resolv_conf();

    kernel::process::set_hostname(&node.name)?;
    mounts::make(&paths, &node.name)?;
    enter_cgroup(&cluster, &node)?;
    network::configure_node(&cluster, &node)?;

    // The relay gets this listener, in the node's network, and itself runs in the host's.
    let listener = TcpListener::bind("127.0.0.1:0").context("listen for the registry relay")?;
    let secret = Secret::random()?;
    let relay = listener.local_addr()?;
    config::write(&cluster, &node, &resolv_conf)?;
    registries::write(cluster.settings.registry_config.as_deref(), relay, &secret)?;
    containerd::write_config(cluster.settings.cri)?;
    folders::install_plugins(&paths.node(&node.name))?;
    let programs = daemons::programs(&cluster, &node, daemons::Relay { host, listener, address: relay, secret });
    supervisor::Supervisor::new(programs?, &paths.logs(&node.name))
}

/// The parent as the host numbers it; to us, in a PID namespace of our own, it is 0.
fn parent() -> anyhow::Result<u32> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.and_then(|pid| pid.trim().parse().ok()).context("/proc/self/status names no parent")
}

/// The node's own programs in a group beside its pods.
fn enter_cgroup(cluster: &Cluster, node: &Node) -> anyhow::Result<()> {
    let groups = Cgroups::detect()?;
    let group = format!("{}/{}/daemons", cluster.cgroup(), node.name);
    groups.create(&group)?;
    groups.enter(&group, std::process::id())?;
    Ok(())
}
