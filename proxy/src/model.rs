//! What the proxy keeps of Services, EndpointSlices and its own Node: only what decides where a packet goes.

use std::net::IpAddr;
use std::sync::Arc;

pub use api::protocol::Protocol;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::ResourceExt;

/// `NAMESPACE/NAME` of a Service or a slice, which many tables have as their key.
pub type Name = Arc<str>;

/// A Service or a slice with this label belongs to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Set on headless Services, which have no address to answer on.
const HEADLESS: &str = "service.kubernetes.io/headless";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The API's default `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// A Service that has addresses of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs` and the load balancer's addresses that are delivered to nodes (ipMode VIP).
    pub external_ips: Vec<IpAddr>,
    /// Who may use the load balancer's addresses; empty is everyone.
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<IpNetwork>,
    pub ports: Vec<ServicePort>,
    /// ClientIP affinity with its timeout in seconds.
    pub affinity: Option<u32>,
    pub external_local: bool,
    pub internal_local: bool,
    /// `healthCheckNodePort`, where load balancers ask whether this node has endpoints.
    pub health_port: Option<u16>,
}

/// One address of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Whether it runs on this node.
    pub local: bool,
    /// Zones and nodes that shall use it; `None` is no hint (trafficDistribution comes as these).
    pub zones: Option<Box<[Box<str>]>>,
    pub nodes: Option<Box<[Box<str>]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slice {
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

/// What the proxy knows of its node and its orders; a change of it concerns every Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    pub node: Box<str>,
    pub zone: Option<Box<str>>,
    /// The node's primary address of each family.
    pub primary_ips: Vec<IpAddr>,
    /// Addresses on which node ports answer.
    pub node_ips: Vec<IpAddr>,
    pub node_ports: NodePorts,
    /// How a pod's packet is told from others; empty is not known.
    pub pods: Vec<PodSource>,
    pub masquerade_all: bool,
}

/// Where node ports answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodePorts {
    /// On [`Facts::node_ips`].
    #[default]
    Listed,
    /// On every address of the host, those included that come later.
    Everywhere,
    /// So, and on 127.0.0.0/8 for the host's own programs.
    Localhost,
}

/// What pods' packets have in common, by the words of kube-proxy's `detectLocalMode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodSource {
    /// A source in the range (ClusterCIDR, NodeCIDR).
    Range(IpNetwork),
    /// They come in by this interface (BridgeInterface).
    Link(Box<str>),
    /// They come in by an interface whose name begins so (InterfaceNamePrefix).
    LinkPrefix(Box<str>),
}

impl PodSource {
    /// Whether it can tell packets of the family.
    pub fn has(&self, v4: bool) -> bool {
        match self {
            Self::Range(range) => range.is_ipv4() == v4,
            Self::Link(_) | Self::LinkPrefix(_) => true,
        }
    }
}

impl Facts {
    /// Whether pods of the family can be told from others.
    pub fn knows_pods(&self, v4: bool) -> bool {
        self.pods.iter().any(|pods| pods.has(v4))
    }
}

impl Service {
    /// `None` for what this proxy does not serve: headless, external names, another proxy's.
    pub fn read(object: &core::Service) -> Option<Self> {
        let labels = object.labels();
        let spec = object.spec.as_ref()?;
        if labels.contains_key(PROXY_NAME)
            || labels.contains_key(HEADLESS)
            || spec.type_.as_deref() == Some("ExternalName")
            || spec.cluster_ip.as_deref().is_none_or(|ip| ip.is_empty() || ip == "None")
        {
            return None;
        }
        let ips = |list: &Option<Vec<String>>| exact(list.iter().flatten().filter_map(|text| text.parse().ok()));
        let mut cluster_ips: Vec<IpAddr> = ips(&spec.cluster_ips);
        if cluster_ips.is_empty() {
            cluster_ips.extend(spec.cluster_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
        let ingress =
            object.status.iter().filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref()).flatten();
        let load_balancer_ips: Vec<IpAddr> = ingress
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
            .collect();
        let mut external_ips = ips(&spec.external_ips);
        external_ips.extend(load_balancer_ips.iter().copied());
        external_ips.sort();
        external_ips.dedup();
        external_ips.shrink_to_fit();
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            config.and_then(|client| client.timeout_seconds).map_or(AFFINITY_SECONDS, |s| s.unsigned_abs())
        });
        Some(Self {
            cluster_ips,
            external_ips,
            load_balancer_ips,
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|text| text.trim().parse().ok())
                .collect(),
            ports: exact(spec.ports.iter().flatten().filter_map(service_port)),
            affinity,
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            health_port: spec
                .health_check_node_port
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port != 0 && spec.external_traffic_policy.as_deref() == Some("Local")),
        })
    }
}

/// A list without room for more: there are thousands of a few values.
fn exact<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = items.collect();
    list.shrink_to_fit();
    list
}

fn service_port(port: &core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: Protocol::parse(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
    })
}

impl Slice {
    /// The Service that the slice belongs to, and its content. `node` is this node's name.
    pub fn read(object: &discovery::EndpointSlice, node: &str) -> Option<(Name, Self)> {
        let labels = object.labels();
        if labels.contains_key(PROXY_NAME) || labels.contains_key(HEADLESS) || object.address_type == "FQDN" {
            return None;
        }
        let service = labels.get(SERVICE_NAME)?;
        let name = format!("{}/{service}", object.metadata.namespace.as_deref().unwrap_or_default());
        let ports = object.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                port: u16::try_from(port.port?).ok()?,
            })
        });
        let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| read_endpoint(endpoint, node));
        Some((name.into(), Self { ports: exact(ports), endpoints: exact(endpoints) }))
    }
}

fn read_endpoint(endpoint: &discovery::Endpoint, node: &str) -> Option<Endpoint> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_ref());
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
    Some(Endpoint {
        // Further addresses of one endpoint have never been used by any proxy.
        ip: endpoint.addresses.first()?.parse().ok()?,
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        local: endpoint.node_name.as_deref() == Some(node),
        zones: zones.filter(|list| !list.is_empty()).map(|list| list.iter().map(|z| z.name.as_str().into()).collect()),
        nodes: nodes.filter(|list| !list.is_empty()).map(|list| list.iter().map(|n| n.name.as_str().into()).collect()),
    })
}

/// The node's own addresses, its zone and its pod ranges.
pub fn read_node(object: &core::Node) -> (Vec<IpAddr>, Option<Box<str>>, Vec<IpNetwork>) {
    let addresses = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let all: Vec<(&str, IpAddr)> =
        addresses.filter_map(|a| Some((a.type_.as_str(), a.address.parse().ok()?))).collect();
    // The first of each family is primary; the internal one counts before the external.
    let primary = |four: bool| {
        let of = |kind: &str| all.iter().find(|(k, ip)| *k == kind && ip.is_ipv4() == four).map(|(_, ip)| *ip);
        of("InternalIP").or_else(|| of("ExternalIP"))
    };
    let ips = [primary(true), primary(false)].into_iter().flatten().collect();
    let zone = object.labels().get(ZONE).map(|zone| zone.as_str().into());
    let cidrs = object.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
    (ips, zone, cidrs.filter_map(|cidr| cidr.parse().ok()).collect())
}
