//! ConfigMaps and secrets that pods of this node use. Each is watched by itself, by name, from the first pod that asks to
//! the last that goes: nothing else of the cluster is read or kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::{Notify, watch};

/// How long a caller waits for the first answer of the API server.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        })
    }
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

/// What an object holds, decoded: a ConfigMap's data and binaryData, or a Secret's data.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Content {
    pub data: BTreeMap<String, Bytes>,
    /// A Secret's type, such as `kubernetes.io/dockerconfigjson`; empty for a ConfigMap.
    pub secret_type: String,
    immutable: bool,
}

/// Keys only: the values may be secret.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.data.keys()).finish()
    }
}

/// Why an object could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error("{kind} {name:?} not found")]
    NotFound { kind: Kind, name: String },
    #[error("failed to sync {kind} cache: timed out waiting for the condition")]
    TimedOut { kind: Kind },
    #[error("{kind} {name:?}: {reason}")]
    Failed { kind: Kind, name: String, reason: String },
}

#[derive(Clone, Debug)]
enum State {
    /// The API server has not answered yet.
    Unknown,
    Failed(String),
    Absent,
    Present(Arc<Content>),
}

/// The watched objects. Cloning shares them.
#[derive(Clone)]
pub struct Objects {
    inner: Arc<Inner>,
}

struct Inner {
    client: kube::Client,
    entries: Mutex<HashMap<Key, Entry>>,
    changed: Mutex<BTreeSet<Key>>,
    wake: Notify,
}

struct Entry {
    users: BTreeSet<User>,
    state: watch::Receiver<State>,
    /// Ends the watch when the entry goes.
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

/// Who needs an object: a pod's volumes, or the pod beside them (its environment, its image pulls).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct User {
    uid: String,
    mounted: bool,
}

