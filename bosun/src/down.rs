//! `bosun down`: removes a cluster. Each part is found by what it is, not only by what is written down, a part that
//! is gone is success, and a failure does not keep the rest.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use kernel::cgroup::Cgroups;
use kernel::process::{Identity, Signal, kill};

use crate::cluster::{Cluster, DEFAULT_NAME, Lock, Paths, ROOT, parse_name};
use crate::up::{network, node_process, say};
use crate::{kubeconfig, node};

/// Longer than the node's own grace for its programs.
const GRACE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct Options {
    /// The cluster's name
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, value_parser = parse_name)]
    name: String,
}

/// # Errors
/// Everything that could not be removed.
pub fn run(options: &Options) -> anyhow::Result<()> {
    crate::checks::root()?;
    let lock = Lock::take()?;
    let was_there = Paths::of(&options.name).root.exists();
    let left = remove(&options.name);
    drop(lock);
    anyhow::ensure!(left.is_empty(), "cluster {} is not gone whole:\n  {}", options.name, lines(&left));
    say(&format!("cluster {} {}", options.name, if was_there { "is gone" } else { "was not there" }));
    Ok(())
}

fn lines(errors: &[anyhow::Error]) -> String {
    errors.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("\n  ")
}

/// Removes all of a cluster, and returns what could not be. The caller holds the lock.
pub fn remove(name: &str) -> Vec<anyhow::Error> {
    let mut left = Vec::new();
    let cluster = Cluster::load(name).unwrap_or_else(|error| {
        left.push(error);
        None
    });
    let paths = Paths::of(name);
    left.extend(stop_nodes(&paths).err());
    left.extend(remove_cgroups(name).err());
    left.extend(network::remove(name, cluster.as_ref()));
    if let Some(cluster) = &cluster {
        left.extend(kubeconfig::remove(&cluster.settings.kubeconfig, &cluster.context()).err());
    }
    // What is left needs the files to be found again.
    if left.is_empty() {
        left.extend(remove_files(&paths).err());
        left.extend(node::folders::release_mount_points().err());
        // Another cluster's, where it is not empty.
        let _ = fs::remove_dir(ROOT);
    }
    left
}

fn stop_nodes(paths: &Paths) -> anyhow::Result<()> {
    let folder = paths.root.join("nodes");
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("read {}", folder.display()))?,
    };
    let mut running: Vec<Identity> = Vec::new();
    for entry in entries {
        let init = node_process(&entry?.path().join("init.json"));
        running.extend(init.filter(Identity::is_alive));
    }
    for init in &running {
        kill(init.pid, Signal::SIGTERM)?;
    }
    if wait_for(&running, GRACE) {
        return Ok(());
    }
    for init in running.iter().filter(|init| init.is_alive()) {
        kill(init.pid, Signal::SIGKILL)?;
    }
    anyhow::ensure!(wait_for(&running, GRACE), "a node's PID 1 does not end even by SIGKILL");
    Ok(())
}

fn wait_for(processes: &[Identity], patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if !processes.iter().any(Identity::is_alive) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn remove_cgroups(name: &str) -> anyhow::Result<()> {
    let groups = Cgroups::detect()?;
    let group = format!("/bosun/{name}");
    if groups.exists(&group) {
        groups.kill(&group)?;
        groups.remove(&group)?;
    }
    if groups.exists("/bosun") && groups.children("/bosun").is_empty() {
        groups.remove("/bosun")?;
    }
    Ok(())
}

fn remove_files(paths: &Paths) -> anyhow::Result<()> {
    unmount_below(&paths.root)?;
    match fs::remove_dir_all(&paths.root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", paths.root.display()))
        }
        _ => Ok(()),
    }
}

/// Nothing is mounted there but in the nodes, unless somebody looked by hand; removing through a mount would empty
/// what is mounted.
fn unmount_below(root: &Path) -> anyhow::Result<()> {
    kernel::mount::unmount_below(root).map_err(|errors| {
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", said.join("; "))
    })
}
