//! What the worker of a pod and the rest of the agent share about it.

use super::view::View;
use k8s_openapi::api::core::v1::Pod;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, watch};

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

    pub(super) fn see(&self, view: View) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).view = view;
    }

    pub(super) fn tell(&self, pod: Arc<Pod>) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).pod = pod;
    }
}
