//! The watches of pods, namespaces and policies, turned into [`Change`]s. Objects are read and dropped.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use lifecycle::watch::{Present, next};
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
    let what = format!("{source:?}");
    let config = watcher::Config::default().streaming_lists();
    let mut events = watcher::watcher(api, config).default_backoff().boxed();
    let mut present = Present::default();
    while let Some(event) = next(&what, &mut events).await {
        let listed = matches!(event, Event::InitDone);
        let changes =
            present.take(event, Name::of).into_iter().map(|(name, object)| Told::Change(change(name, object)));
        for told in changes.collect::<Vec<_>>().into_iter().chain(listed.then_some(Told::Listed(source))) {
            if news.send(told.into()).await.is_err() {
                return;
            }
        }
    }
}
