//! `bosun image`: archives onto the nodes of a cluster.

mod archive;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::cluster::{Cluster, DEFAULT_NAME, Node, parse_name};
use crate::node::SOCKET;
use crate::up::{node_process, say};

#[derive(Subcommand)]
pub enum Command {
    /// Put an OCI or Docker image archive onto every node, or one
    Load(Load),
}

#[derive(Args)]
pub struct Load {
    /// The archive, as `docker save` or `skopeo copy oci-archive:` write it; it may be compressed by gzip
    file: PathBuf,
    /// The cluster
    #[arg(long, default_value = DEFAULT_NAME, value_parser = parse_name)]
    name: String,
    /// This node alone
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

/// # Errors
/// Where the cluster does not run, or a node's containerd refuses the archive.
pub fn run(command: &Command) -> anyhow::Result<()> {
    let Command::Load(load) = command;
    crate::checks::root()?;
    let open = || File::open(&load.file).with_context(|| format!("open {}", load.file.display()));
    open()?;
    let cluster = Cluster::load(&load.name)?;
    let cluster = cluster.with_context(|| format!("there is no cluster {}: `bosun up --name {0}`", load.name))?;
    let stem = archive::stem(&load.file);
    let wanted = |node: &&Node| load.node.as_ref().is_none_or(|name| *name == node.name);
    let nodes: Vec<&Node> = cluster.nodes.iter().filter(wanted).collect();
    anyhow::ensure!(!nodes.is_empty(), "cluster {} has no such node: `bosun status` lists them", load.name);
    for node in nodes {
        let init = node_process(&cluster.paths().init(&node.name)).filter(|init| init.is_alive());
        let init = init.with_context(|| format!("node {} does not run: `bosun up --name {}`", node.name, load.name))?;
        // The socket is on a file system of the node's own, which its processes lead to.
        let socket = PathBuf::from(format!("/proc/{}/root{SOCKET}", init.pid));
        let names = import_named(&socket, open()?, &stem)?;
        say(&format!("loaded {} onto node {}", names.join(", "), node.name));
    }
    Ok(())
}

/// Imports an archive whose images carry full names.
///
/// # Errors
/// Where containerd does not answer or refuses the archive.
pub fn import(socket: &Path, archive: &mut dyn Read) -> anyhow::Result<()> {
    kernel::process::feed(&ctr(socket), |input| std::io::copy(archive, input).map(drop))?;
    Ok(())
}

fn import_named(socket: &Path, archive: File, stem: &str) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let done = kernel::process::feed(&ctr(socket), |input| {
        names = archive::rewrite(archive, input, stem)?;
        Ok(())
    });
    done.context("load the archive")?;
    anyhow::ensure!(!names.is_empty(), "the file is no image archive: it has neither index.json nor manifest.json");
    Ok(names)
}

/// containerd's own client, which speaks to every version of it.
fn ctr(socket: &Path) -> Vec<String> {
    let socket = socket.display().to_string();
    ["ctr", "--address", &socket, "--namespace", "k8s.io", "images", "import", "-"].map(str::to_owned).to_vec()
}
