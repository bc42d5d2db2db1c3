//! A pod's worker on the way down: containers stop, the last status is stored, the node is cleared, the object goes.

use super::clean;
use super::spec;
use super::status_writer::is_gone;
use super::view::View;
use super::worker::{CALM, Next, Worker, is_deleted};
use crate::event::Kind;
use crate::runtime::RuntimeError;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tracing::warn;

/// A stop under way.
pub(super) struct Stopping {
    grace: Duration,
    task: JoinHandle<Result<(), RuntimeError>>,
}

impl Worker {
    pub(super) async fn end(&mut self, pod: &Arc<Pod>, view: View) -> Next {
        self.waiting.clear();
        let begun = *self.begun_to_end.get_or_insert_with(Instant::now);
        let alive = view.is_running() || view.sandboxes.iter().any(|sandbox| sandbox.ready);
        if alive {
            self.publish(pod, &view, false);
            return self.stop(pod, view, begun).await;
        }
        self.stopping = None;
        // Before the terminal phase is told: a scheduler gives the pod's room and ports away as soon as it sees it.
        self.ctx.admission.release(&self.uid);
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
        clean::node_parts(&self.ctx, pod, leaves).await
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
}
