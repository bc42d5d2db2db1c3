//! What is kept of pods, namespaces and NetworkPolicies: only what decides which packet passes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use api::labels::Selector;
pub use api::protocol::Protocol;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

/// The static pod's own uid, which its sandbox has, on the mirror that the API shows.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// Namespace and name; ordered so that a namespace's objects stand together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Name {
    pub namespace: Box<str>,
    pub name: Box<str>,
}

impl Name {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: ResourceExt>(object: &K) -> Self {
        Self::new(&object.namespace().unwrap_or_default(), &object.name_any())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Labels by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    pub fn new<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut all: Vec<(Box<str>, Box<str>)> = labels.map(|(key, value)| (key.into(), value.into())).collect();
        all.sort();
        Self(all.into())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(own, _)| (**own).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    pub fn match_by(&self, selector: &Selector) -> bool {
        selector.matches_by(|key| self.get(key))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    pub uid: Box<str>,
    pub labels: Labels,
    /// As the API says them.
    pub ips: Box<[IpAddr]>,
    pub node: Box<str>,
    pub ports: Box<[NamedPort]>,
    /// In the node's own network: no policy concerns it, and its addresses are the node's.
    pub host_network: bool,
    /// Succeeded or failed: its addresses are free for others.
    pub finished: bool,
}

impl Pod {
    pub fn read(object: &core::Pod) -> Self {
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let uid = object.annotations().get(STATIC_UID).or(object.metadata.uid.as_ref());
        let ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
        let mut ips: Vec<IpAddr> = ips.filter_map(|ip| ip.ip.parse().ok()).collect();
        if ips.is_empty() {
            ips.extend(status.and_then(|status| status.pod_ip.as_ref()?.parse::<IpAddr>().ok()));
        }
        let phase = status.and_then(|status| status.phase.as_deref());
        Self {
            uid: uid.map(String::as_str).unwrap_or_default().into(),
            labels: read_labels(object.metadata.labels.as_ref()),
            ips: ips.into(),
            node: spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default().into(),
            ports: spec.map(named_ports).unwrap_or_default(),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
        }
    }

    /// Whether policies concern the pod's addresses.
    pub fn counts(&self) -> bool {
        !self.host_network && !self.finished
    }

    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let own = self.ports.iter().find(|port| *port.name == *name && port.protocol == protocol);
        own.map(|port| port.port)
    }
}

pub fn read_labels(labels: Option<&BTreeMap<String, String>>) -> Labels {
    Labels::new(labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str())))
}

/// Of containers and of those init containers that go on beside them.
fn named_ports(spec: &core::PodSpec) -> Box<[NamedPort]> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        Some(NamedPort {
            name: port.name.as_deref()?.into(),
            protocol: Protocol::parse(port.protocol.as_deref())?,
            port: u16::try_from(port.container_port).ok()?,
        })
    });
    named.collect()
}

/// A NetworkPolicy. `None` for a direction that the policy does not speak of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    pub pods: Selector,
    pub ingress: Option<Vec<Allow>>,
    pub egress: Option<Vec<Allow>>,
}

/// One ingress or egress rule: what comes from or goes to one of the peers at one of the ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allow {
    /// `None` is everyone.
    pub peers: Option<Vec<Peer>>,
    /// `None` is every port of every protocol.
    pub ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Pods; without a namespace selector those of the policy's own namespace.
    Pods {
        namespaces: Option<Selector>,
        pods: Selector,
    },
    Block {
        net: IpNetwork,
        except: Vec<IpNetwork>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub protocol: Protocol,
    pub at: At,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    Any,
    Range(u16, u16),
    /// The port that the receiving pod calls so.
    Named(Box<str>),
}

/// A field of a policy that cannot be read. The API server refuses such an object; where one comes nonetheless, what
/// the field would have allowed stays forbidden.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}; nothing is allowed by it, correct the policy")]
pub struct Unreadable {
    pub field: String,
    pub why: String,
}

