//! The worker of one pod: it observes, decides, acts, tells the API, and waits for the next reason to do so.
//!
//! Guarantees: one action at a time; the latest pod counts; once a pod has begun to end it never comes up again; the
//! API's object goes only after the terminal phase is stored and nothing of the pod is left on the node.

use super::backoff::RestartBackOff;
use super::clean;
use super::conditions;
use super::context::Context;
use super::decide::{Action, Facts, decide};
use super::report::{self, Failed, Known, Waiting};
use super::spec;
use super::start::{NotStarted, Starter};
use super::status_writer::{StatusWriter, is_gone};
use super::stop::Stopper;
use super::view::{Observer, View};
use crate::event::Kind;
use crate::probe::Probes;
use crate::runtime::RuntimeError;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Preconditions};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

/// A pod is looked at this often without any reason.
const CALM: Duration = Duration::from_secs(60);
/// While the runtime is away it is asked this often.
const AWAY: Duration = Duration::from_secs(1);
/// The first and the longest pause after something failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What the worker and the rest of the agent share about a pod.
pub struct Shared {
    /// The pod as the API last told it.
    pub pod: watch::Sender<Arc<Pod>>,
    /// Whether the API has it no more.
    pub gone: watch::Sender<bool>,
    pub wake: Arc<Notify>,
    seen: Mutex<Seen>,
}

/// The pod as it is on the node.
#[derive(Clone)]
pub struct Seen {
    pub view: View,
    /// With the status that was last computed.
    pub pod: Arc<Pod>,
}

impl Shared {
    pub fn new(pod: Arc<Pod>) -> Self {
        Self {
            seen: Mutex::new(Seen { view: View::default(), pod: Arc::clone(&pod) }),
            pod: watch::Sender::new(pod),
            gone: watch::Sender::new(false),
            wake: Arc::default(),
        }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn see(&self, view: View) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).view = view;
    }

    fn tell(&self, pod: Arc<Pod>) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).pod = pod;
    }
}

/// When the worker looks again.
enum Next {
    Now,
    After(Duration),
    Done,
}

pub struct Worker {
    ctx: Arc<Context>,
    shared: Arc<Shared>,
    uid: String,
    observer: Observer,
    probes: Probes,
    writer: StatusWriter,
    stopper: Arc<Stopper>,
    stopping: Option<Stopping>,
    back_off: RestartBackOff,
    waiting: Waiting,
    /// Containers whose start failed, with the image: not tried again before this, whatever wakes the worker.
    held: HashMap<(String, String), Instant>,
    failed: Option<Failed>,
    rejected: bool,
    finished: bool,
    admitted: bool,
    first: bool,
    begun_to_end: Option<Instant>,
    pause: Duration,
    last: Option<PodStatus>,
}

/// A stop under way.
struct Stopping {
    grace: Duration,
    task: JoinHandle<Result<(), RuntimeError>>,
}

impl Worker {
    pub fn new(ctx: Arc<Context>, shared: Arc<Shared>) -> Self {
        let longest = ctx.config.crash_loop_back_off.max_container_restart_period;
        let uid = spec::uid(&shared.pod.borrow()).to_string();
        Self {
            probes: Probes::new(ctx.runtime.clone(), ctx.events.clone(), Arc::clone(&shared.wake)),
            writer: StatusWriter::new(ctx.client.clone(), shared.pod.subscribe()),
            back_off: longest.map_or_else(RestartBackOff::default, RestartBackOff::up_to),
            ctx,
            shared,
            uid,
            observer: Observer::default(),
            stopper: Arc::default(),
            stopping: None,
            waiting: Waiting::new(),
            held: HashMap::new(),
            failed: None,
            rejected: false,
            finished: false,
            admitted: false,
            first: true,
            begun_to_end: None,
            pause: PAUSE.0,
            last: None,
        }
    }

