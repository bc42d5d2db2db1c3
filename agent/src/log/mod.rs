//! Logs of containers, as the runtime writes them in the CRI's format: read, followed over rotation, rotated, removed.
//!
//! ```text
//! ROOT/<namespace>_<pod>_<uid>/<container>/<attempt>.log                    written by the runtime
//! ROOT/<namespace>_<pod>_<uid>/<container>/<attempt>.log.20261121-083000    rotated, the newest
//! ROOT/<namespace>_<pod>_<uid>/<container>/<attempt>.log.20261121-081500.gz rotated before that
//! ```

mod entry;
mod files;
mod reader;
mod rotate;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use entry::{Entry, Output};
pub use reader::{LogOptions, stream};
pub use rotate::{Rotation, run_rotation};

/// The folder of a pod's logs: the CRI's `log_directory`.
pub fn pod_log_dir(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join(format!("{namespace}_{name}_{uid}"))
}

/// A container's log below its pod's folder: the CRI's `log_path`.
pub fn container_log_path(container: &str, attempt: u32) -> PathBuf {
    Path::new(container).join(format!("{attempt}.log"))
}

/// Uids of the pods that have a log folder, with the folder.
pub fn pods_with_logs(root: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    dirs.filter_map(|e| Some((e.file_name().to_str()?.rsplit_once('_')?.1.to_owned(), e.path()))).collect()
}

/// Removes a pod's logs. Idempotent.
///
/// # Errors
/// Where the folder cannot be removed.
pub fn remove_pod_logs(root: &Path, uid: &str) -> io::Result<()> {
    for (_, dir) in pods_with_logs(root).into_iter().filter(|(found, _)| found == uid) {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Removes the log of one attempt of a container with all its rotated files. Idempotent.
///
/// # Errors
/// Where a file cannot be removed.
pub fn remove_container_log(log: &Path) -> io::Result<()> {
    let rotated = files::rotated(log).unwrap_or_default();
    for path in rotated.into_iter().chain([log.to_owned()]) {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
