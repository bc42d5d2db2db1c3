//! What the decision is made from: nodes as the API has them, and this node's interfaces.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;
use kernel::netlink::Mac;
use serde::{Deserialize, Serialize};

/// A node of the cluster, as far as routes go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Its addresses inside the cluster (`InternalIP`), at most one of a family.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNetwork>,
    /// The ends of its tunnels by the family of their outer packets.
    pub tunnel_v4: Option<TunnelEnd>,
    pub tunnel_v6: Option<TunnelEnd>,
    /// The annotations about tunnels that it has.
    pub annotations: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// Calico's annotations about BGP: `projectcalico.org/ASNumber` and `/RouteReflectorClusterID`.
    pub as_number: Option<u32>,
    pub reflector: Option<Ipv4Addr>,
    /// Whether its condition NetworkUnavailable says that it is not so.
    pub has_network: bool,
}

/// Where a node takes wrapped packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelEnd {
    pub address: IpAddr,
    pub mac: Mac,
    /// Nodes of early flannels do not say it.
    pub vni: Option<u32>,
}

/// flannel's annotations, with its prefix.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
pub const BACKEND_V4: &str = "flannel.alpha.coreos.com/backend-data";
pub const BACKEND_V6: &str = "flannel.alpha.coreos.com/backend-v6-data";
pub const PUBLIC_V4: &str = "flannel.alpha.coreos.com/public-ip";
pub const PUBLIC_V6: &str = "flannel.alpha.coreos.com/public-ipv6";
pub const MANAGED: &str = "flannel.alpha.coreos.com/kube-subnet-manager";

/// The value of flannel's backend-data.
#[derive(Debug, Serialize, Deserialize)]
pub struct BackendData {
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    pub mac: String,
}

impl Node {
    /// What of the object concerns routes. What cannot be read counts as not said.
    pub fn read(node: &core::Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in status.and_then(|status| status.addresses.as_ref()).into_iter().flatten() {
            let Ok(ip) = address.address.parse::<IpAddr>() else { continue };
            if address.type_ == "InternalIP" && !addresses.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
                addresses.push(ip);
            }
        }
        let all = spec.and_then(|spec| spec.pod_cidrs.clone());
        let one = spec.and_then(|spec| spec.pod_cidr.clone());
        let cidrs = all.unwrap_or_else(|| one.into_iter().collect());
        let all = node.metadata.annotations.iter().flatten();
        let calicos = |name: &str| {
            let prefixed = |(key, _): &(&String, &String)| key.strip_prefix("projectcalico.org/") == Some(name);
            all.clone().find(prefixed).map(|(_, value)| value)
        };
        let annotations: BTreeMap<String, String> = all
            .clone()
            .filter(|(key, _)| key.starts_with(PREFIX))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Self {
            addresses,
            pod_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            tunnel_v4: tunnel_end(&annotations, BACKEND_V4, PUBLIC_V4),
            tunnel_v6: tunnel_end(&annotations, BACKEND_V6, PUBLIC_V6),
            annotations,
            labels: node.metadata.labels.clone().unwrap_or_default(),
            as_number: calicos("ASNumber").and_then(|text| text.parse().ok()),
            has_network: status.and_then(|status| status.conditions.as_ref()).into_iter().flatten().any(has_network),
            reflector: calicos("RouteReflectorClusterID").and_then(|text| text.parse().ok()),
        }
    }

    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == v4)
    }

    pub fn tunnel(&self, v4: bool) -> Option<TunnelEnd> {
        if v4 { self.tunnel_v4 } else { self.tunnel_v6 }
    }

    /// Every address from which it may send wrapped packets.
    pub fn senders(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let ends = [self.tunnel_v4, self.tunnel_v6].into_iter().flatten().map(|end| end.address);
        self.addresses.iter().copied().chain(ends)
    }
}

fn has_network(condition: &core::NodeCondition) -> bool {
    condition.type_ == "NetworkUnavailable" && condition.status == "False"
}

