//! The fields of KubeletConfiguration by whether they have an effect here.

use serde_json::{Map, Value};

/// What is odd about a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Kubernetes does not know it.
    Unknown(String),
    /// Kubernetes knows it, it has no effect here, and it asks for something else than the default.
    Unsupported(String),
}

const SUPPORTED: &[&str] = &[
    "address",
    "port",
    "healthzBindAddress",
    "healthzPort",
    "tlsCertFile",
    "tlsPrivateKeyFile",
    "authentication",
    "authorization",
    "podLogsDir",
    "eventRecordQPS",
    "eventBurst",
    "clusterDomain",
    "clusterDNS",
    "streamingConnectionIdleTimeout",
    "nodeStatusUpdateFrequency",
    "nodeStatusReportFrequency",
    "nodeLeaseDurationSeconds",
    "imageMinimumGCAge",
    "imageMaximumGCAge",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "cgroupRoot",
    "runtimeRequestTimeout",
    "maxPods",
    "podPidsLimit",
    "resolvConf",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "nodeStatusMaxImages",
    "serializeImagePulls",
    "maxParallelImagePulls",
    "evictionHard",
    "evictionPressureTransitionPeriod",
    "containerLogMaxSize",
    "containerLogMaxFiles",
    "containerLogMonitorInterval",
    "systemReserved",
    "kubeReserved",
    "allowedUnsafeSysctls",
    "seccompDefault",
    "registerWithTaints",
    "registerNode",
    "containerRuntimeEndpoint",
    "providerID",
    "crashLoopBackOff",
];

/// Parts of supported structures, by the structure's path.
const NESTED: &[(&str, &[&str])] = &[
    ("authentication", &["x509", "webhook", "anonymous"]),
    ("authentication.x509", &["clientCAFile"]),
    ("authentication.webhook", &["enabled", "cacheTTL"]),
    ("authentication.anonymous", &["enabled"]),
    ("authorization", &["mode", "webhook"]),
    ("authorization.webhook", &["cacheAuthorizedTTL", "cacheUnauthorizedTTL"]),
    ("crashLoopBackOff", &["maxContainerRestartPeriod"]),
];

pub fn is_supported(field: &str) -> bool {
    SUPPORTED.contains(&field)
}

/// Looks at every field of a configuration, in its order.
pub fn inspect(fields: &Map<String, Value>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, value) in fields {
        if is_supported(name) {
            findings.extend(inspect_nested(name, value));
            continue;
        }
        let text = value.to_string();
        match WITHOUT_EFFECT.iter().find(|(known, _)| known == name) {
            None => findings.push(Finding::Unknown(name.clone())),
            Some((_, default)) if *default == text => {}
            Some(_) => findings.push(Finding::Unsupported(name.clone())),
        }
    }
    findings
}

fn inspect_nested(path: &str, value: &Value) -> Vec<Finding> {
    let Some((_, names)) = NESTED.iter().find(|(nested, _)| *nested == path) else { return Vec::new() };
    let Some(fields) = value.as_object() else { return Vec::new() };
    let mut findings = Vec::new();
    for (name, value) in fields {
        let inner = format!("{path}.{name}");
        if names.contains(&name.as_str()) {
            findings.extend(inspect_nested(&inner, value));
        } else {
            findings.push(Finding::Unknown(inner));
        }
    }
    findings
}

/// Fields that have no effect, with the value (as JSON) that asks for nothing. A few name what is done here anyway:
/// swap is not looked at, control groups v1 are accepted, the runtime says which cgroup driver it uses.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("enableServer", "true"),
    ("staticPodPath", r#""""#),
    ("syncFrequency", r#""1m0s""#),
    ("fileCheckFrequency", r#""20s""#),
    ("httpCheckFrequency", r#""20s""#),
    ("staticPodURL", r#""""#),
    ("staticPodURLHeader", "{}"),
    ("readOnlyPort", "0"),
    ("tlsCipherSuites", "[]"),
    ("tlsCurvePreferences", "[]"),
    ("tlsMinVersion", r#""""#),
    ("rotateCertificates", "false"),
    ("serverTLSBootstrap", "false"),
    ("registryPullQPS", "5"),
    ("registryBurst", "10"),
    ("imagePullCredentialsVerificationPolicy", r#""NeverVerifyPreloadedImages""#),
    ("preloadedImagesVerificationAllowlist", "[]"),
    ("enableDebuggingHandlers", "true"),
    ("enableContentionProfiling", "false"),
    ("oomScoreAdj", "-999"),
    ("volumeStatsAggPeriod", r#""1m0s""#),
    ("kubeletCgroups", r#""""#),
    ("systemCgroups", r#""""#),
    ("cgroupsPerQOS", "true"),
    ("cgroupDriver", r#""cgroupfs""#),
    ("cpuManagerPolicy", r#""none""#),
    ("singleProcessOOMKill", "false"),
    ("cpuManagerPolicyOptions", "{}"),
    ("cpuManagerReconcilePeriod", r#""10s""#),
    ("memoryManagerPolicy", r#""None""#),
    ("topologyManagerPolicy", r#""none""#),
    ("topologyManagerScope", r#""container""#),
    ("topologyManagerPolicyOptions", "{}"),
    ("qosReserved", "{}"),
    ("hairpinMode", r#""promiscuous-bridge""#),
    ("podCIDR", r#""""#),
    ("runOnce", "false"),
    ("maxOpenFiles", "1000000"),
    ("contentType", r#""application/vnd.kubernetes.protobuf""#),
    ("kubeAPIQPS", "50"),
    ("kubeAPIBurst", "100"),
    ("evictionSoft", "{}"),
    ("evictionSoftGracePeriod", "{}"),
    ("evictionMaxPodGracePeriod", "0"),
    ("evictionMinimumReclaim", "{}"),
    ("mergeDefaultEvictionSettings", "false"),
    ("podsPerCore", "0"),
    ("enableControllerAttachDetach", "true"),
    ("protectKernelDefaults", "false"),
    ("makeIPTablesUtilChains", "true"),
    ("iptablesMasqueradeBit", "14"),
    ("iptablesDropBit", "15"),
    ("featureGates", "{}"),
    ("failSwapOn", "false"),
    ("memorySwap", "{}"),
    ("containerLogMaxWorkers", "1"),
    ("configMapAndSecretChangeDetectionStrategy", r#""Watch""#),
    ("reservedSystemCPUs", r#""""#),
    ("showHiddenMetricsForVersion", r#""""#),
    ("systemReservedCgroup", r#""""#),
    ("kubeReservedCgroup", r#""""#),
    ("enforceNodeAllocatable", r#"["pods"]"#),
    ("defaultPodSysctls", "[]"),
    ("volumePluginDir", r#""/usr/libexec/kubernetes/kubelet-plugins/volume/exec/""#),
    ("kernelMemcgNotification", "false"),
    ("logging", "{}"),
    ("enableSystemLogHandler", "true"),
    ("enableSystemLogQuery", "false"),
    ("shutdownGracePeriod", r#""0s""#),
    ("shutdownGracePeriodCriticalPods", r#""0s""#),
    ("shutdownGracePeriodByPodPriority", "[]"),
    ("reservedMemory", "[]"),
    ("enableProfilingHandler", "true"),
    ("enableDebugFlagsHandler", "true"),
    ("memoryThrottlingFactor", "0.9"),
    ("memoryReservationPolicy", r#""None""#),
    ("tracing", "{}"),
    ("localStorageCapacityIsolation", "true"),
    ("imageServiceEndpoint", r#""""#),
    ("failCgroupV1", "false"),
    ("userNamespaces", "{}"),
];
