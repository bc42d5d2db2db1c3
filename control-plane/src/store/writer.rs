//! The one thread that writes. It takes up all transactions that wait, does them in one commit of the engine (one
//! fsync), makes them visible, tells the watchers, and only then answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::PoisonError;

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::embedded::{LOG, META, Shared, engine};
use super::index::{Place, Version};
use super::record::Record;
use super::{Compare, Error, Event, Op, Outcome, Revision, Txn};

/// How many transactions share a commit at most.
const BATCH: usize = 256;

/// How many log entries a compaction removes in one commit.
const SWEEP: usize = 4096;

/// Space on the disk that is left alone: the engine cannot go on after a write that found none.
const RESERVE: u64 = 16 << 20;

/// Deletions make room and may go further.
const RESERVE_FOR_DELETIONS: u64 = RESERVE / 2;

/// How many keys expire in one transaction.
const EXPIRE: usize = 256;

pub(super) enum Message {
    Txn(Txn, oneshot::Sender<Result<Outcome, Error>>),
    Expire(u64, oneshot::Sender<Result<usize, Error>>),
    Compact(Revision, oneshot::Sender<Result<(), Error>>),
}

/// Runs until all senders are gone.
pub(super) fn run(shared: &Shared, mut messages: mpsc::Receiver<Message>) {
    let mut waiting = Vec::with_capacity(BATCH);
    while messages.blocking_recv_many(&mut waiting, BATCH) > 0 {
        let mut txns = Vec::with_capacity(waiting.len());
        let mut answers = Vec::with_capacity(waiting.len());
        for message in waiting.drain(..) {
            match message {
                Message::Txn(txn, answer) => {
                    txns.push(txn);
                    answers.push(answer);
                }
                Message::Expire(now, answer) => {
                    let _ = answer.send(expire(shared, now));
                }
                Message::Compact(revision, answer) => {
                    let _ = answer.send(compact(shared, revision));
                }
            }
        }
        if txns.is_empty() {
            continue;
        }
        match commit(shared, &txns) {
            Ok(outcomes) => answers.into_iter().zip(outcomes).for_each(|(answer, outcome)| {
                let _ = answer.send(Ok(outcome));
            }),
            Err(error) => {
                tracing::error!(%error, "a write of {} transactions failed", txns.len());
                answers.into_iter().for_each(|answer| {
                    let _ = answer.send(Err(error.clone()));
                });
                if !matches!(error, Error::Full(_)) {
                    // The engine refuses all that follows until it is opened again, which is for a new process.
                    return;
                }
            }
        }
    }
}

/// Refuses what may not fit.
fn check_space(shared: &Shared, txns: &[Txn]) -> Result<(), Error> {
    let is_deletion = |op: &Op| matches!(op, Op::Delete { .. });
    let only_deletions = txns.iter().flat_map(|txn| &txn.ops).all(is_deletion);
    let reserve = if only_deletions { RESERVE_FOR_DELETIONS } else { RESERVE };
    // Where the disk does not say, the write itself will tell.
    match kernel::mount::space(&shared.dir) {
        Ok(space) if space.available < reserve => Err(Error::Full(format!(
            "{} has {} KiB left, and {} KiB are kept free: make room on that disk",
            shared.dir.display(),
            space.available >> 10,
            reserve >> 10
        ))),
        _ => Ok(()),
    }
}

fn commit(shared: &Shared, txns: &[Txn]) -> Result<Vec<Outcome>, Error> {
    check_space(shared, txns)?;
    let write = shared.db.begin_write().map_err(|e| engine("begin a write of", e))?;
    let mut batch = Batch { shared, revision: shared.read().revision, pending: HashMap::new(), written: Vec::new() };
    let outcomes = {
        let mut log = write.open_table(LOG).map_err(|e| engine("open the log of", e))?;
        txns.iter().map(|txn| batch.one(&mut log, txn)).collect::<Result<Vec<_>, _>>()?
    };
    if batch.written.is_empty() {
        write.abort().map_err(|e| engine("end a write of", e))?;
        return Ok(outcomes);
    }
    let written = batch.written;
    write.commit().map_err(|e| engine("write", e))?;
    publish(shared, written);
    Ok(outcomes)
}

/// A change on its way: what the index needs, and what watchers get.
struct Written {
    key: String,
    version: Version,
    value: Option<Bytes>,
    previous: Option<Bytes>,
    /// When the key came to be, deletions included.
    created: Revision,
}

struct Batch<'a> {
    shared: &'a Shared,
    revision: Revision,
    /// The newest version of each key that this batch wrote.
    pending: HashMap<String, Version>,
    written: Vec<Written>,
}

