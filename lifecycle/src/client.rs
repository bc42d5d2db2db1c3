//! A client of the Kubernetes API, for the daemons.

use std::path::Path;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A client by the kubeconfig at `path`; without one, by the service account of the pod that this process is in. It does
/// not connect yet: the API server may come later.
///
/// # Errors
/// Where the file cannot be read or names no usable cluster or identity, or where there is neither.
pub async fn connect(path: Option<&Path>) -> anyhow::Result<Client> {
    crate::install_crypto();
    let Some(path) = path else {
        let config = Config::incluster().context("no --kubeconfig, and not inside a cluster")?;
        return Client::try_from(config).context("cannot make a client of the pod's service account");
    };
    let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read kubeconfig {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("cannot use kubeconfig {}", path.display()))?;
    Client::try_from(config).with_context(|| format!("cannot make a client of kubeconfig {}", path.display()))
}
