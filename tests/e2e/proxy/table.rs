//! The Services that both proxies are given, and where each is asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};

use super::probe::Protocol;

/// A Service with its endpoints, in words.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    /// Makes its addresses: 10.96.0.N, node port 30000 + N, 203.0.113.N.
    number: u16,
    /// What differs from a plain Service: merged into its `spec`.
    spec: Value,
    balancer: Option<&'static str>,
    node_port: bool,
    six: bool,
    ports: &'static [(&'static str, u16, u16)],
    /// `a`, `c ending`, `b unready`, `a zone=z1`, `c node=node2`; a port for all.
    endpoints: &'static [&'static str],
    /// Whether a client stays with one endpoint: then it does not matter with which.
    pub sticky: bool,
}

fn row(number: u16, name: &'static str, endpoints: &'static [&'static str]) -> Row {
    Row {
        name,
        number,
        spec: json!({}),
        balancer: None,
        node_port: false,
        six: false,
        ports: &[("web", 80, 8080)],
        endpoints,
        sticky: false,
    }
}

impl Row {
    fn spec(mut self, spec: Value) -> Self {
        self.spec = spec;
        self
    }

    fn node_port(mut self) -> Self {
        self.node_port = true;
        self
    }

    /// A load balancer with that `ipMode`; it has node ports too.
    fn balancer(mut self, mode: &'static str) -> Self {
        self.balancer = Some(mode);
        self.node_port()
    }

    fn sticky(mut self) -> Self {
        self.sticky = true;
        self
    }

    fn ports(mut self, ports: &'static [(&'static str, u16, u16)]) -> Self {
        self.ports = ports;
        self
    }

    fn six(mut self) -> Self {
        self.six = true;
        self
    }

    fn ip(&self, net: &str) -> String {
        format!("{net}{}", self.number)
    }

    pub fn service(&self) -> Value {
        let kind = match (self.balancer, self.node_port) {
            (Some(_), _) => "LoadBalancer",
            (None, true) => "NodePort",
            (None, false) => "ClusterIP",
        };
        let mut ports = Vec::new();
        for (at, (name, port, _)) in (0u16..).zip(self.ports) {
            for (protocol, suffix) in [("TCP", ""), ("UDP", "-udp")] {
                let mut one = json!({"name": format!("{name}{suffix}"), "port": port, "protocol": protocol});
                if self.node_port {
                    one["nodePort"] = (30000 + self.number + at * 100).into();
                }
                ports.push(one);
            }
        }
        let mut ips = vec![self.ip("10.96.0.")];
        let mut families = vec!["IPv4"];
        if self.six {
            ips.push(self.ip("fd00:96::"));
            families.push("IPv6");
        }
        let mut spec = json!({
            "type": kind, "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families, "ports": ports,
            "ipFamilyPolicy": "PreferDualStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        });
        if self.node_port {
            spec["externalTrafficPolicy"] = "Cluster".into();
        }
        for (key, value) in self.spec.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let mut service = json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
                                 "metadata": {"namespace": "default", "name": self.name}});
        if let Some(mode) = self.balancer {
            let ingress = json!([{"ip": self.ip("203.0.113."), "ipMode": mode}]);
            service["status"] = json!({"loadBalancer": {"ingress": ingress}});
        }
        service
    }

    /// One slice for each family.
    pub fn slices(&self) -> Vec<Value> {
        let families: &[bool] = if self.six { &[true, false] } else { &[true] };
        families.iter().map(|four| self.slice(*four)).collect()
    }

    fn slice(&self, four: bool) -> Value {
        let mut ports = Vec::new();
        for (name, _, target) in self.ports {
            ports.push(json!({"name": name, "port": target, "protocol": "TCP"}));
            ports.push(json!({"name": format!("{name}-udp"), "port": target, "protocol": "UDP"}));
        }
        let family = if four { "IPv4" } else { "IPv6" };
        let endpoints: Vec<Value> = self.endpoints.iter().map(|text| endpoint(text, four)).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "default", "name": format!("{}-{}", self.name, family.to_lowercase()),
                         "labels": {"kubernetes.io/service-name": self.name}},
            "ports": ports, "endpoints": endpoints,
        })
    }

    /// Every address at which the Service may be asked for.
    pub fn fronts(&self) -> Vec<(SocketAddr, Protocol)> {
        let mut fronts = Vec::new();
        for (at, (_, port, _)) in (0u16..).zip(self.ports) {
            let mut vips = vec![self.ip("10.96.0.")];
            vips.extend(self.six.then(|| self.ip("fd00:96::")));
            vips.extend(self.balancer.map(|_| self.ip("203.0.113.")));
            let external = self.spec["externalIPs"].as_array().into_iter().flatten();
            vips.extend(external.filter_map(|ip| ip.as_str().map(str::to_owned)));
            fronts.extend(vips.iter().map(|ip| (ip.clone(), *port)));
            if self.node_port {
                let four = ["192.0.2.1", "192.0.2.2", "10.244.1.1", "127.0.0.1"];
                let six = ["2001:db8::1"].into_iter().filter(|_| self.six);
                fronts.extend(four.into_iter().chain(six).map(|ip| (ip.to_owned(), 30000 + self.number + at * 100)));
            }
        }
        let both = [Protocol::Tcp, Protocol::Udp];
        let parsed = fronts.into_iter().map(|(ip, port)| SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port));
        parsed.flat_map(|to| both.map(|protocol| (to, protocol))).collect()
    }

    /// Whether external traffic stays on the node.
    pub fn is_local(&self) -> bool {
        self.spec["externalTrafficPolicy"] == "Local"
    }

    /// Whether traffic from inside the cluster stays on the node.
    pub fn is_local_inside(&self) -> bool {
        self.spec["internalTrafficPolicy"] == "Local"
    }

    /// Whether it matters to its answers which clients are pods.
    pub fn tells_pods_apart(&self) -> bool {
        ["plain", "node-port", "local-far", "local-near", "itself", "both-families", "external"].contains(&self.name)
    }

    /// Health check node port, where it has one.
    pub fn health(&self) -> Option<u16> {
        self.spec["healthCheckNodePort"].as_u64().and_then(|port| port.try_into().ok())
    }
}

