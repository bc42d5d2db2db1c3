//! The mirroring controller: Endpoints that were made by hand, for a service without a selector, as slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};

use super::slices::{self, Common, Group, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME};
use super::{WORKERS, apply, is_managed_by, service_of};
use crate::client::Key;
use crate::client::queue::{Done, Queue};
use crate::controllers::{Context, ownership};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How many addresses of a subset are mirrored, and how many a slice has.
const LIMIT: usize = 1000;

/// Runs the controller for ever.
pub async fn run(context: Arc<Context>) {
    let queue: Arc<Queue<Key>> = Queue::new();
    let endpoints = queue.clone();
    context
        .stores
        .endpoints
        .on_change(move |old, new| endpoints.add_some(new.or(old).map(|object| Key::of(&**object))));
    let services = queue.clone();
    context
        .stores
        .services
        .on_change(move |old, new| services.add_some(new.or(old).map(|service| Key::of(&**service))));
    let changed = queue.clone();
    context.stores.endpoint_slices.on_change(move |old, new| {
        let mirrored = new.or(old).filter(|slice| is_managed_by(slice, MANAGER));
        changed.add_some(mirrored.and_then(|slice| service_of(slice)));
    });
    context.stores.endpoints.synced().await;
    context.stores.services.synced().await;
    context.stores.endpoint_slices.synced().await;
    queue.work(WORKERS, |key| sync(context.clone(), key)).await;
}

async fn sync(context: Arc<Context>, key: Key) -> anyhow::Result<Done> {
    let service = context.stores.services.get(&key);
    let endpoints = context.stores.endpoints.get(&key);
    let endpoints = endpoints.filter(|endpoints| is_mirrored(endpoints, service.as_deref()));
    let mut own = context.stores.endpoint_slices.indexed(&format!("service:{key}"));
    own.retain(|slice| is_managed_by(slice, MANAGER) && slice.metadata.deletion_timestamp.is_none());
    let owner = endpoints.as_deref().map(ownership::reference).unwrap_or_default();
    let none = Endpoints::default();
    let common = common(endpoints.as_deref().unwrap_or(&none), owner, &key);
    let trigger = endpoints.as_ref().and_then(|e| e.metadata.annotations.as_ref()?.get(TRIGGER_TIME).cloned());
    let wanted = endpoints.map(|endpoints| groups(&endpoints)).unwrap_or_default();
    for action in slices::diff(&common, wanted, &own, trigger.as_deref()) {
        apply(&context, &key, action).await.with_context(|| format!("mirror endpoints {key}"))?;
    }
    Ok(Done::Settled)
}

/// Whether Endpoints are mirrored: nobody says not to, and their service selects no pods.
fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let meta = &endpoints.metadata;
    let skips = meta.labels.as_ref().and_then(|labels| labels.get(SKIP)).is_some_and(|skip| skip == "true");
    let leads = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER));
    let by_hand = service.and_then(|service| service.spec.as_ref()).is_some_and(|spec| spec.selector.is_none());
    !skips && !leads && by_hand && meta.deletion_timestamp.is_none()
}

fn common(
    endpoints: &Endpoints,
    owner: k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference,
    key: &Key,
) -> Common {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), key.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations: BTreeMap<_, _> = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    annotations.remove(TRIGGER_TIME);
    Common { namespace: key.namespace.clone(), service: key.name.clone(), owner, labels, annotations, limit: LIMIT }
}

/// The groups that mirror the subsets: each address by its family.
fn groups(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready).take(LIMIT) {
            let Some(family) = family(&address.ip) else { continue };
            let group = groups.iter_mut().find(|group| group.address_type == family && group.ports == ports);
            match group {
                Some(group) => group.endpoints.push(mirrored(address, ready)),
                None => groups.push(Group {
                    address_type: family.into(),
                    ports: ports.clone(),
                    endpoints: vec![mirrored(address, ready)],
                }),
            }
        }
    }
    groups
}

/// The family of an address that may be mirrored: a loopback or link-local one would lead into the node itself.
fn family(ip: &str) -> Option<&'static str> {
    match ip.parse().ok()? {
        IpAddr::V4(ip) if ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() => None,
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(ip) if ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified() => None,
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn mirrored(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn subsets_become_groups_by_family_without_addresses_of_the_node_itself() {
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": {"name": "db"}, "subsets": [{
            "addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}, {"ip": "127.0.0.1"}, {"ip": "169.254.1.1"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}],
        }]}))
        .unwrap();
        let made: Vec<_> = groups(&endpoints)
            .into_iter()
            .map(|group| {
                let endpoints = group.endpoints.into_iter();
                let all = endpoints.map(|e| (e.addresses[0].clone(), e.conditions.unwrap().ready.unwrap()));
                (group.address_type, all.collect::<Vec<_>>())
            })
            .collect();
        let v4 = vec![("192.0.2.1".to_owned(), true), ("192.0.2.2".to_owned(), false)];
        assert_eq!(made, [("IPv4".into(), v4), ("IPv6".into(), vec![("2001:db8::1".to_owned(), true)])]);
    }

    #[test]
    fn only_hand_made_endpoints_are_mirrored() {
        let endpoints = |meta| serde_json::from_value::<Endpoints>(json!({"metadata": meta})).unwrap();
        let service = |spec| serde_json::from_value::<Service>(json!({"spec": spec})).unwrap();
        let plain = endpoints(json!({}));
        assert!(is_mirrored(&plain, Some(&service(json!({})))));
        assert!(!is_mirrored(&plain, Some(&service(json!({"selector": {"a": "b"}})))));
        assert!(!is_mirrored(&plain, None));
        assert!(!is_mirrored(&endpoints(json!({"labels": {SKIP: "true"}})), Some(&service(json!({})))));
    }
}
