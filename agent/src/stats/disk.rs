//! Space that folders take.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Entries that one walk looks at; a folder with more is measured up to there.
const MAX_ENTRIES: u64 = 200_000;

/// Space and inodes below a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// What the folder takes on its own file system; links are not followed. What cannot be read counts as nothing.
pub(super) fn used(dir: &Path) -> Used {
    let Ok(meta) = fs::symlink_metadata(dir) else { return Used::default() };
    let mut total = Used { bytes: meta.blocks() * 512, inodes: 1 };
    walk(dir, meta.dev(), &mut total);
    total
}

fn walk(dir: &Path, device: u64, total: &mut Used) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.dev() != device || total.inodes >= MAX_ENTRIES {
            continue;
        }
        *total += Used { bytes: meta.blocks() * 512, inodes: 1 };
        if meta.is_dir() {
            walk(&entry.path(), device, total);
        }
    }
}
