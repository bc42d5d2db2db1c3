//! kube-proxy's metrics, by its names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone)]
pub struct Metrics {
    sync: Histogram,
    programming: Histogram,
    last: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub failures: Counter,
    pub service_changes: Counter,
    pub endpoint_changes: Counter,
}

impl Metrics {
    /// Registers all in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            sync: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            programming: Histogram::new(exponential_buckets(0.25, 2.0, 12)),
            last: Gauge::default(),
            failures: Counter::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
        };
        let name = |rest: &str| format!("kubeproxy_{rest}");
        registry.register(
            name("sync_proxy_rules_duration_seconds"),
            "SyncProxyRules latency in seconds",
            metrics.sync.clone(),
        );
        registry.register(
            name("network_programming_duration_seconds"),
            "In Cluster Network Programming Latency in seconds",
            metrics.programming.clone(),
        );
        registry.register(
            name("sync_proxy_rules_last_timestamp_seconds"),
            "The last time proxy rules were successfully synced",
            metrics.last.clone(),
        );
        registry.register(
            name("sync_proxy_rules_nftables_sync_failures"),
            "Cumulative proxy nftables sync failures",
            metrics.failures.clone(),
        );
        registry.register(
            name("sync_proxy_rules_service_changes"),
            "Cumulative proxy rules Service changes",
            metrics.service_changes.clone(),
        );
        registry.register(
            name("sync_proxy_rules_endpoint_changes"),
            "Cumulative proxy rules Endpoint changes",
            metrics.endpoint_changes.clone(),
        );
        metrics
    }

    /// A successful sync that took `took`; `triggers` are the moments when what it programmed had happened.
    pub fn synced(&self, took: Duration, triggers: &[SystemTime]) {
        let now = SystemTime::now();
        self.sync.observe(took.as_secs_f64());
        self.last.set(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        for trigger in triggers {
            self.programming.observe(now.duration_since(*trigger).unwrap_or_default().as_secs_f64());
        }
    }
}

/// The text that Prometheus reads.
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing into a String does not fail.
    let _ = encode(&mut text, registry);
    text
}
