//! Unmounts and removes what a pod's volumes left; idempotent, and on past errors.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Volumes, pod_dir};

/// What could not be taken away; the next teardown tries it again.
#[derive(Debug, thiserror::Error)]
#[error("UnmountVolume.TearDown failed for the volumes of pod {uid:?} : {}", errors.join("; "))]
pub struct TeardownError {
    pub uid: String,
    pub errors: Vec<String>,
}

impl Volumes {
    /// Unmounts and removes the pod's volumes and forgets the pod. No container of it may be left. A pod without volumes,
    /// or one torn down before, is success.
    ///
    /// # Errors
    /// Everything that could not be removed, after all of it was attempted.
    pub async fn teardown(&self, uid: &str) -> Result<(), TeardownError> {
        let turn = self.pods().get(uid).map(|known| known.turn.clone()).unwrap_or_default();
        let _turn = turn.lock().await;
        let result = self.remove(uid, false).await;
        if result.is_ok() {
            self.pods().remove(uid);
            self.inner.objects.release(uid);
            self.inner.tokens.forget(uid);
        }
        result
    }

    /// Removes the pod's whole folder, with what the agent keeps there beside volumes (etc-hosts, termination logs).
    ///
    /// # Errors
    /// As [`Self::teardown`].
    pub async fn remove_pod_dir(&self, uid: &str) -> Result<(), TeardownError> {
        self.teardown(uid).await?;
        self.remove(uid, true).await
    }

    /// Uids of the pods that have a folder.
    pub fn on_disk(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.inner.root.join("pods")) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    async fn remove(&self, uid: &str, whole: bool) -> Result<(), TeardownError> {
        let dir = pod_dir(&self.inner.root, uid);
        let errors = match tokio::task::spawn_blocking(move || remove(&dir, whole)).await {
            Ok(errors) => errors,
            Err(error) => vec![error.to_string()],
        };
        if errors.is_empty() { Ok(()) } else { Err(TeardownError { uid: uid.into(), errors }) }
    }
}

fn remove(pod_dir: &Path, whole: bool) -> Vec<String> {
    let parts: Vec<PathBuf> = if whole {
        vec![pod_dir.to_owned()]
    } else {
        ["volume-subpaths", "volumes", "plugins"].iter().map(|name| pod_dir.join(name)).collect()
    };
    parts.iter().filter(|part| part.exists()).flat_map(|part| remove_part(part)).collect()
}

/// A folder goes only when nothing is mounted in it: what a mount shows is not ours to delete.
fn remove_part(part: &Path) -> Vec<String> {
    let mut errors: Vec<String> =
        kernel::mount::unmount_below(part).err().into_iter().flatten().map(|e| e.to_string()).collect();
    match kernel::mount::mounts() {
        Err(error) => errors.push(error.to_string()),
        Ok(mounts) => {
            let left = mounts.iter().find(|m| m.mount_point.starts_with(part));
            errors.extend(left.map(|m| format!("{} is still mounted", m.mount_point.display())));
        }
    }
    if errors.is_empty()
        && let Err(error) = fs::remove_dir_all(part)
        && error.kind() != io::ErrorKind::NotFound
    {
        errors.push(format!("remove {}: {error}", part.display()));
    }
    errors
}
