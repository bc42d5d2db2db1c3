//! The hosts file that containers see.

use crate::config::Config;
use crate::pod::spec;
use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;

/// The content for a pod with these addresses; `node` is the node's own file, for pods on its network.
pub fn content(pod: &Pod, config: &Config, ips: &[IpAddr], node: &str) -> String {
    let mut out = String::new();
    if spec::is_host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(node);
    } else {
        out.push_str("# Kubernetes-managed hosts file.\n");
        out.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
        out.push_str(
            "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let (name, domain) = super::hostname(pod, config);
        let short = name.split('.').next().unwrap_or(&name);
        for ip in ips {
            out.push_str(&match domain.as_str() {
                "" => format!("{ip}\t{name}\n"),
                domain => format!("{ip}\t{short}.{domain}\t{short}\n"),
            });
        }
    }
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            out.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture::pod;
    use serde_json::json;

    #[test]
    fn the_pods_name_and_its_aliases() {
        let config = Config { cluster_domain: "cluster.local".into(), ..Config::default() };
        let aliases = json!([{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]);
        let pod = pod(json!({"subdomain": "db", "hostAliases": aliases}));
        let text = content(&pod, &config, &[IpAddr::from([10, 244, 0, 3])], "");
        assert!(text.ends_with(
            "10.244.0.3\tweb.db.shop.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"
        ));
    }
}
