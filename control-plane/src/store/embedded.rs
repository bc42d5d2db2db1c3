//! The engine that comes with bosun: a redb file with an append-only log of changes, and an index of it in memory.
//!
//! ```text
//! log   (revision, place within it) → record     every change, in order
//! meta  name → number                            schema, compacted, revision
//! ```
//!
//! Reads take a snapshot of the file under the index's lock, so that what the index names is there. Writes go to one
//! thread (`writer`).

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::index::{Index, Place, Version};
use super::record::Record;
use super::writer::{self, Message};
use super::{Entry, Error, Event, Listing, Outcome, Range, Revision, Signal, Store, Txn, Watch, snapshot};

pub(super) const LOG: TableDefinition<'_, Place, &'static [u8]> = TableDefinition::new("log");
pub(super) const META: TableDefinition<'_, &'static str, u64> = TableDefinition::new("meta");

/// The layout described above.
pub(super) const SCHEMA: u64 = 1;

/// Of a file that the engine does not understand. Nobody but the server itself takes a snapshot in while it does not run.
const DAMAGED: &str =
    "the file is damaged; a snapshot that lies beside it as restore.redb takes its place at the next start";

/// The engine's own cache; the kernel's page cache stands behind it.
const CACHE_BYTES: usize = 8 << 20;

/// Signals a watcher may lie behind before it is cut.
const WATCH_BUFFER: usize = 4096;

/// Transactions that wait for the writer before callers wait, too.
const QUEUE: usize = 1024;

/// Long reads at a time: each has a thread, and a thread has memory of its own.
const READERS: usize = 2;

struct Watcher {
    prefix: String,
    sender: mpsc::Sender<Signal>,
}

/// Who is told of changes, and up to which revision that was done.
#[derive(Default)]
struct Watchers {
    dispatched: Revision,
    all: Vec<Watcher>,
}

/// What readers and the writer share.
pub(super) struct Shared {
    pub dir: PathBuf,
    pub db: Database,
    pub index: RwLock<Index>,
    watchers: Mutex<Watchers>,
}

impl Shared {
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands events to whom they concern. A watcher whose buffer is full is cut.
    pub fn dispatch(&self, events: &[Event]) {
        let mut watchers = self.watchers();
        watchers.dispatched = events.last().map_or(watchers.dispatched, |e| e.revision);
        watchers.all.retain(|watcher| {
            let wanted: Arc<[Event]> = events.iter().filter(|e| e.key.starts_with(&watcher.prefix)).cloned().collect();
            if wanted.is_empty() {
                return !watcher.sender.is_closed();
            }
            watcher.sender.try_send(Signal::Events(wanted)).is_ok()
        });
    }

    /// A snapshot of the file that holds all that the index names.
    fn begin_read(&self) -> Result<ReadTransaction, Error> {
        self.db.begin_read().map_err(|e| engine("read", e))
    }

    fn range(&self, range: &Range) -> Result<Listing, Error> {
        let index = self.read();
        let at = match range.at {
            Some(at) if at > index.revision => return Err(Error::Future { wanted: at, current: index.revision }),
            Some(at) if at < index.compacted => {
                return Err(Error::Compacted { wanted: at, compacted: index.compacted });
            }
            Some(at) => at,
            None => index.revision,
        };
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let mut keys = index.range(&range.prefix, range.after.as_deref(), at);
        let wanted: Vec<(Arc<str>, Version)> = keys.by_ref().take(limit).map(|(k, v)| (k.clone(), v)).collect();
        let remaining = keys.count();
        let read = self.begin_read()?;
        drop(index);
        let log = read.open_table(LOG).map_err(|e| engine("open the log of", e))?;
        let entries = wanted.into_iter().map(|(key, version)| entry(&log, key, version)).collect::<Result<_, _>>()?;
        Ok(Listing { revision: at, entries, remaining })
    }

    fn get(&self, key: &str) -> Result<(Revision, Option<Entry>), Error> {
        let index = self.read();
        let revision = index.revision;
        let Some((key, version)) = index.get(key, revision).map(|(k, v)| (k.clone(), v)) else {
            return Ok((revision, None));
        };
        let read = self.begin_read()?;
        drop(index);
        let log = read.open_table(LOG).map_err(|e| engine("open the log of", e))?;
        Ok((revision, Some(entry(&log, key, version)?)))
    }

