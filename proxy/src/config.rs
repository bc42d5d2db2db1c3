//! Flags and KubeProxyConfiguration: what is supported, and the name of every field that is not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use ipnetwork::IpNetwork;
use kernel::ipvs::Timeouts;
use serde_json::Value;

use crate::parameters::Tracking;

/// `bosun proxy`, with the flag names of kube-proxy.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "proxy", about = "Leads Service addresses to endpoints, in place of kube-proxy")]
pub struct Options {
    /// A KubeProxyConfiguration; flags that it can also say are then ignored, as kube-proxy does
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// How to reach the API server
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The node's name, in place of the host's
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Pod ranges, comma-separated: what comes from elsewhere to a cluster IP is masqueraded
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNetwork>,
    /// nftables, iptables or ipvs
    #[arg(long)]
    pub proxy_mode: Option<String>,
    /// Ranges of the node's addresses on which node ports answer; "primary" is the node's primary ones
    #[arg(long, value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Masquerade all that goes to cluster IPs
    #[arg(long)]
    pub masquerade_all: bool,
    #[arg(long)]
    pub healthz_bind_address: Option<SocketAddr>,
    #[arg(long)]
    pub metrics_bind_address: Option<SocketAddr>,
    /// Remove what the proxy made in the kernel and exit
    #[arg(long)]
    pub cleanup: bool,
}

/// Which part of the kernel leads packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables,
    Ipvs,
}

impl Mode {
    /// # Errors
    /// Names the modes that there are.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        match text {
            "" | "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            "ipvs" => Ok(Self::Ipvs),
            other => bail!("proxy mode {other:?} is none of nftables, iptables, ipvs"),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

/// How pods' traffic is told from others'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalMode {
    ClusterCidr,
    /// By the node's own `podCIDRs`.
    NodeCidr,
    BridgeInterface(Box<str>),
    InterfaceNamePrefix(Box<str>),
}

/// Where node ports answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeAddresses {
    /// On the node's primary addresses.
    Primary,
    /// On those of its addresses that lie in these ranges; what every address lies in follows the host's addresses.
    In(Vec<IpNetwork>),
}

/// What is for IPVS alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IpvsOptions {
    /// The kernel's name of a way to choose: rr, lc, sh, ...
    pub scheduler: String,
    /// Whether the host answers ARP only for what the asked interface has.
    pub strict_arp: bool,
    /// Virtual servers in these ranges are somebody else's.
    pub exclude: Vec<IpNetwork>,
    pub timeouts: Timeouts,
}

/// What the daemon goes by.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub kubeconfig: Option<PathBuf>,
    pub node: String,
    pub cluster_cidrs: Vec<IpNetwork>,
    pub local_mode: LocalMode,
    pub mode: Mode,
    pub node_port_addresses: NodeAddresses,
    /// Whether 127.0.0.1 is one of them, in mode iptables.
    pub localhost_node_ports: bool,
    pub ipvs: IpvsOptions,
    pub tracking: Tracking,
    pub masquerade_all: bool,
    /// `None` serves none.
    pub healthz: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    /// At least so long between two changes of the table.
    pub min_sync: Duration,
    /// After so long the table is looked at.
    pub sync: Duration,
    /// Fields that were set and are not supported.
    pub ignored: Vec<String>,
}

const HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10256);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// Much below kube-proxy's second, because a change costs milliseconds here.
const MIN_SYNC: Duration = Duration::from_millis(50);
const SYNC: Duration = Duration::from_secs(30);

