//! Logs of containers, as the runtime writes them in the CRI's format: read, followed over rotation, rotated.
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
use std::path::{Path, PathBuf};

pub use entry::{Entry, Output};
pub use reader::{LogOptions, stream};
pub use rotate::{Rotation, run_rotation};

/// Uids of the pods that have a log folder, with the folder.
pub fn pods_with_logs(root: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    dirs.filter_map(|e| Some((e.file_name().to_str()?.rsplit_once('_')?.1.to_owned(), e.path()))).collect()
}

#[cfg(test)]
mod tests;
