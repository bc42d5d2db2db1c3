//! What `kubectl get pods` shows.

use serde_json::Value;

use super::super::cells::{self, or_none};
use super::super::object::{list, number, text};
use crate::registry::Column;

pub(super) const COLUMNS: &[Column] = &[
    cells::column("Ready", "string", "The aggregate readiness state of this pod for accepting traffic.", |o, _| {
        let summary = Summary::of(o);
        format!("{}/{}", summary.ready, summary.total).into()
    }),
    cells::column("Status", "string", "The aggregate status of the containers in this pod.", |o, _| {
        Summary::of(o).reason.into()
    }),
    cells::column(
        "Restarts",
        "string",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
        |o, now| Summary::of(o).restarts(now).into(),
    ),
    cells::AGE,
    cells::wide("IP", "Address of the pod.", |o, _| or_none(text(o, "/status/podIPs/0/ip")).into()),
    cells::wide("Node", "The node on which the pod runs.", |o, _| or_none(text(o, "/spec/nodeName")).into()),
    cells::wide("Nominated Node", "The node on which room is being made for the pod.", |o, _| {
        or_none(text(o, "/status/nominatedNodeName")).into()
    }),
    cells::wide("Readiness Gates", "How many of the readiness gates are true.", |o, _| gates(o).into()),
];

fn gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return cells::NONE.into();
    }
    let open = gates.iter().filter(|gate| condition(pod, text(gate, "/conditionType")) == Some("True")).count();
    format!("{open}/{}", gates.len())
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    list(pod, "/status/conditions").iter().find(|c| c["type"] == kind).map(|c| text(c, "/status"))
}

/// A pod in three words.
#[derive(Debug, PartialEq)]
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// When the last of the restarts was, as the end of the run before it.
    last: Option<i64>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let phase = text(pod, "/status/phase");
        let stated = text(pod, "/status/reason");
        let gated = list(pod, "/status/conditions")
            .iter()
            .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
        let reason = match stated {
            _ if gated => "SchedulingGated",
            "" => phase,
            stated => stated,
        };
        let total = list(pod, "/spec/containers").len()
            + list(pod, "/spec/initContainers").iter().filter(|c| is_sidecar(c)).count();
        let mut summary = Self { ready: 0, total, reason: reason.to_owned(), restarts: 0, last: None };
        let (initializing, sidecars) = summary.init_containers(pod);
        if !initializing || condition(pod, "Initialized") == Some("True") {
            (summary.restarts, summary.last) = sidecars;
            summary.containers(pod);
        }
        let terminal = matches!(phase, "Succeeded" | "Failed");
        if api::meta::is_deleted(pod) && stated == "NodeLost" {
            summary.reason = "Unknown".into();
        } else if api::meta::is_deleted(pod) && !terminal {
            summary.reason = "Terminating".into();
        }
        summary
    }

    /// Whether an init container still holds the pod up, and the restarts of the sidecars alone.
    fn init_containers(&mut self, pod: &Value) -> (bool, (i64, Option<i64>)) {
        let mut sidecars = (0, None);
        let specs = list(pod, "/spec/initContainers");
        for (i, status) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            let sidecar = specs.iter().any(|spec| spec["name"] == status["name"] && is_sidecar(spec));
            self.count(status);
            if sidecar {
                sidecars = (sidecars.0 + number(status, "/restartCount"), sidecars.1.max(last_end(status)));
            }
            let state = &status["state"];
            if state["terminated"].is_object() && number(state, "/terminated/exitCode") == 0 {
                continue;
            }
            if sidecar && status["started"] == true {
                self.ready += usize::from(status["ready"] == true);
                continue;
            }
            let waiting = text(state, "/waiting/reason");
            self.reason = if state["terminated"].is_object() {
                format!("Init:{}", end_reason(&state["terminated"]))
            } else if !matches!(waiting, "" | "PodInitializing") {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", specs.len())
            };
            return (true, sidecars);
        }
        (false, sidecars)
    }

    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        let mut failure = None;
        for status in list(pod, "/status/containerStatuses").iter().rev() {
            self.count(status);
            let state = &status["state"];
            let waiting = text(state, "/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if state["terminated"].is_object() {
                self.reason = end_reason(&state["terminated"]);
                if number(state, "/terminated/exitCode") != 0 {
                    failure = Some(self.reason.clone());
                }
            } else if status["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            if running && condition(pod, "Ready") == Some("True") {
                self.reason = "Running".into();
            } else if let Some(failure) = failure {
                self.reason = failure;
            } else if running {
                self.reason = "NotReady".into();
            }
        }
    }

    fn count(&mut self, status: &Value) {
        self.restarts += number(status, "/restartCount");
        self.last = self.last.max(last_end(status));
    }

    fn restarts(&self, now: i64) -> String {
        match self.last {
            Some(_) if self.restarts != 0 => format!("{} ({} ago)", self.restarts, cells::since(self.last, now)),
            _ => self.restarts.to_string(),
        }
    }
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

fn last_end(status: &Value) -> Option<i64> {
    api::time::parse(text(status, "/lastState/terminated/finishedAt")).map(|(seconds, _)| seconds)
}

/// As `OOMKilled`, `Signal:9` or `ExitCode:1`.
fn end_reason(terminated: &Value) -> String {
    match (text(terminated, "/reason"), number(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
