//! The node's mount namespace: the host's files, with what belongs to a node put over them.

use std::fs;
use std::path::Path;

use anyhow::Context;
use kernel::mount::{Propagation, bind, mount, propagate, tmpfs, unmount_lazy};

use super::folders::MOUNTED;
use crate::cluster::Paths;

/// The folder of what the node's own programs write for one another. It is gone with the node.
pub const RUN: &str = "/run/bosun";

/// To be called in a mount namespace that is nobody else's.
///
/// # Errors
/// Where the kernel refuses a mount.
pub fn make(paths: &Paths, node: &str) -> anyhow::Result<()> {
    let root = Path::new("/");
    propagate(root, Propagation::Private, true)?;
    mount("proc", "proc", Path::new("/proc"), "")?;
    tmpfs(Path::new("/run"), None, 0o755)?;
    renew_sys()?;
    fs::create_dir(RUN)?;
    let state = paths.node(node);
    for (folder, target) in MOUNTED {
        let source = state.join(folder);
        fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
        bind(&source, Path::new(target), false)?;
    }
    fs::create_dir_all(state.join("cni/etc/net.d"))?;
    // What is mounted for a pod with mountPropagation must reach its volumes, as on any node.
    propagate(root, Propagation::Shared, true)?;
    Ok(())
}

/// /sys shows the devices of the network namespace in which it was mounted; the control groups stay what they are.
fn renew_sys() -> anyhow::Result<()> {
    let groups = Path::new("/sys/fs/cgroup");
    let kept = Path::new("/run/cgroup");
    fs::create_dir(kept)?;
    bind(groups, kept, true)?;
    mount("sysfs", "sysfs", Path::new("/sys"), "")?;
    bind(kept, groups, true)?;
    unmount_lazy(kept)?;
    fs::remove_dir(kept)?;
    Ok(())
}
