//! What to do for a pod that should run: a function of the pod, the runtime's view, the probes' verdicts and the time.

use super::backoff::RestartBackOff;
use super::lookup::ContainerPhase;
use super::spec::{self, RestartPolicy};
use super::view::{Container as Running, View};
use crate::container::hash;
use crate::probe::Verdicts;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::time::{Duration, SystemTime};

/// One step towards the pod. The worker does them in order and then decides anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop every container and sandbox there is: they belong to a sandbox that died.
    StopSandboxes,
    CreateSandbox {
        attempt: u32,
    },
    Kill {
        id: String,
        name: String,
        why: KillReason,
    },
    Start {
        name: String,
        attempt: u32,
    },
    /// The container crashed too recently.
    HoldOff {
        name: String,
        remaining: Duration,
    },
    /// Nothing will run again: stop what is left, sidecars too.
    Finish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Liveness,
    Startup,
    Changed,
    /// The runtime does not know whether it runs.
    Unknown,
}

/// All that a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub pod: &'a Pod,
    pub view: &'a View,
    pub verdicts: &'a Verdicts,
    pub back_off: &'a RestartBackOff,
    pub now: SystemTime,
}

/// The next steps; none where all is as it should be.
pub fn decide(facts: Facts<'_>) -> Vec<Action> {
    if facts.view.ready_sandbox().is_none() {
        return without_sandbox(facts);
    }
    match init_steps(facts) {
        Init::Failed => vec![Action::Finish],
        Init::Going(actions) => actions,
        Init::Done(actions) => ordinary_steps(facts, actions),
    }
}

fn without_sandbox(Facts { pod, view, .. }: Facts<'_>) -> Vec<Action> {
    let ran = !view.containers.is_empty();
    let attempt = view.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
    let once = spec::restart_policy(pod) == RestartPolicy::Never;
    let initialized = spec::containers(pod).iter().any(|container| view.latest(&container.name).is_some());
    let none_left = !spec::containers(pod).iter().any(|container| {
        let ended = view.latest(&container.name);
        let succeeded = ended.is_some_and(|ended| ended.phase == ContainerPhase::Exited && ended.exit_code == 0);
        !(succeeded && policy_of(container, pod) == RestartPolicy::OnFailure)
    });
    if (once && ran && attempt > 0) || (none_left && initialized) {
        return vec![Action::Finish];
    }
    let create = Action::CreateSandbox { attempt };
    if view.is_empty() { vec![create] } else { vec![Action::StopSandboxes, create] }
}

/// How far initialization is.
enum Init {
    /// An init container failed for good.
    Failed,
    Going(Vec<Action>),
    /// Ordinary containers may run; sidecars may need a step.
    Done(Vec<Action>),
}

/// Init containers run one after the other. The search goes from the last to the first, since those that completed
/// may have been removed; the sidecars before the one that runs are kept up.
fn init_steps(facts: Facts<'_>) -> Init {
    let Facts { pod, view, .. } = facts;
    let inits = spec::init_containers(pod);
    if inits.is_empty() {
        return Init::Done(Vec::new());
    }
    let started =
        |container: &Container| view.active(&container.name).is_some_and(|c| c.phase != ContainerPhase::Created);
    let mut done = spec::containers(pod).iter().any(started);
    let mut beyond = done;
    let mut actions = Vec::new();
    for (index, container) in inits.iter().enumerate().rev() {
        let Some(running) = view.active(&container.name) else {
            if beyond && spec::is_sidecar(container) {
                actions.push(start(facts, container));
            }
            continue;
        };
        let sidecar = spec::is_sidecar(container);
        if beyond && !sidecar {
            continue;
        }
        let step = if sidecar { sidecar_step(facts, container, running) } else { init_step(facts, container, running) };
        match step {
            InitStep::Failed => return Init::Failed,
            InitStep::Act(action) => actions.push(action),
            InitStep::Wait => {}
            InitStep::Passed(action) => {
                actions.extend(action);
                if index + 1 == inits.len() {
                    done = true;
                } else if !beyond {
                    actions.push(start(facts, &inits[index + 1]));
                }
            }
        }
        beyond = true;
    }
    if !beyond {
        actions.push(start(facts, &inits[0]));
    }
    actions.reverse();
    if done { Init::Done(actions) } else { Init::Going(actions) }
}

enum InitStep {
    Failed,
    Wait,
    Act(Action),
    /// The next may start; a sidecar that is past its start may still have to be killed.
    Passed(Option<Action>),
}

