//! The controller manager: all controllers in one process, over one set of informers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::ArgAction;
use ipnetwork::Ipv4Network;
use lifecycle::Stop;

use crate::client;
use crate::controllers::{self, Context, NAMES};

/// The controller manager's flags: kube-controller-manager's, as far as they are supported.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Path to the kubeconfig file with authorization and the API server's location.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// The certificate authority that each namespace gets as the config map kube-root-ca.crt; none is published
    /// without it.
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// Whether each node is given a part of the cluster's pod addresses.
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub allocate_node_cidrs: bool,
    /// The pods' addresses, IPv4, to be divided among the nodes.
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<Ipv4Network>,
    /// The length of the prefix of a node's part of the pods' addresses.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u8).range(8..=30))]
    pub node_cidr_mask_size: u8,
    /// Controllers to run: `*` all of them, `NAME` this one, `-NAME` not this one.
    #[arg(long, default_value = "*", value_delimiter = ',', allow_hyphen_values = true)]
    pub controllers: Vec<String>,
    /// Leader election; there is none yet, so that only one controller manager may run.
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub leader_elect: bool,
    /// How long a node may be silent before it counts as unreachable.
    #[arg(long, default_value = "40s", value_parser = seconds)]
    pub node_monitor_grace_period: Duration,
    /// How often the nodes' heartbeats are looked at.
    #[arg(long, default_value = "5s", value_parser = seconds)]
    pub node_monitor_period: Duration,
    /// How many terminated pods may stay; none is removed if it is 0.
    #[arg(long, default_value_t = 12500)]
    pub terminated_pod_gc_threshold: usize,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no duration as 40s or 5m"))?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        "ms" => Ok(Duration::from_millis(number)),
        _ => Err(format!("{text:?} is no duration as 40s or 5m")),
    }
}

/// Which of `NAMES` a list of `*`, `NAME` and `-NAME` selects; the first mention of a name decides.
fn selected(controllers: &[String]) -> anyhow::Result<Vec<&'static str>> {
    for name in controllers.iter().map(|name| name.strip_prefix('-').unwrap_or(name)) {
        anyhow::ensure!(name == "*" || NAMES.contains(&name), "--controllers names {name:?}, there are {NAMES:?}");
    }
    let by_name = |name: &str| {
        let decision = controllers.iter().find(|given| given.strip_prefix('-').unwrap_or(given) == name);
        decision.map_or_else(|| controllers.iter().any(|given| given == "*"), |given| !given.starts_with('-'))
    };
    Ok(NAMES.into_iter().filter(|name| by_name(name)).collect())
}

/// Runs the controllers until `stop`. It waits for an API server that is not there yet, and outlives its restarts.
///
/// # Errors
/// Where the options make no sense or a file that they name cannot be read.
pub async fn run(options: Options, stop: Stop) -> anyhow::Result<()> {
    anyhow::ensure!(!options.leader_elect, "--leader-elect is not supported: run one controller manager, without it");
    let names = selected(&options.controllers)?;
    let root_ca = match &options.root_ca_file {
        Some(path) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("read --root-ca-file {}", path.display()))?)
        }
        None => None,
    };
    if options.allocate_node_cidrs {
        let cidr = options.cluster_cidr.context("--allocate-node-cidrs needs --cluster-cidr")?;
        anyhow::ensure!(
            cidr.prefix() <= options.node_cidr_mask_size,
            "--node-cidr-mask-size {} is wider than --cluster-cidr {cidr}",
            options.node_cidr_mask_size
        );
    }
    let client = client::connect(&options.kubeconfig).await?;
    let (context, background) = Context::new(client, options, root_ca);
    tracing::info!(controllers = ?names, "the controllers start");
    tokio::select! {
        () = background => {}
        () = controllers::run(context, &names) => {}
        () = stop.stopped() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(given: &[&str]) -> Vec<&'static str> {
        selected(&given.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn controllers_are_selected_by_name() {
        assert_eq!(names(&["*"]), NAMES);
        assert_eq!(names(&["replicaset-controller"]), ["replicaset-controller"]);
        assert!(!names(&["*", "-namespace-controller"]).contains(&"namespace-controller"));
        assert!(selected(&["job-controller".to_owned()]).is_err());
    }
}
