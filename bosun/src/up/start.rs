//! Starting a node's PID 1 and handing it its network.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use kernel::process::{Signal, isolate, kill};

use super::network;
use crate::cluster::Cluster;
use crate::node::{GO, READY};

/// A node answers within this time, or does not begin.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts the node at `position` of the cluster. It lives on when this process ends.
///
/// # Errors
/// What the node said it could not do; it is gone then.
pub fn start(cluster: &Cluster, position: usize) -> anyhow::Result<()> {
    let node = cluster.nodes.get(position).context("the cluster has no such node")?;
    let (ours, theirs) = UnixStream::pair()?;
    let logs = cluster.paths().logs(&node.name);
    fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    let log_file = logs.join("node.log");
    let log = File::options().append(true).create(true).open(&log_file);
    let log = log.with_context(|| format!("open {}", log_file.display()))?;

    let mut command = Command::new(std::env::current_exe()?);
    command.args(["node", "--cluster", &cluster.name, "--node", &node.name]).current_dir("/");
    command.stdin(OwnedFd::from(theirs)).stdout(log.try_clone()?).stderr(Stdio::from(log));
    let mut child = isolate(command).context("start a process in namespaces of its own")?;
    let begun = network::attach(cluster, position, child.id()).and_then(|()| hand_over(&ours));
    if begun.is_err() {
        // What it failed with matters more than whether it is gone already.
        let _ = kill(child.id(), Signal::SIGKILL);
        let _ = child.wait();
    }
    begun.with_context(|| format!("start node {} (its log is {})", node.name, log_file.display()))
}

fn hand_over(mut socket: &UnixStream) -> anyhow::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    writeln!(socket, "{GO}")?;
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).context("it did not answer")?;
    match answer.trim_end() {
        READY => Ok(()),
        "" => anyhow::bail!("it ended without a word"),
        error => anyhow::bail!("{error}"),
    }
}