/// Paths of fields that are read below.
const SUPPORTED: [&str; 35] = [
    "apiVersion",
    "kind",
    "clientConnection.kubeconfig",
    "hostnameOverride",
    "clusterCIDR",
    "mode",
    "nodePortAddresses",
    "healthzBindAddress",
    "metricsBindAddress",
    "detectLocalMode",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "nftables.masqueradeAll",
    "nftables.minSyncPeriod",
    "nftables.syncPeriod",
    "iptables.masqueradeAll",
    "iptables.localhostNodePorts",
    "iptables.minSyncPeriod",
    "iptables.syncPeriod",
    "ipvs.scheduler",
    "ipvs.strictARP",
    "ipvs.excludeCIDRs",
    "ipvs.minSyncPeriod",
    "ipvs.syncPeriod",
    "ipvs.tcpTimeout",
    "ipvs.tcpFinTimeout",
    "ipvs.udpTimeout",
    "bindAddress",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpBeLiberal",
    "conntrack.udpTimeout",
    "conntrack.udpStreamTimeout",
];

impl Config {
    /// # Errors
    /// Names the flag or field that is wrong.
    pub fn new(options: &Options, hostname: &str) -> anyhow::Result<Self> {
        let mut config = Self {
            kubeconfig: options.kubeconfig.clone(),
            node: options.hostname_override.clone().unwrap_or_else(|| hostname.to_owned()).to_lowercase(),
            cluster_cidrs: options.cluster_cidr.clone(),
            local_mode: LocalMode::ClusterCidr,
            mode: Mode::parse(options.proxy_mode.as_deref().unwrap_or_default())?,
            node_port_addresses: NodeAddresses::Primary,
            localhost_node_ports: true,
            ipvs: IpvsOptions { scheduler: "rr".into(), ..IpvsOptions::default() },
            tracking: Tracking::default(),
            masquerade_all: options.masquerade_all,
            healthz: Some(options.healthz_bind_address.unwrap_or(HEALTHZ)),
            metrics: Some(options.metrics_bind_address.unwrap_or(METRICS)),
            min_sync: MIN_SYNC,
            sync: SYNC,
            ignored: Vec::new(),
        };
        let mut node_ports = options.nodeport_addresses.clone();
        if let Some(path) = &options.config {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let read = config.read(&text).with_context(|| format!("in {}", path.display()))?;
            node_ports = read.unwrap_or(node_ports);
        }
        config.node_port_addresses = node_addresses(&node_ports, config.mode)?;
        Ok(config)
    }

    /// Reads any text as a KubeProxyConfiguration, for whoever throws text at it.
    ///
    /// # Errors
    /// Where it is none.
    pub fn read_any(text: &str) -> anyhow::Result<()> {
        let mut config = Self::new(&Options::default(), "node")?;
        let node_ports = config.read(text)?.unwrap_or_default();
        node_addresses(&node_ports, config.mode).map(drop)
    }

    /// Returns the `nodePortAddresses`, where they are set.
    fn read(&mut self, text: &str) -> anyhow::Result<Option<Vec<String>>> {
        let value: Value = serde_saphyr::from_str(text).context("not YAML")?;
        let kind = value["kind"].as_str().unwrap_or_default();
        let version = value["apiVersion"].as_str().unwrap_or_default();
        if (kind, version) != ("KubeProxyConfiguration", "kubeproxy.config.k8s.io/v1alpha1") {
            bail!("{version:?} {kind:?} is not a kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration");
        }
        unsupported(&value, "", &mut self.ignored);
        let word = |path: &str| value.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(path) = word("/clientConnection/kubeconfig") {
            self.kubeconfig = Some(path.into());
        }
        if let Some(name) = word("/hostnameOverride") {
            self.node = name.to_lowercase();
        }
        if let Some(list) = word("/clusterCIDR") {
            let parsed: Result<_, _> = list.split(',').map(|cidr| cidr.trim().parse()).collect();
            self.cluster_cidrs = parsed.context("clusterCIDR")?;
        }
        if let Some(mode) = word("/mode") {
            self.mode = Mode::parse(mode)?;
        }
        self.local_mode = match word("/detectLocalMode") {
            None | Some("ClusterCIDR") => LocalMode::ClusterCidr,
            Some("NodeCIDR") => LocalMode::NodeCidr,
            Some("BridgeInterface") => LocalMode::BridgeInterface(
                word("/detectLocal/bridgeInterface").context("detectLocal.bridgeInterface is missing")?.into(),
            ),
            Some("InterfaceNamePrefix") => LocalMode::InterfaceNamePrefix(
                word("/detectLocal/interfaceNamePrefix").context("detectLocal.interfaceNamePrefix is missing")?.into(),
            ),
            Some(other) => bail!(
                "detectLocalMode {other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
            ),
        };
        self.read_mode(&value)?;
        self.tracking = Tracking::read(&value["conntrack"])?;
        self.healthz = address(word("/healthzBindAddress"), self.healthz, HEALTHZ.port())?;
        self.metrics = address(word("/metricsBindAddress"), self.metrics, METRICS.port())?;
        Ok(strings(&value["nodePortAddresses"]))
    }

