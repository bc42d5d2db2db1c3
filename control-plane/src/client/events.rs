//! Events (core/v1) about objects, recorded in the background: what repeats raises a count, as with client-go.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSeries, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use super::{is_not_found, now};

/// How many Events wait at most for a slow API server; more are dropped, as they only tell.
const WAITING: usize = 1024;
/// How many Events are remembered to be counted when they repeat.
const REMEMBERED: usize = 1024;

/// What is to be told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Notice {
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: false, reason, message: message.into() }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { warning: true, reason, message: message.into() }
    }
}

/// Where Events are handed in. Cloning shares the recorder.
#[derive(Clone)]
pub struct Events {
    component: &'static str,
    /// The scheduler's form of an Event (KEP-383): an action, a time in microseconds, a series.
    action: Option<&'static str>,
    sender: mpsc::Sender<Record>,
}

struct Record {
    component: &'static str,
    action: Option<&'static str>,
    about: ObjectReference,
    notice: Notice,
}

impl Events {
    /// A recorder and the work behind it, to be spawned.
    pub fn new(client: Client, component: &'static str) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { component, action: None, sender }, record(client, receiver))
    }

    /// The same recorder in another component's name.
    pub fn of(&self, component: &'static str) -> Self {
        Self { component, ..self.clone() }
    }

    /// The same recorder for Events that say what was attempted.
    pub fn acting(&self, action: &'static str) -> Self {
        Self { action: Some(action), ..self.clone() }
    }

    pub fn emit<K>(&self, about: &K, notice: Notice)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        let about = about.object_ref(&());
        let record = Record { component: self.component, action: self.action, about, notice };
        if self.sender.try_send(record).is_err() {
            tracing::warn!(component = self.component, "too many events are waiting, one is dropped");
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Same {
    component: &'static str,
    uid: String,
    name: String,
    notice: Notice,
}

async fn record(client: Client, mut receiver: mpsc::Receiver<Record>) {
    let mut known: HashMap<Same, (String, i32)> = HashMap::new();
    while let Some(record) = receiver.recv().await {
        let namespace = record.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let same = Same {
            component: record.component,
            uid: record.about.uid.clone().unwrap_or_default(),
            name: record.about.name.clone().unwrap_or_default(),
            notice: record.notice.clone(),
        };
        if let Some((name, count)) = known.get_mut(&same) {
            *count += 1;
            match api.patch(name, &PatchParams::default(), &Patch::Merge(repeated(record.action, *count))).await {
                Ok(_) => continue,
                Err(error) if is_not_found(&error) => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot count an event");
                    continue;
                }
            }
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let event = first(&record, &namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                known.insert(same, (event.metadata.name.unwrap_or_default(), 1));
            }
            Err(error) => tracing::debug!(%error, reason = record.notice.reason, "cannot record an event"),
        }
    }
}

fn first(record: &Record, namespace: &str) -> Event {
    let name = record.about.name.as_deref().unwrap_or_default();
    let mut event = Event {
        type_: Some(if record.notice.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(record.notice.reason.into()),
        message: Some(record.notice.message.chars().take(1024).collect()),
        involved_object: record.about.clone(),
        ..Event::default()
    };
    event.metadata.name = Some(format!("{name}.{:x}", Timestamp::now().as_nanosecond()));
    event.metadata.namespace = Some(namespace.to_owned());
    event.reporting_component = Some(record.component.into());
    if let Some(action) = record.action {
        event.action = Some(action.into());
        event.event_time = Some(MicroTime(Timestamp::now()));
        event.reporting_instance = Some(format!("{}-{}", record.component, std::process::id()));
    } else {
        event.source = Some(EventSource { component: Some(record.component.into()), host: None });
        event.count = Some(1);
        event.first_timestamp = Some(now());
        event.last_timestamp = Some(now());
    }
    event
}

fn repeated(action: Option<&str>, count: i32) -> serde_json::Value {
    if action.is_some() {
        let series = EventSeries { count: Some(count), last_observed_time: Some(MicroTime(Timestamp::now())) };
        json!({"series": series})
    } else {
        json!({"count": count, "lastTimestamp": now()})
    }
}