    fn history(&self, prefix: &str, after: Revision, upto: Revision) -> Result<Vec<Event>, Error> {
        let index = self.read();
        if after < index.compacted {
            return Err(Error::Compacted { wanted: after, compacted: index.compacted });
        }
        let read = self.begin_read()?;
        // The state as of now: what compaction frees from here on is still in the snapshot, but not in the index.
        let log = read.open_table(LOG).map_err(|e| engine("open the log of", e))?;
        let mut events = Vec::new();
        if upto <= after {
            return Ok(events);
        }
        for item in log.range((after + 1, 0)..=(upto, u32::MAX)).map_err(|e| engine("read", e))? {
            let (place, bytes) = item.map_err(|e| engine("read", e))?;
            let record = Record::decode(bytes.value()).ok_or_else(broken)?;
            if !record.key.starts_with(prefix) {
                continue;
            }
            let place = place.value();
            let before = index.before(record.key, place);
            let previous = match before {
                Some(version) => Some(value(&log, version.place)?),
                None => None,
            };
            events.push(Event {
                revision: place.0,
                key: record.key.into(),
                value: (record.created != 0).then(|| Bytes::copy_from_slice(record.value)),
                previous,
                created: before.map_or(place.0, |v| v.created),
            });
        }
        Ok(events)
    }
}

fn broken() -> Error {
    Error::Engine { action: "read", why: "an entry of its log is missing or broken".into() }
}

fn value(log: &impl ReadableTable<Place, &'static [u8]>, place: Place) -> Result<Bytes, Error> {
    let bytes = log.get(place).map_err(|e| engine("read", e))?.ok_or_else(broken)?;
    let record = Record::decode(bytes.value()).ok_or_else(broken)?;
    Ok(Bytes::copy_from_slice(record.value))
}

fn entry(log: &impl ReadableTable<Place, &'static [u8]>, key: Arc<str>, version: Version) -> Result<Entry, Error> {
    Ok(Entry { key, value: value(log, version.place)?, created: version.created, modified: version.place.0 })
}

pub(super) fn engine(action: &'static str, error: impl Into<redb::Error>) -> Error {
    Error::Engine { action, why: error.into().to_string() }
}

/// Work of the engine on a file that may be damaged: what it finds there and does not expect makes it panic.
pub(super) fn undamaged<T>(path: &Path, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let damaged = || Error::File { action: "read", path: path.display().to_string(), why: DAMAGED.into() };
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(damaged()))
}

