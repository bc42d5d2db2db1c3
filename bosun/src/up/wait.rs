//! Waiting for the nodes to be Ready, as a client of the API sees it.

use std::time::{Duration, Instant};

use anyhow::Context;
use kernel::process::Signals;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::nodes_run;
use crate::cluster::Cluster;

/// Returns once every node is Ready. What it waits for is printed whenever it changes.
///
/// # Errors
/// After `patience`, at a signal, or when a node's PID 1 died; the cluster is left as it is.
pub fn until_ready(cluster: &Cluster, patience: Duration, signals: &Signals) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(client(cluster))?;
    let deadline = Instant::now() + patience;
    let mut said = String::new();
    loop {
        let lacks = match runtime.block_on(lacking(&client, cluster)) {
            Ok(None) => return Ok(()),
            Ok(Some(lack)) => lack,
            Err(error) => error,
        };
        if lacks != said {
            super::say(&format!("waiting: {lacks}"));
            said = lacks;
        }
        let logs = cluster.paths().root.join("logs");
        let hint = format!("the cluster stays as it is; its logs are in {}", logs.display());
        anyhow::ensure!(nodes_run(cluster), "the PID 1 of a node ended: {hint}");
        anyhow::ensure!(Instant::now() < deadline, "not Ready within {}s ({said}): {hint}", patience.as_secs());
        anyhow::ensure!(signals.next(Duration::from_millis(100)).is_none(), "interrupted: {hint}");
    }
}

/// A client with all rights, for requests that are short.
///
/// # Errors
/// Where the administrator's kubeconfig cannot be used.
pub async fn client(cluster: &Cluster) -> anyhow::Result<kube::Client> {
    let file = cluster.paths().kubeconfig("admin");
    let config = Kubeconfig::read_from(&file).with_context(|| format!("read {}", file.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    // The relay and the user's proxies are not for this: the node is on a network of this host.
    config.proxy_url = None;
    config.connect_timeout = Some(Duration::from_secs(1));
    config.read_timeout = Some(Duration::from_secs(5));
    Ok(kube::Client::try_from(config)?)
}

/// What keeps the first node that is not Ready, or nothing.
async fn lacking(client: &kube::Client, cluster: &Cluster) -> Result<Option<String>, String> {
    for node in &cluster.nodes {
        let request = http::Request::get(format!("/api/v1/nodes/{}", node.name)).body(Vec::new());
        let request = request.map_err(|error| error.to_string())?;
        match client.request::<Value>(request).await {
            Ok(object) => match not_ready(&object) {
                None => {}
                Some(why) => return Ok(Some(format!("node {} is not Ready: {why}", node.name))),
            },
            Err(kube::Error::Api(status)) if status.code == 404 => {
                return Ok(Some(format!("node {} has not registered yet", node.name)));
            }
            Err(kube::Error::Api(status)) => return Err(format!("the API server says {}", status.message)),
            Err(_) => return Err("the API server does not answer yet".into()),
        }
    }
    Ok(None)
}

fn not_ready(node: &Value) -> Option<String> {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Ready"));
    match ready {
        Some(ready) if ready["status"] == "True" => None,
        Some(ready) => Some(ready["message"].as_str().unwrap_or("it does not say why").to_owned()),
        None => Some("it has not reported yet".into()),
    }
}
