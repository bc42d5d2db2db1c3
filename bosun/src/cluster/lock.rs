//! One command at a time changes the clusters of this machine.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;

use super::ROOT;

/// Held while a command makes or removes parts of a cluster. It is a lock on the folder of all clusters, so it
/// leaves no file, and the kernel drops it with the process.
pub struct Lock {
    _folder: File,
}

impl Lock {
    /// Waits for whoever holds it, and says so.
    ///
    /// # Errors
    /// Where the folder can be neither opened nor made.
    pub fn take() -> anyhow::Result<Self> {
        loop {
            fs::create_dir_all(ROOT).with_context(|| format!("create {ROOT}"))?;
            let folder = match File::open(ROOT) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.with_context(|| format!("open {ROOT}"))?,
            };
            match folder.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    eprintln!("waiting for another bosun command to end");
                    folder.lock().with_context(|| format!("lock {ROOT}"))?;
                }
                Err(TryLockError::Error(error)) => return Err(error).context(format!("lock {ROOT}")),
            }
            // The last `down` removes the folder: a lock on what is no longer there excludes nobody.
            if same(&folder, Path::new(ROOT)) {
                return Ok(Self { _folder: folder });
            }
        }
    }
}

fn same(folder: &File, path: &Path) -> bool {
    match (folder.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}
