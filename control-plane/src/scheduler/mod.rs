//! The scheduler: one loop that takes the pending pods by priority and finds each a node.
//!
//! ```text
//! watch pods, nodes -> cluster (what each node has left), queue (who waits) -> decide -> assume -> bind
//! ```
//! A pod counts on its node from the decision on (assumed), and its binding is written beside the loop.

mod affinity;
mod bind;
mod config;
mod decide;
mod model;
mod queue;
mod resources;

use std::collections::HashSet;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use anyhow::Context as _;
use clap::ArgAction;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use lifecycle::Stop;
use tokio::time::Instant;

pub use affinity::tolerates;
pub use config::parse as parse_config;

use crate::client::events::{Events, Notice};
use crate::client::informer::events;
use crate::client::{self};
use crate::controllers::pods;
use decide::Decision;
use model::{Cluster, Demand, Pending};
use queue::Queue;

/// How many bindings and conditions are written at once.
const WRITES: usize = 32;

/// The scheduler's flags: kube-scheduler's, as far as they are supported.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Path to the kubeconfig file with authorization and the API server's location.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The configuration, a KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Leader election; there is none yet, so that only one scheduler may run.
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    pub leader_elect: bool,
}

/// Schedules until `stop`. It waits for an API server that is not there yet, and outlives its restarts.
///
/// # Errors
/// Where the options make no sense or a file that they name cannot be read.
pub async fn run(options: Options, stop: Stop) -> anyhow::Result<()> {
    anyhow::ensure!(!options.leader_elect, "--leader-elect is not supported: run one scheduler, without it");
    let config = match &options.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read --config {}", path.display()))?;
            config::parse(&text).with_context(|| format!("read --config {}", path.display()))?
        }
        None => config::Config::default(),
    };
    let path = options.kubeconfig.or(config.kubeconfig).context("--kubeconfig is needed")?;
    let client = lifecycle::client::connect(Some(&path)).await?;
    let (events, recording) = Events::new(client.clone(), "default-scheduler");
    let scheduler = Scheduler {
        name: config.scheduler_name.unwrap_or_else(|| "default-scheduler".into()),
        client,
        events,
        cluster: Cluster::default(),
        queue: Queue::default(),
        listed_pods: HashSet::new(),
        listed_nodes: HashSet::new(),
        ready: Ready::default(),
        turn: 0,
        writes: FuturesUnordered::new(),
    };
    tracing::info!("the scheduler starts");
    tokio::select! {
        () = scheduler.run() => {}
        () = recording => {}
        () = stop.stopped() => {}
    }
    Ok(())
}

/// Whether the first lists are complete: before that, nodes look emptier than they are.
#[derive(Default)]
struct Ready {
    pods: bool,
    nodes: bool,
}

struct Scheduler {
    name: String,
    client: Client,
    events: Events,
    cluster: Cluster,
    queue: Queue,
    /// The UIDs and names that the list being read has shown.
    listed_pods: HashSet<String>,
    listed_nodes: HashSet<String>,
    ready: Ready,
    turn: usize,
    writes: FuturesUnordered<BoxFuture<'static, bind::Outcome>>,
}

impl Scheduler {
    async fn run(mut self) {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let nodes: Api<Node> = Api::all(self.client.clone());
        // Pods that have ended take nothing, and are never shown.
        let running = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        let mut pods = pin!(events(pods, running));
        let mut nodes = pin!(events(nodes, watcher::Config::default()));
        loop {
            let wake = self.queue.next_wake();
            tokio::select! {
                Some(event) = pods.next() => self.on_pod(event),
                Some(event) = nodes.next() => self.on_node(event),
                Some(outcome) = self.writes.next() => self.on_written(outcome),
                () = sleep_until(wake), if self.writes.len() < WRITES => {}
            }
            self.schedule();
        }
    }

