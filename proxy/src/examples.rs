//! What the tests of more than one backend begin with.

use crate::model::{Endpoint, Protocol, Service, ServicePort, Slice, SlicePort};

/// A Service with TCP port 80.
pub fn service(ip: &str) -> Service {
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Service { cluster_ips: vec![ip.parse().unwrap()], ports: vec![port], ..Service::default() }
}

/// Ready endpoints, of which 10.0.0.1 is on this node.
pub fn slice(ips: &[&str]) -> Slice {
    let endpoint = |ip: &&str| Endpoint {
        ip: ip.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        local: *ip == "10.0.0.1",
        zones: None,
        nodes: None,
    };
    let ports = vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }];
    Slice { ports, endpoints: ips.iter().map(endpoint).collect() }
}
