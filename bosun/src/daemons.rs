//! The daemons as subcommands. One process may hold several: `bosun scheduler FLAGS + controller-manager FLAGS`.

use std::pin::Pin;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use lifecycle::Stop;
use tokio::task::JoinSet;

/// A daemon with its flags, which are those of its original.
#[derive(Subcommand)]
pub enum Daemon {
    /// Serve the Kubernetes API (kube-apiserver)
    Apiserver(control_plane::apiserver::Options),
    /// Make scheduling decisions (kube-scheduler)
    Scheduler(control_plane::scheduler::Options),
    /// Run the controllers (kube-controller-manager)
    ControllerManager(control_plane::controller_manager::Options),
    /// Run the pods of this node (kubelet)
    Agent(agent::Options),
    /// Serve the container runtime interface over containerd
    Cri(cri_shim::Options),
    /// Program Services into the node's network (kube-proxy)
    Proxy(proxy::Options),
    /// Lead packets to other nodes' pods and keep network policies (Calico, flannel)
    #[command(skip)] // `bosun net` is a verb too: see `crate::net`
    Net(net::Options),
}

impl Daemon {
    fn name(&self) -> &'static str {
        match self {
            Self::Apiserver(_) => "apiserver",
            Self::Scheduler(_) => "scheduler",
            Self::ControllerManager(_) => "controller-manager",
            Self::Agent(_) => "agent",
            Self::Cri(_) => "cri",
            Self::Proxy(_) => "proxy",
            Self::Net(_) => "net",
        }
    }

    /// The log filter that its flags ask for.
    fn verbosity(&self) -> &'static str {
        match self {
            Self::Agent(options) if options.v >= 4 => "debug",
            _ => "info",
        }
    }

    /// In a box each: in one future, whichever thread polls it would have the frames of all on its stack, a quarter of a
    /// megabyte that stays.
    fn run(self, stop: Stop) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>> {
        match self {
            Self::Apiserver(options) => Box::pin(control_plane::apiserver::run(options, stop)),
            Self::Scheduler(options) => Box::pin(control_plane::scheduler::run(options, stop)),
            Self::ControllerManager(options) => Box::pin(control_plane::controller_manager::run(options, stop)),
            Self::Agent(options) => Box::pin(agent::run(options, stop)),
            Self::Cri(options) => Box::pin(cri_shim::run(options, carried(), stop)),
            Self::Proxy(options) => Box::pin(proxy::run(options, stop)),
            Self::Net(options) => Box::pin(net::run(options, stop)),
        }
    }
}

/// The keeper is this very file, though another may have its path by now.
fn carried() -> cri_shim::Carried {
    // By its path, so that a list of processes names it; a program that was replaced is still open as our own.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let program = program.unwrap_or_else(|| "/proc/self/exe".into());
    let keeper = vec![program.into(), CRI_KEEPER.into()];
    cri_shim::Carried { pause: images::pause_archive(), keeper }
}

/// The CRI server's word, which many a burst of work comes to: its memory is looked after before it begins.
pub const CRI: &str = "cri";

/// The word by which `cri` starts its keeper.
pub const CRI_KEEPER: &str = "cri-keeper";

/// Reading a pod nests deeply, in a build without optimization beyond the usual 2 MiB. Only what is touched is memory.
const STACK: usize = 8 << 20;

/// Runs them until a signal says stop. When one ends, all do: whoever supervises the process starts it again.
///
/// # Errors
/// What the first of them failed with.
pub fn run(daemons: Vec<Daemon>) -> anyhow::Result<()> {
    // "debug" sorts before "info": one daemon that asks for more decides for the process.
    lifecycle::logging::init(daemons.iter().map(Daemon::verbosity).min().unwrap_or("info"));
    kernel::process::few_pools();
    // Few threads: what they wait for is the network and the disk, and each costs memory.
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_stack_size(STACK)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = Stop::new();
        stop.at_signals()?;
        tokio::spawn(trim());
        let mut running = JoinSet::new();
        for daemon in daemons {
            let (name, run) = (daemon.name(), daemon.run(stop.clone()));
            running.spawn(async move { run.await.context(name) });
        }
        let mut first = Ok(());
        while let Some(ended) = running.join_next().await {
            stop.stop();
            first = first.and(ended.context("a daemon panicked").and_then(|result| result));
        }
        first
    })
}

/// Between two times at which freed memory goes back to the kernel.
const TRIM: Duration = Duration::from_secs(15);

/// What the start or a burst of work used, and the allocator would keep for the next.
async fn trim() {
    loop {
        tokio::time::sleep(TRIM).await;
        // It may take milliseconds where there is much.
        let _ = tokio::task::spawn_blocking(kernel::process::give_memory_back).await;
    }
}
