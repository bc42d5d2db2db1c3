//! kube-proxy's metrics, by its names.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::config::Mode;
use crate::sync::Step;

#[derive(Debug, Clone)]
pub struct Metrics {
    sync: Histogram,
    full: Histogram,
    partial: Histogram,
    programming: Histogram,
    last: Gauge<f64, AtomicU64>,
    queued: Gauge<f64, AtomicU64>,
    pub failures: Counter,
    pub service_changes: Counter,
    pub endpoint_changes: Counter,
}

impl Metrics {
    /// Registers all in `registry`.
    pub fn new(registry: &mut Registry, mode: Mode) -> Self {
        let durations = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let metrics = Self {
            sync: durations(),
            full: durations(),
            partial: durations(),
            programming: Histogram::new(exponential_buckets(0.25, 2.0, 12)),
            last: Gauge::default(),
            queued: Gauge::default(),
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
        for (histogram, kind) in [(&metrics.full, "full"), (&metrics.partial, "partial")] {
            registry.register(
                name(&format!("sync_{kind}_proxy_rules_duration_seconds")),
                format!("SyncProxyRules latency in seconds for {kind} resyncs"),
                histogram.clone(),
            );
        }
        registry.register(
            name("sync_proxy_rules_last_queued_timestamp_seconds"),
            "The last time a sync of proxy rules was queued",
            metrics.queued.clone(),
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
        let (failures, what) = match mode {
            Mode::Nftables => ("sync_proxy_rules_nftables_sync_failures", "Cumulative proxy nftables sync failures"),
            _ => ("sync_proxy_rules_iptables_restore_failures", "Cumulative proxy iptables restore failures"),
        };
        registry.register(name(failures), what, metrics.failures.clone());
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

    /// A change that waits for the next sync.
    pub fn queued(&self) {
        self.queued.set(seconds(SystemTime::now()));
    }

    /// A successful sync that took `took`; `triggers` are the moments when what it programmed had happened.
    pub fn synced(&self, took: Duration, step: Step, triggers: &[SystemTime]) {
        let now = SystemTime::now();
        self.sync.observe(took.as_secs_f64());
        let kind = if matches!(step, Step::Full { .. }) { &self.full } else { &self.partial };
        kind.observe(took.as_secs_f64());
        self.last.set(seconds(now));
        for trigger in triggers {
            self.programming.observe(now.duration_since(*trigger).unwrap_or_default().as_secs_f64());
        }
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The text that Prometheus reads.
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing into a String does not fail.
    let _ = encode(&mut text, registry);
    text
}
