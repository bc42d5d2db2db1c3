//! Where objects are kept: keys and bytes with etcd's semantics. `Embedded` is the engine that comes with bosun.
//!
//! One counter, the revision, goes up with every write. Every value is kept under the revision that wrote it until
//! compaction, so that a list can go on where it stopped and a watch can begin in the past.

mod embedded;
mod index;
mod record;
mod snapshot;
#[cfg(test)]
mod suite;
mod writer;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

pub use embedded::Embedded;
pub use snapshot::stage;

/// The store's clock: counted up by each transaction that writes. The first is 1.
pub type Revision = u64;

/// A key and its value as of some revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The revision at which the key came to be.
    pub created: Revision,
    /// The revision of this value.
    pub modified: Revision,
}

/// Which keys to read, in the order of their bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    pub prefix: String,
    /// Begins behind this key.
    pub after: Option<String>,
    /// 0 for no limit.
    pub limit: usize,
    /// The state at this revision; the newest where none.
    pub at: Option<Revision>,
}

/// A part of the store at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    pub revision: Revision,
    pub entries: Vec<Entry>,
    /// How many keys of the range follow behind the limit.
    pub remaining: usize,
}

/// What must hold for a transaction to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    Absent(String),
    /// The key's value was written at this revision.
    Modified(String, Revision),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Bytes,
        /// Seconds since 1970 after which the key goes by itself.
        expires: Option<u64>,
    },
    /// Nothing where the key is absent.
    Delete { key: String },
}

/// Changes that are done together, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Durable, at this revision.
    Done(Revision),
    /// The compare with this index did not hold.
    Failed(usize),
}

/// A change, as watchers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub key: Arc<str>,
    /// None where the key was deleted.
    pub value: Option<Bytes>,
    /// What was there before.
    pub previous: Option<Bytes>,
    /// The revision at which the key came to be.
    pub created: Revision,
}

/// What a watch delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// Changes in the order of their revisions; all changes of a revision come in one.
    Events(Arc<[Event]>),
    /// All changes up to this revision were delivered.
    Progress(Revision),
}

/// A running watch. It ends (None) when the receiver is so slow that the store cut it, or the store closed; go on with
/// a new watch from the last revision seen.
pub type Watch = mpsc::Receiver<Signal>;

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("revision {wanted} was compacted away, the oldest kept is {compacted}")]
    Compacted { wanted: Revision, compacted: Revision },
    #[error("revision {wanted} is in the future, the newest is {current}")]
    Future { wanted: Revision, current: Revision },
    #[error("the store is closed")]
    Closed,
    #[error("the store is full: {0}")]
    Full(String),
    #[error("cannot {action} the store: {why}")]
    Engine { action: &'static str, why: String },
    #[error("{path} has schema version {found}, this program knows {known}")]
    Schema { path: String, found: u64, known: u64 },
    #[error("cannot {action} {path}: {why}")]
    File { action: &'static str, path: String, why: String },
}

/// Keys and bytes with etcd's semantics.
pub trait Store: Send + Sync {
    /// The value at the newest revision, with that revision.
    ///
    /// # Errors
    /// Where the engine fails; so for all below.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Revision, Option<Entry>), Error>>;

    /// A consistent part of the state.
    ///
    /// # Errors
    /// `Compacted` or `Future` for `at`.
    fn range(&self, range: Range) -> BoxFuture<'_, Result<Listing, Error>>;

    /// Whether a key is there, from memory.
    fn contains(&self, key: &str) -> bool;

    /// How many keys begin with `prefix`, without reading them.
    fn count(&self, prefix: &str) -> usize;

    /// All or nothing. Durable when it answers `Done`.
    ///
    /// # Errors
    /// After an error the transaction may or may not have been done.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, Error>>;

    /// All changes under `prefix` with a revision above `after`, and on.
    ///
    /// # Errors
    /// `Compacted` for `after`.
    fn watch(&self, prefix: String, after: Revision) -> BoxFuture<'_, Result<Watch, Error>>;

    /// The changes under `prefix` with `after < revision <= upto`.
    ///
    /// # Errors
    /// `Compacted` for `after`.
    fn history(&self, prefix: String, after: Revision, upto: Revision) -> BoxFuture<'_, Result<Vec<Event>, Error>>;

    /// Sends every watch a `Progress`.
    fn progress(&self);

    /// The newest revision; 0 for a store never written.
    fn revision(&self) -> Revision;

    /// The revision up to which history was dropped.
    fn compacted(&self) -> Revision;

    /// Drops what was overwritten or deleted at or before `revision`.
    ///
    /// # Errors
    /// `Compacted` or `Future` for a revision that is neither.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>>;

    /// Deletes the keys whose time is over. `now` in seconds since 1970. Engines that do so by themselves do nothing.
    ///
    /// # Errors
    /// Where the engine fails.
    fn expire(&self, now: u64) -> BoxFuture<'_, Result<usize, Error>>;

    /// Writes a copy of the newest state into a new file, while the store runs.
    ///
    /// # Errors
    /// Where the file exists or cannot be written.
    fn snapshot(&self, path: std::path::PathBuf) -> BoxFuture<'_, Result<Revision, Error>>;

    /// A folder for files on their way in or out.
    fn folder(&self) -> &std::path::Path;

    /// Has the store begin with this snapshot, a file in [`Store::folder`], when it is opened the next time.
    ///
    /// # Errors
    /// Where it is no snapshot, or one of another schema.
    fn restore(&self, snapshot: std::path::PathBuf) -> BoxFuture<'_, Result<(), Error>>;
}
