//! A copy of the store in one file, taken while it runs, and a store made from such a file.

use std::path::Path;

use redb::{Database, ReadTransaction, ReadableTable};

use super::embedded::{LOG, META, SCHEMA, engine, file};
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

/// Makes a store in `dir` from a snapshot. The store must not be open.
///
/// # Errors
/// Where `dir` holds a store already, or the snapshot is none or is newer than this program.
pub fn restore(snapshot: &Path, dir: &Path) -> Result<(), Error> {
    let to = file(dir);
    let failed = |action, path: &Path, why: &dyn std::fmt::Display| Error::File {
        action,
        path: path.display().to_string(),
        why: why.to_string(),
    };
    if to.exists() {
        return Err(failed("restore", &to, &"a store is there already"));
    }
    std::fs::create_dir_all(dir).map_err(|e| failed("create", dir, &e))?;
    let part = to.with_extension("part");
    std::fs::copy(snapshot, &part).map_err(|e| failed("copy", snapshot, &e))?;
    let found = {
        use redb::ReadableDatabase;
        let db = Database::open(&part).map_err(|e| failed("open", snapshot, &e))?;
        let read = db.begin_read().map_err(|e| engine("read", e))?;
        let meta = read.open_table(META).map_err(|e| failed("read", snapshot, &e))?;
        meta.get("schema").map_err(|e| engine("read", e))?.map_or(0, |v| v.value())
    };
    if found != SCHEMA {
        return Err(Error::Schema { path: snapshot.display().to_string(), found, known: SCHEMA });
    }
    let copied = std::fs::File::open(&part).map_err(|e| failed("open", &part, &e))?;
    copied.sync_all().map_err(|e| failed("write", &part, &e))?;
    std::fs::rename(&part, &to).map_err(|e| failed("restore", &to, &e))
}
