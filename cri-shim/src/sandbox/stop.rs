//! StopPodSandbox and RemovePodSandbox. Both may be asked for again, also after a half that failed or was cut off.

use std::sync::Arc;

use cri::v1::ContainerEventType;
use futures::future::join_all;

use super::record::Phase;
use super::{Sandbox, network, pause};
use crate::container;
use crate::error::{Error, Result};
use crate::folders::SandboxFolders;
use crate::shim::{Shim, blocking};

/// Ends all containers of the sandbox, gives its network back and lets its namespaces go. An unknown one has stopped.
///
/// # Errors
/// All that could not be given back; asking again tries again.
pub async fn stop(shim: &Arc<Shim>, id: &str) -> Result<()> {
    let Some(sandbox) = shim.sandboxes.find_maybe(id)? else { return Ok(()) };
    let _turn = sandbox.turn.write().await;
    stop_in_turn(shim, &sandbox).await
}

/// Stops the sandbox if that is still to do, removes its containers and then itself. An unknown one is removed.
///
/// # Errors
/// All that could not be removed; asking again tries again.
pub async fn remove(shim: &Arc<Shim>, id: &str) -> Result<()> {
    let Some(sandbox) = shim.sandboxes.find_maybe(id)? else { return Ok(()) };
    let _turn = sandbox.turn.write().await;
    // Removed while we waited for our turn.
    if shim.sandboxes.get(&sandbox.record.id).is_none() {
        return Ok(());
    }
    stop_in_turn(shim, &sandbox).await?;
    let containers = shim.containers_of(&sandbox.record.id);
    let removed = join_all(containers.iter().map(|container| container::remove::remove_known(shim, container))).await;
    Error::all(removed.into_iter().filter_map(Result::err).collect())?;
    forget(shim, &sandbox).await?;
    shim.sandboxes.remove(&sandbox.record.id);
    shim.tell_of_sandbox(&sandbox, ContainerEventType::ContainerDeletedEvent);
    Ok(())
}

async fn stop_in_turn(shim: &Arc<Shim>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let before = sandbox.phase();
    if before == Phase::Stopped {
        return Ok(());
    }
    // From here on no container of it begins.
    enter(shim, sandbox, Phase::Stopping);
    let containers = shim.containers_of(&sandbox.record.id);
    let ended = join_all(containers.iter().map(|container| container::stop::end(shim, container))).await;
    Error::all(ended.into_iter().filter_map(Result::err).collect())?;
    release(shim, sandbox).await?;
    enter(shim, sandbox, Phase::Stopped);
    if before == Phase::Ready {
        shim.tell_of_sandbox(sandbox, ContainerEventType::ContainerStoppedEvent);
    }
    Ok(())
}

/// The file is of use to a restarted shim only: where it cannot be written, that one tears down what is torn down.
pub(crate) fn enter(shim: &Shim, sandbox: &Sandbox, phase: Phase) {
    let life = sandbox.live(|life| life.phase = phase);
    let path = shim.folders.sandbox(&sandbox.record.id).life();
    if path.exists()
        && let Err(error) = life.write(&path)
    {
        tracing::warn!(id = sandbox.record.id, "the pod sandbox's phase is not on disk: {error}");
    }
}

/// Gives back what the sandbox holds of the kernel and the network. The network first: its plugins look into the
/// namespace. Goes on past errors.
pub(crate) async fn release(shim: &Arc<Shim>, sandbox: &Sandbox) -> Result<()> {
    let record = &sandbox.record;
    let folders = shim.folders.sandbox(&record.id);
    let mut errors = Vec::new();
    errors.extend(network::remove(shim, record).await.err());
    if record.needs_pause() {
        errors.extend(pause::end(shim, &record.id).await.err());
    }
    // Plugins that failed will be asked again, with the namespace that they knew.
    if errors.is_empty() {
        errors.extend(blocking("let the pod's namespaces go", move || let_go(&folders)).await.err());
    }
    Error::all(errors)
}

pub(crate) fn let_go(folders: &SandboxFolders) -> Result<()> {
    let mut errors = Vec::new();
    let attempt = "cannot let the pod's namespaces go";
    errors.extend(kernel::namespaces::unpin(&folders.namespaces()).map_err(Error::part(attempt)).err());
    let attempt = "cannot unmount the pod's shared memory";
    errors.extend(kernel::mount::unmount_lazy(&folders.shm()).map_err(Error::part(attempt)).err());
    // Mounted only where this program was killed while the pause task was made.
    let attempt = "cannot unmount the pause task's files";
    errors.extend(kernel::mount::unmount_lazy(&folders.rootfs()).map_err(Error::part(attempt)).err());
    Error::all(errors)
}

/// Removes what is written down of a sandbox that holds nothing any more. The record last: what is cut off before is
/// found again.
pub(crate) async fn forget(shim: &Arc<Shim>, sandbox: &Sandbox) -> Result<()> {
    let record = &sandbox.record;
    if record.needs_pause() {
        pause::forget(shim, &record.id).await?;
    }
    let folders = shim.folders.sandbox(&record.id);
    blocking("remove the pod sandbox's files", move || {
        remove_folder(&folders.files)?;
        remove_folder(&folders.state)
    })
    .await?;
    Ok(shim.containerd.delete_container(&record.id).await?)
}

/// Nothing there is success.
pub(crate) fn remove_folder(folder: &std::path::Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use cri::v1::NamespaceOption;

    use super::super::record::{Life, tests::record};
    use super::*;
    use crate::shim::tests::alone;

    #[tokio::test]
    async fn what_was_removed_meanwhile_is_not_removed_again() {
        let dir = tempfile::tempdir().unwrap();
        let shim = alone(dir.path());
        let record = record(NamespaceOption::default());
        let id = record.id.clone();
        let life = Life { phase: Phase::Stopped, ips: Vec::new(), trace: String::new(), record };
        let sandbox = Arc::new(Sandbox::new(life));
        shim.sandboxes.insert(&id, sandbox.clone());
        let first = sandbox.turn.write().await;
        let mut second = Box::pin(remove(&shim, &id));
        assert!(futures::poll!(&mut second).is_pending());
        shim.sandboxes.remove(&id);
        drop(first);
        // containerd, which does not answer, is not asked.
        second.await.unwrap();
    }
}
