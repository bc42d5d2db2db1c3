//! The status that the API is told: a function of the pod, the runtime's view and the probes' verdicts.

use super::conditions;
use super::decide::should_restart;
use super::lookup::ContainerPhase;
use super::spec::{self, RestartPolicy};
use super::view::{Container as Running, View};
use crate::probe::Verdicts;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::collections::HashMap;
use std::net::IpAddr;

/// Why a container waits: reason and message.
pub type Waiting = HashMap<String, (&'static str, String)>;

/// A verdict on the whole pod: it failed for this reason, whatever its containers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub reason: String,
    pub message: String,
}

/// All that a status rests on.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// With the status that the API has.
    pub pod: &'a Pod,
    pub view: &'a View,
    /// In which container ids are told, as `containerd`.
    pub scheme: &'a str,
    pub verdicts: &'a Verdicts,
    pub waiting: &'a Waiting,
    pub failed: Option<&'a Failed>,
    /// No container runs any more and none will.
    pub ended: bool,
    pub host_ips: &'a [IpAddr],
    pub now: Timestamp,
}

/// The pod's status.
pub fn status(known: Known<'_>) -> PodStatus {
    let Known { pod, .. } = known;
    let old = pod.status.clone().unwrap_or_default();
    let inits = spec::init_containers(pod);
    let has_inits = !inits.is_empty();
    let previous = |list: &Option<Vec<ContainerStatus>>, name: &str| {
        list.iter().flatten().find(|status| status.name == name).cloned()
    };
    let init_statuses: Vec<ContainerStatus> = inits
        .iter()
        .map(|container| {
            of_container(known, container, previous(&old.init_container_statuses, &container.name), Role::Init)
        })
        .collect();
    let role = if has_inits { Role::AfterInit } else { Role::Ordinary };
    let statuses: Vec<ContainerStatus> = spec::containers(pod)
        .iter()
        .map(|container| of_container(known, container, previous(&old.container_statuses, &container.name), role))
        .collect();
    let phase = phase(known, &init_statuses, &statuses);
    let ips: Vec<String> = pod_ips(known).iter().map(ToString::to_string).collect();
    let host_ips: Vec<HostIP> = known.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect();
    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        phase: Some(phase.to_string()),
        reason: known.failed.map(|failed| failed.reason.clone()).or_else(|| terminal_only(&old, old.reason.clone())),
        message: known.failed.map(|failed| failed.message.clone()).or_else(|| terminal_only(&old, old.message.clone())),
        host_ip: host_ips.first().map(|ip| ip.ip.clone()),
        host_ips: Some(host_ips).filter(|ips| !ips.is_empty()),
        pod_ip: ips.first().cloned(),
        pod_ips: Some(ips.into_iter().map(|ip| PodIP { ip }).collect::<Vec<_>>()).filter(|ips| !ips.is_empty()),
        start_time: old.start_time.clone().or_else(|| Some(Time(seconds(known.now)))),
        qos_class: old.qos_class.clone().or_else(|| pod.spec.as_ref().map(|spec| spec::qos_class(spec).to_string())),
        init_container_statuses: has_inits.then_some(init_statuses),
        container_statuses: Some(statuses).filter(|statuses| !statuses.is_empty()),
        ..old
    };
    status.conditions = Some(conditions::conditions(known, &status));
    status
}

/// A status for a pod that the node refused to run.
pub fn rejected(pod: &Pod, failed: &Failed, now: Timestamp) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    PodStatus {
        observed_generation: pod.metadata.generation,
        phase: Some("Failed".into()),
        reason: Some(failed.reason.clone()),
        message: Some(failed.message.clone()),
        start_time: old.start_time.clone().or_else(|| Some(Time(seconds(now)))),
        ..old
    }
}

fn terminal_only(old: &PodStatus, value: Option<String>) -> Option<String> {
    matches!(old.phase.as_deref(), Some("Failed" | "Succeeded")).then_some(value).flatten()
}

