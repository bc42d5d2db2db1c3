//! `bosun net`: the net daemon, and the verbs that ask it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use net::control::{self, Answer, Ends, Request};
use serde_json::Value;

use crate::cluster::{Cluster, DEFAULT_NAME, parse_name};
use crate::up::node_process;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Command {
    #[command(subcommand)]
    pub ask: Option<Ask>,
    #[command(flatten)]
    pub daemon: net::Options,
}

#[derive(Subcommand)]
pub enum Ask {
    /// The BGP sessions: state, uptime, prefixes, last error
    Peers(Place),
    /// The routes to other nodes, and where each comes from
    Routes(Place),
    /// What becomes of a packet from one pod to another or to a Service
    Trace {
        /// NAMESPACE/POD
        from: String,
        /// NAMESPACE/POD:PORT, or NAMESPACE/SERVICE:PORT
        to: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Which daemon to ask.
#[derive(Args)]
pub struct Place {
    /// A local cluster
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    name: String,
    /// The node of the cluster; by default the first, and for a trace those of its ends
    #[arg(long)]
    node: Option<String>,
    /// The socket of the daemon of this host, where it is no local cluster's
    #[arg(long, value_name = "PATH", conflicts_with_all = ["name", "node"])]
    socket: Option<PathBuf>,
}

/// Dropped packets, by whose they were.
type Counts = BTreeMap<String, u64>;

/// How long a daemon may think.
const PATIENCE: Duration = Duration::from_secs(30);

/// # Errors
/// Where the daemon cannot be asked, or says that it cannot.
pub fn run(command: Command) -> anyhow::Result<()> {
    let (request, place) = match command.ask {
        None => return crate::daemons::run(vec![crate::daemons::Daemon::Net(command.daemon)]),
        Some(Ask::Peers(place)) => (Request::Peers, place),
        Some(Ask::Routes(place)) => (Request::Routes, place),
        Some(Ask::Trace { from, to, place }) => (Request::Trace { from, to }, place),
    };
    let value = match request {
        Request::Trace { from, to } if place.node.is_none() && place.socket.is_none() => {
            Value::String(trace(&place, &from, &to)?)
        }
        request => ask(&socket(&place, place.node.as_deref())?, &request)?,
    };
    match value {
        Value::String(text) => print!("{text}"),
        value => println!("{}", serde_json::to_string_pretty(&value)?),
    }
    Ok(())
}

fn ask(socket: &Path, request: &Request) -> anyhow::Result<Value> {
    match control::request(socket, request, PATIENCE)? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(words) => bail!("{words}"),
    }
}

/// Has the source's node probe, and those of the destinations count what they drop of it.
fn trace(place: &Place, from: &str, to: &str) -> anyhow::Result<String> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let ends = ask(&socket(place, None)?, &Request::Ends { from: from.clone(), to: to.clone() })?;
    let Ends { source, mut destinations } =
        serde_json::from_value(ends).context("the net daemon is of another version")?;
    destinations.remove(&source);
    let drops = |node: &str| -> anyhow::Result<Counts> {
        Ok(serde_json::from_value(ask(&socket(place, Some(node))?, &Request::Drops)?)?)
    };
    let before: Vec<_> = destinations.iter().map(|node| (node, drops(node))).collect();
    let Value::String(mut text) = ask(&socket(place, Some(&source))?, &Request::Trace { from, to })? else {
        bail!("the net daemon of node {source} is of another version")
    };
    for (node, before) in before {
        match before.and_then(|before| Ok((before, drops(node)?))) {
            Ok((before, after)) => {
                text.push_str(&net::trace::counted(&net::trace::risen(&before, &after), &format!(" on node {node}")));
            }
            Err(error) => text.push_str(&format!("counted    not on node {node}: {error:#}\n")),
        }
    }
    Ok(text)
}

fn socket(place: &Place, wanted: Option<&str>) -> anyhow::Result<PathBuf> {
    if let Some(path) = &place.socket {
        return Ok(path.clone());
    }
    crate::checks::root()?;
    let cluster = Cluster::load(&place.name)?;
    let cluster = cluster.with_context(|| format!("there is no cluster {}: name the daemon's --socket", place.name))?;
    let node = cluster.nodes.iter().find(|node| wanted.is_none_or(|name| *name == node.name));
    let node = node.with_context(|| format!("cluster {} has no such node", place.name))?;
    let init = node_process(&cluster.paths().init(&node.name)).filter(|init| init.is_alive());
    let init = init.with_context(|| format!("node {} does not run: `bosun up --name {}`", node.name, place.name))?;
    // The socket is on a file system of the node's own, which its processes lead to.
    Ok(PathBuf::from(format!("/proc/{}/root{}", init.pid, control::SOCKET)))
}
