//! What a pod asks of its network.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use api::cni::{Bandwidth, DnsRequest, IpRange, PortMapping, RuntimeConfig};
use api::quantity::Quantity;
use cri::v1::{DnsConfig, PodSandboxConfig, Protocol};
use serde_json::{Map, Value};

/// The pod's interface, as every runtime of Kubernetes names it.
pub const IFNAME: &str = "eth0";

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// A hardware address, for plugins with the capability `mac`.
const MAC: &str = "cni.bosun.local/mac";
/// Addresses, comma-separated, for plugins with the capability `ips`.
const IPS: &str = "cni.bosun.local/ips";
/// A JSON list of range sets, for plugins with the capability `ipRanges`.
const IP_RANGES: &str = "cni.bosun.local/ip-ranges";

/// The rates that kubelet itself takes, bits per second.
const RATES: std::ops::RangeInclusive<i64> = 1_000..=1_000_000_000_000_000;
/// No bound of its own: the largest that the bandwidth plugin takes, which containerd asks for too.
const BURST: u64 = u32::MAX as u64;

/// What a pod asks and is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    #[error("annotation {key} is {value:?}, which is not {wanted}")]
    Annotation { key: &'static str, value: String, wanted: &'static str },
    #[error("port mapping of host port {host} to container port {container}: ports are from 1 to 65535")]
    Port { host: i32, container: i32 },
    #[error("pod {field} {value:?} cannot be told to CNI plugins: it holds ';' or '='")]
    Name { field: &'static str, value: String },
}

/// Whose sandbox it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// A pod and its network namespace.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attachment {
    /// The sandbox's id: what plugins know it by.
    pub id: String,
    pub netns: PathBuf,
    pub pod: PodName,
    pub annotations: BTreeMap<String, String>,
    pub port_mappings: Vec<PortMapping>,
    pub bandwidth: Option<Bandwidth>,
    pub dns: Option<DnsRequest>,
    pub mac: String,
    /// With or without a prefix.
    pub ips: Vec<String>,
    pub ip_ranges: Vec<Vec<IpRange>>,
    pub cgroup_path: String,
}

impl Attachment {
    /// Reads what the pod asks from its config.
    ///
    /// # Errors
    /// Where an annotation or a port makes no sense.
    pub fn of(id: &str, netns: &Path, config: &PodSandboxConfig) -> Result<Self, AttachmentError> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let pod = PodName { namespace: metadata.namespace, name: metadata.name, uid: metadata.uid };
        for (field, value) in [("namespace", &pod.namespace), ("name", &pod.name), ("uid", &pod.uid)] {
            // They stand in CNI_ARGS, and could say there what the pod may not.
            if value.contains([';', '=']) {
                return Err(AttachmentError::Name { field, value: value.clone() });
            }
        }
        let linux = config.linux.as_ref();
        Ok(Self {
            id: id.to_owned(),
            netns: netns.to_owned(),
            pod,
            annotations: config.annotations.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            port_mappings: port_mappings(&config.port_mappings)?,
            bandwidth: bandwidth(&config.annotations)?,
            dns: config.dns_config.as_ref().map(dns),
            mac: mac(&config.annotations)?,
            ips: ips(&config.annotations)?,
            ip_ranges: ip_ranges(&config.annotations)?,
            cgroup_path: linux.map(|linux| linux.cgroup_parent.clone()).unwrap_or_default(),
        })
    }

    /// `CNI_ARGS`, with the keys that network add-ons know from all runtimes.
    pub(super) fn args(&self) -> Vec<(String, String)> {
        let pairs = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &self.pod.namespace),
            ("K8S_POD_NAME", &self.pod.name),
            ("K8S_POD_INFRA_CONTAINER_ID", &self.id),
            ("K8S_POD_UID", &self.pod.uid),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// What plugins may ask for by their `capabilities`.
    pub(super) fn capabilities(&self) -> Map<String, Value> {
        let known = RuntimeConfig {
            port_mappings: self.port_mappings.clone(),
            ip_ranges: self.ip_ranges.clone(),
            ips: self.ips.clone(),
            mac: self.mac.clone(),
            bandwidth: self.bandwidth.clone(),
            dns: self.dns.clone(),
            cgroup_path: self.cgroup_path.clone(),
            ..RuntimeConfig::default()
        };
        let mut map = match serde_json::to_value(known) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        // The name that containerd gave it, which CNI's conventions do not have.
        map.insert("io.kubernetes.cri.pod-annotations".to_owned(), self.annotations.clone().into_iter().collect());
        map
    }
}

