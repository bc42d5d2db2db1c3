//! KubeletConfiguration (kubelet.config.k8s.io/v1beta1): the fields that are supported, with the kubelet's defaults.
//! An unknown field is refused; a known field that is not supported is named once when it differs from its default.

use crate::options::Options;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod unsupported;

pub use unsupported::{Finding, inspect};

/// The configuration of an agent. Field names and meanings are KubeletConfiguration's.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    pub address: IpAddr,
    pub port: u16,
    pub healthz_bind_address: IpAddr,
    /// 0 for none.
    pub healthz_port: u16,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    pub authentication: Authentication,
    pub authorization: Authorization,
    pub pod_logs_dir: PathBuf,
    #[serde(rename = "eventRecordQPS")]
    pub event_record_qps: u32,
    pub event_burst: u32,
    pub cluster_domain: String,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<IpAddr>,
    #[serde(deserialize_with = "duration")]
    pub streaming_connection_idle_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub node_status_update_frequency: Duration,
    #[serde(deserialize_with = "duration")]
    pub node_status_report_frequency: Duration,
    pub node_lease_duration_seconds: i32,
    #[serde(rename = "imageMinimumGCAge", deserialize_with = "duration")]
    pub image_minimum_gc_age: Duration,
    /// Zero for no limit.
    #[serde(rename = "imageMaximumGCAge", deserialize_with = "duration")]
    pub image_maximum_gc_age: Duration,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: u64,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: u64,
    /// The cgroup below which `kubepods` stands; `/` where empty.
    pub cgroup_root: String,
    #[serde(deserialize_with = "duration")]
    pub runtime_request_timeout: Duration,
    pub max_pods: u32,
    /// -1 for no limit.
    pub pod_pids_limit: i64,
    /// The resolver configuration that pods start from; none where empty.
    pub resolv_conf: String,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    #[serde(rename = "cpuCFSQuotaPeriod", deserialize_with = "duration")]
    pub cpu_cfs_quota_period: Duration,
    /// -1 for all.
    pub node_status_max_images: i32,
    /// Unlike the kubelet's, false where it is not given: pulls run side by side.
    pub serialize_image_pulls: bool,
    pub max_parallel_image_pulls: Option<usize>,
    /// Thresholds of the pressure conditions and of what is not allocatable: a quantity or a percentage by signal.
    pub eviction_hard: BTreeMap<String, String>,
    #[serde(deserialize_with = "duration")]
    pub eviction_pressure_transition_period: Duration,
    pub container_log_max_size: String,
    pub container_log_max_files: u32,
    #[serde(deserialize_with = "duration")]
    pub container_log_monitor_interval: Duration,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub seccomp_default: bool,
    pub register_with_taints: Vec<Taint>,
    pub register_node: bool,
    pub container_runtime_endpoint: String,
    #[serde(rename = "providerID")]
    pub provider_id: String,
    pub crash_loop_back_off: CrashLoopBackOff,
}

/// A taint to register the node with.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    pub key: String,
    pub value: Option<String>,
    pub effect: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct CrashLoopBackOff {
    #[serde(deserialize_with = "optional_duration")]
    pub max_container_restart_period: Option<Duration>,
}

/// Who port 10250 lets in.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Authentication {
    pub x509: X509,
    pub webhook: Webhook,
    pub anonymous: Anonymous,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Webhook {
    pub enabled: bool,
    #[serde(rename = "cacheTTL", deserialize_with = "duration")]
    pub cache_ttl: Duration,
}