    /// Works until the pod is gone from API and node.
    pub async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let interrupted = self.interruption();
            let next = tokio::select! {
                next = self.step() => next,
                // A pod that is to end waits for no pull, hook or volume.
                () = interrupted => Next::Now,
            };
            match next {
                Next::Done => break,
                Next::Now => {}
                Next::After(pause) => {
                    tokio::select! { () = shared.wake.notified() => {}, () = tokio::time::sleep(pause) => {} }
                }
            }
        }
        debug!(uid = self.uid, "the pod is gone");
    }

    /// Ends when the pod begins to end; never for one that ends already.
    fn interruption(&self) -> impl Future<Output = ()> + use<> {
        let ending = self.is_ending(&self.shared.pod.borrow());
        let (mut pods, mut gone) = (self.shared.pod.subscribe(), self.shared.gone.subscribe());
        async move {
            if ending {
                std::future::pending::<()>().await;
            }
            tokio::select! {
                _ = pods.wait_for(|pod| pod.metadata.deletion_timestamp.is_some()) => {}
                _ = gone.wait_for(|gone| *gone) => {}
            }
        }
    }

    fn is_ending(&self, pod: &Pod) -> bool {
        self.finished
            || self.failed.is_some()
            || is_deleted(pod)
            || *self.shared.gone.borrow()
            || spec::is_terminal(pod)
    }

    async fn step(&mut self) -> Next {
        let pod = self.shared.pod.borrow().clone();
        let view = match self.observer.observe(&self.ctx.runtime, &self.uid).await {
            Ok(view) => view,
            Err(error) => {
                debug!(pod = spec::full_name(&pod), %error, "the runtime does not tell");
                return Next::After(AWAY);
            }
        };
        if std::mem::take(&mut self.first) {
            self.remember(&pod, &view);
        }
        self.check_deadline(&pod);
        let ending = self.is_ending(&pod);
        self.probes.sync(&pod, &view, self.address(&pod, &view), ending);
        self.shared.see(view.clone());
        if ending {
            return self.end(&pod, view).await;
        }
        if !self.admit(&pod, &view).await {
            return Next::Now;
        }
        self.bring_up(&pod, view).await
    }

    fn pause(&mut self) -> Next {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        Next::After(pause)
    }

    /// What the API was told of containers that still run holds until a probe proves otherwise.
    fn remember(&mut self, pod: &Pod, view: &View) {
        let Some(status) = &pod.status else { return };
        let init = status.init_container_statuses.iter().flatten();
        for told in init.chain(status.container_statuses.iter().flatten()) {
            let id = told.container_id.as_deref().and_then(|id| id.split_once("://")).map_or("", |(_, id)| id);
            if view.containers.iter().any(|container| container.id == id) {
                self.probes.remember(id, told.started == Some(true), told.ready);
            }
        }
    }

    fn address(&self, pod: &Pod, view: &View) -> Option<IpAddr> {
        if spec::is_host_network(pod) {
            return self.ctx.host.ips.first().copied();
        }
        view.ready_sandbox().and_then(|sandbox| sandbox.ips.first().copied())
    }

    fn check_deadline(&mut self, pod: &Pod) {
        if self.failed.is_some() || spec::is_terminal(pod) {
            return;
        }
        if self.until_deadline(pod).is_some_and(|left| left.is_zero()) {
            let message = "Pod was active on the node longer than the specified deadline".to_string();
            self.ctx.events.pod(pod, None, Kind::Normal, "DeadlineExceeded", message.clone());
            self.failed = Some(Failed { reason: "DeadlineExceeded".into(), message });
        }
    }

    fn until_deadline(&self, pod: &Pod) -> Option<Duration> {
        let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
        let told = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let start = self.last.as_ref().and_then(|status| status.start_time.as_ref()).or(told)?;
        let left = start.0.as_second() + seconds - Timestamp::now().as_second();
        Some(Duration::from_secs(left.max(0).unsigned_abs()))
    }

    async fn admit(&mut self, pod: &Pod, view: &View) -> bool {
        if self.admitted {
            return true;
        }
        let mut nodes = self.ctx.node.clone();
        let node = match nodes.wait_for(Option::is_some).await {
            Ok(node) => node.clone(),
            Err(_) => None,
        };
        let Some(node) = node else { return true };
        match self.ctx.admission.admit(pod, &node, !view.is_empty()) {
            Ok(()) => self.admitted = true,
            Err(failed) => {
                info!(pod = spec::full_name(pod), reason = failed.reason, message = failed.message, "refused");
                let reason = event_reason(&failed.reason);
                let message = failed.message.trim_start_matches("Pod was rejected: ").to_string();
                self.ctx.events.pod(pod, None, Kind::Warning, reason, message);
                self.failed = Some(failed);
                self.rejected = true;
            }
        }
        self.admitted
    }

    async fn bring_up(&mut self, pod: &Arc<Pod>, view: View) -> Next {
        let verdicts = self.probes.verdicts();
        let actions =
            decide(Facts { pod, view: &view, verdicts: &verdicts, back_off: &self.back_off, now: SystemTime::now() });
        self.settle_waiting(&actions, &view);
        let now = Instant::now();
        self.held.retain(|_, until| *until > now);
        let is_held = |action: &Action| self.held.contains_key(&start_of(pod, action));
        let (held, actions): (Vec<Action>, Vec<Action>) = actions.into_iter().partition(is_held);
        let acts = actions.iter().any(|action| !matches!(action, Action::HoldOff { .. }));
        if !acts {
            self.pause = PAUSE.0;
            self.hold_off(pod, &actions);
            self.publish(pod, &view, false);
            if let Err(error) = clean::sweep(&self.ctx, &view).await {
                debug!(pod = spec::full_name(pod), %error, "old containers were not removed");
            }
            let until_retry = held.iter().filter_map(|action| self.held.get(&start_of(pod, action)));
            let until_retry = until_retry.min().map_or(CALM, |until| until.saturating_duration_since(now));
            return Next::After(self.calm(pod, &actions).min(until_retry));
        }
        self.publish(pod, &view, false);
        let mut retry: Option<Duration> = None;
        let mut progress = false;
        for action in actions {
            match self.act(pod, &view, action.clone()).await {
                Ok(()) => progress = true,
                Err(not) => {
                    let asked = not.retry.unwrap_or(self.pause);
                    retry = Some(retry.map_or(asked, |before| before.min(asked)));
                    if let Some(pause) = not.retry {
                        self.held.insert(start_of(pod, &action), Instant::now() + pause);
                    }
                    if let Action::Start { name, .. } = action {
                        self.waiting.insert(name, (not.reason, not.message));
                    } else {
                        break;
                    }
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
                self.publish(pod, &view, false);
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

    fn calm(&self, pod: &Pod, actions: &[Action]) -> Duration {
        let held = actions.iter().filter_map(|action| match action {
            Action::HoldOff { remaining, .. } => Some(*remaining + Duration::from_millis(10)),
            _ => None,
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

    async fn end(&mut self, pod: &Arc<Pod>, view: View) -> Next {
        self.waiting.clear();
        let begun = *self.begun_to_end.get_or_insert_with(Instant::now);
        let alive = view.is_running() || view.sandboxes.iter().any(|sandbox| sandbox.ready);
        if alive {
            self.publish(pod, &view, false);
            return self.stop(pod, view, begun).await;
        }
        self.stopping = None;
        self.publish(pod, &view, true);
        let mut gone = self.shared.gone.subscribe();
        tokio::select! { () = self.writer.stored() => {}, _ = gone.wait_for(|gone| *gone) => {} }
        let leaves = is_deleted(pod) || *gone.borrow();
        if let Err(error) = self.clear(pod, &view, leaves).await {
            warn!(pod = spec::full_name(pod), error, "something of the pod is left on the node");
            return self.pause();
        }
        if !leaves {
            return Next::After(CALM * 60);
        }
        if !*gone.borrow()
            && let Err(error) = self.delete(pod).await
        {
            warn!(pod = spec::full_name(pod), %error, "the pod was not deleted from the API");
            return self.pause();
        }
        Next::Done
    }

    /// Stops what runs, and meanwhile tells the API of readiness and heeds a shorter grace.
    async fn stop(&mut self, pod: &Arc<Pod>, view: View, begun: Instant) -> Next {
        let grace = spec::grace(pod);
        if self.stopping.as_ref().is_none_or(|stopping| grace < stopping.grace) {
            let (ctx, stopper, pod) = (Arc::clone(&self.ctx), Arc::clone(&self.stopper), Arc::clone(pod));
            let work = async move { stopper.everything(&ctx, &pod, &view, begun + grace).await };
            if let Some(before) = self.stopping.replace(Stopping { grace, task: tokio::spawn(work) }) {
                before.task.abort();
            }
        }
        let Some(stopping) = &mut self.stopping else { return Next::Now };
        let mut pods = self.shared.pod.subscribe();
        let result = tokio::select! {
            result = &mut stopping.task => result,
            () = self.shared.wake.notified() => return Next::Now,
            _ = pods.wait_for(|pod| spec::grace(pod) < grace) => return Next::Now,
        };
        self.stopping = None;
        match result {
            Ok(Ok(())) => Next::Now,
            Ok(Err(error)) => {
                let message = format!("error killing pod: {error}");
                self.ctx.events.pod(pod, None, Kind::Warning, "FailedKillPod", message);
                self.pause()
            }
            Err(_) => self.pause(),
        }
    }

    async fn clear(&self, pod: &Pod, view: &View, leaves: bool) -> Result<(), String> {
        if leaves {
            clean::everything(&self.ctx, pod, view).await.map_err(|error| error.to_string())?;
        }
        clean::node_parts(&self.ctx, pod, leaves).await?;
        self.ctx.admission.release(&self.uid);
        Ok(())
    }

    async fn delete(&self, pod: &Pod) -> kube::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.ctx.client.clone(), spec::namespace(pod));
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match pods.delete(spec::name(pod), &params).await {
            Err(error) if !is_gone(&self.ctx.client, pod, &error).await => Err(error),
            _ => Ok(()),
        }
    }

    /// Computes the status and has it stored.
    fn publish(&mut self, pod: &Arc<Pod>, view: &View, ended: bool) {
        let mut known_pod = Pod::clone(pod);
        known_pod.status = Some(base(pod.status.as_ref(), self.last.as_ref()));
        let now = Timestamp::now();
        let status = match &self.failed {
            // A terminal phase was told before this process began: all that followed was told too.
            None if self.last.is_none() && spec::is_terminal(pod) => pod.status.clone().unwrap_or_default(),
            Some(failed) if self.rejected => report::rejected(&known_pod, failed, now),
            failed => report::status(Known {
                pod: &known_pod,
                view,
                verdicts: &self.probes.verdicts(),
                waiting: &self.waiting,
                failed: failed.as_ref(),
                ended,
                host_ips: &self.ctx.host.ips,
                now,
            }),
        };
        known_pod.status = Some(status.clone());
        self.shared.tell(Arc::new(known_pod));
        self.last = Some(status.clone());
        self.writer.want(status);
    }
}

/// The container that an action starts, and its image; of other actions, nothing.
fn start_of(pod: &Pod, action: &Action) -> (String, String) {
    let Action::Start { name, .. } = action else { return Default::default() };
    let container = spec::all_containers(pod).find(|container| container.name == *name);
    (name.clone(), container.and_then(|container| container.image.clone()).unwrap_or_default())
}

fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// What the next status starts from: our last one, with what others wrote since.
fn base(told: Option<&PodStatus>, last: Option<&PodStatus>) -> PodStatus {
    let told = told.cloned().unwrap_or_default();
    let Some(last) = last else { return told };
    let own = |kind: &str| conditions::OWN.contains(&kind);
    let ours = last.conditions.iter().flatten().filter(|condition| own(&condition.type_));
    let theirs = told.conditions.iter().flatten().filter(|condition| !own(&condition.type_));
    PodStatus {
        conditions: Some(ours.chain(theirs).cloned().collect()),
        phase: last.phase.clone(),
        reason: last.reason.clone(),
        message: last.message.clone(),
        start_time: last.start_time.clone(),
        pod_ip: last.pod_ip.clone(),
        pod_ips: last.pod_ips.clone(),
        container_statuses: last.container_statuses.clone(),
        init_container_statuses: last.init_container_statuses.clone(),
        ..told
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
