//! The measurements behind `hack/bench`. Each prints one line of JSON; the script sets ours beside the peer's.

mod api;
mod bgp;
mod cri;
mod figures;
mod ipvs;
mod memory;
mod pod_to_pod;
mod pods;
mod policy;
mod proxy;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Subcommand)]
enum Measurement {
    /// Pod start, create to Ready as a watch sees it, the image being present.
    Pods {
        #[arg(long)]
        kubeconfig: PathBuf,
        #[arg(long)]
        image: String,
        #[arg(long, default_value_t = 10)]
        singles: usize,
        #[arg(long, default_value_t = 30)]
        together: usize,
        /// Leave the pods of the last step running, for a look at memory.
        #[arg(long)]
        keep: bool,
    },
    /// Writes of 1 kB objects a second.
    Writes {
        #[arg(long)]
        kubeconfig: PathBuf,
        #[arg(long)]
        clients: usize,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Time to list `objects` config maps, as JSON and as protobuf, and the writes that make them.
    List {
        #[arg(long)]
        kubeconfig: PathBuf,
        #[arg(long, default_value_t = 10_000)]
        objects: usize,
    },
    /// Delay from a write to the last of `clients` watches seeing it.
    Watch {
        #[arg(long)]
        kubeconfig: PathBuf,
        #[arg(long, default_value_t = 100)]
        clients: usize,
        #[arg(long, default_value_t = 100)]
        writes: usize,
    },
    /// Services with a few endpoints each, as objects only.
    Services {
        #[arg(long)]
        kubeconfig: PathBuf,
        /// So many are there already.
        #[arg(long, default_value_t = 0)]
        from: usize,
        #[arg(long, default_value_t = 10_000)]
        count: usize,
    },
    /// When this network namespace has rules for the last of so many services.
    Programmed {
        #[arg(long, default_value_t = 10_000)]
        count: usize,
        #[arg(long, default_value_t = 240)]
        seconds: u64,
    },
    /// One endpoint's change, from the write to the rule in the kernel of this network namespace.
    Endpoint {
        #[arg(long)]
        kubeconfig: PathBuf,
        #[arg(long, default_value_t = 20)]
        changes: usize,
    },
    /// A proxy in mode ipvs, in a machine of its own (hack/uml): start to programmed, memory, one endpoint's change.
    Ipvs {
        #[arg(long)]
        side: ipvs::Side,
        #[arg(long, default_value_t = 10_000)]
        count: usize,
        #[arg(long, default_value_t = 5)]
        changes: usize,
    },
    /// Each call of a pod's life at a CRI server, pods together, lists of many pods, memory.
    Cri {
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        image: String,
        #[arg(long)]
        cgroup_parent: String,
        /// The folder of the pods' logs.
        #[arg(long)]
        logs: PathBuf,
        /// The server's process, and others that belong to it.
        #[arg(long, value_delimiter = ',')]
        pids: Vec<u32>,
        #[arg(long, default_value_t = 40)]
        singles: usize,
        #[arg(long, default_value_t = 30)]
        together: usize,
        /// Memory is looked at with so many pods.
        #[arg(long, default_value_t = 100)]
        memory_at: usize,
        /// Lists are timed with so many pods.
        #[arg(long, default_value_t = 250)]
        list_at: usize,
    },
    /// A BGP speaker between a feeder and a sink of many routes; each figure is the median of all rounds.
    Bgp {
        #[arg(long)]
        side: bgp::Side,
        #[arg(long)]
        routes: u32,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// The speaker of `bgp --side bosun`.
    BgpSpeaker,
    /// Network policies: all of them into a kernel's namespace of its own, then one label and one policy.
    Policy {
        #[arg(long, default_value_t = 1000)]
        policies: usize,
        /// Pods of this node.
        #[arg(long, default_value_t = 250)]
        pods: usize,
        /// Pods of other nodes.
        #[arg(long, default_value_t = 9750)]
        others: usize,
        #[arg(long, default_value_t = 20)]
        changes: usize,
    },
    /// Throughput and latency of one TCP connection between pods of two nodes.
    PodToPod {
        /// How the nodes of the cluster that BOSUN_CLUSTER names reach one another [default: no cluster, the same hops bare]
        #[arg(long)]
        mode: Option<String>,
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Writes the images that bosun carries into `folder`, for a node that is not bosun's.
    Archives { folder: PathBuf },
    /// Proportional set size of every process in the PID namespace of `pid`, by program, in MB.
    Memory {
        #[arg(long)]
        pid: u32,
    },
}

fn main() -> anyhow::Result<()> {
    lifecycle::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let line = match Cli::parse().measurement {
        Measurement::Pods { kubeconfig, image, singles, together, keep } => {
            runtime.block_on(pods::measure(&kubeconfig, &pods::Load { image, singles, together, keep }))?
        }
        Measurement::Writes { kubeconfig, clients, seconds } => {
            runtime.block_on(api::writes(&kubeconfig, clients, seconds))?
        }
        Measurement::List { kubeconfig, objects } => runtime.block_on(api::list(&kubeconfig, objects))?,
        Measurement::Watch { kubeconfig, clients, writes } => {
            runtime.block_on(api::watch(&kubeconfig, clients, writes))?
        }
        Measurement::Services { kubeconfig, from, count } => {
            runtime.block_on(proxy::services(&kubeconfig, from..count))?
        }
        Measurement::Programmed { count, seconds } => proxy::programmed(count, Duration::from_secs(seconds))?,
        Measurement::Endpoint { kubeconfig, changes } => runtime.block_on(proxy::endpoint(&kubeconfig, changes))?,
        Measurement::Ipvs { side, count, changes } => ipvs::measure(side, count, changes)?,
        Measurement::Cri { socket, image, cgroup_parent, logs, pids, singles, together, memory_at, list_at } => {
            let load = cri::Load { image, cgroup_parent, logs, pids, singles, together, memory_at, list_at };
            runtime.block_on(cri::measure(&socket, &load))?
        }
        Measurement::Bgp { side, routes, rounds } => bgp::rounds(side, routes, rounds)?,
        Measurement::BgpSpeaker => bgp::speaker()?,
        Measurement::Policy { policies, pods, others, changes } => {
            policy::measure(&policy::Load { policies, pods, others, changes })?
        }
        Measurement::PodToPod { mode, seconds } => {
            let time = Duration::from_secs(seconds);
            mode.map_or_else(|| pod_to_pod::bare(time), |mode| pod_to_pod::across_nodes(&mode, time))?
        }
        Measurement::Archives { folder } => {
            std::fs::write(folder.join("pause.tar"), images::pause_archive())?;
            std::fs::write(folder.join("echo.tar"), images::echo_archive())?;
            serde_json::json!({"pause": images::PAUSE, "echo": images::ECHO})
        }
        Measurement::Memory { pid } => memory::measure(pid)?,
    };
    println!("{line}");
    Ok(())
}