impl Default for Webhook {
    fn default() -> Self {
        Self { enabled: true, cache_ttl: Duration::from_secs(120) }
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Anonymous {
    pub enabled: bool,
}

/// What port 10250 asks before it serves.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Authorization {
    pub mode: AuthorizationMode,
    pub webhook: AuthorizationWebhook,
}

impl Default for Authorization {
    fn default() -> Self {
        Self { mode: AuthorizationMode::Webhook, webhook: AuthorizationWebhook::default() }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum AuthorizationMode {
    Webhook,
    AlwaysAllow,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationWebhook {
    #[serde(rename = "cacheAuthorizedTTL", deserialize_with = "duration")]
    pub cache_authorized_ttl: Duration,
    #[serde(rename = "cacheUnauthorizedTTL", deserialize_with = "duration")]
    pub cache_unauthorized_ttl: Duration,
}

impl Default for AuthorizationWebhook {
    fn default() -> Self {
        Self { cache_authorized_ttl: Duration::from_secs(300), cache_unauthorized_ttl: Duration::from_secs(30) }
    }
}

impl Default for Config {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Self {
            address: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            healthz_bind_address: IpAddr::from([127, 0, 0, 1]),
            healthz_port: 10248,
            tls_cert_file: None,
            tls_private_key_file: None,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            pod_logs_dir: "/var/log/pods".into(),
            event_record_qps: 50,
            event_burst: 100,
            cluster_domain: String::new(),
            cluster_dns: Vec::new(),
            streaming_connection_idle_timeout: seconds(4 * 3600),
            node_status_update_frequency: seconds(10),
            node_status_report_frequency: seconds(300),
            node_lease_duration_seconds: 40,
            image_minimum_gc_age: seconds(120),
            image_maximum_gc_age: Duration::ZERO,
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            cgroup_root: String::new(),
            runtime_request_timeout: seconds(120),
            max_pods: 110,
            pod_pids_limit: -1,
            resolv_conf: "/etc/resolv.conf".into(),
            cpu_cfs_quota: true,
            cpu_cfs_quota_period: Duration::from_millis(100),
            node_status_max_images: 50,
            serialize_image_pulls: false,
            max_parallel_image_pulls: None,
            eviction_hard: pairs(&[
                ("memory.available", "100Mi"),
                ("nodefs.available", "10%"),
                ("nodefs.inodesFree", "5%"),
                ("imagefs.available", "15%"),
            ]),
            eviction_pressure_transition_period: seconds(300),
            container_log_max_size: "10Mi".into(),
            container_log_max_files: 5,
            container_log_monitor_interval: seconds(10),
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            allowed_unsafe_sysctls: Vec::new(),
            seccomp_default: false,
            register_with_taints: Vec::new(),
            register_node: true,
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            provider_id: String::new(),
            crash_loop_back_off: CrashLoopBackOff::default(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration {}: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error("configuration {}: unknown field {field:?}", path.display())]
    UnknownField { path: PathBuf, field: String },
    #[error("flag --register-with-taints: {taint:?} is not KEY=VALUE:EFFECT")]
    Taint { taint: String },
}

impl Config {
    /// The file's configuration with the flags laid over it, and the names of fields that have no effect.
    ///
    /// # Errors
    /// Where the file cannot be read, is malformed or holds an unknown field.
    pub fn load(options: &Options) -> Result<(Self, Vec<String>), ConfigError> {
        let (mut config, ignored) = match &options.config {
            Some(path) => Self::read(path)?,
            None => (Self::default(), Vec::new()),
        };
        config.overlay(options)?;
        Ok((config, ignored))
    }

    fn read(path: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text, path)
    }

    /// The configuration in a file's text, and the fields that were set and are not supported.
    ///
    /// # Errors
    /// Where it is no KubeletConfiguration, or has a field that no kubelet knows.
    pub fn parse(text: &str, path: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let malformed = |reason: String| ConfigError::Malformed { path: path.to_path_buf(), reason };
        let value: Value = serde_saphyr::from_str(text).map_err(|error| malformed(error.to_string()))?;
        let Value::Object(mut fields) = value else { return Err(malformed("is not a mapping".into())) };
        let (version, kind) = (fields.remove("apiVersion"), fields.remove("kind"));
        if kind != Some("KubeletConfiguration".into()) || version != Some("kubelet.config.k8s.io/v1beta1".into()) {
            return Err(malformed("is not a KubeletConfiguration of kubelet.config.k8s.io/v1beta1".into()));
        }
        // Null means the default, as in the API's own decoder.
        fields.retain(|_, value| !value.is_null());
        let mut ignored = Vec::new();
        for finding in inspect(&fields) {
            match finding {
                Finding::Unknown(field) => return Err(ConfigError::UnknownField { path: path.to_path_buf(), field }),
                Finding::Unsupported(field) => ignored.push(field),
            }
        }
        ignored.sort();
        fields.retain(|name, _| unsupported::is_supported(name));
        let config = serde_json::from_value(Value::Object(fields)).map_err(|error| malformed(error.to_string()))?;
        Ok((config, ignored))
    }

    fn overlay(&mut self, options: &Options) -> Result<(), ConfigError> {
        if let Some(endpoint) = &options.container_runtime_endpoint {
            self.container_runtime_endpoint.clone_from(endpoint);
        }
        if let Some(register) = options.register_node {
            self.register_node = register;
        }
        if let Some(root) = &options.cgroup_root {
            self.cgroup_root.clone_from(root);
        }
        if options.tls_cert_file.is_some() {
            self.tls_cert_file.clone_from(&options.tls_cert_file);
        }
        if options.tls_private_key_file.is_some() {
            self.tls_private_key_file.clone_from(&options.tls_private_key_file);
        }
        if !options.register_with_taints.is_empty() {
            self.register_with_taints =
                options.register_with_taints.iter().map(|taint| parse_taint(taint)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }
}

fn parse_taint(text: &str) -> Result<Taint, ConfigError> {
    let refused = || ConfigError::Taint { taint: text.to_string() };
    let (pair, effect) = text.rsplit_once(':').ok_or_else(refused)?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") || pair.is_empty() {
        return Err(refused());
    }
    let (key, value) = match pair.split_once('=') {
        Some((key, value)) => (key, Some(value.to_string())),
        None => (pair, None),
    };
    Ok(Taint { key: key.to_string(), value, effect: effect.to_string() })
}

/// Reads Go's durations, such as `1h15m30.5s` or `100ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0f64;
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * seconds;
        rest = &rest[unit_len..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(total).ok()).flatten()
}

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    parse_duration(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a duration")))
}

fn optional_duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    duration(input).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<(Config, Vec<String>), ConfigError> {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        Config::parse(&format!("{head}{body}"), Path::new("kubelet.yaml"))
    }

    #[test]
    fn a_supported_field_counts_and_the_rest_keeps_its_default() {
        let (config, ignored) = parse("clusterDNS: [10.96.0.10]\ncpuCFSQuotaPeriod: 50ms\nmaxPods: 20").unwrap();
        let expected = Config {
            cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
            cpu_cfs_quota_period: Duration::from_millis(50),
            max_pods: 20,
            ..Config::default()
        };
        assert_eq!((config, ignored), (expected, vec![]));
    }

    #[test]
    fn a_known_field_without_effect_is_named_where_it_differs_from_its_default() {
        let (_, ignored) = parse("rotateCertificates: true\nserverTLSBootstrap: false\nstaticPodPath: /etc/x").unwrap();
        assert_eq!(ignored, ["rotateCertificates", "staticPodPath"]);
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = parse("clusterDns: [10.96.0.10]").unwrap_err();
        assert_eq!(error.to_string(), "configuration kubelet.yaml: unknown field \"clusterDns\"");
        let error = parse("authentication: {webhook: {enable: true}}").unwrap_err();
        assert_eq!(error.to_string(), "configuration kubelet.yaml: unknown field \"authentication.webhook.enable\"");
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("1h15m30.5s"), Some(Duration::from_millis(4_530_500)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        assert_eq!(parse_duration("10"), None);
        assert_eq!(parse_duration(""), None);
    }
}
