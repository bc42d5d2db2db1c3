//! The informers that the controllers share: one watch a kind.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Container, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client};

use crate::client::informer::{Informer, Shape};

/// The local copies.
pub struct Stores {
    /// Indexed by `node:NAME`, `owner:UID` (the controlling owner) and `orphans:NAMESPACE`.
    pub pods: Arc<Informer<Pod>>,
    /// Indexed by `owner:UID` and `orphans:NAMESPACE`.
    pub replica_sets: Arc<Informer<ReplicaSet>>,
    pub deployments: Arc<Informer<Deployment>>,
    pub services: Arc<Informer<Service>>,
    pub endpoints: Arc<Informer<Endpoints>>,
    /// Indexed by `service:NAMESPACE/NAME`.
    pub endpoint_slices: Arc<Informer<EndpointSlice>>,
    pub nodes: Arc<Informer<Node>>,
    pub leases: Arc<Informer<Lease>>,
    pub namespaces: Arc<Informer<Namespace>>,
    pub service_accounts: Arc<Informer<PartialObjectMeta<ServiceAccount>>>,
}

impl Stores {
    /// The informers, still empty, and the watches that fill them, which end never.
    pub fn new(client: &Client) -> (Self, impl Future<Output = ()> + use<>) {
        let stores = Self {
            pods: Informer::new(Shape { prune: prune_pod, index: pod_index }),
            replica_sets: Informer::new(Shape { index: |rs| owner_index(&rs.metadata), ..Shape::default() }),
            deployments: Informer::new(Shape::default()),
            services: Informer::new(Shape::default()),
            endpoints: Informer::new(Shape::default()),
            endpoint_slices: Informer::new(Shape { index: service_index, ..Shape::default() }),
            nodes: Informer::new(Shape { prune: prune_node, ..Shape::default() }),
            leases: Informer::new(Shape::default()),
            namespaces: Informer::new(Shape::default()),
            service_accounts: Informer::new(Shape::default()),
        };
        let watches = stores.watches(client.clone());
        (stores, watches)
    }

    fn watches(&self, client: Client) -> impl Future<Output = ()> + use<> {
        let (pods, replica_sets, deployments) =
            (self.pods.clone(), self.replica_sets.clone(), self.deployments.clone());
        let (services, endpoints, slices) =
            (self.services.clone(), self.endpoints.clone(), self.endpoint_slices.clone());
        let (nodes, leases, namespaces, accounts) =
            (self.nodes.clone(), self.leases.clone(), self.namespaces.clone(), self.service_accounts.clone());
        let config = watcher::Config::default;
        async move {
            tokio::join!(
                pods.run(Api::all(client.clone()), config()),
                replica_sets.run(Api::all(client.clone()), config()),
                deployments.run(Api::all(client.clone()), config()),
                services.run(Api::all(client.clone()), config()),
                endpoints.run(Api::all(client.clone()), config()),
                slices.run(Api::all(client.clone()), config()),
                nodes.run(Api::all(client.clone()), config()),
                leases.run(Api::all(client.clone()), config()),
                namespaces.run(Api::all(client.clone()), config()),
                accounts.run(Api::all(client), config()),
            );
        }
    }
}

fn owner_index(meta: &ObjectMeta) -> Vec<String> {
    let controller = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    vec![match controller {
        Some(owner) => format!("owner:{}", owner.uid),
        None => format!("orphans:{}", meta.namespace.as_deref().unwrap_or_default()),
    }]
}

fn pod_index(pod: &Pod) -> Vec<String> {
    let mut names = owner_index(&pod.metadata);
    if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) {
        names.push(format!("node:{node}"));
    }
    names
}

fn service_index(slice: &EndpointSlice) -> Vec<String> {
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    service.map(|name| format!("service:{namespace}/{name}")).into_iter().collect()
}

/// Controllers look at a pod's metadata, node, ports, tolerations and status: the rest is most of its size.
fn prune_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    let Some(spec) = &mut pod.spec else { return };
    spec.volumes = None;
    spec.affinity = None;
    spec.topology_spread_constraints = None;
    spec.image_pull_secrets = None;
    spec.ephemeral_containers = None;
    spec.containers.iter_mut().for_each(prune_container);
    spec.init_containers.iter_mut().flatten().for_each(prune_container);
    for status in pod.status.iter_mut().flat_map(|status| status.container_statuses.iter_mut().flatten()) {
        status.volume_mounts = None;
        status.last_state = None;
        status.resources = None;
        status.allocated_resources = None;
    }
}

fn prune_container(container: &mut Container) {
    *container = Container {
        name: std::mem::take(&mut container.name),
        ports: container.ports.take(),
        restart_policy: container.restart_policy.take(),
        ..Container::default()
    };
}

fn prune_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
    }
}
