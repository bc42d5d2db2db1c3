//! A pod's worker on the way up: admission, then one step after the other towards the pod as it should be.

use super::clean;
use super::decide::{Action, Facts, decide};
use super::report::Failed;
use super::spec;
use super::start::{NotStarted, Starter};
use super::view::View;
use super::worker::{CALM, Next, PAUSE, Worker};
use crate::event::Kind;
use crate::runtime::RuntimeError;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tracing::{debug, info, warn};

/// Steps that failed, and when they are tried again, whatever wakes the worker before: containers by name and
/// image, for another image is worth a try, and the sandbox.
#[derive(Debug, Default)]
pub(super) struct Held(HashMap<Option<(String, String)>, Instant>);

/// What is held where this step fails: the container, or none for the sandbox.
fn subject(pod: &Pod, action: &Action) -> Option<Option<(String, String)>> {
    match action {
        Action::Start { name, .. } => {
            let container = spec::all_containers(pod).find(|container| container.name == *name)?;
            Some(Some((name.clone(), container.image.clone().unwrap_or_default())))
        }
        Action::CreateSandbox { .. } => Some(None),
        _ => None,
    }
}

impl Held {
    fn hold(&mut self, pod: &Pod, action: &Action, pause: Duration) {
        self.0.extend(subject(pod, action).map(|subject| (subject, Instant::now() + pause)));
    }

    /// How long this step has to wait; none if it need not.
    fn remaining(&self, pod: &Pod, action: &Action) -> Option<Duration> {
        let remaining = self.0.get(&subject(pod, action)?)?.saturating_duration_since(Instant::now());
        Some(remaining).filter(|remaining| !remaining.is_zero())
    }
}

impl Worker {
    pub(super) fn pause(&mut self) -> Next {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        Next::After(pause)
    }

    pub(super) async fn admit(&mut self, pod: &Pod, view: &View) -> bool {
        if self.admitted {
            return true;
        }
        let mut nodes = self.ctx.node.clone();
        let node = match nodes.wait_for(Option::is_some).await {
            Ok(node) => node.clone(),
            Err(_) => None,
        };
        let Some(node) = node else { return true };
        let mut verdict = self.ctx.admission.admit(pod, &node, !view.is_empty());
        if verdict.as_ref().is_err_and(|failed| failed.reason == "NodeAffinity") {
            // The scheduler may have seen a label that has not come here yet.
            let nodes: Api<Node> = Api::all(self.ctx.client.clone());
            if let Ok(fresh) = nodes.get(&self.ctx.host.node_name).await {
                verdict = self.ctx.admission.admit(pod, &fresh, !view.is_empty());
            }
        }
        match verdict {
            Ok(()) => self.admitted = true,
            Err(failed) => self.reject(pod, failed),
        }
        self.admitted
    }

    fn reject(&mut self, pod: &Pod, failed: Failed) {
        info!(pod = spec::full_name(pod), reason = failed.reason, message = failed.message, "refused");
        let reason = event_reason(&failed.reason);
        let message = failed.message.trim_start_matches("Pod was rejected: ").to_string();
        self.ctx.events.pod(pod, None, Kind::Warning, reason, message);
        self.failed = Some(failed);
        self.rejected = true;
    }

    pub(super) async fn bring_up(&mut self, pod: &Arc<Pod>, view: View) -> Next {
        let verdicts = self.probes.verdicts();
        let actions =
            decide(Facts { pod, view: &view, verdicts: &verdicts, back_off: &self.back_off, now: SystemTime::now() });
        self.settle_waiting(&actions, &view);
        let (held, due): (Vec<Action>, Vec<Action>) =
            actions.into_iter().partition(|action| self.held.remaining(pod, action).is_some());
        if due.iter().any(|action| !matches!(action, Action::HoldOff { .. })) {
            self.publish(pod, &view, false);
            return self.act_all(pod, &view, due).await;
        }
        self.pause = PAUSE.0;
        self.hold_off(pod, &due);
        self.publish(pod, &view, false);
        if let Err(error) = clean::sweep(&self.ctx, &view).await {
            debug!(pod = spec::full_name(pod), %error, "old containers were not removed");
        }
        Next::After(self.calm(pod, held.iter().chain(&due)))
    }

    async fn act_all(&mut self, pod: &Arc<Pod>, view: &View, actions: Vec<Action>) -> Next {
        let mut retry: Option<Duration> = None;
        let mut progress = false;
        for action in actions {
            match self.act(pod, view, action.clone()).await {
                Ok(()) => progress = true,
                Err(not) => {
                    let asked = not.retry.unwrap_or(self.pause);
                    retry = Some(retry.map_or(asked, |before| before.min(asked)));
                    if let Some(pause) = not.retry {
                        self.held.hold(pod, &action, pause);
                    }
                    let Action::Start { name, .. } = action else { break };
                    self.waiting.insert(name, (not.reason, not.message));
                }
            }
        }
        match retry {
            None => {
                self.pause = PAUSE.0;
                Next::Now
            }
            // What went well shows in the status before the pause.
            Some(_) if progress => Next::Now,
            Some(retry) => {
                self.pause = (self.pause * 2).min(PAUSE.1);
                self.publish(pod, view, false);
                Next::After(retry)
            }
        }
    }

