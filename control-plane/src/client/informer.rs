//! A local copy of all objects of one kind, kept current by one watch and shared by everyone in the process.
//!
//! Writers give back what the API server answered (`wrote`, `deleted`), so that a copy is never older than our own
//! last write: a controller that has created a pod sees it at once, and cannot create it twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{Key, now};

/// The delays before a broken watch is tried again.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// A kind that an informer can hold.
pub trait Kind: kube::Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K: kube::Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static> Kind for K {}

/// Told of each change with the object before and after it. Handlers of one informer run one after another, in the
/// order of the changes; they may read any informer and put keys into queues, and must not write to an informer.
type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

/// How one kind is held.
pub struct Shape<K> {
    /// Drops from an object what nobody here reads.
    pub prune: fn(&mut K),
    /// The names under which `indexed` finds an object.
    pub index: fn(&K) -> Vec<String>,
}

impl<K: kube::Resource> Default for Shape<K> {
    fn default() -> Self {
        Self { prune: |object| object.meta_mut().managed_fields = None, index: |_| Vec::new() }
    }
}

/// The copy of one kind.
pub struct Informer<K> {
    shape: Shape<K>,
    state: RwLock<State<K>>,
    /// Held while a change is applied and told, so that handlers see changes in their order.
    delivery: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<String, BTreeMap<String, Arc<K>>>,
    index: HashMap<String, BTreeSet<Key>>,
    /// The newest resource version that the watch has shown: a write older than it is known already.
    latest: u64,
    /// UIDs whose deletion we asked for and whose end the watch has not shown yet.
    condemned: HashSet<String>,
    /// While a list is read: its objects, and the keys written meanwhile.
    listing: Option<(Vec<K>, HashSet<Key>)>,
}

