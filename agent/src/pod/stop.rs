//! Stopping containers: preStop hook, stop signal, SIGKILL, within the grace; sidecars last and in reverse.

use super::context::Context;
use super::decide::KillReason;
use super::lookup::ContainerPhase;
use super::spec;
use super::start::gone_or;
use super::view::{Container as Running, View};
use crate::event::Kind;
use crate::hook;
use crate::probe::exec::Target;
use crate::runtime::RuntimeError;
use cri::v1::{StopContainerRequest, StopPodSandboxRequest};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// What remains for the stop signal when a hook used the grace up.
const LEAST: Duration = Duration::from_secs(2);

/// Stops things of one pod. It lives as long as the pod's worker, so that no preStop hook runs twice.
#[derive(Debug, Default)]
pub struct Stopper {
    hooked: Mutex<HashSet<String>>,
}

/// In which order containers stop: all in a wave at once, one wave after the other.
pub fn waves<'a>(pod: &Pod, view: &'a View) -> Vec<Vec<&'a Running>> {
    let alive = |container: &&Running| matches!(container.phase, ContainerPhase::Running | ContainerPhase::Unknown);
    let sidecars: Vec<&str> = spec::init_containers(pod)
        .iter()
        .filter(|container| spec::is_sidecar(container))
        .map(|container| container.name.as_str())
        .collect();
    let ordinary = view.containers.iter().filter(alive).filter(|c| !sidecars.contains(&c.name.as_str())).collect();
    let mut waves: Vec<Vec<&Running>> = vec![ordinary];
    for name in sidecars.iter().rev() {
        waves.push(view.containers.iter().filter(alive).filter(|container| container.name == *name).collect());
    }
    waves.retain(|wave| !wave.is_empty());
    waves
}

impl Stopper {
    /// Stops every container of the pod until `deadline`, and its sandboxes.
    ///
    /// # Errors
    /// What the runtime said first; the rest was tried.
    pub async fn everything(
        &self,
        ctx: &Context,
        pod: &Pod,
        view: &View,
        deadline: Instant,
    ) -> Result<(), RuntimeError> {
        let mut result = Ok(());
        for wave in waves(pod, view) {
            let left = deadline.saturating_duration_since(Instant::now());
            let stops = wave.into_iter().map(|running| async move {
                let grace = left.max(Duration::from_secs(1));
                self.container(ctx, pod, running, (grace, &format!("Stopping container {}", running.name)), view).await
            });
            result = join_all(stops).await.into_iter().fold(result, |result, one| result.and(one));
        }
        result?;
        self.sandboxes(ctx, view).await
    }

    /// Stops every sandbox. Idempotent: the second call succeeds.
    ///
    /// # Errors
    /// What the runtime said first.
    pub async fn sandboxes(&self, ctx: &Context, view: &View) -> Result<(), RuntimeError> {
        let mut result = Ok(());
        for sandbox in view.sandboxes.iter().filter(|sandbox| sandbox.ready) {
            let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            result = result.and(gone_or(ctx.runtime.stop_pod_sandbox(request).await));
        }
        result
    }

    /// Kills a container that failed a probe or changed; it will be restarted as its policy says.
    ///
    /// # Errors
    /// What the runtime said.
    pub async fn one(
        &self,
        ctx: &Context,
        pod: &Pod,
        view: &View,
        id: &str,
        why: KillReason,
    ) -> Result<(), RuntimeError> {
        let Some(running) = view.containers.iter().find(|container| container.id == id) else { return Ok(()) };
        let container = spec::all_containers(pod).find(|container| container.name == running.name);
        let name = &running.name;
        let restarts = !matches!(why, KillReason::Unknown)
            && container.is_some_and(|container| {
                super::decide::policy_of(container, pod) != spec::RestartPolicy::Never || why == KillReason::Changed
            });
        let tail = if restarts { ", will be restarted" } else { "" };
        let message = match why {
            KillReason::Liveness => format!("Container {name} failed liveness probe{tail}"),
            KillReason::Startup => format!("Container {name} failed startup probe{tail}"),
            KillReason::Changed => format!("Container {name} definition changed{tail}"),
            KillReason::Unknown => format!("Container is in \"unknown\" state, try killing it before restart{tail}"),
        };
        let probe = container.and_then(|container| match why {
            KillReason::Liveness => container.liveness_probe.as_ref(),
            KillReason::Startup => container.startup_probe.as_ref(),
            _ => None,
        });
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        let grace = own.map_or_else(|| spec::grace(pod), |seconds| Duration::from_secs(seconds.max(1).unsigned_abs()));
        self.container(ctx, pod, running, (grace, &message), view).await
    }