fn pod_ips(known: Known<'_>) -> Vec<IpAddr> {
    if spec::is_host_network(known.pod) {
        return if known.view.sandboxes.is_empty() { Vec::new() } else { known.host_ips.to_vec() };
    }
    let told = || {
        let status = known.pod.status.as_ref();
        status
            .and_then(|status| status.pod_ips.as_ref())
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.ip.parse().ok())
            .collect()
    };
    match known.view.sandboxes.first() {
        Some(sandbox) if sandbox.ready => sandbox.ips.clone(),
        // The last address stays in the status of a pod that ended.
        _ => told(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Ordinary,
    /// An ordinary container of a pod with init containers.
    AfterInit,
}

fn of_container(known: Known<'_>, container: &Container, old: Option<ContainerStatus>, role: Role) -> ContainerStatus {
    let mut status = match known.view.latest(&container.name) {
        Some(latest) => of_running(known, container, latest),
        None => unseen(known, container, old, role),
    };
    let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
    let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    if role == Role::Init && !spec::is_sidecar(container) {
        status.ready = terminated.is_some_and(|ended| ended.exit_code == 0);
        status.started = Some(running);
    } else {
        let id = known.view.latest(&container.name).map(|latest| latest.id.as_str()).unwrap_or_default();
        let started = running && (container.startup_probe.is_none() || known.verdicts.started(id) == Some(true));
        let ready = started && (container.readiness_probe.is_none() || known.verdicts.ready(id) == Some(true));
        status.started = Some(started);
        status.ready = ready;
    }
    status
}

fn of_running(known: Known<'_>, container: &Container, latest: &Running) -> ContainerStatus {
    let before = known.view.previous(&container.name).filter(|previous| previous.phase == ContainerPhase::Exited);
    let waiting = known.waiting.get(&container.name);
    let last =
        before.map(|previous| ContainerState { terminated: Some(terminated(known, previous)), ..Default::default() });
    let (state, last) = match latest.phase {
        ContainerPhase::Running => {
            let started_at = Some(time(latest.started_at));
            (ContainerState { running: Some(ContainerStateRunning { started_at }), ..Default::default() }, last)
        }
        ContainerPhase::Exited => {
            let ended = ContainerState { terminated: Some(terminated(known, latest)), ..Default::default() };
            let again = !known.ended && should_restart(container, known.pod, latest);
            match waiting.filter(|_| again || spec::is_sidecar(container)) {
                Some(waiting) => (waits(waiting), Some(ended)),
                None => (ended, last),
            }
        }
        ContainerPhase::Created | ContainerPhase::Unknown => {
            (waiting.map_or_else(|| waits(&("ContainerCreating", String::new())), waits), last)
        }
    };
    let resources = container.resources.clone();
    ContainerStatus {
        name: container.name.clone(),
        image: if latest.image.is_empty() || latest.image.starts_with("sha256:") {
            container.image.clone().unwrap_or_default()
        } else {
            latest.image.clone()
        },
        image_id: latest.image_ref.clone(),
        container_id: Some(container_id(known, latest)),
        restart_count: i32::try_from(latest.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        allocated_resources: resources.as_ref().and_then(|resources| resources.requests.clone()),
        resources,
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    }
}

/// A container that the runtime does not have (yet, or any more).
fn unseen(known: Known<'_>, container: &Container, old: Option<ContainerStatus>, role: Role) -> ContainerStatus {
    let old = old.unwrap_or_default();
    if old.state.as_ref().is_some_and(|state| state.terminated.is_some()) {
        return old;
    }
    let default = if role == Role::Ordinary { "ContainerCreating" } else { "PodInitializing" };
    let state = match known.waiting.get(&container.name) {
        Some(waiting) => waits(waiting),
        None => waits(&(default, String::new())),
    };
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: old.restart_count,
        state: Some(state),
        last_state: Some(old.last_state.unwrap_or_default()),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    };
    if old.state.as_ref().is_some_and(|state| state.running.is_some()) {
        // It ran, and nobody knows how it ended.
        let lost = ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("The container could not be located when the pod was terminated".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        if known.ended || spec::restart_policy(known.pod) == RestartPolicy::Never {
            status.state = Some(lost);
        } else {
            status.last_state = Some(lost);
            status.restart_count = old.restart_count + 1;
        }
    }
    status
}

fn waits((reason, message): &(&'static str, String)) -> ContainerState {
    let message = Some(message.clone()).filter(|message| !message.is_empty());
    let waiting = ContainerStateWaiting { reason: Some((*reason).into()), message };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn container_id(known: Known<'_>, container: &Running) -> String {
    format!("{}://{}", known.scheme, container.id)
}

fn terminated(known: Known<'_>, ended: &Running) -> ContainerStateTerminated {
    let reason = match (ended.reason.as_str(), ended.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    ContainerStateTerminated {
        container_id: Some(container_id(known, ended)),
        exit_code: ended.exit_code,
        reason: Some(reason.into()),
        message: Some(ended.message.clone()).filter(|message| !message.is_empty()),
        started_at: Some(time(ended.started_at)),
        finished_at: Some(time(ended.finished_at)),
        ..Default::default()
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only.filter(|read_only| *read_only),
        recursive_read_only: (mount.read_only == Some(true)).then(|| "Disabled".to_string()),
        ..VolumeMountStatus::default()
    };
    Some(mounts.iter().map(status).collect())
}

fn phase(known: Known<'_>, inits: &[ContainerStatus], statuses: &[ContainerStatus]) -> &'static str {
    let old = spec::phase(known.pod);
    if known.failed.is_some() || old == "Failed" {
        return "Failed";
    }
    if old == "Succeeded" {
        return "Succeeded";
    }
    let computed = computed_phase(known, inits, statuses);
    // A phase never goes back: a pod that ran is not pending again.
    if computed == "Pending" && old == "Running" { "Running" } else { computed }
}

fn computed_phase(known: Known<'_>, inits: &[ContainerStatus], statuses: &[ContainerStatus]) -> &'static str {
    let state = |status: &ContainerStatus| status.state.clone().unwrap_or_default();
    let ended_last =
        |status: &ContainerStatus| status.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
    let exit = |status: &ContainerStatus| state(status).terminated.map(|ended| ended.exit_code);
    let never = spec::restart_policy(known.pod) == RestartPolicy::Never;
    let (mut pending, mut failed) = (false, false);
    for (container, status) in spec::init_containers(known.pod).iter().zip(inits) {
        if spec::is_sidecar(container) {
            let waits = state(status).waiting.is_some() && !ended_last(status);
            let starting = state(status).running.is_some() && status.started != Some(true);
            pending |= waits || starting;
        } else {
            failed |= exit(status).is_some_and(|code| code != 0);
            pending |= exit(status) != Some(0);
        }
    }
    let ordinary_started = statuses.iter().any(|status| status.container_id.is_some());
    if failed && (never || known.ended) {
        return "Failed";
    }
    if pending && !ordinary_started {
        return if known.ended { "Failed" } else { "Pending" };
    }
    let count = |test: &dyn Fn(&ContainerStatus) -> bool| statuses.iter().filter(|status| test(status)).count();
    let running = count(&|status| state(status).running.is_some());
    let waiting = count(&|status| state(status).waiting.is_some() && !ended_last(status));
    let succeeded = count(&|status| exit(status) == Some(0));
    if known.ended {
        return if succeeded == statuses.len() { "Succeeded" } else { "Failed" };
    }
    match (waiting, running) {
        (1.., _) => "Pending",
        (0, 1..) => "Running",
        (0, 0) => {
            let again = spec::containers(known.pod).iter().any(|container| {
                known.view.latest(&container.name).is_some_and(|ended| should_restart(container, known.pod, ended))
            });
            match (again, succeeded == statuses.len()) {
                (true, _) => "Running",
                // Containers are done; sidecars still have to go.
                (false, true) => {
                    if sidecars_run(inits) {
                        "Running"
                    } else {
                        "Succeeded"
                    }
                }
                (false, false) => {
                    if sidecars_run(inits) {
                        "Running"
                    } else {
                        "Failed"
                    }
                }
            }
        }
    }
}

fn sidecars_run(inits: &[ContainerStatus]) -> bool {
    inits.iter().any(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// A time from the runtime, in whole seconds as the API keeps it.
fn time(nanos: i64) -> Time {
    Time(Timestamp::from_second(nanos.div_euclid(1_000_000_000)).unwrap_or_default())
}

/// The API keeps whole seconds.
pub fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
