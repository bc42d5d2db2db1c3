//! The pod network: a runtime of the Container Network Interface.
//!
//! The first configuration of a folder is the pods' network. It is read at each use, so a change counts from the next
//! call on, and nothing has to be watched. Plugins are run as the specification says; what was attached how is written
//! into the cache where libcni has it, before the first plugin runs, so that DEL finds the configuration, the arguments
//! and the result of its ADD whatever happened in between, to us or to the folder.
//!
//! | file | what |
//! |---|---|
//! | `attachment.rs` | what a pod asks of its network, from its CRI config |
//! | `config.rs` | the folder of configurations |
//! | `cache.rs` | attachments on disk, in libcni's format |
//! | `plugin.rs` | one call of one plugin: environment, input, answer |
//! | `verbs.rs` | ADD, CHECK, DEL, GC, STATUS over all plugins of a network |
//! | `error.rs` | why any of it failed |
//!
//! Source: the CNI specification 1.1.0 and its CONVENTIONS.

mod attachment;
mod cache;
mod config;
mod error;
mod plugin;
#[cfg(test)]
mod tests;
mod verbs;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, RwLock};

pub use attachment::{Attachment, AttachmentError, IFNAME, PodName};
pub use cache::is_entry;
pub use config::ConfigError;
pub use error::CniError;

use verbs::Verbs;

/// For how long an answer to STATUS is given again: kubelet and every tool ask in short turns.
const STATUS_LIFE: Duration = Duration::from_secs(5);

/// Which of a pod's addresses is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    #[default]
    V4,
    V6,
    /// The order of the plugins.
    Given,
}

/// Where things lie, and how long to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSettings {
    pub conf_dir: PathBuf,
    /// The first folder that has a plugin counts.
    pub bin_dirs: Vec<PathBuf>,
    /// `results` below it holds the cache.
    pub cache_dir: PathBuf,
    /// Network namespaces below this folder are ours: GC ends no cached attachment of another.
    pub netns_dir: PathBuf,
    /// Whether no other runtime attaches to the same network. Only then may plugins be told to forget whatever we do
    /// not know: else the pods of the other lose their addresses.
    pub exclusive: bool,
    /// For one call of one plugin.
    pub timeout: Duration,
    /// For one plugin's STATUS.
    pub status_timeout: Duration,
    pub prefer: Prefer,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into()],
            cache_dir: "/var/lib/cni".into(),
            netns_dir: "/run/bosun-cri/sandboxes".into(),
            exclusive: false,
            timeout: Duration::from_secs(100),
            status_timeout: Duration::from_secs(10),
            prefer: Prefer::V4,
        }
    }
}

/// What ADD made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// Of the pod's interface, the preferred one first.
    pub ips: Vec<IpAddr>,
    pub result: api::cni::Success,
}

/// The pod network. Cloning shares it. Each call goes on to its end on a thread of its own when its caller goes away.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    verbs: Verbs,
    /// One call at a time for an attachment: a DEL waits for the ADD that nobody waits for any more.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// GC writes, all others read: nothing is attached while plugins compare.
    gate: Arc<RwLock<()>>,
    /// Attached by this process and not detached since; GC spares them whatever its caller has seen.
    attached: Mutex<BTreeSet<String>>,
    status: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
}

/// Held for the length of a call.
struct Turn {
    _gate: OwnedRwLockReadGuard<()>,
    _own: OwnedMutexGuard<()>,
}

