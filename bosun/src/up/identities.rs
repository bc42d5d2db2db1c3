//! The cluster's certificates and kubeconfigs, under kubeadm's names.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use lifecycle::file::write_atomic;
use lifecycle::kubeconfig::Kubeconfig;
use lifecycle::pki::{ClusterPki, Subject, Usage, ensure_cluster_pki};
use serde_json::Value;

use crate::cluster::Cluster;

/// The first address of the service network: the API server's own Service.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Makes what is missing. Returns the administrator's kubeconfig, for the user's own file.
///
/// # Errors
/// Where a file is there and unusable, or cannot be written.
pub fn ensure(cluster: &Cluster) -> anyhow::Result<Value> {
    let paths = cluster.paths();
    let nodes = cluster.nodes.iter();
    let service =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let mut names: Vec<String> = service.map(str::to_owned).to_vec();
    names.push("localhost".into());
    names.extend(nodes.clone().map(|node| node.name.clone()));
    let mut addresses = vec![IpAddr::V4(SERVICE), IpAddr::V4(Ipv4Addr::LOCALHOST)];
    addresses.extend(nodes.clone().map(|node| IpAddr::V4(node.address)));
    let pki = ensure_cluster_pki(&paths.pki(), &names, &addresses)?;

    let writer = Writer { cluster, pki: &pki };
    let admin = Subject::client("kubernetes-admin", Some("system:masters"));
    let admin = writer.kubeconfig(&paths.kubeconfig("admin"), &admin)?;
    for name in ["controller-manager", "scheduler"] {
        writer.kubeconfig(&paths.kubeconfig(name), &Subject::client(format!("system:kube-{name}"), None))?;
    }
    for node in nodes {
        let folder = paths.node(&node.name);
        let user = format!("system:node:{}", node.name);
        writer.kubeconfig(&folder.join("kubelet.conf"), &Subject::client(&*user, Some("system:nodes")))?;
        writer.kubeconfig(&folder.join("proxy.conf"), &Subject::client("system:kube-proxy", None))?;
        writer.kubeconfig(&folder.join("net.conf"), &Subject::client("system:bosun-net", None))?;
        let serving = Subject {
            group: Some("system:nodes".into()),
            usage: Usage::Server,
            ..Subject::server(user, std::slice::from_ref(&node.name), &[IpAddr::V4(node.address)])
        };
        pki.ca.ensure_identity(&folder.join("kubelet-server.crt"), &folder.join("kubelet-server.key"), &serving)?;
    }
    Ok(admin)
}

struct Writer<'a> {
    cluster: &'a Cluster,
    pki: &'a ClusterPki,
}

impl Writer<'_> {
    /// Writes `FILE`, with the certificate and key in it and beside it, as `FILE.crt` and `FILE.key`: what is kept
    /// there is used again, so that a second run writes the same.
    fn kubeconfig(&self, file: &Path, subject: &Subject) -> anyhow::Result<Value> {
        let identity =
            self.pki.ca.ensure_identity(&file.with_extension("crt"), &file.with_extension("key"), subject)?;
        let name = self.cluster.context();
        let config = Kubeconfig {
            name: &name,
            user: &name,
            server: &self.cluster.server(),
            ca_pem: self.pki.ca.cert_pem(),
            identity: &identity,
        };
        write_atomic(file, config.to_yaml().as_bytes(), 0o600)?;
        Ok(config.to_value())
    }
}