impl Policy {
    /// The policy, and which of its fields could not be read.
    pub fn read(object: &networking::NetworkPolicy) -> (Self, Vec<Unreadable>) {
        let mut errors = Vec::new();
        let Some(spec) = &object.spec else { return (Self::default(), errors) };
        let pods = read_selector(spec.pod_selector.as_ref(), "spec.podSelector", &mut errors);
        // A policy that cannot say whom it isolates isolates everyone of its namespace.
        let pods = pods.unwrap_or_default();
        let egress = spec.egress.as_deref().unwrap_or_default();
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let speaks = |kind: &str, default: bool| match types {
            [] => default,
            types => types.iter().any(|own| own == kind),
        };
        let rule = |at: usize, way: &str, peers, ports, errors: &mut _| {
            let field = format!("spec.{way}[{at}]");
            Allow {
                peers: read_peers(peers, &format!("{field}.{}", side(way)), errors),
                ports: read_ports(ports, &format!("{field}.ports"), errors),
            }
        };
        let ingress = speaks("Ingress", true).then(|| {
            let rules = spec.ingress.iter().flatten().enumerate();
            rules.map(|(at, r)| rule(at, "ingress", r.from.as_deref(), r.ports.as_deref(), &mut errors)).collect()
        });
        let egress = speaks("Egress", !egress.is_empty()).then(|| {
            let rules = egress.iter().enumerate();
            rules.map(|(at, r)| rule(at, "egress", r.to.as_deref(), r.ports.as_deref(), &mut errors)).collect()
        });
        (Self { pods, ingress, egress }, errors)
    }
}

fn side(way: &str) -> &'static str {
    if way == "ingress" { "from" } else { "to" }
}

fn read_selector(selector: Option<&LabelSelector>, field: &str, errors: &mut Vec<Unreadable>) -> Option<Selector> {
    let Some(selector) = selector else { return Some(Selector::everything()) };
    let value = serde_json::to_value(selector).unwrap_or_default();
    match Selector::from_object(&value) {
        Ok(selector) => Some(selector),
        Err(error) => {
            errors.push(Unreadable { field: field.to_owned(), why: error.to_string() });
            None
        }
    }
}

/// An absent or empty list is everyone.
fn read_peers(
    peers: Option<&[networking::NetworkPolicyPeer]>,
    field: &str,
    errors: &mut Vec<Unreadable>,
) -> Option<Vec<Peer>> {
    let peers = peers.filter(|peers| !peers.is_empty())?;
    let each = peers.iter().enumerate().filter_map(|(at, peer)| read_peer(peer, &format!("{field}[{at}]"), errors));
    Some(each.collect())
}

fn read_peer(peer: &networking::NetworkPolicyPeer, field: &str, errors: &mut Vec<Unreadable>) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        let mut net = |text: &str, field: String| {
            let parsed = text.parse::<IpNetwork>();
            parsed.map_err(|_| errors.push(Unreadable { field, why: format!("{text:?} is no address range") })).ok()
        };
        let own = net(&block.cidr, format!("{field}.ipBlock.cidr"))?;
        let except = block.except.iter().flatten().enumerate();
        // An exception that cannot be read could be the whole block.
        let except: Option<Vec<IpNetwork>> =
            except.map(|(at, text)| net(text, format!("{field}.ipBlock.except[{at}]"))).collect();
        return Some(Peer::Block { net: own, except: except? });
    }
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        let why = "names neither pods, namespaces nor a block".to_owned();
        errors.push(Unreadable { field: field.to_owned(), why });
        return None;
    }
    let pods = read_selector(peer.pod_selector.as_ref(), &format!("{field}.podSelector"), errors)?;
    let namespaces = match &peer.namespace_selector {
        Some(selector) => Some(read_selector(Some(selector), &format!("{field}.namespaceSelector"), errors)?),
        None => None,
    };
    Some(Peer::Pods { namespaces, pods })
}

fn read_ports(
    ports: Option<&[networking::NetworkPolicyPort]>,
    field: &str,
    errors: &mut Vec<Unreadable>,
) -> Option<Vec<Port>> {
    let ports = ports.filter(|ports| !ports.is_empty())?;
    let each = ports.iter().enumerate().filter_map(|(at, port)| {
        let read = read_port(port);
        read.map_err(|why| errors.push(Unreadable { field: format!("{field}[{at}]"), why })).ok()
    });
    Some(each.collect())
}

