//! The flags of `bosun up`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::cluster::{Cri, DEFAULT_NAME, MOST_NODES, MOST_RACKS, Settings, check_size, parse_name};

#[derive(Args)]
pub struct Options {
    /// The cluster's name; its context in the kubeconfig is bosun-NAME
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, value_parser = parse_name)]
    pub name: String,
    /// The kubeconfig to merge the cluster into [default: ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// containerd's certs.d folder, which says how registries are reached
    #[arg(long, value_name = "DIR")]
    pub registry_config: Option<PathBuf>,
    /// Who serves the container runtime interface
    #[arg(long, value_enum, default_value_t = Cri::Bosun)]
    pub cri: Cri,
    /// Let pods reach what the host reaches, by rules on the host that `down` removes
    #[arg(long)]
    pub egress: bool,
    /// How many nodes the cluster has; the first holds the control plane
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    pub nodes: u8,
    /// Behind how many routers the nodes are, each with a subnet of its own; 0 is one LAN
    #[arg(long, value_name = "R", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=i64::from(MOST_RACKS)))]
    pub racks: u8,
    /// Give nodes, pods and Services addresses of IPv6 too; IPv4 stays the primary family
    #[arg(long)]
    pub dual_stack: bool,
    /// How long to wait for the nodes to be Ready, as 90s or 2m; 0 does not wait
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_duration)]
    pub wait: Duration,
}

impl Options {
    /// What the cluster shall be like; paths as they lead from anywhere.
    ///
    /// # Errors
    /// Where HOME or the working folder is not known and needed, or there are too many nodes for the racks.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        check_size(self.nodes, self.racks)?;
        let absolute = |path: &Path| std::path::absolute(path);
        let kubeconfig = match &self.kubeconfig {
            Some(path) => absolute(path)?,
            None => crate::kubeconfig::default_path()?,
        };
        let registry_config = self.registry_config.as_deref().map(absolute).transpose()?;
        let Self { cri, egress, nodes, racks, dual_stack, .. } = *self;
        Ok(Settings { kubeconfig, registry_config, cri, egress, nodes, racks, dual_stack })
    }
}

/// A duration as Kubernetes' flags take it: numbers with `h`, `m`, `s` or `ms`, one after the other, or a bare 0.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 90s, 2m or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        sum += Duration::from_millis(number.checked_mul(millis).ok_or_else(wrong)?);
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_kubernetes_writes_them() {
        let seconds = |text| parse_duration(text).map(|d| d.as_secs_f64());
        assert_eq!(seconds("0"), Ok(0.0));
        assert_eq!(seconds("1m30s"), Ok(90.0));
        assert_eq!(seconds("250ms"), Ok(0.25));
        assert!(["", "2", "m", "2x", "1.5h", "-1s", "99999999999999999999s"].into_iter().all(|t| seconds(t).is_err()));
    }
}
