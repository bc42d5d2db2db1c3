//! How often probes ran and what they found: `/metrics/probes`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;

use super::{Outcome, ProbeKind};

/// Series that are kept at most between two looks at them.
const MAX_SERIES: usize = 10_000;

/// One probe of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    container: String,
    namespace: String,
    pod: String,
    uid: String,
    kind: ProbeKind,
    result: &'static str,
}

/// Counts of this process's probes.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<Series, u64>>);

/// The counts of all probes that this process runs; like a log, they belong to the process.
pub static COUNTS: Counts = Counts(Mutex::new(BTreeMap::new()));

impl Counts {
    /// Counts one run of a probe.
    pub fn record(&self, pod: &Pod, container: &str, kind: ProbeKind, outcome: &Outcome) {
        let meta = &pod.metadata;
        let series = Series {
            container: container.into(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            pod: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            kind,
            result: match outcome {
                Outcome::Success | Outcome::Warning(_) => "successful",
                Outcome::Failure(_) => "failed",
                Outcome::Unknown(_) => "unknown",
            },
        };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() < MAX_SERIES || counts.contains_key(&series) {
            *counts.entry(series).or_default() += 1;
        }
    }

    /// The counts in Prometheus' text format. Those of pods that are not `living` (by uid) are dropped.
    pub fn exposition(&self, living: impl Fn(&str) -> bool) -> String {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|series, _| living(&series.uid));
        let name = "prober_probe_total";
        let help = "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
        let mut out = format!("# HELP {name} {help}\n# TYPE {name} counter\n");
        for (s, count) in counts.iter() {
            let _ = writeln!(
                out,
                "{name}{{container=\"{}\",namespace=\"{}\",pod=\"{}\",pod_uid=\"{}\",probe_type=\"{}\",result=\"{}\"}} {count}",
                s.container,
                s.namespace,
                s.pod,
                s.uid,
                s.kind.as_str(),
                s.result
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_by_result_until_their_pod_is_gone() {
        let counts = Counts::default();
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}))
                .unwrap();
        for outcome in [Outcome::Success, Outcome::Success, Outcome::Failure(String::new())] {
            counts.record(&pod, "c", ProbeKind::Readiness, &outcome);
        }
        let labels = "container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",probe_type=\"Readiness\"";
        let text = counts.exposition(|uid| uid == "u");
        assert!(text.contains(&format!("prober_probe_total{{{labels},result=\"successful\"}} 2\n")), "{text}");
        assert!(text.contains("result=\"failed\"} 1\n"));
        assert!(!counts.exposition(|_| false).contains(labels));
    }
}
