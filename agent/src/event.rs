//! Events on pods and on the node. Equal ones are counted rather than repeated, and their rate is bounded.

use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// How many events may wait to be sent; more are dropped.
const QUEUE: usize = 1000;
/// Of one object: this many at once, then one in five minutes, as the kubelet's spam filter does.
const OBJECT_BURST: f64 = 25.0;
const OBJECT_RATE: f64 = 1.0 / 300.0;
/// Counts are kept this long.
const MEMORY: Duration = Duration::from_secs(600);
const COMPONENT: &str = "kubelet";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Normal,
    Warning,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Takes events and never waits. Cloning shares the queue.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Note {
    object: Object,
    kind: Kind,
    reason: &'static str,
    message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Object {
    api_kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
    field_path: String,
}

impl Recorder {
    /// A recorder and the task that sends for it, to be run by the caller.
    pub fn new(client: Client, node: &str, qps: u32, burst: u32) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let sender = Sender { client, node: node.to_string(), known: HashMap::new(), objects: HashMap::new() };
        (Self { queue }, sender.run(inbox, f64::from(qps), f64::from(burst)))
    }

    /// An event about a pod, or about one of its containers.
    pub fn pod(&self, pod: &Pod, container: Option<&str>, kind: Kind, reason: &'static str, message: String) {
        let init = crate::pod::spec::init_containers(pod).iter().any(|init| Some(init.name.as_str()) == container);
        let list = if init { "initContainers" } else { "containers" };
        self.send(Note {
            object: Object {
                api_kind: "Pod",
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                name: pod.metadata.name.clone().unwrap_or_default(),
                uid: pod.metadata.uid.clone().unwrap_or_default(),
                field_path: container.map(|name| format!("spec.{list}{{{name}}}")).unwrap_or_default(),
            },
            kind,
            reason,
            message,
        });
    }

    /// An event about the node; as with the kubelet it names the node in place of its uid.
    pub fn node(&self, node: &Node, kind: Kind, reason: &'static str, message: String) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let object = Object { api_kind: "Node", uid: name.clone(), name, ..Object::default() };
        self.send(Note { object, kind, reason, message });
    }

    fn send(&self, note: Note) {
        if self.queue.try_send(note).is_err() {
            debug!("an event was dropped: too many wait");
        }
    }
}

struct Sender {
    client: Client,
    node: String,
    known: HashMap<Note, Sent>,
    objects: HashMap<Object, Bucket>,
}

struct Sent {
    name: String,
    count: i32,
    at: Instant,
}

/// A token bucket.
#[derive(Clone, Debug)]
struct Bucket {
    tokens: f64,
    burst: f64,
    rate: f64,
    at: Instant,
}

impl Bucket {
    fn new(burst: f64, rate: f64, now: Instant) -> Self {
        Self { tokens: burst, burst, rate, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.burst);
        self.at = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

impl Sender {
    async fn run(mut self, mut inbox: mpsc::Receiver<Note>, qps: f64, burst: f64) {
        let mut all = Bucket::new(burst.max(1.0), qps.max(1.0), Instant::now());
        while let Some(note) = inbox.recv().await {
            let now = Instant::now();
            let bucket = self.objects.entry(note.object.clone());
            if !bucket.or_insert_with(|| Bucket::new(OBJECT_BURST, OBJECT_RATE, now)).take(now) {
                continue;
            }
            while !all.take(Instant::now()) {
                tokio::time::sleep(Duration::from_secs_f64(1.0 / all.rate)).await;
            }
            self.deliver(note).await;
            self.known.retain(|_, sent| now.saturating_duration_since(sent.at) < MEMORY);
            self.objects.retain(|_, bucket| now.saturating_duration_since(bucket.at) < MEMORY);
        }
    }

    async fn deliver(&mut self, note: Note) {
        let namespace = if note.object.namespace.is_empty() { "default" } else { &note.object.namespace };
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        if let Some(sent) = self.known.get_mut(&note) {
            let patch = json!({"count": sent.count + 1, "lastTimestamp": Time(now())});
            match events.patch(&sent.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    sent.count += 1;
                    sent.at = Instant::now();
                    return;
                }
                // The event expired: it is made anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return warn!(%error, reason = note.reason, "an event was not counted"),
            }
        }
        let event = self.event(&note, namespace);
        match events.create(&PostParams::default(), &event).await {
            Ok(made) => {
                let name = made.metadata.name.unwrap_or_default();
                self.known.insert(note, Sent { name, count: 1, at: Instant::now() });
            }
            Err(error) => warn!(%error, reason = note.reason, message = note.message, "an event was not stored"),
        }
    }

    fn event(&self, note: &Note, namespace: &str) -> Event {
        let now = now();
        let object = &note.object;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_string());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", object.name, now.as_nanosecond())),
                namespace: Some(namespace.to_string()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some(object.api_kind.into()),
                namespace: some(&object.namespace),
                name: some(&object.name),
                uid: some(&object.uid),
                field_path: some(&object.field_path),
                ..ObjectReference::default()
            },
            type_: Some(note.kind.word().into()),
            reason: Some(note.reason.into()),
            message: Some(note.message.chars().take(1024).collect()),
            source: Some(EventSource { component: Some(COMPONENT.into()), host: Some(self.node.clone()) }),
            reporting_component: Some(COMPONENT.into()),
            reporting_instance: Some(self.node.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        }
    }
}

fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let start = Instant::now();
        let mut bucket = Bucket::new(2.0, 1.0, start);
        assert_eq!([bucket.take(start), bucket.take(start), bucket.take(start)], [true, true, false]);
        assert!(bucket.take(start + Duration::from_secs(1)));
    }
}
