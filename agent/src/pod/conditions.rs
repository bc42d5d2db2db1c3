//! The conditions of a pod that are the agent's; all others are kept as they are.

use super::report::{Known, seconds};
use super::spec;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The conditions that the agent writes.
pub const OWN: &[&str] = &["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

const TRUE: Verdict = Verdict { holds: true, reason: None, message: None };

fn no(reason: &'static str, message: String) -> Verdict {
    Verdict { holds: false, reason: Some(reason), message: Some(message).filter(|message| !message.is_empty()) }
}

/// The pod's conditions: ours by `status`, those of others as the API has them.
pub fn conditions(known: Known<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let old = known.pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let foreign = old.iter().filter(|condition| !OWN.contains(&condition.type_.as_str())).cloned();
    let containers = containers_ready(known, status);
    let ready = if containers.holds { gates_open(known, &old) } else { clone(&containers) };
    let network = Verdict { holds: known.view.ready_sandbox().is_some(), reason: None, message: None };
    let scheduled = TRUE;
    let verdicts = [
        ("PodReadyToStartContainers", network),
        ("Initialized", initialized(known, status)),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", scheduled),
    ];
    let ours = verdicts.into_iter().map(|(kind, verdict)| condition(known, kind, verdict, &old));
    ours.chain(foreign).collect()
}

fn clone(verdict: &Verdict) -> Verdict {
    Verdict { holds: verdict.holds, reason: verdict.reason, message: verdict.message.clone() }
}

fn condition(known: Known<'_>, kind: &str, verdict: Verdict, old: &[PodCondition]) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = old.iter().find(|condition| condition.type_ == kind);
    let since = before.filter(|before| before.status == status).and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: kind.to_string(),
        status: status.to_string(),
        reason: verdict.reason.map(str::to_string),
        message: verdict.message,
        last_transition_time: since.or_else(|| Some(Time(seconds(known.now)))),
        last_probe_time: None,
        observed_generation: known.pod.metadata.generation,
    }
}

fn by_name<'a>(list: &'a Option<Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    list.iter().flatten().find(|status| status.name == name)
}

fn containers_ready(known: Known<'_>, status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Succeeded") => return no("PodCompleted", String::new()),
        Some("Failed") => return no("PodFailed", String::new()),
        _ => {}
    }
    let sidecars = spec::init_containers(known.pod).iter().filter(|container| spec::is_sidecar(container));
    let ready =
        |list: &Option<Vec<ContainerStatus>>, name: &str| by_name(list, name).is_some_and(|status| status.ready);
    let unready: Vec<&str> = sidecars
        .filter(|container| !ready(&status.init_container_statuses, &container.name))
        .chain(
            spec::containers(known.pod).iter().filter(|container| !ready(&status.container_statuses, &container.name)),
        )
        .map(|container| container.name.as_str())
        .collect();
    if unready.is_empty() {
        return TRUE;
    }
    no("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
}

fn gates_open(known: Known<'_>, old: &[PodCondition]) -> Verdict {
    let gates = known.pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let messages: Vec<String> = gates
        .filter_map(|gate| match old.iter().find(|condition| condition.type_ == gate.condition_type) {
            None => {
                Some(format!("corresponding condition of pod readiness gate {:?} does not exist.", gate.condition_type))
            }
            Some(condition) if condition.status == "True" => None,
            Some(condition) => Some(format!(
                "the status of pod readiness gate {:?} is not \"True\", but {}",
                gate.condition_type, condition.status
            )),
        })
        .collect();
    if messages.is_empty() { TRUE } else { no("ReadinessGatesNotReady", messages.join(", ")) }
}

fn initialized(known: Known<'_>, status: &PodStatus) -> Verdict {
    if status.phase.as_deref() == Some("Succeeded") {
        return Verdict { holds: true, reason: Some("PodCompleted"), message: None };
    }
    let started = |status: &ContainerStatus| status.started == Some(true) || status.container_id.is_some();
    if status.container_statuses.iter().flatten().any(started) {
        return TRUE;
    }
    let done = |container: &&k8s_openapi::api::core::v1::Container| {
        by_name(&status.init_container_statuses, &container.name)
            .is_some_and(|status| if spec::is_sidecar(container) { status.started == Some(true) } else { status.ready })
    };
    let waiting: Vec<&str> = spec::init_containers(known.pod)
        .iter()
        .filter(|container| !done(container))
        .map(|container| container.name.as_str())
        .collect();
    if waiting.is_empty() {
        return TRUE;
    }
    no("ContainersNotInitialized", format!("containers with incomplete status: [{}]", waiting.join(" ")))
}
