//! What a service's pods are as endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Node, ObjectReference, Pod, Service};
use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{self as discovery, Endpoint, EndpointConditions};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::slices::Group;
use crate::controllers::pods;

/// The most addresses of an Endpoints object.
pub const CAPACITY: usize = 1000;

/// Whether the controllers look after a service's endpoints: it selects pods, and is not just a name.
pub fn is_selecting(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.selector.is_some() && spec.type_.as_deref() != Some("ExternalName"))
}

pub fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// The parts of a pod that endpoints show: a change of anything else is none of theirs.
pub fn projection(pod: &Pod) -> impl PartialEq + '_ {
    let spec = pod.spec.as_ref();
    (
        (&pod.metadata.labels, pod.metadata.deletion_timestamp.is_some(), pods::is_ready(pod), pods::is_terminal(pod)),
        pod.status.as_ref().map(|status| (&status.pod_ip, &status.pod_ips)),
        spec.map(|spec| (&spec.node_name, &spec.hostname, &spec.subdomain)),
    )
}

/// A pod's addresses of a family.
fn addresses(pod: &Pod, ipv6: bool) -> Vec<String> {
    let Some(status) = &pod.status else { return vec![] };
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
    let mut all: Vec<String> = all.collect();
    if all.is_empty() {
        all.extend(status.pod_ip.clone());
    }
    all.retain(|ip| !ip.is_empty() && ip.contains(':') == ipv6);
    all
}

/// The port of a pod that a service's port leads to: by number, or by the name of a container's port.
fn target(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let wanted = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let named = ports.find(|p| p.name.as_ref() == Some(wanted) && p.protocol.as_deref().unwrap_or("TCP") == protocol);
    named.map(|port| port.container_port)
}

fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let same = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|hostname| same && !hostname.is_empty())
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The groups of endpoints that a service is to have in slices; each family has one at least, if it is empty.
pub fn groups(service: &Service, pods: &[Arc<Pod>], node: impl Fn(&str) -> Option<Arc<Node>>) -> Vec<Group> {
    let Some(spec) = &service.spec else { return vec![] };
    let mut groups = Vec::new();
    for family in families(spec) {
        let first = groups.len();
        for pod in pods.iter().filter(|pod| !pods::is_terminal(pod)) {
            let addresses = addresses(pod, family == "IPv6");
            if addresses.is_empty() {
                continue;
            }
            let ports = slice_ports(spec, pod);
            if ports.is_empty() && !(is_headless(spec) && spec.ports.as_ref().is_none_or(Vec::is_empty)) {
                continue;
            }
            let endpoint = endpoint(service, spec, pod, addresses, &node);
            let group = groups[first..].iter_mut().find(|group: &&mut Group| group.ports == ports);
            match group {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group { address_type: family.clone(), ports, endpoints: vec![endpoint] }),
            }
        }
        if groups.len() == first {
            groups.push(Group { address_type: family, ports: vec![], endpoints: vec![] });
        }
    }
    groups
}

fn families(spec: &ServiceSpec) -> Vec<String> {
    match spec.ip_families.as_ref().filter(|families| !families.is_empty()) {
        Some(families) => families.clone(),
        None if spec.cluster_ip.as_ref().is_some_and(|ip| ip.contains(':')) => vec!["IPv6".into()],
        None => vec!["IPv4".into()],
    }
}

fn slice_ports(spec: &ServiceSpec, pod: &Pod) -> Vec<discovery::EndpointPort> {
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| {
            Some(discovery::EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(
    service: &Service,
    spec: &ServiceSpec,
    pod: &Pod,
    addresses: Vec<String>,
    node: impl Fn(&str) -> Option<Arc<Node>>,
) -> Endpoint {
    let (serving, terminating) = (pods::is_ready(pod), pod.metadata.deletion_timestamp.is_some());
    let ready = spec.publish_not_ready_addresses.unwrap_or(false) || (serving && !terminating);
    let node_name = pods::node(pod);
    let zone = node_name.and_then(node).and_then(|node| {
        node.metadata.labels.as_ref()?.get("topology.kubernetes.io/zone").filter(|zone| !zone.is_empty()).cloned()
    });
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        node_name: node_name.map(str::to_owned),
        target_ref: Some(reference(pod)),
        zone,
        ..Endpoint::default()
    }
}

/// A port's name, number, protocol and application protocol.
type PortKey = (String, i32, String, Option<String>);
/// The ready addresses, and the others.
type Addresses = (Vec<EndpointAddress>, Vec<EndpointAddress>);

/// The subsets of a service's Endpoints object: addresses by the ports that they have, sorted.
pub fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let Some(spec) = &service.spec else { return vec![] };
    let unready_too = spec.publish_not_ready_addresses.unwrap_or(false);
    let ipv6 = families(spec)[0] == "IPv6";
    let mut by_ports: BTreeMap<Vec<PortKey>, Addresses> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pods::is_terminal(pod)) {
        let Some(ip) = addresses(pod, ipv6).into_iter().next() else { continue };
        if pod.metadata.deletion_timestamp.is_some() && !unready_too {
            continue;
        }
        let ports = slice_ports(spec, pod);
        if ports.is_empty() && !(is_headless(spec) && spec.ports.as_ref().is_none_or(Vec::is_empty)) {
            continue;
        }
        let address = EndpointAddress {
            hostname: hostname(pod, service),
            ip,
            node_name: pods::node(pod).map(str::to_owned),
            target_ref: Some(reference(pod)),
        };
        let key = |port: discovery::EndpointPort| {
            let (name, protocol) = (port.name.unwrap_or_default(), port.protocol.unwrap_or_default());
            (name, port.port.unwrap_or(0), protocol, port.app_protocol)
        };
        let mut ports: Vec<_> = ports.into_iter().map(key).collect();
        ports.sort();
        let (ready, unready) = by_ports.entry(ports).or_default();
        if unready_too || pods::is_ready(pod) { ready.push(address) } else { unready.push(address) }
    }
    by_ports.into_iter().map(|(ports, addresses)| subset(ports, addresses)).collect()
}

