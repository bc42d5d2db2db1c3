//! `bosun status`: the clusters of this machine.

use clap::Args;

use crate::cluster::{Cluster, all, parse_name};
use crate::up::node_process;

#[derive(Args)]
pub struct Options {
    /// One cluster alone; an error where its nodes do not all run
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    name: Option<String>,
}

/// # Errors
/// Where a cluster that was named is not there or does not run.
pub fn run(options: &Options) -> anyhow::Result<()> {
    crate::checks::root()?;
    let clusters = all()?;
    let wanted: Vec<&Cluster> =
        clusters.iter().filter(|cluster| options.name.as_ref().is_none_or(|name| *name == cluster.name)).collect();
    if let Some(name) = &options.name {
        anyhow::ensure!(!wanted.is_empty(), "there is no cluster {name}: `bosun up --name {name}`");
    }
    let rows: Vec<[String; 5]> = wanted.iter().flat_map(|cluster| rows(cluster)).collect();
    println!("{:<12} {:<16} {:<8} {:<15} KUBECONFIG", "CLUSTER", "NODE", "STATUS", "ADDRESS");
    for [cluster, node, status, address, kubeconfig] in &rows {
        println!("{cluster:<12} {node:<16} {status:<8} {address:<15} {kubeconfig}");
    }
    let stopped = rows.iter().any(|row| row[2] != RUNNING);
    anyhow::ensure!(options.name.is_none() || !stopped, "not all nodes run: `bosun up` resumes them");
    Ok(())
}

const RUNNING: &str = "Running";

fn rows(cluster: &Cluster) -> Vec<[String; 5]> {
    let row = |node: &crate::cluster::Node| {
        let runs = node_process(&cluster.paths().init(&node.name)).is_some_and(|init| init.is_alive());
        let status = if runs { RUNNING } else { "Stopped" };
        let kubeconfig = cluster.settings.kubeconfig.display().to_string();
        [cluster.name.clone(), node.name.clone(), status.into(), node.address.to_string(), kubeconfig]
    };
    cluster.nodes.iter().map(row).collect()
}
