//! One change of an object, shared by all who watch its kind.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use serde_json::Value;

use crate::registry::{Resource, events, storage};
use crate::store::Event;

/// A change, with what was made from it so far: decoded objects, encoded frames.
pub struct Change {
    pub event: Event,
    object: OnceLock<Option<Arc<Value>>>,
    previous: OnceLock<Option<Arc<Value>>>,
    frames: Mutex<Vec<(FrameKey, Bytes)>>,
}

/// What a frame depends on beside the change: the version watched (its address), the event's type, the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameKey {
    pub resource: usize,
    pub kind: super::Kind,
    pub format: crate::request::Format,
}

impl Change {
    pub fn new(event: Event) -> Self {
        Self { event, object: OnceLock::new(), previous: OnceLock::new(), frames: Mutex::new(Vec::new()) }
    }

    /// The new state.
    pub fn object(&self, resource: &Resource) -> Option<Arc<Value>> {
        self.decoded(resource, &self.object, self.event.value.as_ref())
    }

    /// The state before, with the revision of the change.
    pub fn previous(&self, resource: &Resource) -> Option<Arc<Value>> {
        self.decoded(resource, &self.previous, self.event.previous.as_ref())
    }

    /// The version in which a kind is stored is decoded once; the other one of Events for each who asks.
    fn decoded(
        &self,
        resource: &Resource,
        shared: &OnceLock<Option<Arc<Value>>>,
        bytes: Option<&Bytes>,
    ) -> Option<Arc<Value>> {
        let decode = || decoded(resource, bytes, self.event.revision);
        match resource.group {
            events::GROUP => decode(),
            _ => shared.get_or_init(decode).clone(),
        }
    }

    /// The frame for `key`, made by `encode` for the first who asks.
    pub fn frame(&self, key: FrameKey, encode: impl FnOnce() -> Bytes) -> Bytes {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, frame)) = frames.iter().find(|(known, _)| *known == key) {
            return frame.clone();
        }
        let frame = encode();
        frames.push((key, frame.clone()));
        frame
    }
}

fn decoded(resource: &Resource, bytes: Option<&Bytes>, revision: u64) -> Option<Arc<Value>> {
    match storage::decode(resource, bytes?, revision) {
        Ok(object) => Some(Arc::new(object)),
        Err(error) => {
            tracing::error!(%error, revision, "a stored {} is no JSON", resource.kind);
            None
        }
    }
}
