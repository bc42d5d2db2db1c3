//! The files that the node's daemons read, in the formats of their originals.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::containerd;
use super::mounts::RUN;
use crate::cluster::{Cluster, Cri, Node};

/// Every pod address of a cluster, of IPv4 and IPv6; each node has a part.
const POD_NETWORKS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];
/// Every service address of a cluster.
const SERVICE_NETWORKS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// The cluster's pod addresses, as the daemons' flags take them.
pub fn pod_networks(cluster: &Cluster) -> String {
    of_families(cluster, &POD_NETWORKS)
}

/// The cluster's service addresses.
pub fn service_networks(cluster: &Cluster) -> String {
    of_families(cluster, &SERVICE_NETWORKS)
}

fn of_families(cluster: &Cluster, networks: &[&str; 2]) -> String {
    networks[..1 + usize::from(cluster.settings.dual_stack)].join(",")
}

/// A file of the node's own programs.
pub fn file(name: &str) -> PathBuf {
    Path::new(RUN).join(name)
}

/// The host's name servers, to be read before /run is the node's own: those that more than the host itself can reach.
pub fn host_resolv_conf() -> String {
    let candidates = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let texts = candidates.iter().filter_map(|path| fs::read_to_string(path).ok());
    let mut usable = texts.map(|text| without_loopback(&text));
    usable.find(|text| text.lines().any(|line| line.starts_with("nameserver"))).unwrap_or_default()
}

fn without_loopback(text: &str) -> String {
    let reachable = |line: &&str| {
        let address = line.strip_prefix("nameserver").map(str::trim);
        address.is_none_or(|address| address.parse::<std::net::IpAddr>().is_ok_and(|ip| !ip.is_loopback()))
    };
    text.lines().filter(reachable).map(|line| format!("{line}\n")).collect()
}

/// # Errors
/// Where a file cannot be written.
pub fn write(cluster: &Cluster, node: &Node, resolv_conf: &str) -> anyhow::Result<()> {
    put(&file("resolv.conf"), resolv_conf)?;
    put(&file("kubelet.yaml"), &lifecycle::kubeconfig::to_yaml(&kubelet(cluster, node)))?;
    put(&file("proxy.yaml"), &lifecycle::kubeconfig::to_yaml(&proxy(cluster, node)))
}

fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn kubelet(cluster: &Cluster, node: &Node) -> serde_json::Value {
    let folder = cluster.paths().node(&node.name);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": cluster.paths().certificate("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("{}/{}", cluster.cgroup(), node.name),
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": runtime_endpoint(cluster),
        // The disk is the host's, and others fill it too: a share of it says nothing about this node.
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi" },
        "failCgroupV1": false,
        "failSwapOn": false,
        // Images that were loaded from an archive cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
        "resolvConf": file("resolv.conf"),
        "tlsCertFile": folder.join("kubelet-server.crt"),
        "tlsPrivateKeyFile": folder.join("kubelet-server.key"),
    })
}

/// Where the CRI is served.
pub fn runtime_endpoint(cluster: &Cluster) -> String {
    match cluster.settings.cri {
        Cri::Bosun => format!("unix://{}", file("cri.sock").display()),
        Cri::Containerd => format!("unix://{}", containerd::SOCKET),
    }
}

fn proxy(cluster: &Cluster, node: &Node) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": cluster.paths().node(&node.name).join("proxy.conf") },
        "clusterCIDR": pod_networks(cluster),
        // The size of the table is the host's affair: a node may not write it.
        "conntrack": { "maxPerCore": 0 },
        "hostnameOverride": node.name,
        "mode": "nftables",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_the_host_alone_are_left_out() {
        let text = "# made by systemd\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.53\nsearch lan\n";
        assert_eq!(without_loopback(text), "# made by systemd\nnameserver 192.0.2.53\nsearch lan\n");
    }
}