fn subset(
    ports: Vec<(String, i32, String, Option<String>)>,
    addresses: (Vec<EndpointAddress>, Vec<EndpointAddress>),
) -> EndpointSubset {
    let listed = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| {
            (&a.ip, a.target_ref.as_ref().map(|t| &t.uid)).cmp(&(&b.ip, b.target_ref.as_ref().map(|t| &t.uid)))
        });
        addresses.truncate(CAPACITY);
        (!addresses.is_empty()).then_some(addresses)
    };
    let port = |(name, port, protocol, app_protocol): PortKey| EndpointPort {
        app_protocol,
        name: (!name.is_empty()).then_some(name),
        port,
        protocol: Some(protocol),
    };
    EndpointSubset {
        addresses: listed(addresses.0),
        not_ready_addresses: listed(addresses.1),
        ports: (!ports.is_empty()).then(|| ports.into_iter().map(port).collect()),
    }
}

/// When what is to be written was caused: the earliest of the service's creation and its pods' changes of readiness
/// that came after `last`, the time that was noted before.
pub fn trigger(service: &Service, pods: &[Arc<Pod>], last: Option<Timestamp>) -> Option<String> {
    let changes = pods.iter().filter_map(|pod| pods::condition(pod, "Ready")?.last_transition_time.as_ref());
    let times = changes.chain(service.metadata.creation_timestamp.as_ref()).map(|time| time.0);
    times.filter(|time| last.is_none_or(|last| *time > last)).min().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, deleted: bool) -> Arc<Pod> {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "namespace": "ns", "deletionTimestamp": deleted},
                "spec": {"nodeName": "n1", "hostname": "h", "subdomain": "web",
                    "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
            }))
            .unwrap(),
        )
    }

    fn conditions(groups: &[Group]) -> Vec<(bool, bool, bool)> {
        let all = groups.iter().flat_map(|group| &group.endpoints).filter_map(|endpoint| endpoint.conditions.clone());
        all.map(|c| (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())).collect()
    }

    #[test]
    fn a_terminating_pod_stays_as_serving_and_terminating() {
        let spec = json!({"selector": {}, "ports": [{"port": 80, "targetPort": "http"}]});
        let pods =
            [pod("a", "10.0.0.1", true, false), pod("b", "10.0.0.2", true, true), pod("c", "10.0.0.3", false, false)];
        let made = groups(&service(spec.clone()), &pods, |_| None);
        assert_eq!(conditions(&made), [(true, true, false), (false, true, true), (false, false, false)]);
        assert_eq!(made[0].ports[0].port, Some(8080));
        assert_eq!(made[0].endpoints[0].hostname.as_deref(), Some("h"));
        let mut published = spec;
        published["publishNotReadyAddresses"] = json!(true);
        assert_eq!(conditions(&groups(&service(published), &pods, |_| None))[1], (true, true, true));
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_group() {
        let unknown = json!({"selector": {}, "ports": [{"port": 80, "targetPort": "other"}]});
        let made = groups(&service(unknown), &[pod("a", "10.0.0.1", true, false)], |_| None);
        assert_eq!(made, [Group { address_type: "IPv4".into(), ports: vec![], endpoints: vec![] }]);
        let headless = json!({"selector": {}, "clusterIP": "None"});
        let made = groups(&service(headless), &[pod("a", "10.0.0.1", true, false)], |_| None);
        assert_eq!((made[0].ports.len(), made[0].endpoints.len()), (0, 1));
    }

    #[test]
    fn endpoints_have_ready_and_unready_addresses_in_order_and_none_that_terminate() {
        let spec = json!({"selector": {}, "ports": [{"port": 80}]});
        let pods = [
            pod("b", "10.0.0.2", true, false),
            pod("a", "10.0.0.1", true, false),
            pod("c", "10.0.0.3", false, false),
            pod("d", "10.0.0.4", true, true),
        ];
        let made = subsets(&service(spec), &pods);
        let ips = |addresses: &Option<Vec<EndpointAddress>>| {
            addresses.iter().flatten().map(|address| address.ip.clone()).collect::<Vec<_>>()
        };
        assert_eq!(made.len(), 1);
        assert_eq!(ips(&made[0].addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&made[0].not_ready_addresses), ["10.0.0.3"]);
        assert_eq!(made[0].ports.as_ref().unwrap()[0].port, 80);
    }
}
