//! What the daemons' watches of the API have in common.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use kube::runtime::watcher::{self, Event};

/// The next event of the watch of `what`; failures are told and waited out by the stream's back-off.
pub async fn next<K: Send>(
    what: &str,
    events: &mut (impl Stream<Item = watcher::Result<Event<K>>> + Unpin),
) -> Option<Event<K>> {
    loop {
        match events.try_next().await {
            Ok(event) => return event,
            Err(error) => {
                tracing::warn!("cannot watch {what}: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The names that are there, so that a new list shows what went meanwhile.
#[derive(Debug)]
pub struct Present<N> {
    names: BTreeSet<N>,
    /// Of a list under way.
    listed: BTreeSet<N>,
}

impl<N> Default for Present<N> {
    fn default() -> Self {
        Self { names: BTreeSet::new(), listed: BTreeSet::new() }
    }
}

impl<N: Ord + Clone> Present<N> {
    /// What an event says of each object that it concerns; `name` is what an object is known by.
    pub fn take<K>(&mut self, event: Event<K>, name: impl Fn(&K) -> N) -> Vec<(N, Option<K>)> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                let name = name(&object);
                self.listed.insert(name.clone());
                vec![(name, Some(object))]
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone = std::mem::replace(&mut self.names, listed);
                gone.into_iter().filter(|name| !self.names.contains(name)).map(|name| (name, None)).collect()
            }
            Event::Apply(object) => {
                let name = name(&object);
                self.names.insert(name.clone());
                vec![(name, Some(object))]
            }
            Event::Delete(object) => {
                self.names.remove(&name(&object));
                vec![(name(&object), None)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn a_new_list_shows_what_went() {
        let pod = |name: &str| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            pod
        };
        let mut present: Present<String> = Present::default();
        let mut said = |event: Event<Pod>| {
            let changes = present.take(event, |pod| pod.metadata.name.clone().unwrap_or_default());
            changes.into_iter().map(|(name, pod)| (name, pod.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(said(Event::Init), []);
        assert_eq!(said(Event::InitApply(pod("one"))), [("one".into(), true)]);
        assert_eq!(said(Event::InitDone), []);
        assert_eq!(said(Event::Apply(pod("two"))), [("two".into(), true)]);
        assert_eq!(said(Event::Init), []);
        assert_eq!(said(Event::InitApply(pod("two"))), [("two".into(), true)]);
        assert_eq!(said(Event::InitDone), [("one".into(), false)]);
        assert_eq!(said(Event::Delete(pod("two"))), [("two".into(), false)]);
    }
}
