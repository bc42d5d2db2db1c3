//! The controller manager: all controllers in one process, over one set of informers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::ArgAction;
use ipnetwork::IpNetwork;
use lifecycle::Stop;

use crate::controllers::{self, Context, NAMES, Pool};

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
    /// The pods' addresses, to be divided among the nodes; one range, or one of each family, comma-separated.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNetwork>,
    /// The length of the prefix of a node's part of a single range of pod addresses [default: 24 for IPv4, 64 for IPv6]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size: Option<u8>,
    /// The same for the IPv4 range [default: 24]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// The same for the IPv6 range [default: 64]
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size_ipv6: Option<u8>,
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

impl Options {
    /// The ranges of which each node gets a part, in the order in which they were given.
    fn pools(&self) -> anyhow::Result<Vec<Pool>> {
        if !self.allocate_node_cidrs {
            return Ok(Vec::new());
        }
        let mask = (self.node_cidr_mask_size, self.node_cidr_mask_size_ipv4, self.node_cidr_mask_size_ipv6);
        match (self.cluster_cidr.as_slice(), mask) {
            ([], _) => anyhow::bail!("--allocate-node-cidrs needs --cluster-cidr"),
            ([_], (Some(_), None, None) | (None, ..)) => {}
            ([_], _) => anyhow::bail!("--node-cidr-mask-size stands for the one of each family: set either"),
            ([one, other], _) if one.is_ipv4() == other.is_ipv4() => {
                anyhow::bail!("--cluster-cidr {one},{other}: two ranges are of different families")
            }
            ([_, _], (Some(_), ..)) => {
                anyhow::bail!("--node-cidr-mask-size is for one range: use those of each family with two")
            }
            ([_, _], _) => {}
            (more, _) => anyhow::bail!("--cluster-cidr names {} ranges: there are two families", more.len()),
        }
        let pool = |range: &IpNetwork| {
            let (of_family, default) = match range {
                IpNetwork::V4(_) => (self.node_cidr_mask_size_ipv4, 24),
                IpNetwork::V6(_) => (self.node_cidr_mask_size_ipv6, 64),
            };
            Pool::new(*range, self.node_cidr_mask_size.or(of_family).unwrap_or(default))
        };
        self.cluster_cidr.iter().map(pool).collect()
    }
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
    let pools = options.pools()?;
    let client = lifecycle::client::connect(Some(&options.kubeconfig)).await?;
    let (context, background) = Context::new(client, options, pools, root_ca);
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
    fn options(flags: &str) -> Options {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            options: Options,
        }
        let words = format!("program --kubeconfig=k --allocate-node-cidrs {flags}");
        <Program as clap::Parser>::try_parse_from(words.split_whitespace()).unwrap().options
    }

    #[test]
    fn a_range_of_each_family_with_its_size() {
        let pool = |range: &str, prefix| Pool::new(range.parse().unwrap(), prefix).unwrap();
        let pools = |flags| options(flags).pools().map_err(|error| error.to_string());
        assert_eq!(pools("--cluster-cidr=10.244.0.0/16"), Ok(vec![pool("10.244.0.0/16", 24)]));
        assert_eq!(pools("--cluster-cidr=10.0.0.0/8 --node-cidr-mask-size=20"), Ok(vec![pool("10.0.0.0/8", 20)]));
        assert_eq!(
            pools("--cluster-cidr=fd00::/48,10.244.0.0/16 --node-cidr-mask-size-ipv4=26"),
            Ok(vec![pool("fd00::/48", 64), pool("10.244.0.0/16", 26)])
        );
        for (flags, part) in [
            ("", "needs --cluster-cidr"),
            ("--cluster-cidr=10.0.0.0/16,10.1.0.0/16", "different families"),
            ("--cluster-cidr=10.0.0.0/16,fd00::/48 --node-cidr-mask-size=24", "is for one range"),
            ("--cluster-cidr=10.0.0.0/16 --node-cidr-mask-size=24 --node-cidr-mask-size-ipv4=24", "set either"),
            ("--cluster-cidr=10.0.0.0/16,fd00::/48,fd01::/48", "names 3 ranges"),
            ("--cluster-cidr=10.0.0.0/26", "has a prefix of 26 to 32 bits, not 24"),
        ] {
            let said = pools(flags).unwrap_err();
            assert!(said.contains(part), "{flags}: {said}");
        }
    }
}
