//! kube-proxy's metrics, by its names. Both families are written as one, so that no metric has the label `ip_family`.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::config::Mode;
use crate::sync::{Report, Step};

/// A label and its value.
type Label = [(&'static str, &'static str); 1];

#[derive(Debug, Clone)]
pub struct Metrics {
    sync: Histogram,
    full: Histogram,
    partial: Histogram,
    programming: Histogram,
    reconciling: Histogram,
    last: Gauge<f64, AtomicU64>,
    queued: Gauge<f64, AtomicU64>,
    failures: Counter,
    partial_failures: Counter,
    service_changes: Changes,
    endpoint_changes: Changes,
    ended_flows: Counter,
    no_local_endpoints: Family<Label, Gauge>,
    healthz: Family<Label, Counter>,
    livez: Family<Label, Counter>,
}

/// Changes of one kind of object.
#[derive(Debug, Clone, Default)]
struct Changes {
    total: Counter,
    /// Those that wait for the next sync.
    pending: Gauge,
}

fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// kube-proxy's buckets: seconds for a minute, then coarser up to five.
fn programming() -> Histogram {
    let steps = |from: u32, by: usize, until: u32| (from..until).step_by(by).map(f64::from);
    Histogram::new([0.25, 0.5].into_iter().chain(steps(1, 1, 60)).chain(steps(60, 5, 120)).chain(steps(120, 30, 301)))
}

impl Metrics {
    /// Registers those of the mode in `registry`.
    pub fn new(registry: &mut Registry, mode: Mode) -> Self {
        let metrics = Self {
            sync: durations(),
            full: durations(),
            partial: durations(),
            programming: programming(),
            reconciling: durations(),
            last: Gauge::default(),
            queued: Gauge::default(),
            failures: Counter::default(),
            partial_failures: Counter::default(),
            service_changes: Changes::default(),
            endpoint_changes: Changes::default(),
            ended_flows: Counter::default(),
            no_local_endpoints: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        metrics.register_syncs(registry, mode);
        metrics.register_changes(registry);
        registry.register("proxy_healthz", "Cumulative proxy healthz HTTP status", metrics.healthz.clone());
        registry.register("proxy_livez", "Cumulative proxy livez HTTP status", metrics.livez.clone());
        metrics
    }

    fn register_syncs(&self, registry: &mut Registry, mode: Mode) {
        registry.register("sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", self.sync.clone());
        let failures = match mode {
            Mode::Nftables => "sync_proxy_rules_nftables_sync_failures",
            Mode::Iptables | Mode::Ipvs => "sync_proxy_rules_iptables_restore_failures",
        };
        registry.register(failures, "Cumulative failures to write the proxy's rules", self.failures.clone());
        if mode == Mode::Iptables {
            registry.register(
                "sync_proxy_rules_iptables_partial_restore_failures",
                "Cumulative proxy iptables partial restore failures",
                self.partial_failures.clone(),
            );
        }
        for (histogram, kind) in [(&self.full, "full"), (&self.partial, "partial")] {
            registry.register(
                format!("sync_{kind}_proxy_rules_duration_seconds"),
                format!("SyncProxyRules latency in seconds for {kind} resyncs"),
                histogram.clone(),
            );
        }
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
            self.last.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "The last time a sync of proxy rules was queued",
            self.queued.clone(),
        );
        registry.register(
            "network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
            self.programming.clone(),
        );
        registry.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Latency in seconds of looking for stale tracked flows",
            self.reconciling.clone(),
        );
        registry.register(
            "conntrack_reconciler_deleted_entries",
            "Cumulative stale tracked flows that were ended",
            self.ended_flows.clone(),
        );
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Number of services with a Local traffic policy and no endpoints",
            self.no_local_endpoints.clone(),
        );
    }

    fn register_changes(&self, registry: &mut Registry) {
        for (kind, changes) in [("Service", &self.service_changes), ("Endpoint", &self.endpoint_changes)] {
            let name = format!("sync_proxy_rules_{}_changes", kind.to_lowercase());
            registry.register(&name, format!("Cumulative proxy rules {kind} changes"), changes.total.clone());
            registry.register(
                format!("{name}_pending"),
                format!("Pending proxy rules {kind} changes"),
                changes.pending.clone(),
            );
        }
    }

    /// A change of a Service or of endpoints that waits for the next sync.
    pub fn changed(&self, is_service: bool) {
        let changes = if is_service { &self.service_changes } else { &self.endpoint_changes };
        changes.total.inc();
        changes.pending.inc();
    }

    /// Something waits for the next sync.
    pub fn queued(&self) {
        self.queued.set(seconds(SystemTime::now()));
    }

    /// A successful sync that took `took`; `triggers` are the moments when what it programmed had happened.
    pub fn synced(&self, took: Duration, step: Step, report: &Report, triggers: &[SystemTime]) {
        let now = SystemTime::now();
        self.sync.observe(took.as_secs_f64());
        let kind = if matches!(step, Step::Full { .. }) { &self.full } else { &self.partial };
        kind.observe(took.as_secs_f64());
        self.last.set(seconds(now));
        for trigger in triggers {
            self.programming.observe(now.duration_since(*trigger).unwrap_or_default().as_secs_f64());
        }
        self.service_changes.pending.set(0);
        self.endpoint_changes.pending.set(0);
        for (policy, count) in [("internal", report.lacking.inside), ("external", report.lacking.outside)] {
            self.no_local_endpoints
                .get_or_create(&[("traffic_policy", policy)])
                .set(count.try_into().unwrap_or(i64::MAX));
        }
        if let Some(reconciled) = &report.reconciled {
            self.reconciling.observe(reconciled.took.as_secs_f64());
            self.ended_flows.inc_by(reconciled.ended);
        }
    }

    /// A sync that the kernel refused; a partial one is followed by a full one.
    pub fn failed(&self, partial: bool) {
        self.failures.inc();
        if partial {
            self.partial_failures.inc();
        }
    }

    pub fn healthz(&self, ok: bool) {
        self.healthz.get_or_create(&code(ok)).inc();
    }

    pub fn livez(&self, ok: bool) {
        self.livez.get_or_create(&code(ok)).inc();
    }
}

