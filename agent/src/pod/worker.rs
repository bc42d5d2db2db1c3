//! The worker of one pod: it observes, decides, acts, tells the API, and waits for the next reason to do so.
//!
//! Guarantees: one action at a time; the latest pod counts; once a pod has begun to end it never comes up again; the
//! API's object goes only after the terminal phase is stored and nothing of the pod is left on the node.

use super::backoff::RestartBackOff;
use super::bring_up::Held;
use super::context::Context;
use super::report::{Failed, Waiting};
use super::shared::Shared;
use super::spec;
use super::status_writer::StatusWriter;
use super::stop::Stopper;
use super::view::{Observer, View};
use super::wind_down::Stopping;
use crate::event::Kind;
use crate::probe::Probes;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::debug;

/// A pod is looked at this often without any reason.
pub(super) const CALM: Duration = Duration::from_secs(60);
/// While the runtime is away it is asked this often.
const AWAY: Duration = Duration::from_secs(1);
/// The first and the longest pause after something failed.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// When the worker looks again.
pub(super) enum Next {
    Now,
    After(Duration),
    Done,
}

pub struct Worker {
    pub(super) ctx: Arc<Context>,
    pub(super) shared: Arc<Shared>,
    pub(super) uid: String,
    pub(super) observer: Observer,
    pub(super) probes: Probes,
    pub(super) writer: StatusWriter,
    pub(super) stopper: Arc<Stopper>,
    pub(super) stopping: Option<Stopping>,
    pub(super) back_off: RestartBackOff,
    pub(super) waiting: Waiting,
    pub(super) failed: Option<Failed>,
    /// Containers that are not to be tried yet.
    pub(super) held: Held,
    pub(super) rejected: bool,
    pub(super) finished: bool,
    pub(super) admitted: bool,
    pub(super) first: bool,
    pub(super) begun_to_end: Option<Instant>,
    pub(super) pause: Duration,
    pub(super) last: Option<PodStatus>,
    /// The runtime's name, the scheme of container ids.
    pub(super) scheme: String,
}

impl Worker {
    pub fn new(ctx: Arc<Context>, shared: Arc<Shared>) -> Self {
        let longest = ctx.config.crash_loop_back_off.max_container_restart_period;
        let uid = spec::uid(&shared.pod.borrow()).to_string();
        Self {
            probes: Probes::new(ctx.runtime.clone(), ctx.events.clone(), Arc::clone(&shared.wake)),
            writer: StatusWriter::new(ctx.client.clone(), shared.pod.subscribe(), Arc::clone(&shared.wake)),
            back_off: longest.map_or_else(RestartBackOff::default, RestartBackOff::up_to),
            ctx,
            shared,
            uid,
            observer: Observer::default(),
            stopper: Arc::default(),
            stopping: None,
            waiting: Waiting::new(),
            failed: None,
            held: Held::default(),
            rejected: false,
            finished: false,
            admitted: false,
            first: true,
            begun_to_end: None,
            pause: PAUSE.0,
            last: None,
            scheme: String::new(),
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
        let (view, scheme) = match self.observe().await {
            Ok(seen) => seen,
            Err(error) => {
                debug!(pod = spec::full_name(&pod), %error, "the runtime does not tell");
                return Next::After(AWAY);
            }
        };
        self.scheme = scheme;
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

    async fn observe(&mut self) -> crate::runtime::Result<(View, String)> {
        Ok((self.observer.observe(&self.ctx.runtime, &self.uid).await?, self.ctx.runtime.name().await?))
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

    pub(super) fn until_deadline(&self, pod: &Pod) -> Option<Duration> {
        let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
        let told = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let start = self.last.as_ref().and_then(|status| status.start_time.as_ref()).or(told)?;
        let left = start.0.as_second() + seconds - Timestamp::now().as_second();
        Some(Duration::from_secs(left.max(0).unsigned_abs()))
    }
}

pub(super) fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}