    /// The section of the mode. IPVS takes what concerns iptables from there, as in kube-proxy.
    fn read_mode(&mut self, value: &Value) -> anyhow::Result<()> {
        let flag = |path: &str| value.pointer(path).and_then(Value::as_bool);
        let section = if self.mode == Mode::Nftables { "nftables" } else { "iptables" };
        self.masquerade_all |= flag(&format!("/{section}/masqueradeAll")).unwrap_or(false);
        self.localhost_node_ports = flag("/iptables/localhostNodePorts").unwrap_or(true);
        let mode = self.mode.name();
        for (field, name) in [(&mut self.min_sync, "minSyncPeriod"), (&mut self.sync, "syncPeriod")] {
            let path = format!("/{mode}/{name}");
            if let Some(text) = value.pointer(&path).and_then(Value::as_str) {
                let period = duration(text).with_context(|| format!("{mode}.{name}"))?;
                // Zero is Go's way of saying nothing.
                *field = if period.is_zero() { *field } else { period };
            }
        }
        if let Some(scheduler) = value.pointer("/ipvs/scheduler").and_then(Value::as_str).filter(|s| !s.is_empty()) {
            self.ipvs.scheduler = scheduler.to_owned();
        }
        self.ipvs.strict_arp = flag("/ipvs/strictARP").unwrap_or(false);
        let exclude = strings(&value["ipvs"]["excludeCIDRs"]).unwrap_or_default();
        let parsed = exclude.iter().map(|cidr| cidr.parse().with_context(|| format!("ipvs.excludeCIDRs {cidr:?}")));
        self.ipvs.exclude = parsed.collect::<anyhow::Result<_>>()?;
        let times = &mut self.ipvs.timeouts;
        for (field, name) in
            [(&mut times.tcp, "tcpTimeout"), (&mut times.tcp_fin, "tcpFinTimeout"), (&mut times.udp, "udpTimeout")]
        {
            if let Some(text) = value["ipvs"][name].as_str() {
                let time = duration(text).with_context(|| format!("ipvs.{name}"))?;
                *field = time.as_secs().try_into().with_context(|| format!("ipvs.{name} {text:?} is too long"))?;
            }
        }
        Ok(())
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let list = value.as_array().filter(|list| !list.is_empty())?;
    Some(list.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect())
}

/// Without orders nftables means the primary addresses and the older modes all, as in kube-proxy.
fn node_addresses(list: &[String], mode: Mode) -> anyhow::Result<NodeAddresses> {
    match list {
        [] if mode == Mode::Nftables => Ok(NodeAddresses::Primary),
        [] => node_addresses(&["0.0.0.0/0".into(), "::/0".into()], mode),
        [word] if word == "primary" => Ok(NodeAddresses::Primary),
        list => {
            let parsed = list.iter().map(|cidr| cidr.parse().with_context(|| format!("nodePortAddresses {cidr:?}")));
            Ok(NodeAddresses::In(parsed.collect::<anyhow::Result<_>>()?))
        }
    }
}

/// An address with or without a port, as kube-proxy takes both.
fn address(text: Option<&str>, otherwise: Option<SocketAddr>, port: u16) -> anyhow::Result<Option<SocketAddr>> {
    let Some(text) = text else { return Ok(otherwise) };
    let with_port = text.parse().ok();
    let parsed = with_port.or_else(|| text.parse().ok().map(|ip| SocketAddr::new(ip, port)));
    parsed.map(Some).with_context(|| format!("{text:?} is no address"))
}

/// Go's form, as far as configurations use it: `1h2m3.5s`, `50ms`.
pub fn duration(text: &str) -> anyhow::Result<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().with_context(|| format!("{text:?} is no duration"))?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        total += number
            * match &rest[digits..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                "us" | "µs" => 0.000_001,
                "" if number == 0.0 => 0.0,
                other => bail!("{text:?} is no duration: unknown unit {other:?}"),
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).with_context(|| format!("{text:?} is no duration"))
}

