//! The controllers. Each is informers and a queue of keys around a pure decision: what is observed in, what is
//! to be done out.
//!
//! ```text
//! watch (one a kind) -> informer -> handlers -> queue -> decide -> apply -> informer (what the API server answered)
//! ```

mod deployment;
mod endpoints;
mod garbage_collector;
mod hash;
mod namespace;
mod node;
mod ownership;
mod pod_gc;
pub mod pods;
mod replica_set;
mod resources;
mod root_ca;
pub mod selector;
mod service_account;
pub mod stores;

use std::sync::Arc;

use kube::Client;
use tokio::task::JoinSet;

use crate::client::events::Events;
use crate::controller_manager::Options;
pub use node::Pool;
pub use stores::Stores;

/// The controllers' names, as kube-controller-manager's `--controllers` takes them.
pub const NAMES: [&str; 13] = [
    "namespace-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "replicaset-controller",
    "deployment-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "node-ipam-controller",
    "pod-garbage-collector-controller",
    "garbage-collector-controller",
];

/// What all controllers share.
pub struct Context {
    pub client: Client,
    pub events: Events,
    pub stores: Stores,
    pub options: Options,
    /// From which each node gets a part, one of each family; none where nodes get their addresses otherwise.
    pub pools: Vec<Pool>,
    /// The certificate authority to be published in each namespace, PEM.
    pub root_ca: Option<String>,
}

impl Context {
    /// The context, and the work behind it (watches and Events), which ends never.
    pub fn new(
        client: Client,
        options: Options,
        pools: Vec<Pool>,
        root_ca: Option<String>,
    ) -> (Arc<Self>, impl Future<Output = ()>) {
        let (events, recording) = Events::new(client.clone(), "controller-manager");
        let (stores, watching) = Stores::new(&client);
        let background = async move { tokio::join!(recording, watching) };
        (Arc::new(Self { client, events, stores, options, pools, root_ca }), async { _ = background.await })
    }
}

/// Runs the controllers of these names for ever.
pub async fn run(context: Arc<Context>, names: &[&str]) {
    let mut tasks = JoinSet::new();
    for name in names {
        spawn(&mut tasks, name, &context);
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended");
        }
    }
    std::future::pending().await
}

fn spawn(tasks: &mut JoinSet<()>, name: &str, context: &Arc<Context>) {
    let context = context.clone();
    match name {
        "namespace-controller" => drop(tasks.spawn(namespace::run(context))),
        "serviceaccount-controller" => drop(tasks.spawn(service_account::run(context))),
        "root-ca-certificate-publisher-controller" => drop(tasks.spawn(root_ca::run(context))),
        "endpoints-controller" => drop(tasks.spawn(endpoints::run_endpoints(context))),
        "endpointslice-controller" => drop(tasks.spawn(endpoints::run_slices(context))),
        "endpointslice-mirroring-controller" => drop(tasks.spawn(endpoints::run_mirroring(context))),
        "replicaset-controller" => drop(tasks.spawn(replica_set::run(context))),
        "deployment-controller" => drop(tasks.spawn(deployment::run(context))),
        "node-lifecycle-controller" => drop(tasks.spawn(node::run_lifecycle(context))),
        "taint-eviction-controller" => drop(tasks.spawn(node::run_eviction(context))),
        "node-ipam-controller" => drop(tasks.spawn(node::run_ipam(context))),
        "pod-garbage-collector-controller" => drop(tasks.spawn(pod_gc::run(context))),
        "garbage-collector-controller" => drop(tasks.spawn(garbage_collector::run(context))),
        other => tracing::error!(name = other, "there is no such controller"),
    }
}
