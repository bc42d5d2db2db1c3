//! A pod's sandbox: its configuration for the CRI, its name resolution and its hosts file.

pub mod dns;
pub mod hosts;

use crate::config::Config;
use crate::container::security::{groups, groups_policy, namespaces, selinux};
use crate::pod::spec;
use crate::pod::view::{POD_NAME, POD_NAMESPACE, POD_UID};
use cri::v1::{
    DnsConfig, Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, PodSandboxConfig, PodSandboxMetadata,
    PortMapping, Protocol, SecurityProfile, security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::path::PathBuf;

/// What the CRI is asked for. `cgroup_parent` is the pod's own cgroup.
pub fn config(pod: &Pod, config: &Config, attempt: u32, dns: DnsConfig, cgroup_parent: &str) -> PodSandboxConfig {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let host_network = spec::is_host_network(pod);
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: spec::name(pod).into(),
            uid: spec::uid(pod).into(),
            namespace: spec::namespace(pod).into(),
            attempt,
        }),
        // A sandbox on the host's network has the host's name; naming another makes runc refuse it.
        hostname: if host_network { String::new() } else { hostname(pod, config).0 },
        log_directory: log_directory(pod, config).display().to_string(),
        dns_config: Some(dns),
        port_mappings: if host_network { Vec::new() } else { port_mappings(pod) },
        labels: labels.into_iter().chain(pod_labels(pod)).collect(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(linux(pod, cgroup_parent)),
        ..PodSandboxConfig::default()
    }
}

/// By these labels a fresh process knows whose a sandbox or container is.
pub fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    HashMap::from([
        (POD_NAME.to_string(), spec::name(pod).to_string()),
        (POD_NAMESPACE.to_string(), spec::namespace(pod).to_string()),
        (POD_UID.to_string(), spec::uid(pod).to_string()),
    ])
}

/// `/var/log/pods/NAMESPACE_NAME_UID`.
pub fn log_directory(pod: &Pod, config: &Config) -> PathBuf {
    config.pod_logs_dir.join(format!("{}_{}_{}", spec::namespace(pod), spec::name(pod), spec::uid(pod)))
}

/// The pod's host name, and its domain where it has one.
pub fn hostname(pod: &Pod, config: &Config) -> (String, String) {
    let Some(spec_of) = &pod.spec else { return (String::new(), String::new()) };
    if let Some(name) = spec_of.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (name.to_string(), String::new());
    }
    let name = spec_of.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(spec::name(pod));
    let short: String = name.chars().take(63).collect();
    let short = short.trim_end_matches(['-', '.']).to_string();
    let domain = match spec_of.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{}", spec::namespace(pod), config.cluster_domain),
        None => String::new(),
    };
    if spec_of.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        return (format!("{short}.{domain}"), domain);
    }
    (short, domain)
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let ports = spec::all_containers(pod).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| port.host_port.is_some_and(|host| host > 0))
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or_default(),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn linux(pod: &Pod, cgroup_parent: &str) -> LinuxPodSandboxConfig {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let privileged = |container: &k8s_openapi::api::core::v1::Container| {
        container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false)
    };
    LinuxPodSandboxConfig {
        cgroup_parent: cgroup_parent.to_string(),
        sysctls: context.sysctls.iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
        security_context: Some(LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(pod)),
            selinux_options: context.se_linux_options.as_ref().map(selinux),
            run_as_user: context.run_as_user.map(|value| Int64Value { value }),
            run_as_group: context.run_as_group.map(|value| Int64Value { value }),
            supplemental_groups: groups(&context),
            supplemental_groups_policy: groups_policy(&context) as i32,
            privileged: spec::all_containers(pod).any(privileged),
            seccomp: Some(SecurityProfile {
                profile_type: ProfileType::RuntimeDefault as i32,
                localhost_ref: String::new(),
            }),
            ..LinuxSandboxSecurityContext::default()
        }),
        ..LinuxPodSandboxConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture::pod;
    use serde_json::json;

    #[test]
    fn names() {
        let config = Config { cluster_domain: "cluster.local".into(), ..Config::default() };
        let name = |spec| hostname(&pod(spec), &config);
        assert_eq!(name(json!({})), ("web".into(), String::new()));
        let domain = "db.shop.svc.cluster.local";
        assert_eq!(name(json!({"hostname": "a", "subdomain": "db"})), ("a".into(), domain.into()));
        let full = json!({"hostname": "a", "subdomain": "db", "setHostnameAsFQDN": true});
        assert_eq!(name(full), (format!("a.{domain}"), domain.into()));
    }

    #[test]
    fn a_pod_on_the_hosts_network_maps_no_ports_and_has_no_name() {
        let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
        let made = |host: bool| {
            let pod = pod(json!({"hostNetwork": host, "containers": [{"name": "a", "ports": ports}]}));
            let made = super::config(&pod, &Config::default(), 0, DnsConfig::default(), "/x");
            (made.hostname, made.port_mappings.len(), made.log_directory)
        };
        let logs = "/var/log/pods/shop_web_u-1".to_string();
        assert_eq!(made(false), ("web".into(), 1, logs.clone()));
        assert_eq!(made(true), (String::new(), 0, logs));
    }
}
