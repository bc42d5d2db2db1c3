//! Folders of the node that it does not share with the host: each stands in the cluster's state and is mounted where
//! every Kubernetes node has it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cluster::{ROOT, all};

/// Below the node's folder, and where it is mounted.
pub const MOUNTED: &[(&str, &str)] = &[
    ("kubelet", "/var/lib/kubelet"),
    ("containerd", "/var/lib/containerd"),
    ("cni/state", "/var/lib/cni"),
    ("cni/etc", "/etc/cni"),
    ("cni/bin", PLUGINS),
    ("log/pods", "/var/log/pods"),
    ("log/containers", "/var/log/containers"),
];
/// Where the CNI plugins are.
pub const PLUGINS: &str = "/opt/cni/bin";

/// Folders that bosun made on the host so that something can be mounted on them, one a line.
fn made_list() -> PathBuf {
    Path::new(ROOT).join("mount-points")
}

/// Makes the mount points that the host lacks, and writes each down before it is made.
///
/// # Errors
/// Where one cannot be made.
pub fn ensure_mount_points() -> anyhow::Result<()> {
    for (_, target) in MOUNTED {
        let target = Path::new(target);
        let missing: Vec<&Path> = target.ancestors().take_while(|folder| !folder.exists()).collect();
        for folder in missing.into_iter().rev() {
            let list = fs::read_to_string(made_list()).unwrap_or_default() + &format!("{}\n", folder.display());
            lifecycle::file::write_atomic(&made_list(), list.as_bytes(), 0o600)?;
            match fs::create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("create {}", folder.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// With the last cluster, removes the mount points that bosun made and nobody has put anything into.
///
/// # Errors
/// Where the list cannot be read or removed.
pub fn release_mount_points() -> anyhow::Result<()> {
    if !all()?.is_empty() {
        return Ok(());
    }
    let list = match fs::read_to_string(made_list()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        list => list.with_context(|| format!("read {}", made_list().display()))?,
    };
    for folder in list.lines().rev() {
        match fs::remove_dir(folder) {
            Err(error)
                if error.kind() != io::ErrorKind::NotFound && error.kind() != io::ErrorKind::DirectoryNotEmpty =>
            {
                return Err(error).with_context(|| format!("remove {folder}"));
            }
            _ => {}
        }
    }
    fs::remove_file(made_list()).with_context(|| format!("remove {}", made_list().display()))
}

/// Puts `bosun-cni`, from beside this program, into the node under each plugin's name.
///
/// # Errors
/// Where it is not beside this program, or cannot be copied.
pub fn install_plugins(node: &Path) -> anyhow::Result<()> {
    let source = std::env::current_exe()?.with_file_name("bosun-cni");
    let (source, folder) = (source.to_string_lossy(), node.join("cni/bin"));
    kernel::process::run(&source, &["install", &folder.to_string_lossy()])?;
    Ok(())
}