    async fn container(
        &self,
        ctx: &Context,
        pod: &Pod,
        running: &Running,
        (grace, message): (Duration, &str),
        view: &View,
    ) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let container = spec::all_containers(pod).find(|container| container.name == running.name);
        let first = self.hooked.lock().unwrap_or_else(PoisonError::into_inner).insert(running.id.clone());
        if first {
            info!(pod = spec::full_name(pod), container = running.name, ?grace, message, "stopping");
            ctx.events.pod(pod, Some(&running.name), Kind::Normal, "Killing", message.to_string());
        }
        if let Some(container) = container.filter(|_| first) {
            let address = view.ready_sandbox().and_then(|sandbox| sandbox.ips.first().copied());
            self.pre_stop(ctx, pod, container, running, (grace, address)).await;
        }
        let left = grace.saturating_sub(begun.elapsed());
        let left = if begun.elapsed() > Duration::from_millis(100) { left.max(LEAST.min(grace)) } else { left };
        let timeout = i64::try_from(left.as_secs_f64().ceil() as u64).unwrap_or(30);
        let request = StopContainerRequest { container_id: running.id.clone(), timeout };
        gone_or(ctx.runtime.stop_container(request).await)
    }

    async fn pre_stop(
        &self,
        ctx: &Context,
        pod: &Pod,
        container: &Container,
        running: &Running,
        (grace, address): (Duration, Option<IpAddr>),
    ) {
        let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) else {
            return;
        };
        let ports = container.ports.as_deref().unwrap_or_default();
        let target = Target { address, ports, container_id: &running.id };
        match tokio::time::timeout(grace, hook::run(&ctx.runtime, handler, target)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(pod = spec::full_name(pod), container = container.name, %error, "preStop hook failed");
                let message = "PreStopHook failed".to_string();
                ctx.events.pod(pod, Some(&container.name), Kind::Warning, "FailedPreStopHook", message);
            }
            Err(_) => info!(pod = spec::full_name(pod), container = container.name, "preStop hook used the grace up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture::pod;
    use serde_json::json;

    #[test]
    fn sidecars_stop_last_and_in_reverse() {
        let pod = pod(json!({
            "initContainers": [
                {"name": "init"}, {"name": "log", "restartPolicy": "Always"}, {"name": "mesh", "restartPolicy": "Always"},
            ],
            "containers": [{"name": "a"}, {"name": "b"}, {"name": "done"}],
        }));
        let running = |name: &str, phase| Running {
            id: name.into(),
            name: name.into(),
            sandbox: "s".into(),
            attempt: 0,
            phase,
            image: String::new(),
            image_ref: String::new(),
            created_at: 0,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            hash: String::new(),
            log_path: Default::default(),
        };
        let up = ContainerPhase::Running;
        let containers = vec![
            running("log", up),
            running("mesh", up),
            running("a", up),
            running("b", up),
            running("done", ContainerPhase::Exited),
        ];
        let view = View { sandboxes: vec![], containers };
        let names: Vec<Vec<&str>> =
            waves(&pod, &view).into_iter().map(|wave| wave.into_iter().map(|c| c.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["a", "b"], vec!["mesh"], vec!["log"]]);
    }
}
