//! A copy of the store in one file, taken while it runs, and a store made from such a file.

use std::path::Path;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};

use super::embedded::{LOG, META, SCHEMA, engine, file, undamaged};
use super::{Error, Revision};

/// Copies what `read` sees to a new file at `path`.
pub(super) fn write(read: &ReadTransaction, path: &Path, revision: Revision, compacted: Revision) -> Result<(), Error> {
    let failed = |why: &dyn std::fmt::Display| Error::File {
        action: "write",
        path: path.display().to_string(),
        why: why.to_string(),
    };
    // Beside the target and renamed when whole, so that a snapshot that is there is a good one.
    let part = path.with_extension("part");
    if path.exists() {
        return Err(failed(&"it exists"));
    }
    let _ = std::fs::remove_file(&part);
    let db = Database::create(&part).map_err(|e| failed(&e))?;
    let write = db.begin_write().map_err(|e| engine("copy", e))?;
    {
        let mut meta = write.open_table(META).map_err(|e| engine("copy", e))?;
        for (name, value) in [("schema", SCHEMA), ("revision", revision), ("compacted", compacted)] {
            meta.insert(name, value).map_err(|e| engine("copy", e))?;
        }
        let mut to = write.open_table(LOG).map_err(|e| engine("copy", e))?;
        let from = read.open_table(LOG).map_err(|e| engine("copy", e))?;
        for item in from.iter().map_err(|e| engine("copy", e))? {
            let (place, record) = item.map_err(|e| engine("copy", e))?;
            to.insert(place.value(), record.value()).map_err(|e| engine("copy", e))?;
        }
    }
    write.commit().map_err(|e| engine("copy", e))?;
    drop(db);
    std::fs::rename(&part, path).map_err(|e| failed(&e))
}

/// Where a snapshot waits for the store to be opened.
const STAGED: &str = "restore.redb";

/// Has the store in `dir` begin with a snapshot when it is opened the next time. The snapshot's file is moved, so it must
/// be on the same file system.
///
/// # Errors
/// Where it is no snapshot, or one of another schema.
pub fn stage(snapshot: &Path, dir: &Path) -> Result<(), Error> {
    let failed = |action, path: &Path, why: &dyn std::fmt::Display| Error::File {
        action,
        path: path.display().to_string(),
        why: why.to_string(),
    };
    std::fs::create_dir_all(dir).map_err(|e| failed("create", dir, &e))?;
    let found = undamaged(snapshot, || {
        let db = Database::open(snapshot).map_err(|e| failed("open", snapshot, &e))?;
        let read = db.begin_read().map_err(|e| engine("read", e))?;
        let meta = read.open_table(META).map_err(|e| failed("read", snapshot, &e))?;
        let found = meta.get("schema").map_err(|e| engine("read", e))?.map_or(0, |v| v.value());
        Ok(found)
    })?;
    if found != SCHEMA {
        return Err(Error::Schema { path: snapshot.display().to_string(), found, known: SCHEMA });
    }
    let whole = std::fs::File::open(snapshot).and_then(|file| file.sync_all());
    whole.map_err(|e| failed("write", snapshot, &e))?;
    let staged = dir.join(STAGED);
    std::fs::rename(snapshot, &staged).map_err(|e| failed("create", &staged, &e))
}

/// Puts a staged snapshot in the place of the store, which is not open. Its revision is higher than all that clients have
/// seen, and no history is left: their watches begin anew.
pub(super) fn install(dir: &Path) -> Result<(), Error> {
    let (staged, to) = (dir.join(STAGED), file(dir));
    if !staged.exists() {
        return Ok(());
    }
    let failed =
        |why: std::io::Error| Error::File { action: "restore", path: to.display().to_string(), why: why.to_string() };
    let open = |path: &Path| {
        undamaged(path, || {
            let db = Database::open(path).map_err(|e| engine("open", e))?;
            let newest = newest(&db)?;
            Ok((db, newest))
        })
    };
    let (db, mut revision) = open(&staged)?;
    if to.exists() {
        // A store that is broken may be the reason for all this: nobody knows how far it was.
        let replaced = open(&to).map_or(revision + UNKNOWN, |(_, newest)| newest);
        revision = revision.max(replaced);
    }
    let write = db.begin_write().map_err(|e| engine("restore", e))?;
    {
        let mut meta = write.open_table(META).map_err(|e| engine("restore", e))?;
        for name in ["revision", "compacted"] {
            meta.insert(name, revision + 1).map_err(|e| engine("restore", e))?;
        }
    }
    write.commit().map_err(|e| engine("restore", e))?;
    drop(db);
    std::fs::rename(&staged, &to).map_err(failed)?;
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// More writes than a store sees between a snapshot and its restoration.
const UNKNOWN: Revision = 1 << 30;

/// The newest revision of a store.
fn newest(db: &Database) -> Result<Revision, Error> {
    let read = db.begin_read().map_err(|e| engine("read", e))?;
    let meta = read.open_table(META).map_err(|e| engine("read", e))?;
    let log = read.open_table(LOG).map_err(|e| engine("read", e))?;
    let said = meta.get("revision").map_err(|e| engine("read", e))?.map_or(0, |v| v.value());
    let last = log.last().map_err(|e| engine("read", e))?.map_or(0, |(place, _)| place.value().0);
    Ok(said.max(last))
}
