//! RemoveContainer: nothing of it is left.

use std::sync::Arc;

use cri::v1::ContainerEventType;

use super::{Container, exit, stop};
use crate::error::{Error, Result};
use crate::folders::ContainerFolders;
use crate::sandbox::stop::remove_folder;
use crate::shim::{Shim, blocking};

/// Removes a container, ending it first. An unknown one is removed.
///
/// # Errors
/// What could not be removed; asking again tries again.
pub async fn remove(shim: &Arc<Shim>, id: &str) -> Result<()> {
    let Some(container) = shim.containers.find_maybe(id)? else { return Ok(()) };
    remove_known(shim, &container).await
}

/// As [`remove`], of a container that was found.
///
/// # Errors
/// As [`remove`].
pub async fn remove_known(shim: &Arc<Shim>, container: &Arc<Container>) -> Result<()> {
    let _turn = container.turn.lock().await;
    let record = container.record();
    let id = &record.id;
    if shim.containers.get(id).is_none() {
        return Ok(());
    }
    stop::kill(shim, container).await?;
    exit::delete_task(shim, id).await?;
    if let Some(io) = container.io() {
        io.close().await;
        container.set_io(None);
    }
    discard(shim, id, &record.volumes).await?;
    shim.containers.remove(id);
    shim.tell_of_container(container, ContainerEventType::ContainerDeletedEvent);
    Ok(())
}

/// Removes what a container without a process holds: mounts, snapshots, its record, and how it ended.
///
/// # Errors
/// The first that could not be removed.
pub async fn discard(shim: &Arc<Shim>, id: &str, volumes: &[String]) -> Result<()> {
    let folders = shim.folders.container(id);
    let state = folders.clone();
    blocking("remove a container's files", move || clear_state(&state)).await?;
    shim.keeper.let_go(id);
    for key in volumes.iter().map(String::as_str).chain([id]) {
        shim.images.remove_rootfs(key).await?;
    }
    shim.containerd.delete_container(id).await?;
    // As long as there is a record, how it ended must be known: a restart would take it for one that never began.
    blocking("remove a container's files", move || remove_folder(&folders.files)).await
}

/// All files and mounts of a container.
pub(crate) fn clear(folders: &ContainerFolders) -> Result<()> {
    clear_state(folders)?;
    remove_folder(&folders.files)
}

/// Never through a mount: what is mounted there is an image's.
fn clear_state(folders: &ContainerFolders) -> Result<()> {
    for folder in [folders.images(), folders.rootfs()].into_iter().filter(|folder| folder.exists()) {
        kernel::mount::unmount_below(&folder).map_err(|errors| {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Error::part(format!("cannot unmount what is below {}", folder.display()))(errors.join("; "))
        })?;
    }
    remove_folder(&folders.state)
}

#[cfg(test)]
mod tests {
    use super::super::record::{Exit, Reason, keep, read};
    use super::*;
    use crate::shim::tests::alone;

    #[tokio::test]
    async fn how_it_ended_is_known_as_long_as_it_has_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let shim = alone(dir.path());
        let folders = shim.folders.container("c1");
        let exit = Exit { code: 3, started_at: 1, finished_at: 2, reason: Reason::Error, message: String::new() };
        keep(&folders.exit(), &exit).unwrap();
        // containerd is away, so that the record stays.
        discard(&shim, "c1", &[]).await.unwrap_err();
        assert_eq!(read::<Exit>(&folders.exit()), Some(exit));
    }
}