    fn schedule(&mut self) {
        while self.ready.pods && self.ready.nodes && self.writes.len() < WRITES {
            let Some(pending) = self.queue.take(Instant::now()) else { return };
            self.turn = self.turn.wrapping_add(1);
            let spec = pending.pod.spec.clone().unwrap_or_default();
            match decide::decide(&spec, &pending.demand, &self.cluster, self.turn) {
                Decision::Node(node) => {
                    self.cluster.place(pending.uid(), &node, pending.demand.clone());
                    self.writes.push(Box::pin(bind::bind(self.client.clone(), pending.pod, node)));
                }
                Decision::Nowhere(why) => {
                    self.queue.unschedulable(pending.uid(), Instant::now());
                    self.events
                        .acting("Scheduling")
                        .emit(&*pending.pod, Notice::warning("FailedScheduling", why.clone()));
                    if bind::says_something_else(&pending.pod, "Unschedulable", &why) {
                        let write = bind::explain(self.client.clone(), pending.pod, "Unschedulable", why);
                        self.writes.push(Box::pin(write));
                    }
                }
            }
        }
    }

    fn on_written(&mut self, outcome: bind::Outcome) {
        match outcome {
            bind::Outcome::Bound { pod, node } => {
                let name = client::Key::of(&*pod);
                let message = format!("Successfully assigned {name} to {node}");
                self.events.acting("Binding").emit(&*pod, Notice::normal("Scheduled", message));
                self.queue.remove(pod.metadata.uid.as_deref().unwrap_or_default());
            }
            bind::Outcome::NotBound { pod, gone, error } => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                self.cluster.forget(uid);
                if gone {
                    self.queue.remove(uid);
                } else {
                    tracing::warn!(pod = %client::Key::of(&*pod), %error, "the pod could not be bound");
                    self.events.acting("Scheduling").emit(&*pod, Notice::warning("FailedScheduling", error));
                    self.queue.retry(uid, Instant::now());
                }
                self.queue.changed(Instant::now());
            }
            bind::Outcome::Explained => {}
        }
    }

    fn on_pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed_pods.clear(),
            Event::InitApply(pod) => {
                self.listed_pods.extend(pod.metadata.uid.clone());
                self.put_pod(pod);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed_pods);
                let placed = self.cluster.nodes.values().flat_map(|state| state.pods.keys().map(String::as_str));
                let known = placed.chain(self.queue.uids());
                let gone: Vec<String> = known.filter(|uid| !listed.contains(*uid)).map(str::to_owned).collect();
                gone.iter().for_each(|uid| self.remove_pod(uid));
                self.ready.pods = true;
            }
            Event::Apply(pod) => self.put_pod(pod),
            Event::Delete(pod) => self.remove_pod(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    fn put_pod(&mut self, mut pod: Pod) {
        pod.metadata.managed_fields = None;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if pods::is_terminal(&pod) {
            return self.remove_pod(&uid);
        }
        let Some(spec) = &pod.spec else { return };
        if let Some(node) = pods::node(&pod) {
            self.cluster.place(&uid, node, Demand::of(spec));
            return self.queue.remove(&uid);
        }
        let ours = spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == self.name;
        let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        if !ours || gated || pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(&uid);
        } else if !self.cluster.is_placed(&uid) {
            self.queue.put(Pending::new(Arc::new(pod)), Instant::now());
        }
    }

    fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        if self.cluster.is_placed(uid) {
            self.cluster.forget(uid);
            self.queue.changed(Instant::now());
        }
    }

    fn on_node(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.listed_nodes.clear(),
            Event::InitApply(node) => {
                self.listed_nodes.extend(node.metadata.name.clone());
                self.put_node(node);
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed_nodes);
                let known = self.cluster.existing().map(|(name, ..)| name.to_owned());
                let gone: Vec<String> = known.filter(|name| !listed.contains(name)).collect();
                gone.iter().for_each(|name| self.cluster.remove_node(name));
                self.ready.nodes = true;
            }
            Event::Apply(node) => self.put_node(node),
            Event::Delete(node) => self.cluster.remove_node(node.metadata.name.as_deref().unwrap_or_default()),
        }
    }

    fn put_node(&mut self, mut node: Node) {
        node.metadata.managed_fields = None;
        node.metadata.annotations = None;
        if let Some(status) = node.status.take() {
            node.status.get_or_insert_default().allocatable = status.allocatable;
        }
        let (name, node) = (node.metadata.name.clone().unwrap_or_default(), Arc::new(node));
        let before = self.cluster.nodes.get(&name).and_then(|state| state.node.clone());
        let same = before.is_some_and(|before| {
            before.metadata.labels == node.metadata.labels && before.spec == node.spec && before.status == node.status
        });
        self.cluster.set_node(&node);
        if !same {
            self.queue.changed(Instant::now());
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
