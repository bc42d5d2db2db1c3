//! The ConfigMap kube-system/bosun-net, which tells the net daemons how pods on different nodes reach one another. It is
//! made once; what it says afterwards is the administrator's.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::up::client;

/// The API server answers within this time, or the node's supervisor tries again.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Options {
    /// The cluster's name
    #[arg(long)]
    cluster: String,
}

/// # Errors
/// Where the API server does not answer, or refuses.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let cluster = Cluster::load(&options.cluster)?;
    let cluster = cluster.with_context(|| format!("there is no cluster {}", options.cluster))?;
    let body = serde_json::to_vec(&config_map(&cluster))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(client(&cluster))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = http::Request::post("/api/v1/namespaces/kube-system/configmaps")
            .header(http::header::CONTENT_TYPE, "application/json");
        match runtime.block_on(client.request::<Value>(request.body(body.clone())?)) {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error).context("make the config map bosun-net"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Nodes of one LAN are each other's gateways; between racks packets travel in VXLAN, within one they do not.
fn config_map(cluster: &Cluster) -> Value {
    let mode = if cluster.settings.racks == 0 { "host-gw" } else { "vxlan-cross-subnet" };
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "bosun-net", "namespace": "kube-system" },
        "data": { "mode": mode },
    })
}
