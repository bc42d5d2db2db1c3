//! The agent as a whole: configuration, identity, and the parts that run side by side.

use crate::cgroup::{NodeAllocatable, PodCgroups, Rules};
use crate::config::Config;
use crate::event::Recorder;
use crate::image::{self, Images};
use crate::log;
use crate::node::{self, Keeper, Machine};
use crate::options::Options;
use crate::pod::{Context, Host, Manager};
use crate::quantity::{milli_of, units_of};
use crate::runtime::Runtime;
use crate::sandbox::dns;
use crate::server::Daemon;
use crate::services::Services;
use crate::volume::{NodeCapacity, Volumes};
use anyhow::Context as _;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use lifecycle::Stop;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// Runs the agent until `stop`. Pods go on when it returns.
///
/// # Errors
/// Where it cannot begin: configuration, kubeconfig, runtime endpoint, or the root folder.
pub async fn run(options: Options, stop: Stop) -> anyhow::Result<()> {
    lifecycle::install_crypto();
    let (config, ignored) = Config::load(&options)?;
    for field in ignored {
        warn!("configuration field {field} is not supported and has no effect");
    }
    for folder in [&options.root_dir, &options.cert_dir] {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    }
    let (client, server) = connect(&options).await?;
    let node_name = node_name(&options)?;
    let ips = if options.node_ip.is_empty() { vec![own_address(&server)?] } else { options.node_ip.clone() };
    let runtime = Runtime::new(&config.container_runtime_endpoint, config.runtime_request_timeout)?;
    let machine = Machine::read();
    let host = host(&config, &machine, node_name.clone(), ips.clone())?;

    let (events, send_events) = Recorder::new(client.clone(), &node_name, config.event_record_qps, config.event_burst);
    let parts = node::Parts {
        client: client.clone(),
        name: node_name.clone(),
        ips,
        runtime: runtime.clone(),
        events: events.clone(),
        machine: machine.clone(),
    };
    let (keeper, published) = Keeper::new(parts, &config, &options);
    let capacity = NodeCapacity {
        milli_cpu: host.allocatable_milli_cpu,
        memory: host.allocatable_memory,
        ephemeral_storage: kernel::mount::space(&options.root_dir)
            .map_or(0, |space| i64::try_from(space.capacity).unwrap_or(0)),
    };
    let ctx = Arc::new(Context {
        images: Images::new(runtime.clone(), client.clone(), events.clone(), &config, &options.root_dir),
        volumes: Volumes::new(&options.root_dir, client.clone(), capacity),
        cgroups: cgroups(&config, &host)?,
        services: Arc::default(),
        admission: Default::default(),
        root_dir: options.root_dir.clone(),
        node: published.node,
        network: published.network,
        config,
        host,
        runtime,
        events,
        client,
    });
    info!(node = node_name, "the agent begins");
    let manager = Manager::new(Arc::clone(&ctx));
    let daemon = Daemon::bind(&ctx, manager.clone(), &options).await?;
    let _events = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(send_events));
    let mut served = Ok(());
    tokio::join!(
        keeper.run(stop.child()),
        follow_services(&ctx, stop.child()),
        image::collect(&ctx, stop.child()),
        ctx.volumes.run(stop.child(), |uid| manager.wake(uid)),
        clean_orphans(&ctx, stop.child()),
        manager.run(stop.child()),
        async { served = daemon.run(stop.child()).await },
    );
    Ok(served?)
}

async fn follow_services(ctx: &Context, stop: Stop) {
    let services: &Services = &ctx.services;
    services.run(ctx.client.clone(), stop).await;
}

/// Once at the start: folders, logs and control groups of pods that neither the API nor the runtime knows.
async fn clean_orphans(ctx: &Context, stop: Stop) {
    // What is there is looked at first: of a pod that comes meanwhile nothing may go.
    let (volumes, groups) = (ctx.volumes.on_disk(), ctx.cgroups.pods());
    let logs = log::pods_with_logs(&ctx.config.pod_logs_dir);
    let Some(living) = living(ctx, stop).await else { return };
    for uid in volumes.into_iter().filter(|uid| !living.contains(uid)) {
        info!(pod = uid, "removing the volumes of a pod that is gone");
        if let Err(error) = ctx.volumes.remove_pod_dir(&uid).await {
            warn!(%error, "volumes of a pod that is gone are left");
        }
    }
    let cgroups = ctx.cgroups.clone();
    let removed = tokio::task::spawn_blocking(move || {
        for uid in groups.into_iter().filter(|uid| !living.contains(uid)) {
            if let Err(error) = cgroups.remove_pod(&uid) {
                warn!(%error, uid, "the control group of a pod that is gone is left");
            }
        }
        for (_, folder) in logs.into_iter().filter(|(uid, _)| !living.contains(uid)) {
            if let Err(error) = std::fs::remove_dir_all(&folder) {
                warn!(%error, folder = %folder.display(), "logs of a pod that is gone are left");
            }
        }
    });
    let _ = removed.await;
}