fn tunnel_end(annotations: &BTreeMap<String, String>, data: &str, public: &str) -> Option<TunnelEnd> {
    if annotations.get(BACKEND_TYPE)? != "vxlan" {
        return None;
    }
    let data: BackendData = serde_json::from_str(annotations.get(data)?).ok()?;
    // An administrator's word about the address stands above flannel's own.
    let address = annotations.get(&format!("{public}-overwrite")).or_else(|| annotations.get(public))?;
    let address: IpAddr = address.parse().ok()?;
    Some(TunnelEnd { address, mac: data.mac.parse().ok()?, vni: data.vni })
}

/// An interface of this node that has an address of more than its own link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    pub mtu: u32,
    pub up: bool,
    pub addresses: Vec<IpNetwork>,
}

/// The interface that has the address.
pub fn holder(interfaces: &[Interface], address: IpAddr) -> Option<&Interface> {
    interfaces.iter().find(|interface| interface.addresses.iter().any(|net| net.ip() == address))
}

/// The interface on whose link the address is, by the longest prefix.
pub fn on_link(interfaces: &[Interface], address: IpAddr) -> Option<&Interface> {
    let near = interfaces.iter().filter(|interface| interface.up).flat_map(|interface| {
        let around = interface.addresses.iter().filter(move |net| net.contains(address) && net.ip() != address);
        around.map(move |net| (net.prefix(), interface))
    });
    near.max_by_key(|(prefix, _)| *prefix).map(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_flannel_nodes_annotations_say_where_its_tunnels_end() {
        let node: core::Node = serde_json::from_value(json!({
            "metadata": {"name": "a", "annotations": {
                "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"7e:8d:b1:18:36:d3\"}",
                "flannel.alpha.coreos.com/backend-v6-data": "{\"VtepMAC\":\"7e:8d:b1:18:36:d4\"}",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/public-ip": "192.0.2.7",
                "flannel.alpha.coreos.com/public-ip-overwrite": "198.51.100.7",
                "flannel.alpha.coreos.com/public-ipv6": "2001:db8::7",
                "other": "x"}},
            "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24", "fd00:7::/64"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "a"},
                {"type": "InternalIP", "address": "192.0.2.7"},
                {"type": "InternalIP", "address": "192.0.2.8"},
                {"type": "InternalIP", "address": "2001:db8::7"}]},
        }))
        .unwrap();
        let read = Node::read(&node);
        assert_eq!(read.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap(), "2001:db8::7".parse().unwrap()]);
        assert_eq!(read.pod_cidrs.len(), 2);
        let end = |address: &str, mac: &str, vni| {
            Some(TunnelEnd { address: address.parse().unwrap(), mac: mac.parse().unwrap(), vni })
        };
        assert_eq!(read.tunnel_v4, end("198.51.100.7", "7e:8d:b1:18:36:d3", Some(1)));
        assert_eq!(read.tunnel_v6, end("2001:db8::7", "7e:8d:b1:18:36:d4", None));
        assert_eq!(read.annotations.len(), 7);
        assert_eq!(read.senders().count(), 4);
        assert_eq!(Node::read(&core::Node::default()), Node::default());
    }

    #[test]
    fn the_longest_prefix_says_which_link_an_address_is_on() {
        let interface = |name: &str, addresses: &[&str]| Interface {
            name: name.into(),
            up: name != "down",
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
            ..Interface::default()
        };
        let all = [
            interface("wide", &["10.0.0.1/8"]),
            interface("near", &["10.1.1.1/24", "2001:db8::1/64"]),
            interface("down", &["10.1.1.129/25"]),
        ];
        let name = |address: &str| on_link(&all, address.parse().unwrap()).map(|interface| interface.name.as_str());
        assert_eq!(
            [name("10.1.1.200"), name("10.9.9.9"), name("2001:db8::9")],
            [Some("near"), Some("wide"), Some("near")]
        );
        assert_eq!([name("192.0.2.1"), name("10.1.1.1").filter(|name| *name == "near")], [None, None]);
        assert_eq!(holder(&all, "10.0.0.1".parse().unwrap()).unwrap().name, "wide");
    }
}
