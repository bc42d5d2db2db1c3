use super::super::spec::fixture::pod;
use super::super::view::Sandbox;
use super::*;
use serde_json::{Value, json};

fn container(name: &str, attempt: u32, phase: ContainerPhase, exit_code: i32) -> Running {
    Running {
        id: format!("{name}{attempt}"),
        name: name.into(),
        sandbox: "s".into(),
        attempt,
        phase,
        image: "img:1".into(),
        image_ref: "img@sha256:1".into(),
        created_at: i64::from(attempt),
        started_at: 5_000_000_000,
        finished_at: 6_000_000_000,
        exit_code,
        reason: String::new(),
        message: String::new(),
        hash: String::new(),
        log_path: Default::default(),
    }
}

struct Given {
    pod: Pod,
    containers: Vec<Running>,
    verdicts: Verdicts,
    waiting: Waiting,
    failed: Option<Failed>,
    ended: bool,
}

fn given(spec: Value, containers: Vec<Running>) -> Given {
    Given {
        pod: pod(spec),
        containers,
        verdicts: Verdicts::default(),
        waiting: Waiting::new(),
        failed: None,
        ended: false,
    }
}

impl Given {
    fn status(&self) -> PodStatus {
        let sandbox = Sandbox {
            id: "s".into(),
            ready: !self.ended,
            ips: vec![IpAddr::from([10, 244, 0, 5])],
            ..Sandbox::default()
        };
        status(Known {
            pod: &self.pod,
            view: &View { sandboxes: vec![sandbox], containers: self.containers.clone() },
            scheme: "containerd",
            verdicts: &self.verdicts,
            waiting: &self.waiting,
            failed: self.failed.as_ref(),
            ended: self.ended,
            host_ips: &[IpAddr::from([172, 31, 0, 2])],
            now: Timestamp::from_second(100).unwrap(),
        })
    }
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "img:1"}]})
}

fn phase(status: &PodStatus) -> &str {
    status.phase.as_deref().unwrap()
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> (&'a str, Option<&'a str>) {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap();
    (&found.status, found.reason.as_deref())
}

use ContainerPhase::{Exited, Running as Runs};

#[test]
fn phases() {
    let of = |policy, containers: Vec<Running>| phase(&given(one(policy), containers).status()).to_string();
    assert_eq!(of("Always", vec![]), "Pending");
    assert_eq!(of("Always", vec![container("a", 0, Runs, 0)]), "Running");
    assert_eq!(of("Always", vec![container("a", 0, Exited, 1)]), "Running");
    assert_eq!(of("Never", vec![container("a", 0, Exited, 0)]), "Succeeded");
    assert_eq!(of("Never", vec![container("a", 0, Exited, 1)]), "Failed");
    assert_eq!(of("OnFailure", vec![container("a", 0, Exited, 1)]), "Running");
}

#[test]
fn a_phase_never_goes_back() {
    let mut given = given(one("Always"), vec![]);
    let with = |phase: &str| Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() });
    given.pod.status = with("Running");
    assert_eq!(phase(&given.status()), "Running");
    given.pod.status = with("Failed");
    given.containers = vec![container("a", 0, Runs, 0)];
    assert_eq!(phase(&given.status()), "Failed");
}

#[test]
fn a_deleted_pod_ends_by_its_exit_codes() {
    let mut given = given(one("Always"), vec![container("a", 0, Exited, 137)]);
    given.ended = true;
    assert_eq!(phase(&given.status()), "Failed");
    given.containers = vec![container("a", 0, Exited, 0)];
    assert_eq!(phase(&given.status()), "Succeeded");
    assert_eq!(condition(&given.status(), "Ready"), ("False", Some("PodCompleted")));
}

#[test]
fn readiness_follows_the_probes() {
    let mut spec = one("Always");
    spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 80}});
    let mut given = given(spec, vec![container("a", 0, Runs, 0)]);
    assert_eq!(condition(&given.status(), "Ready"), ("False", Some("ContainersNotReady")));
    given.verdicts = Verdicts::default().with_readiness("a0", true);
    let status = given.status();
    assert_eq!(condition(&status, "Ready"), ("True", None));
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.5"));
    assert_eq!(status.host_ip.as_deref(), Some("172.31.0.2"));
}

#[test]
fn a_readiness_gate_closes_ready_alone_and_foreign_conditions_stay() {
    let mut spec = one("Always");
    spec["readinessGates"] = json!([{"conditionType": "example.org/lb"}]);
    let mut given = given(spec, vec![container("a", 0, Runs, 0)]);
    assert_eq!(condition(&given.status(), "Ready"), ("False", Some("ReadinessGatesNotReady")));
    assert_eq!(condition(&given.status(), "ContainersReady"), ("True", None));
    given.pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "example.org/lb", "status": "True"}]})).unwrap();
    assert_eq!(condition(&given.status(), "Ready"), ("True", None));
    assert_eq!(condition(&given.status(), "example.org/lb"), ("True", None));
}

#[test]
fn a_crash_loop_waits_with_its_last_end() {
    let mut given = given(one("Always"), vec![container("a", 1, Exited, 3), container("a", 0, Exited, 2)]);
    given.waiting.insert("a".into(), ("CrashLoopBackOff", "back-off".into()));
    let status = given.status();
    let first = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(first.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(first.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    assert_eq!(first.restart_count, 1);
    given.waiting.clear();
    let status = given.status();
    let first = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(first.state.as_ref().unwrap().terminated.as_ref().unwrap().reason.as_deref(), Some("Error"));
    assert_eq!(first.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 2);
}

#[test]
fn init_containers_hold_the_pod_pending() {
    let mut spec = one("Always");
    spec["initContainers"] = json!([{"name": "i", "image": "img:1"}]);
    let going = given(spec.clone(), vec![container("i", 0, Runs, 0)]).status();
    assert_eq!(phase(&going), "Pending");
    assert_eq!(condition(&going, "Initialized"), ("False", Some("ContainersNotInitialized")));
    let waiting = going.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
    let done = given(spec, vec![container("a", 0, Runs, 0), container("i", 0, Exited, 0)]).status();
    assert_eq!((phase(&done), condition(&done, "Initialized")), ("Running", ("True", None)));
}
