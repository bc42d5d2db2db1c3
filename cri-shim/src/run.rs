//! `bosun cri` from its options to its end.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cri::{ImageServiceServer, RuntimeServiceServer};
use lifecycle::Stop;
use tokio::net::UnixListener;

use crate::cni::{Network, NetworkSettings};
use crate::container::spec::HostFacts;
use crate::containerd::{Containerd, MAX_MESSAGE};
use crate::events::Events;
use crate::folders::Folders;
use crate::handler::Handlers;
use crate::image::{ImageSettings, Images};
use crate::index::Index;
use crate::keeper::Keeper;
use crate::options::{CgroupDriver, Options};
use crate::restore::restore;
use crate::sandbox::record::Phase;
use crate::server::executor::NodeExecutor;
use crate::server::image::ImageServer;
use crate::server::listen;
use crate::server::runtime::RuntimeServer;
use crate::server::serve::{self, Services};
use crate::shim::{Settings, Shim};
use crate::stats::Meter;
use crate::stream::StreamServer;

/// The name of the image in [`Carried::pause`].
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";

/// Between two looks for a containerd that does not answer yet.
const AGAIN: Duration = Duration::from_millis(200);
/// How long calls may take to end once stop was said.
const GRACE: Duration = Duration::from_secs(5);

/// What the program that serves brings along.
pub struct Carried {
    /// The archive of the pause image.
    pub pause: &'static [u8],
    /// The words that start a keeper of output, which calls [`crate::keeper::serve`]; `--socket PATH` follows them.
    pub keeper: Vec<OsString>,
}

/// Serves the CRI until `stop`.
///
/// # Errors
/// Where an option is wrong, a socket cannot be had, or what containerd knows cannot be read.
pub async fn run(options: Options, carried: Carried, stop: Stop) -> anyhow::Result<()> {
    let socket = listen::path(&options.listen)?;
    let shim = Arc::new(prepare(&options, carried).await?);
    let streams = StreamServer::bind(&options.stream_address.to_string(), options.stream_idle_timeout).await?;
    // Whoever serves there already is found out before anything is undone as half-made.
    let listener = listen::listen(&socket).await?;
    tokio::select! {
        restored = restored(&shim) => restored?,
        () = stop.stopped() => return Ok(()),
    }
    let urls = streams.urls();
    let streaming = tokio::spawn(streams.serve(Arc::new(NodeExecutor(shim.clone())), stop.child()));
    tracing::info!(
        socket = %socket.display(),
        sandboxes = shim.sandboxes.all().len(),
        containers = shim.containers.all().len(),
        "serving the CRI"
    );
    serve(&shim, RuntimeServer::new(shim.clone(), urls), listener, &stop).await;
    // It ends by the same signal, and has nothing to report.
    let _ = streaming.await;
    Ok(())
}

async fn serve(shim: &Shim, runtime: RuntimeServer, listener: UnixListener, stop: &Stop) {
    let names = shim.settings.handlers.all().iter().map(|handler| handler.name.clone());
    let images = ImageServer::new(shim.images.clone(), names);
    let services = Services {
        runtime: RuntimeServiceServer::new(runtime).max_decoding_message_size(MAX_MESSAGE),
        images: ImageServiceServer::new(images).max_decoding_message_size(MAX_MESSAGE),
    };
    let calls = serve::serve(listener, services, stop).await;
    // Streams of events would be waited for.
    shim.events.close();
    if tokio::time::timeout(GRACE, calls.wait()).await.is_err() {
        tracing::warn!("calls were still being served {GRACE:?} after the signal to stop: they are cut off");
    }
}

/// containerd may start after us, and may be away while it is updated: it is waited for.
async fn restored(shim: &Arc<Shim>) -> anyhow::Result<()> {
    let mut told = false;
    while let Err(error) = shim.containerd.version().await {
        if !told {
            tracing::info!("waiting for containerd: {error}");
            told = true;
        }
        tokio::time::sleep(AGAIN).await;
    }
    shim.images.restore().await.context("read the images that containerd has")?;
    restore(shim).await.context("read what containerd knows of pods and containers")?;
    collect(shim).await;
    Ok(())
}

/// Lets the network forget pods that are gone. Only now is it known which are not.
async fn collect(shim: &Shim) {
    let living = shim.sandboxes.all().into_iter().filter(|sandbox| sandbox.phase() != Phase::Stopped);
    let living: BTreeSet<String> = living.map(|sandbox| sandbox.record.id.clone()).collect();
    if let Err(error) = shim.network.gc(living).await {
        tracing::warn!("the network keeps what belongs to pods that are gone: {error}");
    }
}

async fn prepare(options: &Options, carried: Carried) -> anyhow::Result<Shim> {
    let folders = Folders { root: options.root.clone(), state: options.state.clone() };
    folders.make().context("make the folders of pods and containers")?;
    let path: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let mut handlers = Handlers::parse(&options.runtime_handler, &path)?;
    let driver = options.cgroup_driver;
    let (host, handlers) = tokio::task::spawn_blocking(move || {
        let mut host = HostFacts::detect();
        host.systemd_cgroup = driver.map_or(host.systemd_cgroup, |driver| driver == CgroupDriver::Systemd);
        handlers.ask(&host);
        (host, handlers)
    })
    .await?;
    let cgroups = kernel::cgroup::Cgroups::detect()
        .inspect_err(|error| tracing::warn!("nothing is counted, and no kill for want of memory is known: {error}"))
        .ok();
    let containerd = Containerd::new(&options.containerd).with_reserve(folders.reserve());
    Ok(Shim {
        settings: Settings {
            handlers,
            snapshotter: options.snapshotter.clone(),
            etc: "/etc".into(),
            pause: carried.pause,
            pause_image: PAUSE_IMAGE.to_owned(),
        },
        images: Images::new(containerd.clone(), image_settings(options)),
        network: Network::new(network_settings(options, &folders)),
        containerd,
        keeper: Keeper::start(folders.keeper(), carried.keeper),
        host,
        meter: cgroups.clone().map(|cgroups| Arc::new(Meter::new(cgroups))),
        cgroups,
        folders,
        sandboxes: Index::new("pod sandbox"),
        containers: Index::new("container"),
        events: Events::default(),
        importing: tokio::sync::Mutex::default(),
        levels: Default::default(),
    })
}

fn image_settings(options: &Options) -> ImageSettings {
    let mut pinned = options.pin_image.clone();
    pinned.push(PAUSE_IMAGE.to_owned());
    ImageSettings {
        snapshotter: options.snapshotter.clone(),
        certs_dir: Some(options.registry_config.clone()),
        max_concurrent_downloads: options.max_concurrent_downloads,
        stall: options.image_pull_progress_timeout,
        pinned,
        root: "/var/lib/containerd".into(),
    }
}

fn network_settings(options: &Options, folders: &Folders) -> NetworkSettings {
    NetworkSettings {
        conf_dir: options.cni_conf_dir.clone(),
        bin_dirs: options.cni_bin_dir.clone(),
        cache_dir: options.cni_cache_dir.clone(),
        netns_dir: folders.all_sandbox_states(),
        exclusive: options.cni_exclusive,
        ..NetworkSettings::default()
    }
}
