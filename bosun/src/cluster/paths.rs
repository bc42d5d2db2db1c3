//! Where the files of a cluster stand; ARCHITECTURE.md has the table.

use std::path::{Path, PathBuf};

/// The folder of all clusters.
pub const ROOT: &str = "/var/lib/bosun";

/// The files of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    pub root: PathBuf,
}

impl Paths {
    pub fn of(cluster: &str) -> Self {
        Self { root: Path::new(ROOT).join(cluster) }
    }

    pub fn state(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// A file of the cluster's authorities, as `ca.crt`.
    pub fn certificate(&self, file: &str) -> PathBuf {
        self.pki().join(file)
    }

    /// A kubeconfig of the control plane: `admin`, `controller-manager`, `scheduler`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.root.join(format!("{user}.conf"))
    }

    /// The bind mount that keeps the underlay's network namespace.
    pub fn underlay(&self) -> PathBuf {
        self.root.join("underlay")
    }

    /// The folder of the bind mounts that keep the racks' network namespaces, each by its number.
    pub fn racks(&self) -> PathBuf {
        self.root.join("racks")
    }

    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    pub fn node(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }

    /// The identity of a node's PID 1, which it writes itself.
    pub fn init(&self, node: &str) -> PathBuf {
        self.node(node).join("init.json")
    }

    pub fn logs(&self, node: &str) -> PathBuf {
        self.root.join("logs").join(node)
    }
}