impl Network {
    pub fn new(settings: NetworkSettings) -> Self {
        let shared = Shared {
            verbs: Verbs::new(settings),
            turns: Mutex::default(),
            gate: Arc::default(),
            attached: Mutex::default(),
            status: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether there is a configuration of a version we speak, and each of its plugins is installed.
    ///
    /// # Errors
    /// What is missing or wrong, with the file and what to do: for NetworkReady's message.
    pub fn ready(&self) -> Result<(), String> {
        self.shared.verbs.ready().map_err(|error| error.to_string())
    }

    /// As [`Network::ready`], and what the plugins themselves say to STATUS (from version 1.1.0 on). An answer counts
    /// for five seconds.
    ///
    /// # Errors
    /// As `ready`, or the plugin's reason.
    pub async fn status(&self) -> Result<(), String> {
        self.ready()?;
        let mut last = self.shared.status.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < STATUS_LIFE
        {
            return answer.clone();
        }
        let answer = self.blocking(|verbs| verbs.status()).await.map_err(|error| error.to_string());
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    /// The network's configuration as it is used, for a verbose status.
    pub fn config(&self) -> Option<Value> {
        self.shared.verbs.config()
    }

    /// Attaches a pod. What an earlier call left of the same attachment is detached first.
    ///
    /// # Errors
    /// As [`CniError`] says. Then the plugins that had done their part have been told to undo it.
    pub async fn add(&self, attachment: &Attachment) -> Result<Outcome, CniError> {
        let turn = self.turn(&attachment.id).await;
        locked(&self.shared.attached).insert(attachment.id.clone());
        let attachment = attachment.clone();
        let shared = self.shared.clone();
        self.blocking(move |verbs| {
            let done = verbs.add(&attachment);
            if done.is_err() {
                locked(&shared.attached).remove(&attachment.id);
            }
            drop(turn);
            done
        })
        .await
    }

    /// Asks the plugins whether an attachment is as ADD left it. Success where they cannot be asked: configurations
    /// before 0.4.0 and those that switch it off.
    ///
    /// # Errors
    /// Where a plugin finds a difference, or nothing is known of the attachment.
    pub async fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        let turn = self.turn(&attachment.id).await;
        let attachment = attachment.clone();
        self.blocking(move |verbs| {
            let done = verbs.check(&attachment);
            drop(turn);
            done
        })
        .await
    }

    /// Detaches a pod, by the configuration, arguments and result that its ADD had; where nothing was written down of
    /// it, by the present configuration. Idempotent. The namespace may be gone.
    ///
    /// # Errors
    /// All that plugins failed with. The cache then keeps the attachment, for the next call.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), CniError> {
        let turn = self.turn(&attachment.id).await;
        let attachment = attachment.clone();
        let shared = self.shared.clone();
        self.blocking(move |verbs| {
            let done = verbs.del(&attachment);
            if done.is_ok() {
                locked(&shared.attached).remove(&attachment.id);
            }
            drop(turn);
            done
        })
        .await
    }

    /// Detaches what the cache knows of our pods that are not among `living` (container ids) and whose namespaces are
    /// gone, then, on an exclusive network, lets the plugins (from 1.1.0 on) drop whatever belongs to none of the
    /// living.
    ///
    /// Only for a caller that knows all pods: after everything was restored.
    ///
    /// # Errors
    /// All that failed; the rest was done.
    pub async fn gc(&self, living: BTreeSet<String>) -> Result<(), CniError> {
        let gate = self.shared.gate.clone().write_owned().await;
        let shared = self.shared.clone();
        self.blocking(move |verbs| {
            let mut living = living;
            living.extend(locked(&shared.attached).iter().cloned());
            let done = verbs.gc(&living);
            drop(gate);
            done
        })
        .await
    }

    async fn turn(&self, id: &str) -> Turn {
        let gate = self.shared.gate.clone().read_owned().await;
        let own = {
            let mut turns = locked(&self.shared.turns);
            // Only the map holds those that nobody uses or waits for.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(id.to_owned()).or_default().clone()
        };
        Turn { _gate: gate, _own: own.lock_owned().await }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Verbs) -> Result<T, CniError> + Send + 'static,
    ) -> Result<T, CniError> {
        let (shared, span) = (self.shared.clone(), tracing::Span::current());
        let done = tokio::task::spawn_blocking(move || span.in_scope(|| work(&shared.verbs)));
        done.await.unwrap_or_else(|error| Err(CniError::Aborted(error.to_string())))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is in there is whole between any two statements that hold it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
