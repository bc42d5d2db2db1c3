//! The API server as a value: what every request works on, and the same verbs for callers in this process.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use api::status::Status;
use ipnetwork::IpNetwork;
use lifecycle::Stop;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::ports::Ports;
use crate::registry::{Registry, Resource, Subresource, storage};
use crate::request::Metrics;
use crate::store::{self, Range, Store};
use crate::verbs::{Call, Change, DeleteOptions, Deleted};
use crate::watch::Hubs;

/// What the flags decided, for whoever serves a request.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address that the `kubernetes` Service leads to.
    pub advertise_address: IpAddr,
    pub secure_port: u16,
    /// The first is that of the `kubernetes` Service.
    pub service_cluster_ip_range: Vec<IpNetwork>,
    /// First and last node port.
    pub service_node_port_range: (u16, u16),
    pub service_account_issuer: String,
    pub api_audiences: Vec<String>,
    /// As `InternalIP`, in order of preference.
    pub kubelet_preferred_address_types: Vec<String>,
}

/// Tells the time; tests put their own in.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// One object.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub resource: &'static Resource,
    /// Empty for a kind without.
    pub namespace: &'a str,
    pub name: &'a str,
}

/// The API server's state, shared by all requests.
pub struct Server {
    pub store: Arc<dyn Store>,
    pub registry: Registry,
    pub clock: Clock,
    pub config: Config,
    pub ports: Ports,
    pub(crate) hubs: Hubs,
    pub(crate) metrics: Metrics,
    /// Requests that may be worked on at a time, watches and streams aside.
    pub(crate) in_flight: Semaphore,
    /// Whether what must be there from the first moment is there.
    pub(crate) ready: AtomicBool,
    /// Ends watches and streams, and tells that new requests should go elsewhere.
    pub stop: Stop,
}

/// Upstream's two limits (400 reads, 200 writes) in one.
const IN_FLIGHT: usize = 600;

impl Server {
    pub fn new(store: Arc<dyn Store>, registry: Registry, clock: Clock, config: Config, ports: Ports) -> Self {
        Self {
            store,
            registry,
            clock,
            config,
            ports,
            hubs: Hubs::default(),
            metrics: Metrics::default(),
            in_flight: Semaphore::new(IN_FLIGHT),
            ready: AtomicBool::new(false),
            stop: Stop::new(),
        }
    }

    /// Seconds since 1970.
    pub fn now(&self) -> i64 {
        (self.clock)().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
    }

    /// The row of a plural in a group (empty for the legacy one).
    pub fn resource(&self, group: &str, plural: &str) -> Option<&'static Resource> {
        self.registry.resource(group, plural)
    }

    /// An object as it is stored now. `namespace` is empty for a kind without.
    ///
    /// # Errors
    /// 404, or 500 where the store fails.
    pub async fn get(&self, resource: &'static Resource, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
        let key = storage::key(resource, namespace, name);
        match self.store.get(&key).await.map_err(from_store)? {
            (_, Some(entry)) => decode(resource, &entry).map(Arc::new),
            (_, None) => Err(Status::not_found(&qualified(resource), name)),
        }
    }

    /// All objects of a namespace, or of all where it is empty.
    ///
    /// # Errors
    /// 500 where the store fails.
    pub async fn list(&self, resource: &'static Resource, namespace: &str) -> Result<Vec<Value>, Status> {
        let range = Range { prefix: storage::scope(resource, namespace), ..Range::default() };
        let listing = self.store.range(range).await.map_err(from_store)?;
        listing.entries.iter().map(|entry| decode(resource, entry)).collect()
    }

    /// Stores a new object, as a client's create would.
    ///
    /// # Errors
    /// What the API answers.
    pub async fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        object: Value,
    ) -> Result<Arc<Value>, Status> {
        let mut call = Call::internal(resource, namespace, "");
        self.create_object(&mut call, object).await.map(Arc::new)
    }

    /// Changes an object, or a part of it, as a client's update or patch would. `Change::Replace` with a
    /// resourceVersion fails where the object changed meanwhile.
    ///
    /// # Errors
    /// What the API answers.
    pub async fn update(
        &self,
        target: Target<'_>,
        subresource: Option<Subresource>,
        change: Change,
    ) -> Result<Arc<Value>, Status> {
        let mut call = Call::internal(target.resource, target.namespace, target.name);
        call.subresource = subresource;
        self.update_object(&mut call, &change).await.map(|updated| Arc::new(updated.object))
    }

    /// Changes an object by a function of it, again and again until nobody interferes.
    ///
    /// # Errors
    /// What the API answers, or what the function does.
    pub async fn patch(
        &self,
        target: Target<'_>,
        subresource: Option<Subresource>,
        patch: impl Fn(&Value) -> Result<Value, Status> + Send + Sync + 'static,
    ) -> Result<Arc<Value>, Status> {
        self.update(target, subresource, Change::Patch(Box::new(patch))).await
    }

    /// Deletes an object, or begins to.
    ///
    /// # Errors
    /// What the API answers.
    pub async fn delete(&self, target: Target<'_>, options: &DeleteOptions) -> Result<Deleted, Status> {
        let mut call = Call::internal(target.resource, target.namespace, target.name);
        self.delete_object(&mut call, options).await
    }
}

/// An entry of the store as an object.
pub(crate) fn decode(resource: &Resource, entry: &store::Entry) -> Result<Value, Status> {
    storage::decode(resource, &entry.value, entry.modified).map_err(Status::internal)
}

/// `pods` or `deployments.apps`, as messages name a resource.
pub(crate) fn qualified(resource: &Resource) -> String {
    match resource.group {
        "" => resource.plural.to_owned(),
        group => format!("{}.{group}", resource.plural),
    }
}

/// The store's failures in the API's words.
pub(crate) fn from_store(error: store::Error) -> Status {
    match error {
        store::Error::Compacted { .. } => Status::expired("The resourceVersion for the provided watch is too old."),
        store::Error::Full(_) => Status::new(507, "InsufficientStorage", error.to_string()),
        store::Error::Closed => Status::unavailable(error.to_string()),
        _ => Status::internal(error),
    }
}