impl Batch<'_> {
    fn current(&self, key: &str) -> Option<Version> {
        match self.pending.get(key) {
            Some(version) => (!version.is_deletion()).then_some(*version),
            None => self.shared.read().get(key, Revision::MAX).map(|(_, version)| version),
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => self.current(key).is_none(),
            Compare::Modified(key, revision) => self.current(key).is_some_and(|v| v.place.0 == *revision),
        }
    }

    fn one(&mut self, log: &mut Table<'_, Place, &'static [u8]>, txn: &Txn) -> Result<Outcome, Error> {
        if let Some(failed) = txn.compares.iter().position(|compare| !self.holds(compare)) {
            return Ok(Outcome::Failed(failed));
        }
        let revision = self.revision + 1;
        let before = self.written.len();
        for op in &txn.ops {
            let place = (revision, (self.written.len() - before) as u32);
            self.op(log, op, place)?;
        }
        if self.written.len() > before {
            self.revision = revision;
        }
        Ok(Outcome::Done(self.revision))
    }

    fn op(&mut self, log: &mut Table<'_, Place, &'static [u8]>, op: &Op, place: Place) -> Result<(), Error> {
        let (key, value, expires) = match op {
            Op::Put { key, value, expires } => (key, Some(value), expires.unwrap_or(0)),
            Op::Delete { key } => (key, None, 0),
        };
        let current = self.current(key);
        if value.is_none() && current.is_none() {
            return Ok(());
        }
        let created = current.map_or(place.0, |v| v.created);
        let version = Version { place, created: if value.is_some() { created } else { 0 }, expires };
        let previous = match current {
            Some(version) => {
                let record = log.get(version.place).map_err(|e| engine("read", e))?;
                record.and_then(|r| Record::decode(r.value()).map(|r| Bytes::copy_from_slice(r.value)))
            }
            None => None,
        };
        let bytes = value.map_or(&[][..], |v| v);
        let record = Record { created: version.created, expires, key, value: bytes }.encode();
        log.insert(place, record.as_slice()).map_err(|e| engine("write", e))?;
        self.pending.insert(key.clone(), version);
        self.written.push(Written { key: key.clone(), version, value: value.cloned(), previous, created });
        Ok(())
    }
}

/// Makes committed changes visible to readers, then to watchers.
fn publish(shared: &Shared, written: Vec<Written>) {
    let mut index = shared.index.write().unwrap_or_else(PoisonError::into_inner);
    let events: Vec<Event> = written
        .into_iter()
        .map(|w| Event {
            revision: w.version.place.0,
            key: index.add(&w.key, w.version),
            value: w.value,
            previous: w.previous,
            created: w.created,
        })
        .collect();
    drop(index);
    shared.dispatch(&events);
}

fn expire(shared: &Shared, now: u64) -> Result<usize, Error> {
    let mut gone = 0;
    loop {
        let keys: Vec<Arc<str>> = shared.read().expired(now, EXPIRE);
        if keys.is_empty() {
            return Ok(gone);
        }
        gone += keys.len();
        let ops = keys.iter().map(|key| Op::Delete { key: key.to_string() }).collect();
        commit(shared, &[Txn { compares: Vec::new(), ops }])?;
    }
}

/// The index forgets first: whoever reads after that asks for nothing that the log is about to lose.
fn compact(shared: &Shared, revision: Revision) -> Result<(), Error> {
    let freed = {
        let mut index = shared.index.write().unwrap_or_else(PoisonError::into_inner);
        if revision > index.revision {
            return Err(Error::Future { wanted: revision, current: index.revision });
        }
        if revision <= index.compacted {
            return Err(Error::Compacted { wanted: revision, compacted: index.compacted });
        }
        index.compact(revision)
    };
    let current = shared.read().revision;
    let begin =
        || -> Result<WriteTransaction, Error> { shared.db.begin_write().map_err(|e| engine("begin a write of", e)) };
    let write = begin()?;
    {
        let mut meta = write.open_table(META).map_err(|e| engine("open", e))?;
        // A deletion may have been the newest entry of the log: the revision must not go back when it is swept.
        for (name, value) in [("compacted", revision), ("revision", current)] {
            meta.insert(name, value).map_err(|e| engine("write", e))?;
        }
    }
    write.commit().map_err(|e| engine("write", e))?;
    for places in freed.chunks(SWEEP) {
        let write = begin()?;
        {
            let mut log = write.open_table(LOG).map_err(|e| engine("open the log of", e))?;
            for place in places {
                log.remove(place).map_err(|e| engine("compact", e))?;
            }
        }
        write.commit().map_err(|e| engine("compact", e))?;
    }
    Ok(())
}
