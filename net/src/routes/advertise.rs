//! What this node tells its BGP peers of: its pods, and the addresses of Services within what the administrator allows.
//!
//! Anybody who may write a Service may write any external address into it (CVE-2020-8554): an address outside the
//! configured ranges is never told of. Source: Calico's BGPConfiguration, whose keys these are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

/// Where addresses of Services must lie; empty is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges {
    /// `serviceClusterIPs`.
    pub cluster: Vec<IpNetwork>,
    /// `serviceExternalIPs`.
    pub external: Vec<IpNetwork>,
    /// `serviceLoadBalancerIPs`.
    pub load_balancer: Vec<IpNetwork>,
}

/// A Service, as far as its addresses go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    load_balancer: Vec<IpAddr>,
    /// Whether what comes from outside is served only where there are endpoints.
    external_local: bool,
    internal_local: bool,
}

impl Service {
    /// `None` for one that has no addresses of its own.
    pub fn read(service: &core::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let parse = |texts: &Option<Vec<String>>| -> Vec<IpAddr> {
            texts.iter().flatten().filter_map(|text| text.parse().ok()).collect()
        };
        let ingress = service.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        // Mode Proxy is an address that leads elsewhere than to nodes.
        let of_nodes = |ingress: &&core::LoadBalancerIngress| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP";
        let ips =
            ingress.into_iter().flatten().filter(of_nodes).filter_map(|ingress| ingress.ip.as_ref()?.parse().ok());
        let read = Self {
            cluster: parse(&spec.cluster_ips),
            external: parse(&spec.external_ips),
            load_balancer: ips.collect(),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        };
        (!read.cluster.is_empty() || !read.external.is_empty() || !read.load_balancer.is_empty()).then_some(read)
    }
}

/// Whether an endpoint of the slice is ready on the node.
pub fn has_endpoint(slice: &discovery::EndpointSlice, node: &str) -> bool {
    slice.endpoints.iter().flatten().any(|endpoint| {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        ready && endpoint.node_name.as_deref() == Some(node)
    })
}

/// A node that load balancers shall leave out.
pub const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The prefixes to tell of. Each Service comes with whether this node has endpoints of it; `excluded`: the node has the
/// label [`EXCLUDED`].
///
/// Cluster addresses are told of by their whole range, from every node, and singly where only nodes with endpoints
/// serve them: the longer prefix then wins. External and load balancer addresses are told of singly.
pub fn advertised<'a>(
    pod_cidrs: &[IpNetwork],
    ranges: &Ranges,
    services: impl Iterator<Item = (&'a Service, bool)>,
    excluded: bool,
) -> BTreeSet<IpNetwork> {
    let mut prefixes: BTreeSet<IpNetwork> = pod_cidrs.iter().copied().collect();
    if excluded {
        return prefixes;
    }
    prefixes.extend(&ranges.cluster);
    let mut tell = |ips: &[IpAddr], within: &[IpNetwork]| {
        let allowed = ips.iter().filter(|ip| within.iter().any(|range| range.contains(**ip)));
        prefixes.extend(allowed.map(|ip| IpNetwork::from(*ip)));
    };
    for (service, endpoints) in services {
        if (service.external_local || service.internal_local) && endpoints {
            tell(&service.cluster, &ranges.cluster);
        }
        if !service.external_local || endpoints {
            tell(&service.external, &ranges.external);
            tell(&service.load_balancer, &ranges.load_balancer);
        }
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nets(text: &str) -> Vec<IpNetwork> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    fn service(external: &str, internal: &str) -> Service {
        let service = json!({
            "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.7", "fd00:96::7"],
                "externalIPs": ["203.0.113.7", "8.8.8.8"], "externalTrafficPolicy": external, "internalTrafficPolicy": internal},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.7"}, {"ip": "198.51.100.8", "ipMode": "Proxy"}, {"hostname": "lb"}, {"ip": "9.9.9.9", "ipMode": "VIP"}]}},
        });
        Service::read(&serde_json::from_value(service).unwrap()).unwrap()
    }

    fn told(service: &Service, endpoints: bool, excluded: bool) -> String {
        let ranges = Ranges {
            cluster: nets("10.96.0.0/16 fd00:96::/112"),
            external: nets("203.0.113.0/24"),
            load_balancer: nets("198.51.100.0/24"),
        };
        let all = advertised(&nets("10.244.1.0/24"), &ranges, [(service, endpoints)].into_iter(), excluded);
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_what_lies_in_the_ranges_and_where_policy_local_finds_endpoints() {
        let everywhere = "10.96.0.0/16 10.244.1.0/24 198.51.100.7/32 203.0.113.7/32 fd00:96::/112";
        let cluster = service("Cluster", "Cluster");
        assert_eq!(told(&cluster, false, false), everywhere);
        assert_eq!(told(&cluster, true, false), everywhere);
        let local = service("Local", "Cluster");
        assert_eq!(told(&local, false, false), "10.96.0.0/16 10.244.1.0/24 fd00:96::/112");
        let here =
            "10.96.0.0/16 10.96.0.7/32 10.244.1.0/24 198.51.100.7/32 203.0.113.7/32 fd00:96::/112 fd00:96::7/128";
        assert_eq!(told(&local, true, false), here);
        assert_eq!(told(&service("Cluster", "Local"), false, false), everywhere);
        assert_eq!(told(&service("Cluster", "Local"), true, false), here);
        assert_eq!(told(&local, true, true), "10.244.1.0/24");
        let none = advertised(&[], &Ranges::default(), [(&cluster, true)].into_iter(), false);
        assert!(none.is_empty(), "without ranges nothing is told of: {none:?}");
    }

    #[test]
    fn headless_and_named_services_have_no_addresses() {
        let read = |spec: serde_json::Value| Service::read(&serde_json::from_value(json!({"spec": spec})).unwrap());
        assert_eq!(read(json!({"clusterIPs": ["None"]})), None);
        assert_eq!(read(json!({"type": "ExternalName", "externalName": "x", "externalIPs": ["203.0.113.7"]})), None);
        assert_eq!(Service::read(&core::Service::default()), None);
    }

    #[test]
    fn an_endpoint_counts_where_it_is_ready_on_the_node() {
        let slice = |node: &str, conditions: serde_json::Value| -> discovery::EndpointSlice {
            let endpoint = json!({"addresses": ["10.244.1.2"], "nodeName": node, "conditions": conditions});
            serde_json::from_value(json!({"addressType": "IPv4", "endpoints": [endpoint]})).unwrap()
        };
        assert!(has_endpoint(&slice("a", json!({})), "a"));
        assert!(!has_endpoint(&slice("b", json!({"ready": true})), "a"));
        assert!(!has_endpoint(&slice("a", json!({"ready": false, "serving": true, "terminating": true})), "a"));
    }
}