fn endpoint(text: &str, four: bool) -> Value {
    let mut words = text.split(' ');
    let place = words.next().unwrap_or_default();
    let (ip4, ip6, node) = match place {
        "a" => ("10.244.1.2", "fd00:244:1::2", "node1"),
        "b" => ("10.244.1.3", "fd00:244:1::3", "node1"),
        "c" => ("10.244.2.2", "fd00:244:2::2", "node2"),
        "d" => ("10.244.2.3", "fd00:244:2::3", "node2"),
        "node2" => ("192.0.2.2", "2001:db8::2", "node2"),
        other => panic!("no place {other}"),
    };
    let mut endpoint = json!({
        "addresses": [if four { ip4 } else { ip6 }], "nodeName": node,
        "conditions": {"ready": true, "serving": true, "terminating": false},
    });
    for word in words {
        match word.split_once('=') {
            Some(("zone", zone)) => endpoint["hints"]["forZones"] = json!([{"name": zone}]),
            Some(("node", node)) => endpoint["hints"]["forNodes"] = json!([{"name": node}]),
            _ if word == "ending" => {
                endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
            }
            _ if word == "unready" => {
                endpoint["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
            }
            _ => panic!("what is {word}"),
        }
    }
    endpoint
}

pub fn nodes() -> [Value; 2] {
    [1, 2].map(|number| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": format!("node{number}"),
                         "labels": {"topology.kubernetes.io/zone": format!("z{number}")}},
            "spec": {"podCIDR": format!("10.244.{number}.0/24"), "podCIDRs": [format!("10.244.{number}.0/24")]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": format!("192.0.2.{number}")},
                {"type": "InternalIP", "address": format!("2001:db8::{number}")},
            ]},
        })
    })
}

