//! The cluster's Services, in the little that environment variables need of them.

use crate::container::service_links::{LinkPort, ServiceLink, variables};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use lifecycle::Stop;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch as signal;
use tracing::debug;

/// Pods start without the variables if the Services are not known by then.
const PATIENCE: Duration = Duration::from_secs(5);

/// Services with a cluster IP by namespace and name.
pub struct Services {
    known: Mutex<HashMap<(String, String), ServiceLink>>,
    synced: signal::Sender<bool>,
}

impl Default for Services {
    fn default() -> Self {
        Self { known: Mutex::default(), synced: signal::Sender::new(false) }
    }
}

impl Services {
    /// Follows the API until `stop`.
    pub async fn run(&self, client: Client, stop: Stop) {
        let events = watch(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events.map_err(|error| debug!(%error, "the watch of services broke")));
        let mut fresh = HashMap::new();
        loop {
            let event = tokio::select! { () = stop.stopped() => return, event = events.next() => event };
            match event {
                None => return,
                Some(Err(())) => {}
                Some(Ok(Event::Init)) => fresh.clear(),
                Some(Ok(Event::InitApply(service))) => {
                    if let Some((key, Some(link))) = link(&service) {
                        fresh.insert(key, link);
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    *self.lock() = std::mem::take(&mut fresh);
                    self.synced.send_replace(true);
                }
                Some(Ok(Event::Apply(service))) => match link(&service) {
                    Some((key, Some(link))) => drop(self.lock().insert(key, link)),
                    Some((key, None)) => drop(self.lock().remove(&key)),
                    None => {}
                },
                Some(Ok(Event::Delete(service))) => {
                    if let Some((key, _)) = link(&service) {
                        self.lock().remove(&key);
                    }
                }
            }
        }
    }

    /// The variables of a pod in `namespace`: the API server's, and with `links` those of the namespace's Services.
    pub async fn variables(&self, namespace: &str, links: bool) -> BTreeMap<String, String> {
        let mut synced = self.synced.subscribe();
        // Late variables are better than a pod that never starts.
        let _ = tokio::time::timeout(PATIENCE, synced.wait_for(|synced| *synced)).await;
        let known = self.lock();
        let wanted = known
            .iter()
            .filter(|((of, name), _)| (links && of == namespace) || (of == "default" && name == "kubernetes"));
        let links: Vec<ServiceLink> = wanted.map(|(_, link)| link.clone()).collect();
        variables(&links)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), ServiceLink>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A Service's key, and what is kept of it if it has an address.
fn link(service: &Service) -> Option<((String, String), Option<ServiceLink>)> {
    let (namespace, name) = (service.metadata.namespace.clone()?, service.metadata.name.clone()?);
    let spec = service.spec.as_ref()?;
    let ip = spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None");
    let ports = spec.ports.iter().flatten().map(|port| LinkPort {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        port: port.port,
    });
    let link = ip.map(|cluster_ip| ServiceLink { name: name.clone(), cluster_ip, ports: ports.collect() });
    Some(((namespace, name), link))
}