/// Uids of the pods that the API has for this node or the runtime holds. `None` when the agent stops before both answer.
async fn living(ctx: &Context, stop: Stop) -> Option<BTreeSet<String>> {
    use crate::pod::{spec, view::POD_UID};
    use k8s_openapi::api::core::v1::Pod;
    use kube::api::{Api, ListParams};
    let pods: Api<Pod> = Api::all(ctx.client.clone());
    let selector = ListParams::default().fields(&format!("spec.nodeName={}", ctx.host.node_name));
    loop {
        let known = (pods.list(&selector).await, ctx.runtime.list_pod_sandbox(Default::default()).await);
        if let (Ok(pods), Ok(sandboxes)) = known {
            let bound = pods.items.iter().map(|pod| spec::uid(pod).to_string());
            let held = sandboxes.items.into_iter().filter_map(|mut sandbox| sandbox.labels.remove(POD_UID));
            return Some(bound.chain(held).collect());
        }
        tokio::select! { () = stop.stopped() => return None, () = tokio::time::sleep(Duration::from_secs(2)) => {} }
    }
}

async fn connect(options: &Options) -> anyhow::Result<(Client, http::Uri)> {
    let path = &options.kubeconfig;
    let doing = || format!("read kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(doing)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(doing)?;
    let server = config.cluster_url.clone();
    Ok((Client::try_from(config).with_context(doing)?, server))
}

fn node_name(options: &Options) -> anyhow::Result<String> {
    let name = match &options.hostname_override {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host's name")?,
    };
    let name = name.trim().to_lowercase();
    anyhow::ensure!(!name.is_empty(), "the host has no name; give one with --hostname-override");
    Ok(name)
}

/// The address from which this machine reaches the API server. Nothing is sent.
fn own_address(server: &http::Uri) -> anyhow::Result<IpAddr> {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']).to_string();
    let port = server.port_u16().unwrap_or(443);
    let doing = || format!("find the node's address on the way to {host}:{port}; name it with --node-ip");
    let to = (host.as_str(), port).to_socket_addrs().with_context(doing)?.next().with_context(doing)?;
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).with_context(doing)?;
    socket.connect(to).with_context(doing)?;
    Ok(socket.local_addr().with_context(doing)?.ip())
}

fn host(config: &Config, machine: &Machine, node_name: String, ips: Vec<IpAddr>) -> anyhow::Result<Host> {
    let capacity = BTreeMap::from([
        ("cpu".to_string(), Quantity(machine.cpus.to_string())),
        ("memory".to_string(), Quantity(machine.memory.to_string())),
    ]);
    let allocatable = node::allocatable(&capacity, config);
    let dns = match config.resolv_conf.as_str() {
        // The kubelet's answer for a node without a resolver.
        "" => cri::v1::DnsConfig { servers: vec!["127.0.0.1".into()], searches: vec![".".into()], options: vec![] },
        file => dns::parse(&std::fs::read_to_string(file).with_context(|| format!("read resolvConf {file}"))?),
    };
    Ok(Host {
        node_name,
        ips,
        dns,
        memory: machine.memory,
        allocatable_milli_cpu: milli_of(Some(&allocatable), "cpu"),
        allocatable_memory: units_of(Some(&allocatable), "memory"),
    })
}

fn cgroups(config: &Config, host: &Host) -> anyhow::Result<PodCgroups> {
    let rules = Rules {
        cpu_quota: config.cpu_cfs_quota,
        cpu_period_micros: u64::try_from(config.cpu_cfs_quota_period.as_micros()).unwrap_or(100_000),
        pids: config.pod_pids_limit,
    };
    let cgroups = PodCgroups::new(
        kernel::cgroup::Cgroups::detect().context("find the control groups")?,
        &config.cgroup_root,
        rules,
    );
    let pids = node::tasks().map(|(_, most)| most);
    let node = NodeAllocatable { milli_cpu: host.allocatable_milli_cpu, memory: Some(host.allocatable_memory), pids };
    cgroups.setup(&node).context("make the control group of all pods")?;
    Ok(cgroups)
}
