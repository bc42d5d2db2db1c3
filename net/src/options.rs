use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// The flags of `bosun net`. What concerns the whole cluster is in the ConfigMap kube-system/bosun-net.
#[derive(Debug, Args)]
pub struct Options {
    /// The kubeconfig of the API server; without it, the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The name of this node; by default the host's
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Where plugins and the command ask
    #[arg(long, value_name = "PATH", default_value = crate::control::SOCKET)]
    pub socket: PathBuf,
    /// Where to serve /metrics
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9091")]
    pub metrics_bind_address: SocketAddr,
    /// Where to write the CNI configuration list; without it none is written
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
}
