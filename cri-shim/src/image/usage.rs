//! What snapshots take on disk. To measure a writable one means to count its files, so it is done at most every ten
//! seconds for each; what is committed never changes.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::snapshots as api;

use super::{ImageError, Images};
use crate::containerd::Error;
use crate::containerd::snapshots::SnapshotUsage;

/// How old a measurement may be.
const FRESH: Duration = Duration::from_secs(10);

/// What one snapshot takes, without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
    /// When it was measured.
    pub at: SystemTime,
}

/// What all snapshots take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// Where they are.
    pub mount_point: PathBuf,
    pub bytes: u64,
    pub inodes: u64,
    pub at: SystemTime,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    usage: Usage,
    fixed: bool,
}

impl Measured {
    fn is_good(&self, now: SystemTime) -> bool {
        self.fixed || now.duration_since(self.usage.at).is_ok_and(|age| age < FRESH)
    }
}

#[derive(Default)]
pub(super) struct Cache(Mutex<HashMap<String, Measured>>);

impl Cache {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Measured>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &str, now: SystemTime) -> Option<Usage> {
        self.lock().get(key).filter(|measured| measured.is_good(now)).map(|measured| measured.usage)
    }

    pub(super) fn forget(&self, key: &str) {
        self.lock().remove(key);
    }

    fn keep(&self, keys: &HashSet<&str>) {
        self.lock().retain(|key, _| keys.contains(key.as_str()));
    }
}

impl Images {
    /// What a container's root takes besides its image.
    ///
    /// # Errors
    /// Where there is none, or containerd fails.
    pub async fn usage(&self, key: &str) -> Result<Usage, ImageError> {
        Ok(self.measure(key, false).await?)
    }

    async fn measure(&self, key: &str, fixed: bool) -> Result<Usage, Error> {
        let at = SystemTime::now();
        if let Some(known) = self.0.usages.get(key, at) {
            return Ok(known);
        }
        let SnapshotUsage { bytes, inodes } = self.0.snapshotter.usage(key).await?;
        let usage = Usage { bytes, inodes, at };
        self.0.usages.lock().insert(key.to_owned(), Measured { usage, fixed });
        Ok(usage)
    }

    /// What images and containers' roots take together.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn fs_usage(&self) -> Result<FsUsage, ImageError> {
        let mount_point = self.mount_point().await?;
        let at = SystemTime::now();
        let snapshots = self.0.snapshotter.list().await?;
        self.0.usages.keep(&snapshots.iter().map(|info| info.name.as_str()).collect());
        let mut sum = FsUsage { mount_point, bytes: 0, inodes: 0, at };
        for info in &snapshots {
            match self.measure(&info.name, info.kind() == api::Kind::Committed).await {
                Ok(usage) => {
                    sum.bytes = sum.bytes.saturating_add(usage.bytes);
                    sum.inodes = sum.inodes.saturating_add(usage.inodes);
                }
                // Removed meanwhile.
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_change_is_measured_again() {
        let now = SystemTime::now();
        let measured = |fixed| Measured { usage: Usage { bytes: 1, inodes: 1, at: now }, fixed };
        let later = now + FRESH;
        assert!(measured(false).is_good(now) && !measured(false).is_good(later));
        assert!(measured(true).is_good(later));
        let cache = Cache::default();
        cache.lock().insert("a".to_owned(), measured(false));
        cache.lock().insert("b".to_owned(), measured(true));
        assert!(cache.get("a", now).is_some());
        assert_eq!(cache.get("a", later), None);
        cache.keep(&HashSet::from(["a"]));
        assert_eq!(cache.get("b", now), None);
    }
}