fn port_mappings(mappings: &[cri::v1::PortMapping]) -> Result<Vec<PortMapping>, AttachmentError> {
    let port = |wanted: i32| u16::try_from(wanted).ok().filter(|port| *port > 0);
    let one = |mapping: &cri::v1::PortMapping| {
        let wrong = || AttachmentError::Port { host: mapping.host_port, container: mapping.container_port };
        Ok(PortMapping {
            host_port: port(mapping.host_port).ok_or_else(wrong)?,
            container_port: port(mapping.container_port).ok_or_else(wrong)?,
            protocol: match mapping.protocol() {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            }
            .to_owned(),
            host_ip: mapping.host_ip.clone(),
        })
    };
    // Kubelet sends every container port; only those with a host port are mapped.
    mappings.iter().filter(|mapping| mapping.host_port > 0).map(one).collect()
}

fn dns(config: &DnsConfig) -> DnsRequest {
    DnsRequest { servers: config.servers.clone(), searches: config.searches.clone(), options: config.options.clone() }
}

fn bandwidth(annotations: &HashMap<String, String>) -> Result<Option<Bandwidth>, AttachmentError> {
    let rate = |key: &'static str| {
        let Some(value) = annotations.get(key) else { return Ok(None) };
        let parsed = value.parse::<Quantity>().ok().map(Quantity::value).filter(|rate| RATES.contains(rate));
        let wrong = || AttachmentError::Annotation {
            key,
            value: value.clone(),
            wanted: "a rate from 1k to 1P bits per second",
        };
        parsed.and_then(|rate| u64::try_from(rate).ok()).map(Some).ok_or_else(wrong)
    };
    let (ingress, egress) = (rate(INGRESS)?, rate(EGRESS)?);
    if ingress.is_none() && egress.is_none() {
        return Ok(None);
    }
    let burst = |rate: Option<u64>| rate.map_or(0, |_| BURST);
    Ok(Some(Bandwidth {
        ingress_rate: ingress.unwrap_or(0),
        ingress_burst: burst(ingress),
        egress_rate: egress.unwrap_or(0),
        egress_burst: burst(egress),
    }))
}

fn mac(annotations: &HashMap<String, String>) -> Result<String, AttachmentError> {
    let Some(value) = annotations.get(MAC) else { return Ok(String::new()) };
    let known = value.parse::<kernel::netlink::Mac>().map(|mac| mac.to_string());
    known.map_err(|_| AttachmentError::Annotation {
        key: MAC,
        value: value.clone(),
        wanted: "six octets like 02:00:00:00:00:01",
    })
}

fn ips(annotations: &HashMap<String, String>) -> Result<Vec<String>, AttachmentError> {
    let Some(value) = annotations.get(IPS) else { return Ok(Vec::new()) };
    let wanted = "a list of addresses, separated by commas";
    let one = |text: &str| {
        let (ip, prefix) = text.split_once('/').unwrap_or((text, "0"));
        let fits = ip.parse::<std::net::IpAddr>().is_ok() && prefix.parse::<u8>().is_ok_and(|bits| bits <= 128);
        fits.then(|| text.to_owned()).ok_or_else(|| AttachmentError::Annotation {
            key: IPS,
            value: value.clone(),
            wanted,
        })
    };
    value.split(',').map(|text| one(text.trim())).collect()
}