fn version<K: kube::Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K: Kind> Informer<K> {
    pub fn new(shape: Shape<K>) -> Arc<Self> {
        let state = State {
            objects: BTreeMap::new(),
            index: HashMap::new(),
            latest: 0,
            condemned: HashSet::new(),
            listing: None,
        };
        Arc::new(Self {
            shape,
            state: RwLock::new(state),
            delivery: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        })
    }

    /// Calls `handler` for every object there is, then for every change.
    pub fn on_change(&self, handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static) {
        let mut handlers = self.delivery();
        for object in self.all() {
            handler(None, Some(&object));
        }
        handlers.push(Box::new(handler));
    }

    /// Returns once the first list is complete.
    pub async fn synced(&self) {
        // The sender lives as long as `self`: there is no error to meet.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read(|state| state.objects.get(&key.namespace)?.get(&key.name).cloned())
    }

    /// All objects in a namespace (the empty one for cluster-scoped kinds), by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read(|state| state.objects.get(namespace).map(|all| all.values().cloned().collect()).unwrap_or_default())
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.read(|state| state.objects.values().flat_map(BTreeMap::values).cloned().collect())
    }

    pub fn len(&self) -> usize {
        self.read(|state| state.objects.values().map(BTreeMap::len).sum())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects that the shape's index files under `name`.
    pub fn indexed(&self, name: &str) -> Vec<Arc<K>> {
        self.read(|state| {
            let keys = state.index.get(name).into_iter().flatten();
            keys.filter_map(|key| state.objects.get(&key.namespace)?.get(&key.name).cloned()).collect()
        })
    }

    /// Takes in what the API server answered to a write of ours.
    pub fn wrote(&self, mut object: K) {
        (self.shape.prune)(&mut object);
        let handlers = self.delivery();
        if self.read(|state| version(&object) > state.latest) {
            self.put(&handlers, object, true);
        }
    }

    /// Takes in that the API server accepted to delete `object`: it counts as terminating from now on.
    pub fn deleted(&self, object: &K) {
        let handlers = self.delivery();
        let Some(known) = self.get(&Key::of(object)) else { return };
        let Some(uid) = known.meta().uid.clone().filter(|uid| object.meta().uid.as_ref() == Some(uid)) else { return };
        self.write(|state| state.condemned.insert(uid));
        self.put(&handlers, K::clone(&known), false);
    }

    /// Takes in that the API server knows no such object.
    pub fn missing(&self, object: &K) {
        let handlers = self.delivery();
        if self.get(&Key::of(object)).is_some_and(|known| known.meta().uid == object.meta().uid) {
            self.remove(&handlers, &Key::of(object));
        }
    }

    /// Keeps the copy current for ever.
    pub async fn run(&self, api: Api<K>, config: watcher::Config) {
        let mut events = std::pin::pin!(events(api, config));
        while let Some(event) = events.next().await {
            self.observe(event);
        }
    }

    /// Takes in one event of the watch.
    pub fn observe(&self, event: Event<K>) {
        let handlers = self.delivery();
        match event {
            Event::Init => self.write(|state| state.listing = Some((Vec::new(), HashSet::new()))),
            Event::InitApply(mut object) => {
                (self.shape.prune)(&mut object);
                self.write(|state| state.listing.get_or_insert_default().0.push(object));
            }
            Event::InitDone => {
                self.replace(&handlers);
                self.synced.send_replace(true);
            }
            Event::Apply(mut object) => {
                (self.shape.prune)(&mut object);
                self.write(|state| state.latest = state.latest.max(version(&object)));
                self.put(&handlers, object, false);
            }
            Event::Delete(object) => {
                self.write(|state| state.latest = state.latest.max(version(&object)));
                let key = Key::of(&object);
                // A younger object of that name may be there already by our own write.
                if self.get(&key).is_some_and(|known| known.meta().uid == object.meta().uid) {
                    self.remove(&handlers, &key);
                }
            }
        }
    }

    fn replace(&self, handlers: &[Handler<K>]) {
        let (objects, written) = self.write(|state| state.listing.take()).unwrap_or_default();
        let listed: HashSet<Key> = objects.iter().map(Key::of).collect();
        let gone: Vec<Key> = self.all().iter().map(|o| Key::of(&**o)).filter(|k| !listed.contains(k)).collect();
        for key in gone.iter().filter(|key| !written.contains(key)) {
            self.remove(handlers, key);
        }
        for object in objects {
            self.write(|state| state.latest = state.latest.max(version(&object)));
            self.put(handlers, object, false);
        }
    }

    fn put(&self, handlers: &[Handler<K>], mut object: K, ours: bool) {
        let key = Key::of(&object);
        let old = self.get(&key);
        let same = old.as_ref().filter(|old| old.meta().uid == object.meta().uid);
        let condemned = self.read(|state| object.meta().uid.as_ref().is_some_and(|uid| state.condemned.contains(uid)))
            && object.meta().deletion_timestamp.is_none();
        if same.is_some_and(|old| {
            version(&object) < version(&**old) || (version(&object) == version(&**old) && !condemned)
        }) {
            return;
        }
        if condemned {
            object.meta_mut().deletion_timestamp = Some(now());
        }
        let new = Arc::new(object);
        self.write(|state| {
            state.unindex(self.shape.index, old.as_deref());
            for name in (self.shape.index)(&new) {
                state.index.entry(name).or_default().insert(key.clone());
            }
            if let Some((_, written)) = state.listing.as_mut().filter(|_| ours) {
                written.insert(key.clone());
            }
            state.objects.entry(key.namespace).or_default().insert(key.name, new.clone());
        });
        handlers.iter().for_each(|handler| handler(old.as_ref(), Some(&new)));
    }

    fn remove(&self, handlers: &[Handler<K>], key: &Key) {
        let old = self.write(|state| {
            let objects = state.objects.get_mut(&key.namespace)?;
            let old = objects.remove(&key.name)?;
            if objects.is_empty() {
                state.objects.remove(&key.namespace);
            }
            state.unindex(self.shape.index, Some(&old));
            if let Some(uid) = &old.meta().uid {
                state.condemned.remove(uid);
            }
            Some(old)
        });
        if let Some(old) = old {
            handlers.iter().for_each(|handler| handler(Some(&old), None));
        }
    }

    // A handler that panicked leaves the copy consistent, so a poisoned lock is of no consequence.
    fn delivery(&self) -> MutexGuard<'_, Vec<Handler<K>>> {
        self.delivery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, f: impl FnOnce(&State<K>) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, f: impl FnOnce(&mut State<K>) -> T) -> T {
        f(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The events of a watch without end: a lost connection is tried again with a delay of at most 5 s.
pub fn events<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Event<K>> + Send
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let stream = Box::pin(watcher(api, config.streaming_lists()));
    futures::stream::unfold((stream, FIRST_DELAY), |(mut stream, mut delay)| async move {
        loop {
            match stream.next().await? {
                Ok(event) => return Some((event, (stream, FIRST_DELAY))),
                Err(error) => {
                    tracing::debug!(kind = std::any::type_name::<K>(), %error, "the watch broke off");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(LAST_DELAY);
                }
            }
        }
    })
}

impl<K: kube::Resource> State<K> {
    fn unindex(&mut self, index: fn(&K) -> Vec<String>, object: Option<&K>) {
        let Some(object) = object else { return };
        for name in index(object) {
            if let Some(keys) = self.index.get_mut(&name) {
                keys.remove(&Key::of(object));
                if keys.is_empty() {
                    self.index.remove(&name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(version.to_string());
        pod
    }

    fn names(informer: &Informer<Pod>) -> Vec<String> {
        informer.all().iter().map(|p| p.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn own_writes_are_seen_at_once_and_never_resurrected() {
        let informer = Informer::new(Shape::default());
        informer.observe(Event::Init);
        informer.observe(Event::InitDone);
        informer.wrote(pod("a", "1", 5));
        assert_eq!(names(&informer), ["a"]);
        // Its watch events arrive before the answer to the creation does: created and deleted.
        informer.observe(Event::Apply(pod("b", "2", 6)));
        informer.observe(Event::Delete(pod("b", "2", 7)));
        informer.wrote(pod("b", "2", 6));
        assert_eq!(names(&informer), ["a"]);
    }

    #[test]
    fn what_we_deleted_counts_as_terminating_until_it_is_gone() {
        let informer = Informer::new(Shape::default());
        informer.observe(Event::Apply(pod("a", "1", 5)));
        informer.deleted(&pod("a", "1", 5));
        assert!(informer.all()[0].metadata.deletion_timestamp.is_some());
        informer.observe(Event::Apply(pod("a", "1", 6)));
        assert!(informer.all()[0].metadata.deletion_timestamp.is_some(), "an older status write does not revive it");
        informer.observe(Event::Delete(pod("a", "1", 7)));
        assert!(informer.is_empty());
    }

    #[test]
    fn a_new_list_drops_what_went_meanwhile_but_not_what_was_written_meanwhile() {
        let informer = Informer::new(Shape::default());
        informer.observe(Event::Apply(pod("gone", "1", 5)));
        informer.observe(Event::Init);
        informer.wrote(pod("mine", "2", 9));
        informer.observe(Event::InitApply(pod("kept", "3", 7)));
        informer.observe(Event::InitDone);
        assert_eq!(names(&informer), ["kept", "mine"]);
    }

    #[test]
    fn an_index_follows_changes() {
        let informer = Informer::new(Shape {
            index: |p: &Pod| p.metadata.labels.iter().flat_map(|l| l.values().cloned()).collect(),
            ..Shape::default()
        });
        let mut red = pod("a", "1", 1);
        red.metadata.labels = Some([("color".to_owned(), "red".to_owned())].into());
        let mut blue = pod("a", "1", 2);
        blue.metadata.labels = Some([("color".to_owned(), "blue".to_owned())].into());
        informer.observe(Event::Apply(red));
        informer.observe(Event::Apply(blue));
        assert_eq!((informer.indexed("red").len(), informer.indexed("blue").len()), (0, 1));
    }
}
