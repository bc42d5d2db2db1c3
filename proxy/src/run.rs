//! The daemon: watches feed the model, the model goes to the kernel, soon after the first change of a burst.

use std::collections::{BTreeMap, HashSet};
use std::future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::Context;
use ipnetwork::IpNetwork;
use kernel::iptables::{Programs, Variant};
use kernel::netlink::Network;
use kernel::nftables::Nft;
use kernel::{conntrack, netlink, sysctl};
use lifecycle::Stop;
use lifecycle::http::listen;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::backend::Backend;
use crate::config::{Config, IpvsOptions, LocalMode, Mode, NodeAddresses, Options};
use crate::health_check::HealthChecks;
use crate::iptables::Chains;
use crate::ipvs::{self, Ports, Servers};
use crate::metrics::Metrics;
use crate::missing::{Missing, NODE_PATIENCE};
use crate::model::{Facts, NodePorts, PodSource};
use crate::nftables::Tables;
use crate::parameters;
use crate::server::{Health, Pages};
use crate::sync::{Change, Proxier, Step};
use crate::watch::{self, News, NodeNews};

/// Runs the proxy until `stop`. What it wrote stays in the kernel, so that connections go on while it restarts.
///
/// # Errors
/// Where it cannot begin: configuration, kubeconfig, a taken port, no nftables.
pub async fn run(options: Options, stop: Stop) -> anyhow::Result<()> {
    if options.cleanup {
        // The configuration says which virtual servers are not ours.
        let config = options.config.as_ref().map(|_| Config::new(&options, "")).transpose()?;
        let ipvs = config.map(|config| config.ipvs).unwrap_or_default();
        return tokio::task::spawn_blocking(move || sweep(None, ipvs)).await?;
    }
    let hostname = sysctl::read("kernel/hostname").context("cannot learn the host's name")?;
    let config = Config::new(&options, &hostname)?;
    if !config.ignored.is_empty() {
        tracing::warn!("these fields of the configuration are not supported: {}", config.ignored.join(", "));
    }
    let client = lifecycle::client::connect(config.kubeconfig.as_deref()).await?;
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry, config.mode);
    let health = Arc::new(Health::default());
    let pages = Pages {
        health: health.clone(),
        registry: Arc::new(registry),
        metrics: metrics.clone(),
        mode: config.mode.name(),
    };
    let mut tasks = tokio::task::JoinSet::new();
    let addresses: HashSet<_> = [config.healthz, config.metrics].into_iter().flatten().collect();
    for address in addresses {
        let pages = pages.clone();
        tasks.spawn(listen(address, move |path| future::ready(pages.answer(&path))).await?);
    }
    let (mode, ipvs) = (config.mode, config.ipvs.clone());
    tokio::task::spawn_blocking(move || sweep(Some(mode), ipvs)).await??;
    parameters::prepare(&config, node_ports(&config));
    let (sender, news) = mpsc::channel(1024);
    tasks.spawn(watch::services(client.clone(), sender.clone()));
    tasks.spawn(watch::slices(client.clone(), config.node.clone(), sender.clone()));
    tasks.spawn(watch::node(client, config.node.clone(), sender));

    let conntrack = conntrack::Kernel::open().context("cannot read connection tracking")?;
    let facts = facts(&config, &NodeNews::default());
    let proxier = Proxier::new(facts.clone(), backend(&config)?, Some(Box::new(conntrack)));
    let mut worker = Worker {
        config,
        node: NodeNews::default(),
        facts,
        proxier: Some(proxier),
        health_checks: HealthChecks::new(health.clone()),
        metrics,
        health,
        triggers: Vec::new(),
    };
    let outcome = tokio::select! {
        () = stop.stopped() => Ok(()),
        () = worker.work(news) => Err(anyhow::anyhow!("the service rules are no longer kept")),
    };
    tasks.shutdown().await;
    outcome
}

fn backend(config: &Config) -> anyhow::Result<Box<dyn Backend>> {
    Ok(match config.mode {
        Mode::Nftables => Box::new(Tables::new(Box::new(Nft))),
        Mode::Iptables => Box::new(Chains::new(Box::new(Programs::of_machine().context("mode iptables")?))),
        Mode::Ipvs => {
            let mut ports = ipvs_ports(Programs::of_machine().context("mode ipvs")?).context("mode ipvs")?;
            for (name, value) in parameters::of_ipvs(config) {
                sysctl::write(name, value).context("mode ipvs")?;
            }
            ports.ipvs.set_timeouts(&config.ipvs.timeouts).context("mode ipvs")?;
            Box::new(Servers::new(ports, config.ipvs.clone()))
        }
    })
}