fn ip_ranges(annotations: &HashMap<String, String>) -> Result<Vec<Vec<IpRange>>, AttachmentError> {
    let Some(value) = annotations.get(IP_RANGES) else { return Ok(Vec::new()) };
    serde_json::from_str(value).map_err(|_| AttachmentError::Annotation {
        key: IP_RANGES,
        value: value.clone(),
        wanted: r#"a JSON list of range sets like [[{"subnet":"10.0.0.0/24"}]]"#,
    })
}

#[cfg(test)]
mod tests {
    use cri::v1::PodSandboxMetadata;
    use serde_json::json;

    use super::*;

    fn config(annotations: &[(&str, &str)]) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                uid: "u-1".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            annotations: annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..PodSandboxConfig::default()
        }
    }

    fn of(config: &PodSandboxConfig) -> Result<Attachment, AttachmentError> {
        Attachment::of("abc", Path::new("/run/ns/net"), config)
    }

    #[test]
    fn a_pod_is_told_as_conventions_have_it() {
        let mut config = config(&[
            (INGRESS, "10M"),
            (MAC, "02:00:00:00:00:0A"),
            (IPS, "10.0.0.9, fd00::9/64"),
            (IP_RANGES, r#"[[{"subnet":"10.0.0.0/24"}]]"#),
        ]);
        config.port_mappings = vec![
            cri::v1::PortMapping { protocol: 1, container_port: 53, host_port: 5353, host_ip: "10.1.1.1".into() },
            cri::v1::PortMapping { container_port: 80, ..Default::default() },
        ];
        config.dns_config = Some(DnsConfig { servers: vec!["10.96.0.10".into()], ..Default::default() });
        config.linux =
            Some(cri::v1::LinuxPodSandboxConfig { cgroup_parent: "/kubepods/pod1".into(), ..Default::default() });
        let attachment = of(&config).unwrap();
        let mut expected = json!({
            "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "10.1.1.1"}],
            "ipRanges": [[{"subnet": "10.0.0.0/24"}]],
            "ips": ["10.0.0.9", "fd00::9/64"],
            "mac": "02:00:00:00:00:0a",
            "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": BURST, "egressRate": 0, "egressBurst": 0},
            "dns": {"servers": ["10.96.0.10"], "searches": [], "options": []},
            "cgroupPath": "/kubepods/pod1",
        });
        expected["io.kubernetes.cri.pod-annotations"] = json!(attachment.annotations);
        assert_eq!(Value::Object(attachment.capabilities()), expected);
        let args: Vec<String> = attachment.args().iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            args.join(";"),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
        );
    }

    #[test]
    fn a_plain_pod_asks_for_nothing() {
        let attachment = of(&config(&[])).unwrap();
        assert_eq!(Value::Object(attachment.capabilities()), json!({"io.kubernetes.cri.pod-annotations": {}}));
    }

    #[test]
    fn nonsense_is_refused_by_its_name() {
        let said = |key, value| of(&config(&[(key, value)])).unwrap_err().to_string();
        assert_eq!(
            said(EGRESS, "10"),
            "annotation kubernetes.io/egress-bandwidth is \"10\", which is not a rate from 1k to 1P bits per second"
        );
        assert!(said(INGRESS, "2P").contains("\"2P\""));
        assert!(said(MAC, "02").starts_with("annotation cni.bosun.local/mac is \"02\""));
        assert!(said(IPS, "10.0.0.1,x").contains("addresses"));
        assert!(said(IP_RANGES, "{}").contains("JSON"));
        let mut wrong = config(&[]);
        wrong.port_mappings =
            vec![cri::v1::PortMapping { container_port: 80, host_port: 70_000, ..Default::default() }];
        assert_eq!(
            of(&wrong).unwrap_err().to_string(),
            "port mapping of host port 70000 to container port 80: ports are from 1 to 65535"
        );
        let mut sly = config(&[]);
        sly.metadata.as_mut().unwrap().name = "a;K8S_POD_NAMESPACE=kube-system".into();
        assert!(matches!(of(&sly), Err(AttachmentError::Name { field: "name", .. })));
    }
}
