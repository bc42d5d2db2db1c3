//! Kernel parameters: those that the configuration asks for, and those without which service traffic fails.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use kernel::sysctl;
use serde_json::Value;

use crate::config::{Config, Mode, duration};
use crate::model::NodePorts;

/// The section `conntrack` of a KubeProxyConfiguration. Zero leaves the kernel's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracking {
    pub max_per_core: u64,
    pub min: u64,
    pub tcp_established: Duration,
    pub tcp_close_wait: Duration,
    pub tcp_be_liberal: bool,
    pub udp: Duration,
    pub udp_stream: Duration,
}

impl Default for Tracking {
    /// kube-proxy's.
    fn default() -> Self {
        Self {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established: Duration::from_secs(24 * 3600),
            tcp_close_wait: Duration::from_secs(3600),
            tcp_be_liberal: false,
            udp: Duration::ZERO,
            udp_stream: Duration::ZERO,
        }
    }
}

impl Tracking {
    /// # Errors
    /// Names the field that is wrong.
    pub fn read(section: &Value) -> anyhow::Result<Self> {
        let mut read = Self::default();
        for (field, name) in [(&mut read.max_per_core, "maxPerCore"), (&mut read.min, "min")] {
            if !section[name].is_null() {
                *field = section[name].as_u64().with_context(|| format!("conntrack.{name} is no number from 0"))?;
            }
        }
        for (field, name) in [
            (&mut read.tcp_established, "tcpEstablishedTimeout"),
            (&mut read.tcp_close_wait, "tcpCloseWaitTimeout"),
            (&mut read.udp, "udpTimeout"),
            (&mut read.udp_stream, "udpStreamTimeout"),
        ] {
            if let Some(text) = section[name].as_str() {
                *field = duration(text).with_context(|| format!("conntrack.{name}"))?;
            }
        }
        read.tcp_be_liberal = section["tcpBeLiberal"].as_bool().unwrap_or(false);
        Ok(read)
    }

    /// How many flows the machine shall be able to track.
    fn max(&self, cpus: u64) -> Option<u64> {
        /// More would cost a large machine too much memory.
        const MOST: u64 = 1 << 20;
        let scaled = self.max_per_core.saturating_mul(cpus);
        (scaled > 0).then(|| if scaled > MOST { MOST } else { scaled.max(self.min) })
    }
}

/// A parameter, its value, and what is the matter where the kernel refuses it.
type Parameter = (&'static str, String, &'static str);

/// What every mode wants.
fn wanted(config: &Config, node_ports: NodePorts) -> Vec<Parameter> {
    let on = |name, why| (name, "1".to_owned(), why);
    let mut parameters = vec![
        on("net/ipv4/ip_forward", "node ports lead nowhere"),
        // A machine without br_netfilter has it not.
        on(
            "net/bridge/bridge-nf-call-iptables",
            "pods on one bridge answer each other past the translation, and cannot reach each other by a Service",
        ),
    ];
    if node_ports == NodePorts::Localhost {
        parameters.push(on("net/ipv4/conf/all/route_localnet", "node ports do not answer on 127.0.0.1"));
    }
    let tracking = &config.tracking;
    for (name, time) in [
        ("net/netfilter/nf_conntrack_tcp_timeout_established", tracking.tcp_established),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", tracking.tcp_close_wait),
        ("net/netfilter/nf_conntrack_udp_timeout", tracking.udp),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", tracking.udp_stream),
    ] {
        if time.as_secs() > 0 {
            parameters.push((name, time.as_secs().to_string(), "flows are tracked for as long as the kernel has it"));
        }
    }
    if tracking.tcp_be_liberal {
        parameters.push(on("net/netfilter/nf_conntrack_tcp_be_liberal", "TCP is tracked strictly"));
    }
    parameters
}

