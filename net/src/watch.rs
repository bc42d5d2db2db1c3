//! What the watches of the API have in common.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{Stream, TryStreamExt};
use kube::ResourceExt;
use kube::runtime::watcher::{self, Event};

use crate::policy::model::Name;

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
#[derive(Default)]
pub struct Present {
    names: BTreeSet<Name>,
    /// Of a list under way.
    listed: BTreeSet<Name>,
}

impl Present {
    /// What an event says of each object that it concerns.
    pub fn take<K: ResourceExt>(&mut self, event: Event<K>) -> Vec<(Name, Option<K>)> {
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
    use k8s_openapi::api::core::v1::Pod;

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
