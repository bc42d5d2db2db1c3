//! The watches of pods, namespaces and policies, turned into [`Change`]s. Objects are read and dropped.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use super::model::{self, Name, read_labels};
use super::plan::Change;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    Pods,
    Namespaces,
    Policies,
}

/// What a watch says.
#[derive(Debug)]
pub enum Told {
    Change(Change),
    /// The first list of this watch is complete.
    Listed(Source),
}

/// Watches pods until the receiver goes.
pub async fn pods<N: From<Told>>(client: Client, news: Sender<N>) {
    watch(Api::<Pod>::all(client), Source::Pods, news, |name, pod| {
        Change::Pod(name, pod.map(|pod| model::Pod::read(&pod)))
    })
    .await;
}

/// Watches namespaces until the receiver goes.
pub async fn namespaces<N: From<Told>>(client: Client, news: Sender<N>) {
    watch(Api::<Namespace>::all(client), Source::Namespaces, news, |name, namespace| {
        Change::Namespace(name.name, namespace.map(|own| read_labels(own.metadata.labels.as_ref())))
    })
    .await;
}

/// Watches policies until the receiver goes.
pub async fn policies<N: From<Told>>(client: Client, news: Sender<N>) {
    watch(Api::<NetworkPolicy>::all(client), Source::Policies, news, |name, policy| {
        let policy = policy.map(|policy| {
            let (policy, errors) = model::Policy::read(&policy);
            errors.iter().for_each(|error| tracing::warn!("NetworkPolicy {name}: {error}"));
            policy
        });
        Change::Policy(name, policy)
    })
    .await;
}

async fn watch<K, N>(api: Api<K>, source: Source, news: Sender<N>, mut change: impl FnMut(Name, Option<K>) -> Change)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    N: From<Told>,
{
    let config = watcher::Config::default().streaming_lists();
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    let mut present = Present::default();
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!("cannot watch {source:?}: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let listed = matches!(event, Event::InitDone);
        let changes = present.take(event).into_iter().map(|(name, object)| Told::Change(change(name, object)));
        for told in changes.collect::<Vec<_>>().into_iter().chain(listed.then_some(Told::Listed(source))) {
            if news.send(told.into()).await.is_err() {
                return;
            }
        }
    }
}

/// The names that are there, so that a new list shows what went meanwhile.
#[derive(Default)]
struct Present {
    names: BTreeSet<Name>,
    /// Of a list under way.
    listed: BTreeSet<Name>,
}

impl Present {
    /// What an event says of each object that it concerns.
    fn take<K: ResourceExt>(&mut self, event: Event<K>) -> Vec<(Name, Option<K>)> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed.insert(Name::of(&object));
                vec![(Name::of(&object), Some(object))]
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone = std::mem::replace(&mut self.names, listed);
                gone.into_iter().filter(|name| !self.names.contains(name)).map(|name| (name, None)).collect()
            }
            Event::Apply(object) => {
                self.names.insert(Name::of(&object));
                vec![(Name::of(&object), Some(object))]
            }
            Event::Delete(object) => {
                self.names.remove(&Name::of(&object));
                vec![(Name::of(&object), None)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_list_shows_what_went() {
        let pod = |name: &str| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod.metadata.namespace = Some("a".into());
            pod
        };
        let mut present = Present::default();
        let said = |changes: Vec<(Name, Option<Pod>)>| {
            changes.into_iter().map(|(name, pod)| (name.to_string(), pod.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(said(present.take(Event::Init)), []);
        assert_eq!(said(present.take(Event::InitApply(pod("one")))), [("a/one".into(), true)]);
        assert_eq!(said(present.take(Event::InitDone)), []);
        assert_eq!(said(present.take(Event::Apply(pod("two")))), [("a/two".into(), true)]);
        said(present.take(Event::Init));
        present.take(Event::InitApply(pod("two")));
        assert_eq!(said(present.take(Event::InitDone)), [("a/one".into(), false)]);
        assert_eq!(said(present.take(Event::Delete(pod("two")))), [("a/two".into(), false)]);
    }
}