    /// A container that runs, or will be tried now for another reason, waits no more.
    fn settle_waiting(&mut self, actions: &[Action], view: &View) {
        let tried =
            |name: &str| actions.iter().any(|a| matches!(a, Action::Start { name: other, .. } if other == name));
        let held =
            |name: &str| actions.iter().any(|a| matches!(a, Action::HoldOff { name: other, .. } if other == name));
        self.waiting.retain(|name, _| {
            let running = view.latest(name).is_some_and(|c| c.phase == super::ContainerPhase::Running);
            !running && (tried(name) || held(name))
        });
    }

    fn hold_off(&mut self, pod: &Pod, actions: &[Action]) {
        for action in actions {
            let Action::HoldOff { name, .. } = action else { continue };
            let full = format!("{}_{}({})", spec::name(pod), spec::namespace(pod), self.uid);
            let message = format!("Back-off restarting failed container {name} in pod {full}");
            self.ctx.events.pod(pod, Some(name), Kind::Warning, "BackOff", message);
            let delay = go_seconds(self.back_off.delay(name));
            let message = format!("back-off {delay} restarting failed container={name} pod={full}");
            self.waiting.insert(name.clone(), ("CrashLoopBackOff", message));
        }
    }

    fn calm<'a>(&self, pod: &Pod, actions: impl Iterator<Item = &'a Action>) -> Duration {
        let held = actions.filter_map(|action| match action {
            Action::HoldOff { remaining, .. } => Some(*remaining + Duration::from_millis(10)),
            action => self.held.remaining(pod, action),
        });
        held.chain(self.until_deadline(pod)).min().unwrap_or(CALM).min(CALM)
    }

    async fn act(&mut self, pod: &Arc<Pod>, view: &View, action: Action) -> Result<(), NotStarted> {
        let failed = |error: RuntimeError| NotStarted { reason: "", message: error.to_string(), retry: None };
        match action {
            Action::StopSandboxes => {
                let message = "Pod sandbox changed, it will be killed and re-created.".to_string();
                self.ctx.events.pod(pod, None, Kind::Normal, "SandboxChanged", message);
                let deadline = Instant::now() + spec::grace(pod);
                self.stopper.everything(&self.ctx, pod, view, deadline).await.map_err(failed)
            }
            Action::CreateSandbox { attempt } => {
                self.mount(pod).await?;
                let cgroup_parent = self.make_cgroup(pod).await?;
                Starter { ctx: &self.ctx, pod, cgroup_parent: &cgroup_parent }.sandbox(attempt).await
            }
            Action::Start { name, attempt } => {
                let Some(container) = spec::all_containers(pod).find(|container| container.name == name) else {
                    return Ok(());
                };
                if attempt > 0 {
                    self.back_off.restarted(&name, SystemTime::now());
                }
                self.mount(pod).await?;
                let cgroup_parent = self.ctx.cgroups.pod_path(pod);
                Starter { ctx: &self.ctx, pod, cgroup_parent: &cgroup_parent }.container(container, attempt, view).await
            }
            Action::Kill { id, why, .. } => self.stopper.one(&self.ctx, pod, view, &id, why).await.map_err(failed),
            Action::HoldOff { .. } => {
                self.hold_off(pod, &[action]);
                Ok(())
            }
            Action::Finish => {
                self.finished = true;
                Ok(())
            }
        }
    }

    async fn mount(&self, pod: &Arc<Pod>) -> Result<(), NotStarted> {
        let (volumes, of) = (self.ctx.volumes.clone(), Arc::clone(pod));
        // In a task of its own, since half a mount must not be left when the pod is deleted meanwhile.
        let done = tokio::spawn(async move { volumes.setup(&of).await }).await;
        let messages: Vec<String> = match done {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(errors)) => errors.iter().map(ToString::to_string).collect(),
            Err(error) => vec![error.to_string()],
        };
        for message in messages {
            info!(pod = spec::full_name(pod), message, "a volume is not mounted");
            self.ctx.events.pod(pod, None, Kind::Warning, "FailedMount", message);
        }
        let reason = if spec::init_containers(pod).is_empty() { "ContainerCreating" } else { "PodInitializing" };
        Err(NotStarted { reason, message: String::new(), retry: None })
    }

    async fn make_cgroup(&self, pod: &Arc<Pod>) -> Result<String, NotStarted> {
        let (cgroups, of) = (self.ctx.cgroups.clone(), Arc::clone(pod));
        let made = tokio::task::spawn_blocking(move || cgroups.create_pod(&of)).await;
        let message = match made {
            Ok(Ok(path)) => return Ok(path),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let text = format!("unable to ensure pod container exists: {message}");
        warn!(pod = spec::full_name(pod), message, "no cgroup");
        self.ctx.events.pod(pod, None, Kind::Warning, "FailedCreatePodContainer", text);
        Err(NotStarted { reason: "ContainerCreating", message: String::new(), retry: None })
    }
}

/// Event reasons are words of the program.
fn event_reason(reason: &str) -> &'static str {
    match reason {
        "OutOfcpu" => "OutOfcpu",
        "OutOfmemory" => "OutOfmemory",
        "OutOfpods" => "OutOfpods",
        "NodePorts" => "NodePorts",
        _ => "NodeAffinity",
    }
}

/// Whole seconds as Go prints them: 10s, 2m40s, 5m0s.
fn go_seconds(duration: Duration) -> String {
    match (duration.as_secs() / 60, duration.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}
