//! When probes run: one task for each probe of each running container of a pod.

use super::Verdicts;
use super::exec::{self, Outcome, ProbeKind, Target};
use super::threshold::{Threshold, initial, initial_delay, period};
use crate::event::{Kind as EventKind, Recorder};
use crate::pod::lookup::ContainerPhase;
use crate::pod::spec;
use crate::pod::view::{Container as Running, View};
use crate::runtime::Runtime;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::info;

/// The probes of one pod. Dropping ends them.
pub struct Probes {
    runtime: Runtime,
    events: Recorder,
    verdicts: Arc<Mutex<Verdicts>>,
    /// Told of each new verdict.
    wake: Arc<Notify>,
    tasks: HashMap<(String, ProbeKind), JoinHandle<()>>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

impl Probes {
    pub fn new(runtime: Runtime, events: Recorder, wake: Arc<Notify>) -> Self {
        Self { runtime, events, verdicts: Arc::default(), wake, tasks: HashMap::new() }
    }

    /// What they have come to by now.
    pub fn verdicts(&self) -> Verdicts {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over what the API was told before this process began, until a probe proves otherwise.
    pub fn remember(&self, id: &str, started: bool, ready: bool) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if started {
            verdicts.set(ProbeKind::Startup, id, true);
        }
        verdicts.set(ProbeKind::Readiness, id, ready);
    }

    /// Has exactly the probes run that the pod's running containers need. While the pod is `ending` only its readiness
    /// is still asked for.
    pub fn sync(&mut self, pod: &Arc<Pod>, view: &View, address: Option<IpAddr>, ending: bool) {
        let mut wanted = HashMap::new();
        for container in spec::all_containers(pod) {
            let running = view.latest(&container.name).filter(|running| running.phase == ContainerPhase::Running);
            let Some(running) = running else { continue };
            for (kind, probe) in probes_of(container) {
                if !(ending && kind != ProbeKind::Readiness) {
                    wanted.insert((running.id.clone(), kind), (container, probe, running));
                }
            }
        }
        self.tasks.retain(|key, task| {
            let keep = wanted.contains_key(key);
            if !keep {
                task.abort();
            }
            keep
        });
        let living = |id: &str| view.containers.iter().any(|container| container.id == id);
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).retain(living);
        for (key, (container, probe, running)) in wanted {
            if !self.tasks.contains_key(&key) {
                let task = self.task(pod, container, probe, running, (key.1, address));
                self.tasks.insert(key, tokio::spawn(task));
            }
        }
    }

    fn task(
        &self,
        pod: &Arc<Pod>,
        container: &Container,
        probe: &Probe,
        running: &Running,
        (kind, address): (ProbeKind, Option<IpAddr>),
    ) -> impl Future<Output = ()> + Send + 'static {
        let one = One {
            runtime: self.runtime.clone(),
            events: self.events.clone(),
            verdicts: Arc::clone(&self.verdicts),
            wake: Arc::clone(&self.wake),
            pod: Arc::clone(pod),
            container: container.clone(),
            probe: probe.clone(),
            id: running.id.clone(),
            started_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(running.started_at.max(0).unsigned_abs()),
            kind,
            address,
        };
        one.run()
    }
}

fn probes_of(container: &Container) -> impl Iterator<Item = (ProbeKind, &Probe)> {
    let startup = container.startup_probe.iter().map(|probe| (ProbeKind::Startup, probe));
    let liveness = container.liveness_probe.iter().map(|probe| (ProbeKind::Liveness, probe));
    let readiness = container.readiness_probe.iter().map(|probe| (ProbeKind::Readiness, probe));
    startup.chain(liveness).chain(readiness)
}

/// One probe of one container.
struct One {
    runtime: Runtime,
    events: Recorder,
    verdicts: Arc<Mutex<Verdicts>>,
    wake: Arc<Notify>,
    pod: Arc<Pod>,
    container: Container,
    probe: Probe,
    id: String,
    started_at: SystemTime,
    kind: ProbeKind,
    address: Option<IpAddr>,
}

impl One {
    async fn run(self) {
        let mut threshold = Threshold::of(&self.probe);
        if self.verdict().is_none()
            && let Some(first) = initial(self.kind)
        {
            self.set(first);
        }
        let age = SystemTime::now().duration_since(self.started_at).unwrap_or_default();
        tokio::time::sleep(initial_delay(&self.probe).saturating_sub(age)).await;
        let mut tick = tokio::time::interval(period(&self.probe));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.kind == ProbeKind::Startup {
                // Once it has passed it is over; a failed one waits for the container to be replaced.
                if self.verdict().is_some() {
                    return;
                }
            } else if self.container.startup_probe.is_some() && !self.has_started() {
                self.wait_for_start().await;
                tick.reset_immediately();
                continue;
            }
            self.once(&mut threshold).await;
        }
    }

    async fn once(&self, threshold: &mut Threshold) {
        let ports = self.container.ports.as_deref().unwrap_or_default();
        let target = Target { address: self.address, ports, container_id: &self.id };
        let outcome = exec::run(&self.probe, target, &self.runtime).await;
        exec::COUNTS.record(&self.pod, &self.container.name, self.kind, &outcome);
        if let Some((reason, message)) = exec::event(self.kind, &outcome) {
            info!(pod = spec::full_name(&self.pod), container = self.container.name, reason, message, "probe");
            self.events.pod(&self.pod, Some(&self.container.name), EventKind::Warning, reason, message);
        }
        let passed = match outcome {
            Outcome::Success | Outcome::Warning(_) => true,
            Outcome::Failure(_) => false,
            Outcome::Unknown(_) => return,
        };
        if let Some(verdict) = threshold.take(passed) {
            self.set(verdict);
        }
    }

    /// Looks often: the first readiness result should follow the start at once.
    async fn wait_for_start(&self) {
        while !self.has_started() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn has_started(&self) -> bool {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).started(&self.id) == Some(true)
    }

    fn verdict(&self) -> Option<bool> {
        let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        match self.kind {
            ProbeKind::Startup => verdicts.started(&self.id),
            ProbeKind::Liveness => verdicts.alive(&self.id),
            ProbeKind::Readiness => verdicts.ready(&self.id),
        }
    }

    fn set(&self, passed: bool) {
        let news = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner).set(self.kind, &self.id, passed);
        if news {
            self.wake.notify_one();
        }
    }
}
