//! A pod's resolver configuration, from its policy, the cluster's DNS and the node's.

use crate::config::Config;
use crate::pod::spec;
use cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// The configuration, and a warning for the user where the pod cannot have what it asked for.
pub fn resolve(pod: &Pod, config: &Config, host: &DnsConfig) -> (DnsConfig, Option<String>) {
    let spec_of = pod.spec.as_ref();
    let policy = spec_of.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let on_host = spec::is_host_network(pod);
    let mut warning = None;
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirst" if !on_host => cluster(pod, config, host, policy, &mut warning),
        "ClusterFirstWithHostNet" => cluster(pod, config, host, policy, &mut warning),
        _ => host.clone(),
    };
    if let Some(own) = spec_of.and_then(|spec| spec.dns_config.as_ref()) {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            dns.options.retain(|known| known.split(':').next() != Some(&name));
            dns.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name,
            });
        }
    }
    distinct(&mut dns.servers);
    distinct(&mut dns.searches);
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    (dns, warning)
}

fn cluster(pod: &Pod, config: &Config, host: &DnsConfig, policy: &str, warning: &mut Option<String>) -> DnsConfig {
    if config.cluster_dns.is_empty() {
        *warning = Some(format!(
            "pod: \"{}_{}({})\". kubelet does not have ClusterDNS IP configured and cannot create Pod using {policy:?} policy. Falling back to \"Default\" policy.",
            spec::name(pod),
            spec::namespace(pod),
            spec::uid(pod),
        ));
        return host.clone();
    }
    let mut searches = Vec::new();
    if !config.cluster_domain.is_empty() {
        let services = format!("svc.{}", config.cluster_domain);
        searches.push(format!("{}.{services}", spec::namespace(pod)));
        searches.push(services);
        searches.push(config.cluster_domain.clone());
    }
    searches.extend(host.searches.iter().cloned());
    DnsConfig {
        servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    }
}

/// Reads resolv.conf(5).
pub fn parse(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_string)),
            Some("search") => dns.searches = words.map(str::to_string).collect(),
            Some("options") => dns.options = words.map(str::to_string).collect(),
            _ => {}
        }
    }
    dns
}

fn distinct(items: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    items.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture::pod;
    use serde_json::json;
    use std::net::IpAddr;

    fn resolved(spec: serde_json::Value) -> (Vec<String>, Vec<String>, Vec<String>) {
        let config = Config {
            cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
            cluster_domain: "cluster.local".into(),
            ..Config::default()
        };
        let host = parse("# node\nnameserver 192.0.2.1\nsearch example.org\noptions rotate\n");
        let dns = resolve(&pod(spec), &config, &host).0;
        (dns.servers, dns.searches, dns.options)
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn policies() {
        let searches = words(&["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.org"]);
        let cluster = (words(&["10.96.0.10"]), searches, words(&["ndots:5"]));
        let node = (words(&["192.0.2.1"]), words(&["example.org"]), words(&["rotate"]));
        assert_eq!(resolved(json!({})), cluster);
        assert_eq!(resolved(json!({"dnsPolicy": "Default"})), node);
        assert_eq!(resolved(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true})), node);
        assert_eq!(resolved(json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true})), cluster);
        let own = json!({"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}, {"name": "debug"}]});
        let none = resolved(json!({"dnsPolicy": "None", "dnsConfig": own}));
        assert_eq!(none, (words(&["1.1.1.1"]), vec![], words(&["ndots:2", "debug"])));
    }

    #[test]
    fn without_a_cluster_dns_the_nodes_counts_and_the_user_is_told() {
        let (dns, warning) = resolve(&pod(json!({})), &Config::default(), &parse("nameserver 192.0.2.1"));
        assert_eq!(dns.servers, ["192.0.2.1"]);
        assert!(warning.unwrap().starts_with("pod: \"web_shop(u-1)\". kubelet does not have ClusterDNS IP configured"));
    }
}
