//! The command line, with the kubelet's flag names.

use std::net::IpAddr;
use std::path::PathBuf;

/// Flags of `bosun agent`. A flag overrides the configuration file's field of the same meaning.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// A KubeletConfiguration file (kubelet.config.k8s.io/v1beta1)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to reach the API server
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// The node's name [default: the host's name, in lower case]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// The node's address; one of each family, separated by a comma
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// The folder of pod volumes and of the agent's own state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// The CRI socket, such as unix:///run/containerd/containerd.sock
    #[arg(long, value_name = "ENDPOINT")]
    pub container_runtime_endpoint: Option<String>,
    /// Register the node with the API server
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub register_node: Option<bool>,
    /// Labels to register the node with: KEY=VALUE,...
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints to register the node with: KEY=VALUE:EFFECT,...
    #[arg(long, value_name = "TAINTS", value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    /// The cgroup below which pods live
    #[arg(long, value_name = "CGROUP")]
    pub cgroup_root: Option<String>,
    /// Where the serving certificate is kept when none is given
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/pki")]
    pub cert_dir: PathBuf,
    /// The certificate of port 10250
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of port 10250's certificate
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// More detail in the log; from 4 on it is debugging output
    #[arg(short, long, value_name = "LEVEL", default_value_t = 2)]
    pub v: u8,
}