/// What IPVS does not work without.
pub fn of_ipvs(config: &Config) -> Vec<(&'static str, &'static str)> {
    let mut parameters = vec![
        // Masquerade needs the flows tracked.
        ("net/ipv4/vs/conntrack", "1"),
        ("net/ipv4/vs/expire_nodest_conn", "1"),
        ("net/ipv4/vs/expire_quiescent_template", "1"),
    ];
    if config.mode == Mode::Ipvs && config.ipvs.strict_arp {
        parameters.extend([("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")]);
    }
    parameters
}

/// Sets what every mode wants; what this machine refuses is said and does not stop the proxy.
pub fn prepare(config: &Config, node_ports: NodePorts) {
    for (name, value, why) in wanted(config, node_ports) {
        if let Err(error) = sysctl::write(name, &value) {
            tracing::warn!("{why}: {error}");
        }
    }
    if let Some(max) = config.tracking.max(cpus())
        && let Err(error) = set_max(max)
    {
        tracing::warn!("as many flows are tracked as the kernel has it: {error}");
    }
}

/// The table's size is the whole machine's: a network namespace other than the first may not write it, and then its hash
/// table is left alone too.
fn set_max(max: u64) -> anyhow::Result<()> {
    const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";
    if sysctl::write("net/netfilter/nf_conntrack_max", &max.to_string())? {
        let buckets = fs::read_to_string(BUCKETS).with_context(|| format!("cannot read {BUCKETS}"))?;
        if buckets.trim().parse::<u64>().is_ok_and(|buckets| buckets < max / 4) {
            fs::write(BUCKETS, (max / 4).to_string()).with_context(|| format!("cannot write {BUCKETS}"))?;
        }
    }
    Ok(())
}

/// The machine's CPUs, and not those that this process may use.
fn cpus() -> u64 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|list| count(list.trim()));
    online.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u64))
}

/// How many a list like `0-3,6` names.
fn count(list: &str) -> Option<u64> {
    let numbers = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    };
    list.split(',').map(numbers).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;

    fn config(tracking: Tracking) -> Config {
        Config { tracking, ..Config::new(&Options::default(), "n").unwrap() }
    }

    fn names(config: &Config) -> Vec<(&'static str, String)> {
        wanted(config, NodePorts::Listed)
            .into_iter()
            .filter_map(|(name, value, _)| Some((name.strip_prefix("net/netfilter/nf_conntrack_")?, value)))
            .collect()
    }

    #[test]
    fn tracking_is_as_configured_and_by_default_kube_proxys() {
        let read = |value| Tracking::read(&value).unwrap();
        assert_eq!(read(serde_json::json!({"maxPerCore": null, "tcpCloseWaitTimeout": null})), Tracking::default());
        assert_eq!(
            names(&config(Tracking::default())),
            [("tcp_timeout_established", "86400".into()), ("tcp_timeout_close_wait", "3600".into())]
        );
        let all = read(serde_json::json!({
            "maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "1m30s", "udpTimeout": "10s",
            "udpStreamTimeout": "2m", "tcpBeLiberal": true,
        }));
        assert_eq!(all.max(64), None);
        assert_eq!(
            names(&config(all)),
            [
                ("tcp_timeout_close_wait", "90".into()),
                ("udp_timeout", "10".into()),
                ("udp_timeout_stream", "120".into()),
                ("tcp_be_liberal", "1".into())
            ]
        );
        let error = Tracking::read(&serde_json::json!({"min": -1})).unwrap_err();
        assert_eq!(error.to_string(), "conntrack.min is no number from 0");
    }

    #[test]
    fn the_table_grows_with_the_machine_between_a_least_and_a_most() {
        let tracking = Tracking::default();
        assert_eq!([2, 8, 64].map(|cpus| tracking.max(cpus)), [Some(131_072), Some(262_144), Some(1_048_576)]);
        let most = Tracking { max_per_core: u64::MAX, ..Tracking::default() };
        assert_eq!(most.max(2), Some(1_048_576));
        assert_eq!(["0", "0-3,6", "0-1,4-7", "x"].map(count), [Some(1), Some(5), Some(6), None]);
    }
}
