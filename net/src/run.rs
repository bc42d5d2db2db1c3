use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use kernel::sysctl;
use kube::Client;
use lifecycle::Stop;
use tokio::task::{JoinError, JoinSet};

use crate::control::{self, Answers};
use crate::options::Options;
use crate::{policy, routes};

/// What every part of the daemon stands on.
#[derive(Clone)]
pub struct Ground {
    pub client: Client,
    /// The name of this node.
    pub node: Arc<str>,
    /// Where to write the CNI configuration list.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where to remember what a restart must know; it goes with the machine's run.
    pub state: PathBuf,
}

/// Runs the net daemon until `stop`. Routes and rules stay in the kernel, so that packets flow while it restarts.
///
/// # Errors
/// Where it cannot begin: kubeconfig, the control socket.
pub async fn run(options: Options, stop: Stop) -> anyhow::Result<()> {
    let node = match options.hostname_override {
        Some(name) => name,
        None => sysctl::read("kernel/hostname").context("cannot learn the host's name")?,
    };
    let client = lifecycle::client::connect(options.kubeconfig.as_deref()).await?;
    let state = options.socket.with_extension("");
    let ground = Ground { client, node: node.to_lowercase().into(), cni_conf_dir: options.cni_conf_dir, state };
    let mut tasks = JoinSet::new();
    let parts: Arc<Vec<Arc<dyn Answers>>> = Arc::new(vec![
        policy::start(ground.clone(), options.metrics_bind_address, &mut tasks).await?,
        routes::start(ground, &mut tasks).await?,
    ]);
    let listener = control::listen(&options.socket)
        .with_context(|| format!("cannot listen on the control socket {}", options.socket.display()))?;
    tasks.spawn(control::serve(listener, Arc::clone(&parts)));
    let outcome = tokio::select! {
        () = stop.stopped() => Ok(()),
        Some(ended) = tasks.join_next() => Err(lost(ended)),
    };
    for part in parts.iter() {
        part.end().await;
    }
    tasks.shutdown().await;
    outcome
}

/// No part ends by itself. Without it, rules or routes would stay as they are unnoticed; whoever supervises the daemon
/// starts it anew, and that finds all that stands.
fn lost(ended: Result<(), JoinError>) -> anyhow::Error {
    match ended {
        Ok(()) => anyhow::anyhow!("a part of the net daemon has ended by itself"),
        Err(error) => anyhow::anyhow!("a part of the net daemon has ended: {error}"),
    }
}