fn local() -> Value {
    json!({"externalTrafficPolicy": "Local"})
}

fn checked(port: u16) -> Value {
    json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": port})
}

fn sticky_spec() -> Value {
    json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}})
}

pub fn first() -> Vec<Row> {
    let external = |ip: &str| json!({"externalIPs": [ip]});
    vec![
        row(11, "plain", &["a", "b", "c"]),
        row(12, "none", &[]).balancer("VIP"),
        row(13, "node-port", &["a", "c"]).node_port(),
        row(14, "local-far", &["c"]).balancer("VIP").spec(checked(31014)),
        row(15, "local-near", &["a", "b", "d"]).balancer("VIP").spec(checked(31015)),
        row(16, "local-none", &[]).node_port().spec(local()),
        row(17, "inside-far", &["c"]).spec(json!({"internalTrafficPolicy": "Local"})),
        row(18, "inside-near", &["a", "d"]).spec(json!({"internalTrafficPolicy": "Local"})),
        row(19, "ranges-shut", &["a", "c"])
            .balancer("VIP")
            .spec(json!({"loadBalancerSourceRanges": ["198.51.100.0/24", "10.244.2.0/24"]})),
        row(20, "ranges-open", &["a", "c"])
            .balancer("VIP")
            .spec(json!({"loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"]})),
        row(21, "sticky", &["a", "b", "c", "d"]).node_port().spec(sticky_spec()).sticky(),
        row(22, "ending", &["a ending", "c ending"]).node_port(),
        row(23, "ending-beside", &["a ending", "c"]).node_port(),
        row(24, "unready", &["a unready"]).node_port(),
        row(25, "zones", &["a zone=z1", "c zone=z2"]),
        row(26, "zones-half", &["a zone=z1", "c"]),
        row(27, "hints-of-nodes", &["a node=node1", "b node=node2", "c node=node2"]),
        row(28, "named", &["a"]).node_port().ports(&[("one", 80, 8080), ("two", 81, 8081)]),
        row(29, "mode-proxy", &["a", "c"]).balancer("Proxy"),
        row(30, "itself", &["a"]).balancer("VIP"),
        row(31, "host-network", &["node2"]).node_port().ports(&[("web", 80, 9090)]),
        row(32, "both-families", &["a", "c"]).node_port().six(),
        row(33, "external", &["a", "c"]).spec(external("198.51.100.33")),
        row(34, "local-ending", &["a ending", "c"]).balancer("VIP").spec(checked(31034)),
        row(35, "zones-local", &["a zone=z2", "c zone=z1"]).node_port().spec(local()),
    ]
}

/// What some of them become.
pub fn second() -> Vec<Row> {
    vec![
        row(11, "plain", &[]),
        row(12, "none", &["b"]).balancer("VIP"),
        row(14, "local-far", &["a"]).balancer("VIP").spec(checked(31014)),
        row(15, "local-near", &["a ending", "b unready", "d"]).balancer("VIP").spec(checked(31015)),
        row(19, "ranges-shut", &["a", "c"]).balancer("VIP"),
        row(21, "sticky", &["a", "c"]).node_port(),
        row(28, "named", &["a", "b unready"]).node_port().ports(&[("one", 80, 8080)]),
        row(30, "itself", &["a", "b"]).node_port().spec(local()),
        row(33, "external", &["c"]),
    ]
}

/// Another each time, so that proxies have something to sync.
pub fn marker() -> Row {
    static COUNT: AtomicU8 = AtomicU8::new(0);
    let address = format!("198.51.100.{}", 100 + COUNT.fetch_add(1, Ordering::Relaxed) % 100);
    row(250, "marker", &["a"]).six().spec(json!({"externalIPs": [address]}))
}

/// UDP flows are followed through the life of this one.
pub fn flows(endpoints: &'static [&'static str]) -> Row {
    row(40, "flows", endpoints).node_port()
}
