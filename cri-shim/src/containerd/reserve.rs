//! Room that is kept back on the disk: containerd cannot remove anything before its database has written that it will.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Containerd, Error, Result};

/// Bytes. A transaction of containerd's database takes a few pages of 4 KiB.
const SIZE: usize = 1 << 20;
/// How long the room is left to those for whom it was given up, and until it is looked for again.
const PAUSE: Duration = Duration::from_secs(5);

/// A file that takes room until that is needed.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    released: Notify,
}

impl Reserve {
    fn release(&self) {
        if fs::remove_file(&self.path).is_ok() {
            tracing::warn!("containerd's disk is full: what is removed now uses room that was kept back for it");
        }
        self.released.notify_one();
    }
}

/// Makes the file, unless it is there.
fn keep(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() == SIZE as u64) {
        return Ok(());
    }
    fs::write(path, vec![0; SIZE]).inspect_err(|_| {
        // Half of it is of no use to anybody.
        let _ = fs::remove_file(path);
    })
}

impl Containerd {
    /// From now on `path`, which has to be on containerd's disk to be of use, is room kept back for what makes room.
    #[must_use]
    pub fn with_reserve(self, path: PathBuf) -> Self {
        self.reserving(path, PAUSE)
    }

    fn reserving(self, path: PathBuf, pause: Duration) -> Self {
        let reserve = Arc::new(Reserve { path, released: Notify::new() });
        let kept = reserve.clone();
        tokio::spawn(async move {
            loop {
                let path = kept.path.clone();
                if matches!(tokio::task::spawn_blocking(move || keep(&path)).await, Ok(Ok(()))) {
                    kept.released.notified().await;
                }
                tokio::time::sleep(pause).await;
            }
        });
        Self { reserve: Some(reserve), ..self }
    }

    /// Does what makes room: where the disk is full, again with the room that was kept back.
    pub(super) async fn freeing<T, F: Future<Output = Result<T>>>(&self, call: impl Fn() -> F) -> Result<T> {
        match (call().await, &self.reserve) {
            (Err(Error::NoSpace { .. }), Some(reserve)) => {
                reserve.release();
                call().await
            }
            (outcome, _) => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn what_makes_room_gets_the_room_that_is_kept_back() {
        let pause = Duration::from_millis(1);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let kept = async || {
            while fs::metadata(&path).map_or(0, |meta| meta.len()) < SIZE as u64 {
                tokio::time::sleep(pause).await;
            }
        };
        let containerd = Containerd::new(&dir.path().join("socket")).reserving(path.clone(), pause);
        kept().await;
        let calls = AtomicU32::new(0);
        let full = |path: &Path| match (calls.fetch_add(1, Ordering::Relaxed), path.exists()) {
            (_, true) => Err(Error::NoSpace { attempt: "remove it".into(), message: "full".into() }),
            (tried, false) => Ok(tried),
        };
        assert_eq!(containerd.freeing(async || full(&path)).await.unwrap(), 1);
        kept().await;
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        // What fails for another reason is not tried again, and takes nothing.
        let away = || Error::Unavailable { attempt: "remove it".into(), message: "away".into() };
        containerd.freeing(async || Err::<(), _>(away())).await.unwrap_err();
        assert!(path.exists());
    }
}