/// The embedded store. Closing (drop) waits for the writer.
pub struct Embedded {
    shared: Arc<Shared>,
    readers: Semaphore,
    messages: Option<mpsc::Sender<Message>>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens or creates the store in `dir`, which is made where it is missing (mode 0700).
    ///
    /// # Errors
    /// Where another process has it open, it cannot be read, or a newer program wrote it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt;
        let path = file(dir);
        let failed = |action, why: &dyn std::fmt::Display| Error::File {
            action,
            path: path.display().to_string(),
            why: why.to_string(),
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| failed("create", &e))?;
        snapshot::install(dir)?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let (db, index) = undamaged(&path, || {
            let db = builder.create(&path).map_err(|e| failed("open", &e))?;
            let index = prepare(&db, &path)?;
            Ok((db, index))
        })?;
        let watchers = Mutex::new(Watchers { dispatched: index.revision, all: Vec::new() });
        let shared = Arc::new(Shared { dir: dir.into(), db, index: RwLock::new(index), watchers });
        let (messages, inbox) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("store-writer".into());
        let writer = {
            let shared = shared.clone();
            thread.spawn(move || writer::run(&shared, inbox)).map_err(|e| failed("start a thread for", &e))?
        };
        Ok(Self { shared, readers: Semaphore::new(READERS), messages: Some(messages), writer: Some(writer) })
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Message) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let messages = self.messages.as_ref().ok_or(Error::Closed)?;
        messages.send(message(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Reads that may take long run beside the runtime's own threads.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _permit = self.readers.acquire().await.map_err(|_| Error::Closed)?;
        let shared = self.shared.clone();
        match tokio::task::spawn_blocking(move || work(&shared)).await {
            Ok(result) => result,
            Err(e) => Err(Error::Engine { action: "read", why: e.to_string() }),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.messages = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The store's file in its folder.
pub(super) fn file(dir: &Path) -> PathBuf {
    dir.join("store.redb")
}

/// Checks the schema and reads the log into an index. Nothing is written to a file that may be damaged: where the engine
/// panics over it in a transaction of writes, it panics again when that is dropped, and the process ends.
fn prepare(db: &Database, path: &Path) -> Result<Index, Error> {
    let read = db.begin_read().map_err(|e| engine("open", e))?;
    let meta = match read.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return create(db).map(|()| Index::default()),
        meta => meta.map_err(|e| engine("open", e))?,
    };
    let number =
        |name| -> Result<u64, Error> { Ok(meta.get(name).map_err(|e| engine("open", e))?.map_or(0, |v| v.value())) };
    match number("schema")? {
        SCHEMA => {}
        found => return Err(Error::Schema { path: path.display().to_string(), found, known: SCHEMA }),
    }
    let mut index = Index::default();
    let log = read.open_table(LOG).map_err(|e| engine("open", e))?;
    (index.compacted, index.revision) = (number("compacted")?, number("revision")?);
    for item in log.iter().map_err(|e| engine("read", e))? {
        let (place, bytes) = item.map_err(|e| engine("read", e))?;
        let record = Record::decode(bytes.value()).ok_or_else(broken)?;
        let version = Version { place: place.value(), created: record.created, expires: record.expires };
        index.add(record.key, version);
    }
    Ok(index)
}

/// Makes the tables of a new store.
fn create(db: &Database) -> Result<(), Error> {
    let write = db.begin_write().map_err(|e| engine("create", e))?;
    write.open_table(LOG).map_err(|e| engine("create", e))?;
    write
        .open_table(META)
        .map_err(|e| engine("create", e))?
        .insert("schema", SCHEMA)
        .map_err(|e| engine("create", e))?;
    write.commit().map_err(|e| engine("create", e))
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(Revision, Option<Entry>), Error>> {
        async move { self.shared.get(key) }.boxed()
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Listing, Error>> {
        self.aside(move |shared| shared.range(&range)).boxed()
    }

    fn contains(&self, key: &str) -> bool {
        self.shared.read().get(key, Revision::MAX).is_some()
    }

    fn count(&self, prefix: &str) -> usize {
        let index = self.shared.read();
        index.range(prefix, None, index.revision).count()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, Error>> {
        self.ask(move |answer| Message::Txn(txn, answer)).boxed()
    }

    fn watch(&self, prefix: String, after: Revision) -> BoxFuture<'_, Result<Watch, Error>> {
        async move {
            let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
            let upto = {
                let mut watchers = self.shared.watchers();
                watchers.all.push(Watcher { prefix: prefix.clone(), sender: sender.clone() });
                watchers.dispatched
            };
            if after >= upto {
                return Ok(receiver);
            }
            let missed = self.aside(move |shared| shared.history(&prefix, after, upto)).await?;
            Ok(chained(missed, receiver))
        }
        .boxed()
    }

    fn history(&self, prefix: String, after: Revision, upto: Revision) -> BoxFuture<'_, Result<Vec<Event>, Error>> {
        self.aside(move |shared| shared.history(&prefix, after, upto)).boxed()
    }

    fn progress(&self) {
        let watchers = self.shared.watchers();
        for watcher in &watchers.all {
            // A watcher with a full buffer has enough to do; it will learn its place from the events.
            let _ = watcher.sender.try_send(Signal::Progress(watchers.dispatched));
        }
    }

    fn revision(&self) -> Revision {
        self.shared.read().revision
    }

    fn compacted(&self) -> Revision {
        self.shared.read().compacted
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), Error>> {
        self.ask(move |answer| Message::Compact(revision, answer)).boxed()
    }

    fn expire(&self, now: u64) -> BoxFuture<'_, Result<usize, Error>> {
        self.ask(move |answer| Message::Expire(now, answer)).boxed()
    }

    fn snapshot(&self, path: PathBuf) -> BoxFuture<'_, Result<Revision, Error>> {
        self.aside(move |shared| {
            let (revision, compacted, read) = {
                let index = shared.read();
                (index.revision, index.compacted, shared.begin_read()?)
            };
            snapshot::write(&read, &path, revision, compacted)?;
            Ok(revision)
        })
        .boxed()
    }

    fn folder(&self) -> &Path {
        &self.shared.dir
    }

    fn restore(&self, file: PathBuf) -> BoxFuture<'_, Result<(), Error>> {
        self.aside(move |shared| snapshot::stage(&file, &shared.dir)).boxed()
    }
}

/// A watch that first gives what was missed.
fn chained(missed: Vec<Event>, mut live: Watch) -> Watch {
    let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
    tokio::spawn(async move {
        if !missed.is_empty() && sender.send(Signal::Events(missed.into())).await.is_err() {
            return;
        }
        loop {
            let signal = tokio::select! { signal = live.recv() => signal, () = sender.closed() => return };
            let Some(signal) = signal else { return };
            if sender.send(signal).await.is_err() {
                return;
            }
        }
    });
    receiver
}
