//! What the scheduler keeps of nodes and pods.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use super::resources::{Resources, allocatable, requests, scored_requests};

/// A port of the host that a pod wants for itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// `0.0.0.0` for all addresses.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Whether two pods cannot have these ports on one node: the same port, and an address in common.
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// What a pod takes from a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    pub requests: Resources,
    /// As scoring counts them.
    pub scored: Resources,
    pub ports: Vec<HostPort>,
}

impl Demand {
    pub fn of(spec: &PodSpec) -> Self {
        Self { requests: requests(spec), scored: scored_requests(spec), ports: host_ports(spec) }
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some(HostPort { ip, protocol, port: port.host_port.filter(|port| *port > 0)? })
        })
        .collect()
}

/// A node and what is taken of it.
#[derive(Debug, Default)]
pub struct NodeState {
    /// Absent while only pods on it are known.
    pub node: Option<Arc<Node>>,
    pub allocatable: Resources,
    pub allowed_pods: i64,
    pub requested: Resources,
    pub scored: Resources,
    pub pods: HashMap<String, Demand>,
}

impl NodeState {
    pub fn set_node(&mut self, node: Arc<Node>) {
        (self.allocatable, self.allowed_pods) = allocatable(&node);
        self.node = Some(node);
    }

    pub fn put(&mut self, uid: String, demand: Demand) {
        self.take(&uid);
        self.requested.add(&demand.requests);
        self.scored.add(&demand.scored);
        self.pods.insert(uid, demand);
    }

    pub fn take(&mut self, uid: &str) {
        if let Some(demand) = self.pods.remove(uid) {
            self.requested.remove(&demand.requests);
            self.scored.remove(&demand.scored);
        }
    }

    pub fn has_port(&self, port: &HostPort) -> bool {
        self.pods.values().any(|demand| demand.ports.iter().any(|taken| taken.conflicts(port)))
    }
}

/// All nodes, by name, and where each pod is counted.
#[derive(Debug, Default)]
pub struct Cluster {
    pub nodes: HashMap<String, NodeState>,
    placed: HashMap<String, String>,
}

impl Cluster {
    pub fn set_node(&mut self, node: &Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.nodes.entry(name).or_default().set_node(node.clone());
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(state) = self.nodes.get_mut(name) {
            state.node = None;
            if state.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Counts a pod on a node: one that the API shows there, or one that we have just placed (assumed).
    pub fn place(&mut self, uid: &str, node: &str, demand: Demand) {
        if self.placed.get(uid).is_some_and(|before| before != node) {
            self.forget(uid);
        }
        self.placed.insert(uid.to_owned(), node.to_owned());
        self.nodes.entry(node.to_owned()).or_default().put(uid.to_owned(), demand);
    }

    pub fn forget(&mut self, uid: &str) {
        let Some(node) = self.placed.remove(uid) else { return };
        if let Some(state) = self.nodes.get_mut(&node) {
            state.take(uid);
            if state.node.is_none() && state.pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }

    pub fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    /// The nodes that exist.
    pub fn existing(&self) -> impl Iterator<Item = (&str, &Node, &NodeState)> {
        self.nodes.iter().filter_map(|(name, state)| Some((name.as_str(), state.node.as_deref()?, state)))
    }
}

/// A pod that waits for a node.
#[derive(Debug, Clone)]
pub struct Pending {
    pub pod: Arc<Pod>,
    pub demand: Demand,
}

impl Pending {
    pub fn new(pod: Arc<Pod>) -> Self {
        let demand = pod.spec.as_ref().map(Demand::of).unwrap_or_default();
        Self { pod, demand }
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn priority(&self) -> i32 {
        self.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
    }
}
