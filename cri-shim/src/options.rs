//! The command line of `bosun cri`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Flags of `bosun cri`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The socket on which the CRI is served
    #[arg(long, value_name = "ENDPOINT", default_value = "unix:///run/bosun/cri.sock")]
    pub listen: String,
    /// The socket of the containerd that runs the containers
    #[arg(long, value_name = "FILE", default_value = "/run/containerd/containerd.sock")]
    pub containerd: PathBuf,
    /// The folder of network configurations; it is watched
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// The folders of network plugins
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_value = "/opt/cni/bin")]
    pub cni_bin_dir: Vec<PathBuf>,
    /// The folder where networks keep what they gave, as libcni has it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    pub cni_cache_dir: PathBuf,
    /// No other runtime attaches to this node's pod network: after a start, plugins forget whatever is not ours
    #[arg(long)]
    pub cni_exclusive: bool,
    /// The folder of registries' hosts.toml, as containerd reads it
    #[arg(long, value_name = "DIR", default_value = "/etc/containerd/certs.d")]
    pub registry_config: PathBuf,
    /// What outlasts a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bosun-cri")]
    pub root: PathBuf,
    /// What a reboot ends; on a tmpfs
    #[arg(long, value_name = "DIR", default_value = "/run/bosun-cri")]
    pub state: PathBuf,
    /// Where exec, attach and port-forward are served; port 0 is any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub stream_address: SocketAddr,
    /// How long a stream may be idle, seconds; 0 is no limit
    #[arg(long, value_name = "SECONDS", default_value = "14400", value_parser = seconds)]
    pub stream_idle_timeout: Duration,
    /// containerd's snapshotter for containers' file systems
    #[arg(long, value_name = "NAME", default_value = "overlayfs")]
    pub snapshotter: String,
    /// An OCI runtime, as crun=/usr/bin/crun; the first is the default [default: runc, and crun if it is there]
    #[arg(long, value_name = "NAME=PROGRAM")]
    pub runtime_handler: Vec<String>,
    /// Who makes cgroups [default: systemd where it is the init, else cgroupfs]
    #[arg(long, value_name = "DRIVER")]
    pub cgroup_driver: Option<CgroupDriver>,
    /// How many layers of an image are fetched at once
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub max_concurrent_downloads: usize,
    /// A pull that moves no byte for so long fails, seconds; 0 is no limit
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub image_pull_progress_timeout: Duration,
    /// Images that are never removed, beside the pause image
    #[arg(long, value_name = "IMAGE", value_delimiter = ',')]
    pub pin_image: Vec<String>,
}

/// Who makes control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

/// As good as for ever, and still a time that can be added to a clock's.
const FOREVER: u64 = 10 * 365 * 24 * 3600;

/// Zero is no limit, as in containerd's configuration.
fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    let seconds: u64 = text.parse()?;
    Ok(Duration::from_secs(if seconds == 0 { FOREVER } else { seconds.min(FOREVER) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_a_long_time() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        for endless in ["0", "18446744073709551615"] {
            let limit = seconds(endless).unwrap();
            assert!(limit > Duration::from_secs(365 * 24 * 3600), "{limit:?}");
            assert!(std::time::Instant::now().checked_add(limit).is_some());
        }
        assert!(seconds("-1").is_err());
    }
}