impl Objects {
    pub fn new(client: kube::Client) -> Self {
        let inner = Inner { client, entries: Mutex::default(), changed: Mutex::default(), wake: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    /// The object's content now, for a pod's environment; the object is watched until [`Self::release`] of that pod.
    ///
    /// # Errors
    /// [`ObjectError`]; its text is what an Event says.
    pub async fn get(&self, key: &Key, pod_uid: &str) -> Result<Arc<Content>, ObjectError> {
        self.ask(key, User { uid: pod_uid.into(), mounted: false }).await
    }

    pub(super) async fn mounted(&self, key: &Key, pod_uid: &str) -> Result<Arc<Content>, ObjectError> {
        self.ask(key, User { uid: pod_uid.into(), mounted: true }).await
    }

    /// The pod uses no object any more.
    pub fn release(&self, pod_uid: &str) {
        self.drop_users(|_, user| user.uid == pod_uid);
    }

    /// The pod's volumes use these objects and no others.
    pub(super) fn keep_mounted(&self, pod_uid: &str, keys: &BTreeSet<Key>) {
        self.drop_users(|key, user| user.mounted && user.uid == pod_uid && !keys.contains(key));
    }

    /// Waits until objects changed since the last call, and says which.
    pub(super) async fn changes(&self) -> BTreeSet<Key> {
        loop {
            let changed = std::mem::take(&mut *self.inner.changed.lock().unwrap_or_else(PoisonError::into_inner));
            if !changed.is_empty() {
                return changed;
            }
            self.inner.wake.notified().await;
        }
    }

    /// Uids of the pods whose volumes hold this object.
    pub(super) fn mounted_by(&self, key: &Key) -> Vec<String> {
        self.users(key, true)
    }

    /// Uids of the pods that read this object beside their volumes.
    pub(super) fn read_by(&self, key: &Key) -> Vec<String> {
        self.users(key, false)
    }

    fn users(&self, key: &Key, mounted: bool) -> Vec<String> {
        let entries = self.entries();
        let users = entries.get(key).into_iter().flat_map(|entry| &entry.users);
        users.filter(|user| user.mounted == mounted).map(|user| user.uid.clone()).collect()
    }

    fn drop_users(&self, gone: impl Fn(&Key, &User) -> bool) {
        self.entries().retain(|key, entry| {
            entry.users.retain(|user| !gone(key, user));
            !entry.users.is_empty()
        });
    }

    async fn ask(&self, key: &Key, user: User) -> Result<Arc<Content>, ObjectError> {
        let mut state = self.subscribe(key, user);
        let known = tokio::time::timeout(FIRST_ANSWER, state.wait_for(|s| !matches!(s, State::Unknown))).await;
        let (kind, name) = (key.kind, key.name.clone());
        match known.map(|s| s.map(|s| s.clone())) {
            Err(_) => Err(ObjectError::TimedOut { kind }),
            // The watch ended with its last user, in the middle of this call.
            Ok(Err(_)) => Err(ObjectError::Failed { kind, name, reason: "the pod is gone".into() }),
            Ok(Ok(State::Unknown)) => Err(ObjectError::TimedOut { kind }),
            Ok(Ok(State::Failed(reason))) => Err(ObjectError::Failed { kind, name, reason }),
            Ok(Ok(State::Absent)) => Err(ObjectError::NotFound { kind, name }),
            Ok(Ok(State::Present(content))) => Ok(content),
        }
    }

    fn subscribe(&self, key: &Key, user: User) -> watch::Receiver<State> {
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_insert_with(|| self.watch(key.clone()));
        entry.users.insert(user);
        entry.state.clone()
    }

    fn watch(&self, key: Key) -> Entry {
        let (sender, state) = watch::channel(State::Unknown);
        let inner = self.inner.clone();
        let task = tokio::spawn(async move {
            let client = inner.client.clone();
            match key.kind {
                Kind::ConfigMap => {
                    let api: Api<ConfigMap> = Api::namespaced(client, &key.namespace);
                    inner.follow(api, &key, &sender).await;
                }
                Kind::Secret => {
                    let api: Api<Secret> = Api::namespaced(client, &key.namespace);
                    inner.follow(api, &key, &sender).await;
                }
            }
            // An object that cannot change is not watched on; its content stays as long as somebody uses it.
            sender.closed().await;
        });
        Entry { users: BTreeSet::new(), state, _task: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    async fn follow<K>(&self, api: Api<K>, key: &Key, sender: &watch::Sender<State>)
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Into<Content> + 'static,
    {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name)).streaming_lists();
        let mut events = watcher(api, config).default_backoff().boxed();
        let mut listed = None;
        while let Some(event) = events.next().await {
            let next = match event {
                Ok(Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listed = Some(object.into());
                    continue;
                }
                Ok(Event::InitDone) => listed.take().map_or(State::Absent, |c: Content| State::Present(Arc::new(c))),
                Ok(Event::Apply(object)) => State::Present(Arc::new(object.into())),
                Ok(Event::Delete(_)) => State::Absent,
                // What is known stays in force while the API server is away.
                Err(error) if matches!(*sender.borrow(), State::Unknown | State::Failed(_)) => {
                    State::Failed(error.to_string())
                }
                Err(_) => continue,
            };
            let immutable = matches!(&next, State::Present(content) if content.immutable);
            let mut news = false;
            sender.send_modify(|old| news = replace(old, next));
            if news {
                self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
                self.wake.notify_one();
            }
            if immutable {
                return;
            }
        }
    }
}

/// True if `next` is news to somebody who does not wait for the first answer.
fn replace(old: &mut State, next: State) -> bool {
    let same = match (&*old, &next) {
        (State::Unknown, _) => true,
        (State::Present(a), State::Present(b)) => a == b,
        (State::Absent, State::Absent) => true,
        _ => false,
    };
    *old = next;
    !same
}

impl From<ConfigMap> for Content {
    fn from(object: ConfigMap) -> Self {
        let text = object.data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value)));
        let binary = object.binary_data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value.0)));
        let immutable = object.immutable == Some(true);
        Self { data: text.chain(binary).collect(), secret_type: String::new(), immutable }
    }
}

impl From<Secret> for Content {
    fn from(object: Secret) -> Self {
        let data = object.data.into_iter().flatten().map(|(key, value)| (key, Bytes::from(value.0))).collect();
        let immutable = object.immutable == Some(true);
        Self { data, secret_type: object.type_.unwrap_or_default(), immutable }
    }
}