/// Opens what IPVS needs. Its parameters are there from then on.
fn ipvs_ports(programs: Programs) -> anyhow::Result<Ports> {
    Ok(Ports {
        ipvs: Box::new(kernel::ipvs::Kernel::open()?),
        network: Box::new(netlink::Kernel::open()?),
        sets: Box::new(kernel::ipset::Program),
        iptables: Box::new(programs),
    })
}

/// Removes what proxies of other modes than `kept` left, or of all.
fn sweep(kept: Option<Mode>, options: IpvsOptions) -> anyhow::Result<()> {
    if kept != Some(Mode::Nftables) {
        Tables::new(Box::new(Nft)).remove().context("cannot remove the proxy's tables")?;
    }
    // Its rules hold its sets, so that all of them go with it.
    let was_ipvs = kept != Some(Mode::Ipvs) && netlink::Kernel::open()?.link(ipvs::LINK)?.is_some();
    let used = match kept {
        Some(Mode::Iptables | Mode::Ipvs) => Some(Programs::of_machine().context("cannot learn which iptables")?.0),
        _ => None,
    };
    for variant in [Variant::Legacy, Variant::Nft].into_iter().filter(|variant| was_ipvs || Some(*variant) != used) {
        Chains::new(Box::new(Programs(variant))).remove().context("cannot remove the proxy's chains")?;
    }
    if was_ipvs {
        let ports = ipvs_ports(Programs::of_machine()?)?;
        let removed = Servers::new(ports, options).remove();
        removed.context("cannot remove the proxy's virtual servers")?;
    }
    Ok(())
}

fn facts(config: &Config, node: &NodeNews) -> Facts {
    let ranges = |list: &[IpNetwork]| list.iter().copied().map(PodSource::Range).collect();
    Facts {
        node: config.node.as_str().into(),
        zone: node.zone.clone(),
        primary_ips: node.ips.clone(),
        node_ips: node_ips(config, node),
        node_ports: node_ports(config),
        pods: match &config.local_mode {
            LocalMode::ClusterCidr => ranges(&config.cluster_cidrs),
            LocalMode::NodeCidr => ranges(&node.pod_cidrs),
            LocalMode::BridgeInterface(name) => vec![PodSource::Link(name.clone())],
            LocalMode::InterfaceNamePrefix(prefix) => vec![PodSource::LinkPrefix(prefix.clone())],
        },
        masquerade_all: config.masquerade_all,
    }
}

fn node_ports(config: &Config) -> NodePorts {
    let everywhere = match &config.node_port_addresses {
        NodeAddresses::Primary => false,
        NodeAddresses::In(ranges) => ranges.iter().any(|range| range.prefix() == 0),
    };
    match everywhere {
        false => NodePorts::Listed,
        true if config.mode == Mode::Iptables && config.localhost_node_ports => NodePorts::Localhost,
        true => NodePorts::Everywhere,
    }
}