/// Names the fields that are set to something and not supported.
fn unsupported(value: &Value, path: &str, found: &mut Vec<String>) {
    let empty = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0s",
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    if empty || SUPPORTED.contains(&path) {
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                unsupported(value, &path, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_and_what_is_not_supported_is_named() {
        let mut config = Config::new(&Options::default(), "Node-1").unwrap();
        assert_eq!(config.node, "node-1");
        config
            .read(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
                 clusterCIDR: 10.244.0.0/16\nhealthzBindAddress: 127.0.0.1\nmetricsBindAddress: \"\"\n\
                 conntrack: {maxPerCore: 0, min: null}\nnftables: {minSyncPeriod: 1m1.5s, syncPeriod: 0s}\n\
                 ipvs: {tcpTimeout: 15m, udpTimeout: 5s}\noomScoreAdj: -999\n",
            )
            .unwrap();
        assert_eq!(config.min_sync, Duration::from_millis(61_500));
        assert_eq!(config.sync, SYNC);
        assert_eq!(config.healthz, Some("127.0.0.1:10256".parse().unwrap()));
        assert_eq!(config.ipvs.timeouts, Timeouts { tcp: 900, tcp_fin: 0, udp: 5 });
        assert_eq!(config.tracking, Tracking { max_per_core: 0, ..Tracking::default() });
        assert_eq!(config.ignored, ["oomScoreAdj"]);
        assert!(config.read("kind: Pod").is_err());
        let other = Options { proxy_mode: Some("userspace".into()), ..Options::default() };
        assert_eq!(
            Config::new(&other, "n").unwrap_err().to_string(),
            "proxy mode \"userspace\" is none of nftables, iptables, ipvs"
        );
    }

    #[test]
    fn each_mode_has_its_section_and_its_node_addresses() {
        let mut config = Config::new(&Options { proxy_mode: Some("ipvs".into()), ..Options::default() }, "n").unwrap();
        assert_eq!(config.mode, Mode::Ipvs);
        assert!(matches!(&config.node_port_addresses, NodeAddresses::In(ranges) if ranges.len() == 2));
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let text = format!(
            "{head}detectLocalMode: InterfaceNamePrefix\ndetectLocal: {{interfaceNamePrefix: cali}}\n\
             nodePortAddresses: [192.0.2.0/24]\nipvs: {{scheduler: lc, strictARP: true, excludeCIDRs: [10.9.0.0/16]}}\n\
             iptables: {{masqueradeAll: true}}\n"
        );
        assert_eq!(config.read(&text).unwrap(), Some(vec!["192.0.2.0/24".to_owned()]));
        assert_eq!(config.local_mode, LocalMode::InterfaceNamePrefix("cali".into()));
        assert_eq!(
            (config.ipvs.scheduler.as_str(), config.ipvs.strict_arp, config.ipvs.exclude.len()),
            ("lc", true, 1)
        );
        assert!(config.masquerade_all);
        let error = config.read(&format!("{head}detectLocalMode: BridgeInterface\n")).unwrap_err();
        assert_eq!(error.to_string(), "detectLocal.bridgeInterface is missing");
        assert_eq!(node_addresses(&["primary".into()], Mode::Iptables).unwrap(), NodeAddresses::Primary);
    }
}
