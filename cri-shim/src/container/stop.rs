//! StopContainer: its stop signal, time, SIGKILL.
//!
//! Each caller waits with its own patience: a later one that is less patient ends the container for the earlier too.

use std::sync::Arc;
use std::time::Duration;

use super::{Container, SIGKILL, State};
use crate::containerd::tasks::ProcessId;
use crate::error::{Error, Result};
use crate::shim::Shim;

/// How long a container may take to end after SIGKILL, which waits for its disk.
const AFTER_KILL: Duration = Duration::from_secs(120);

/// Ends the container: at once for a time of zero, else by its stop signal first. One that is unknown or does not run
/// has stopped.
///
/// # Errors
/// `TimedOut` for one that does not end after SIGKILL, and what the shim said.
pub async fn stop(shim: &Arc<Shim>, id: &str, patience: Duration) -> Result<()> {
    let Some(container) = shim.containers.find_maybe(id)? else { return Ok(()) };
    if container.running().is_none() {
        return Ok(());
    }
    if !patience.is_zero() {
        let record = container.record();
        let signal = shim.containerd.kill_process(ProcessId::init(&record.id), record.stop_signal.number);
        let gently = async {
            // A second signal would mean more than the first to some programs.
            container.ask_to_stop(signal).await?;
            container.ended().await;
            Ok(())
        };
        if let Ok(done) = tokio::time::timeout(patience, gently).await {
            return done;
        }
        tracing::info!(id = record.id, "the container did not end in {patience:?} after its stop signal: SIGKILL");
    }
    kill(shim, &container).await
}

/// Ends a container for good, for whoever tears down its sandbox or removes it: also one that is just being started.
///
/// # Errors
/// As [`stop`].
pub async fn end(shim: &Arc<Shim>, container: &Arc<Container>) -> Result<()> {
    let _turn = container.turn.lock().await;
    kill(shim, container).await
}

pub(super) async fn kill(shim: &Shim, container: &Container) -> Result<()> {
    let State::Running(_) = container.state() else { return Ok(()) };
    let id = &container.record().id;
    shim.containerd.kill_process(ProcessId::init(id), SIGKILL).await?;
    let waited = tokio::time::timeout(AFTER_KILL, container.ended()).await;
    waited.map_err(|_| Error::TimedOut(format!("container {id} does not end after SIGKILL: it may wait for a disk")))
}