fn read_port(port: &networking::NetworkPolicyPort) -> Result<Port, String> {
    let word = port.protocol.as_deref();
    let protocol = Protocol::parse(word).ok_or_else(|| format!("unknown protocol {:?}", word.unwrap_or_default()))?;
    let number = |n: i32| u16::try_from(n).map_err(|_| format!("{n} is no port number"));
    let at = match &port.port {
        None => At::Any,
        Some(IntOrString::String(name)) => At::Named(name.as_str().into()),
        Some(IntOrString::Int(first)) => {
            let first = number(*first)?;
            At::Range(first, port.end_port.map_or(Ok(first), number)?)
        }
    };
    Ok(Port { protocol, at })
}

/// A pod's interface on this node, as the CNI plugin told of it: true before the API shows the pod's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub container: Box<str>,
    /// The veth's end on the node.
    pub link: Box<str>,
    pub namespace: Box<str>,
    pub pod: Box<str>,
    pub uid: Box<str>,
    pub addresses: Box<[IpAddr]>,
}

impl Attachment {
    pub fn name(&self) -> Name {
        Name { namespace: self.namespace.clone(), name: self.pod.clone() }
    }
}

/// The attachments of this node, by link, by pod and by address.
#[derive(Debug, Clone, Default)]
pub struct Attached {
    links: BTreeMap<Box<str>, Attachment>,
    by_pod: HashMap<Name, BTreeSet<Box<str>>>,
    by_address: HashMap<IpAddr, Box<str>>,
}

impl Attached {
    pub fn get(&self, link: &str) -> Option<&Attachment> {
        self.links.get(link)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.links.values()
    }

    pub fn of(&self, pod: &Name) -> impl Iterator<Item = &Attachment> {
        self.by_pod.get(pod).into_iter().flatten().filter_map(|link| self.links.get(link))
    }

    pub fn remove(&mut self, link: &str) {
        let Some(old) = self.links.remove(link) else { return };
        if let Some(links) = self.by_pod.get_mut(&old.name()) {
            links.remove(link);
            if links.is_empty() {
                self.by_pod.remove(&old.name());
            }
        }
        self.by_address.retain(|_, owner| **owner != *link);
        // Whose address the link had taken has it again.
        for other in self.links.values() {
            for ip in other.addresses.iter().filter(|ip| old.addresses.contains(ip)) {
                self.by_address.entry(*ip).or_insert_with(|| other.link.clone());
            }
        }
    }

    pub fn insert(&mut self, new: Attachment) {
        self.remove(&new.link);
        self.by_pod.entry(new.name()).or_default().insert(new.link.clone());
        self.by_address.extend(new.addresses.iter().map(|ip| (*ip, new.link.clone())));
        self.links.insert(new.link.clone(), new);
    }

    fn owner(&self, ip: &IpAddr) -> Option<&Attachment> {
        self.links.get(self.by_address.get(ip)?)
    }
}

/// Everything that decisions are made from.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub pods: BTreeMap<Name, Pod>,
    pub namespaces: BTreeMap<Box<str>, Labels>,
    pub policies: BTreeMap<Name, Policy>,
    pub attached: Attached,
}

impl Model {
    /// The addresses that count as the pod's. What a pod has attached here is no other's, whatever the API still shows.
    pub fn addresses(&self, name: &Name, pod: &Pod) -> Vec<IpAddr> {
        if !pod.counts() {
            return Vec::new();
        }
        let its = |attachment: &Attachment| {
            *attachment.namespace == *name.namespace
                && *attachment.pod == *name.name
                && (attachment.uid.is_empty() || attachment.uid == pod.uid)
        };
        let said = pod.ips.iter().filter(|ip| self.attached.owner(ip).is_none_or(its));
        let told = self.attached.of(name).filter(|attachment| its(attachment)).flat_map(|a| a.addresses.iter());
        let told = told.filter(|ip| self.attached.owner(ip).is_none_or(its));
        let mut own: Vec<IpAddr> = said.chain(told).copied().collect();
        own.sort_unstable();
        own.dedup();
        own
    }
}

/// The objects of one namespace.
pub fn within<'a, T>(all: &'a BTreeMap<Name, T>, namespace: &str) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let namespace: Box<str> = namespace.into();
    let first = Name { namespace: namespace.clone(), name: "".into() };
    all.range(first..).take_while(move |(name, _)| name.namespace == namespace)
}