fn code(ok: bool) -> Label {
    [("code", if ok { "200" } else { "503" })]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Lacking, Reconciled};

    /// What kube-proxy 1.37 has in each mode, without what counts packets by nfacct, and rules of iptables.
    const EVERYWHERE: [&str; 14] = [
        "conntrack_reconciler_deleted_entries_total",
        "conntrack_reconciler_sync_duration_seconds_count",
        "network_programming_duration_seconds_count",
        "proxy_healthz_total",
        "proxy_livez_total",
        "sync_proxy_rules_duration_seconds_count",
        "sync_proxy_rules_endpoint_changes_pending",
        "sync_proxy_rules_endpoint_changes_total",
        "sync_proxy_rules_last_queued_timestamp_seconds",
        "sync_proxy_rules_last_timestamp_seconds",
        "sync_proxy_rules_no_local_endpoints_total",
        "sync_proxy_rules_service_changes_pending",
        "sync_proxy_rules_service_changes_total",
        "sync_full_proxy_rules_duration_seconds_count",
    ];

    #[test]
    fn every_mode_has_kube_proxys_names() {
        let report = Report {
            lacking: Lacking { inside: 1, outside: 2 },
            reconciled: Some(Reconciled { took: Duration::from_millis(1), ended: 3 }),
        };
        for (mode, own) in [
            (Mode::Nftables, "sync_proxy_rules_nftables_sync_failures_total"),
            (Mode::Iptables, "sync_proxy_rules_iptables_partial_restore_failures_total"),
            (Mode::Ipvs, "sync_proxy_rules_iptables_restore_failures_total"),
        ] {
            let mut registry = Registry::default();
            let metrics = Metrics::new(&mut registry, mode);
            metrics.changed(true);
            metrics.healthz(true);
            metrics.livez(false);
            assert!(text(&registry).contains("kubeproxy_sync_proxy_rules_service_changes_pending 1\n"));
            metrics.synced(Duration::from_millis(2), Step::Partial { services: 1 }, &report, &[]);
            metrics.failed(true);
            let said = text(&registry);
            let samples: Vec<&str> =
                said.lines().filter_map(|line| line.strip_prefix("kubeproxy_")?.split([' ', '{']).next()).collect();
            for name in EVERYWHERE.iter().chain([&own]) {
                assert!(samples.contains(name), "{mode:?}: {name} is missing in {said}");
            }
            for line in [
                "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
                "kubeproxy_proxy_livez_total{code=\"503\"} 1",
                "kubeproxy_sync_proxy_rules_service_changes_pending 0",
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 2",
                "kubeproxy_conntrack_reconciler_deleted_entries_total 3",
                "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\"} 0",
            ] {
                assert!(said.lines().any(|found| found == line), "{mode:?}: {line} is missing in {said}");
            }
        }
    }
}
