//! A pod's worker tells the API how the pod is.

use super::conditions;
use super::report::{self, Known};
use super::spec;
use super::view::View;
use super::worker::Worker;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use std::sync::Arc;

impl Worker {
    /// Computes the status and has it stored.
    pub(super) fn publish(&mut self, pod: &Arc<Pod>, view: &View, ended: bool) {
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
                scheme: &self.scheme,
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