/// The node's primary addresses, or what of its interfaces lies in the configured ranges.
fn node_ips(config: &Config, node: &NodeNews) -> Vec<IpAddr> {
    let NodeAddresses::In(ranges) = &config.node_port_addresses else { return node.ips.clone() };
    let look = |mut network: netlink::Kernel| {
        let services = network.link(ipvs::LINK)?.map(|link| link.index);
        Ok((network.addresses()?, services))
    };
    match netlink::Kernel::open().and_then(look) {
        Ok((addresses, services)) => {
            let ips = addresses.into_iter().filter(|a| Some(a.link) != services).map(|address| address.net.ip());
            let mut ips: Vec<IpAddr> =
                ips.filter(|ip| !is_link_local(*ip) && ranges.iter().any(|range| range.contains(*ip))).collect();
            ips.sort();
            ips.dedup();
            ips
        }
        Err(error) => {
            tracing::warn!("node ports answer on the primary addresses only: {error}");
            node.ips.clone()
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

struct Worker {
    config: Config,
    node: NodeNews,
    facts: Facts,
    health_checks: HealthChecks,
    /// Lent to the thread that syncs.
    proxier: Option<Proxier>,
    metrics: Metrics,
    health: Arc<Health>,
    triggers: Vec<SystemTime>,
}

impl Worker {
    /// Returns when the watches have ended, or the model is lost.
    async fn work(&mut self, mut news: mpsc::Receiver<News>) {
        let mut missing = Missing::new(matches!(self.config.local_mode, LocalMode::NodeCidr));
        let patience = tokio::time::Instant::now() + NODE_PATIENCE;
        let mut due: Option<tokio::time::Instant> = None;
        let mut last: Option<tokio::time::Instant> = None;
        let mut look = tokio::time::interval(self.config.sync);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.tick().await;
        while self.proxier.is_some() {
            let wake = due.filter(|_| !missing.any());
            let dirty = tokio::select! {
                item = news.recv() => match item {
                    Some(item) => missing.note(&item) | self.note(item),
                    None => return,
                },
                () = tokio::time::sleep_until(patience), if missing.node() => {
                    let node = &self.config.node;
                    tracing::warn!("the Node {node} has no address or no pod range after {NODE_PATIENCE:?}: going on without");
                    missing.do_without_node()
                }
                _ = look.tick() => self.resync().await,
                () = tokio::time::sleep_until(wake.unwrap_or_else(tokio::time::Instant::now)), if wake.is_some() => {
                    due = match self.sync().await {
                        true => None,
                        false => Some(tokio::time::Instant::now() + std::time::Duration::from_secs(1)),
                    };
                    last = Some(tokio::time::Instant::now());
                    continue;
                }
            };
            if dirty {
                self.health.pending();
                self.metrics.queued();
                let now = tokio::time::Instant::now();
                let earliest = last.map_or(now, |last| (last + self.config.min_sync).max(now));
                due.get_or_insert(earliest);
            }
        }
    }

    fn note(&mut self, news: News) -> bool {
        let change = match news {
            News::Change(change, trigger) => {
                self.metrics.changed(matches!(change, Change::Service(..)));
                self.triggers.extend(trigger);
                change
            }
            News::Node(node) => {
                self.health.leaving(node.leaving);
                self.node = *node;
                return self.look_around();
            }
            News::ServicesListed | News::SlicesListed => return false,
        };
        self.proxier.as_mut().is_some_and(|proxier| proxier.note(change))
    }

    /// Takes the node's addresses and ranges as they are now.
    fn look_around(&mut self) -> bool {
        self.facts = facts(&self.config, &self.node);
        let facts = self.facts.clone();
        self.proxier.as_mut().is_some_and(|proxier| proxier.note(Change::Facts(facts)))
    }

    /// Looks whether the rules still stand, and whether the host has other addresses.
    async fn resync(&mut self) -> bool {
        let moved = self.look_around();
        moved | self.lend(|proxier| proxier.note(Change::Resync)).await.unwrap_or(true)
    }

    async fn sync(&mut self) -> bool {
        let started = Instant::now();
        let triggers = std::mem::take(&mut self.triggers);
        let partial = self.proxier.as_ref().is_some_and(Proxier::is_known);
        let Some(outcome) = self.lend(Proxier::sync).await else { return false };
        match outcome {
            Ok(step) => {
                let took = started.elapsed();
                let report = self.proxier.as_ref().map(Proxier::report).unwrap_or_default();
                self.metrics.synced(took, step, &report, &triggers);
                self.health.synced();
                match step {
                    Step::Full { services } => {
                        tracing::info!("wrote the table with {services} services in {took:?}");
                        // The lists of the watches and the text of the whole table are done with.
                        kernel::process::give_memory_back();
                    }
                    step => tracing::debug!("{step:?} in {took:?}"),
                }
                let wanted = self.proxier.as_ref().map(|proxier| proxier.health_checks());
                self.health_checks.follow(wanted.unwrap_or(&BTreeMap::new()), &self.facts).await;
                true
            }
            Err(error) => {
                self.metrics.failed(partial);
                tracing::error!("cannot write the service rules, trying again in 1 s: {error}");
                false
            }
        }
    }

    /// Runs `work` on a thread where it may wait for the kernel. `None` where it panicked; the model is lost then.
    async fn lend<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Proxier) -> T + Send + 'static) -> Option<T> {
        let mut proxier = self.proxier.take()?;
        let (proxier, done) = tokio::task::spawn_blocking(move || {
            let done = work(&mut proxier);
            (proxier, done)
        })
        .await
        .ok()?;
        self.proxier = Some(proxier);
        Some(done)
    }
}