fn init_step(facts: Facts<'_>, container: &Container, running: &Running) -> InitStep {
    match running.phase {
        ContainerPhase::Created => InitStep::Act(start(facts, container)),
        ContainerPhase::Running => InitStep::Wait,
        ContainerPhase::Exited if running.exit_code == 0 => InitStep::Passed(None),
        _ if policy_of(container, facts.pod) == RestartPolicy::Never && !rule_restarts(container, running) => {
            InitStep::Failed
        }
        ContainerPhase::Exited => InitStep::Act(start(facts, container)),
        ContainerPhase::Unknown => InitStep::Act(kill(running, KillReason::Unknown)),
    }
}

fn sidecar_step(facts: Facts<'_>, container: &Container, running: &Running) -> InitStep {
    match running.phase {
        ContainerPhase::Created | ContainerPhase::Exited => InitStep::Act(start(facts, container)),
        ContainerPhase::Unknown => InitStep::Act(kill(running, KillReason::Unknown)),
        ContainerPhase::Running => match facts.verdicts.started(&running.id) {
            Some(false) => InitStep::Act(kill(running, KillReason::Startup)),
            None if container.startup_probe.is_some() => InitStep::Wait,
            _ => InitStep::Passed(kill_if_bad(facts, container, running)),
        },
    }
}

fn ordinary_steps(facts: Facts<'_>, mut actions: Vec<Action>) -> Vec<Action> {
    let mut alive = false;
    let mut ordinary = Vec::new();
    for container in spec::containers(facts.pod) {
        match facts.view.latest(&container.name) {
            Some(running) if running.phase == ContainerPhase::Running => {
                alive = true;
                ordinary.extend(kill_if_bad(facts, container, running));
            }
            Some(running) if running.phase == ContainerPhase::Unknown => {
                alive = true;
                ordinary.push(kill(running, KillReason::Unknown));
            }
            ended => {
                if ended.is_none_or(|ended| should_restart(container, facts.pod, ended)) {
                    alive = true;
                    ordinary.push(start(facts, container));
                }
            }
        }
    }
    if !alive {
        return vec![Action::Finish];
    }
    actions.extend(ordinary);
    actions
}

fn kill_if_bad(facts: Facts<'_>, container: &Container, running: &Running) -> Option<Action> {
    let changed = !running.hash.is_empty() && running.hash != hash(container);
    let why = if changed {
        KillReason::Changed
    } else if facts.verdicts.alive(&running.id) == Some(false) {
        KillReason::Liveness
    } else if facts.verdicts.started(&running.id) == Some(false) {
        KillReason::Startup
    } else {
        return None;
    };
    Some(kill(running, why))
}

fn kill(running: &Running, why: KillReason) -> Action {
    Action::Kill { id: running.id.clone(), name: running.name.clone(), why }
}

fn start(Facts { view, back_off, now, .. }: Facts<'_>, container: &Container) -> Action {
    let name = container.name.clone();
    let latest = view.latest(&name);
    if let Some(ended) = latest.filter(|latest| latest.phase == ContainerPhase::Exited)
        && let Some(remaining) = back_off.remaining(&name, ended.finished_at, now)
    {
        return Action::HoldOff { name, remaining };
    }
    Action::Start { name, attempt: latest.map_or(0, |latest| latest.attempt + 1) }
}

/// The container's own restart policy, or else its pod's.
pub fn policy_of(container: &Container, pod: &Pod) -> RestartPolicy {
    match container.restart_policy.as_deref() {
        Some("Always") => RestartPolicy::Always,
        Some("OnFailure") => RestartPolicy::OnFailure,
        Some("Never") => RestartPolicy::Never,
        _ => spec::restart_policy(pod),
    }
}

/// Whether a container that ended runs again.
pub fn should_restart(container: &Container, pod: &Pod, ended: &Running) -> bool {
    if ended.phase == ContainerPhase::Created || rule_restarts(container, ended) {
        return true;
    }
    match policy_of(container, pod) {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => ended.exit_code != 0 || ended.hash != hash(container),
        RestartPolicy::Never => false,
    }
}

/// Whether one of the container's restart rules (KEP-5307) names how it ended.
fn rule_restarts(container: &Container, ended: &Running) -> bool {
    let rules = container.restart_policy_rules.as_deref().unwrap_or_default();
    rules.iter().filter(|rule| rule.action == "Restart").any(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.as_deref().unwrap_or_default().contains(&ended.exit_code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    })
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
