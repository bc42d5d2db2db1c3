//! The hubs: one task for each kind that is watched, between the store and the watchers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::Change;
use crate::store::{Error, Revision, Signal, Store};

/// How many changes a watcher may lie behind.
const BUFFER: usize = 2048;

/// What a hub tells its watchers.
#[derive(Clone)]
pub enum Message {
    Change(Arc<Change>),
    /// All changes up to this revision were told.
    Progress(Revision),
}

/// A place among a hub's watchers. Changes up to `position` are not in it: they are in the store's history.
pub struct Subscription {
    pub position: Revision,
    pub messages: broadcast::Receiver<Message>,
}

struct Hub {
    sender: broadcast::Sender<Message>,
    /// The last revision that was told. Locked while telling, so that a subscription knows where it begins.
    position: Mutex<Revision>,
}

/// All hubs, by the prefix of their keys. A hub begins with its first watcher and ends some time after its last.
#[derive(Clone, Default)]
pub struct Hubs(Arc<Mutex<HashMap<String, Arc<Hub>>>>);

impl Hubs {
    /// Joins the watchers of a prefix.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn subscribe(&self, store: &Arc<dyn Store>, prefix: &str) -> Result<Subscription, Error> {
        if let Some(subscription) = self.join(prefix) {
            return Ok(subscription);
        }
        let position = store.revision();
        let watch = store.watch(prefix.to_owned(), position).await?;
        let hub = Arc::new(Hub { sender: broadcast::Sender::new(BUFFER), position: Mutex::new(position) });
        let first = {
            let mut hubs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let first = !hubs.contains_key(prefix);
            let joined = hubs.entry(prefix.to_owned()).or_insert(hub.clone());
            (first, joined.subscribe())
        };
        if first.0 {
            tokio::spawn(run(self.clone(), store.clone(), prefix.to_owned(), hub, watch));
        }
        Ok(first.1)
    }

    fn join(&self, prefix: &str) -> Option<Subscription> {
        let hubs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.get(prefix).map(|hub| hub.subscribe())
    }

    /// Takes a hub away that nobody listens to. Under the lock, so that nobody joins a hub that ends.
    fn leave(&self, prefix: &str, hub: &Hub) -> bool {
        let mut hubs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = hub.sender.receiver_count() == 0;
        if alone {
            hubs.remove(prefix);
        }
        alone
    }
}

impl Hub {
    fn subscribe(&self) -> Subscription {
        let position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        Subscription { position: *position, messages: self.sender.subscribe() }
    }

    /// Nobody listening is no failure: the next subscriber reads the history.
    fn tell(&self, signal: Signal) {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        match signal {
            Signal::Events(events) => {
                for event in events.iter().filter(|e| e.revision > *position) {
                    let _ = self.sender.send(Message::Change(Arc::new(Change::new(event.clone()))));
                }
                *position = events.last().map_or(*position, |e| e.revision.max(*position));
            }
            Signal::Progress(revision) => {
                *position = revision.max(*position);
                let _ = self.sender.send(Message::Progress(*position));
            }
        }
    }
}

async fn run(hubs: Hubs, store: Arc<dyn Store>, prefix: String, hub: Arc<Hub>, mut watch: crate::store::Watch) {
    loop {
        match watch.recv().await {
            Some(signal) => {
                let idle = matches!(signal, Signal::Progress(_));
                hub.tell(signal);
                if idle && hubs.leave(&prefix, &hub) {
                    return;
                }
            }
            // Cut by the store: go on from where it stopped.
            None => {
                let position = *hub.position.lock().unwrap_or_else(PoisonError::into_inner);
                match store.watch(prefix.clone(), position).await {
                    Ok(again) => watch = again,
                    Err(error) => {
                        tracing::warn!(%error, prefix, "watchers are cut");
                        hubs.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&prefix);
                        return;
                    }
                }
            }
        }
    }
}
