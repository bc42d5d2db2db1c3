//! The end of a container: seen, written down, and only then cleaned up.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::ContainerEventType;

use super::record::{ContainerRecord, Exit, Started, keep, read};
use super::status::{lost, reason};
use super::{Container, Running, State, cgroup, start};
use crate::containerd::tasks::{self, ProcessId};
use crate::error::{Error, Result};
use crate::log::ContainerIo;
use crate::record::now;
use crate::shim::{Shim, blocking, persist};

/// How long output may take to reach the log after the end. Beyond it somebody else holds the pipe, and the log goes on.
const DRAIN: Duration = Duration::from_secs(10);
/// Between two looks at a containerd that does not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// The exit code of what SIGKILL ended, the kernel's for memory as any other.
const KILLED: u32 = 128 + 9;

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ended(tasks::Exit),
    /// There is no task any more: its shim died, or somebody deleted it.
    Lost,
}

/// Waits in a task of its own for the container's end.
pub fn watch(shim: &Arc<Shim>, container: &Arc<Container>, running: Running, io: Option<ContainerIo>) {
    let (shim, container) = (shim.clone(), container.clone());
    tokio::spawn(async move {
        let outcome = wait(&shim, &container.record().id).await;
        finish(&shim, &container, running.started_at, outcome, io).await;
    });
}

/// Returns how a container's task ended, over restarts of containerd.
pub async fn wait(shim: &Shim, id: &str) -> Outcome {
    let task = ProcessId::init(id);
    loop {
        match shim.containerd.wait_process(task).await {
            Ok(exit) => return Outcome::Ended(exit),
            Err(error) if error.is_not_found() => return Outcome::Lost,
            Err(error) => tracing::debug!(id, "waiting again for the end of a container: {error}"),
        }
        // A shim that died is an error of the wait, and a task that is not found afterwards.
        if let Ok(None) = shim.containerd.process(task).await {
            return Outcome::Lost;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Writes the end down, deletes the task, lets the last output reach the log, and tells it.
pub async fn finish(
    shim: &Arc<Shim>,
    container: &Arc<Container>,
    started_at: i64,
    outcome: Outcome,
    io: Option<ContainerIo>,
) {
    let record = container.record();
    let exit = describe(shim, &record, started_at, outcome);
    conclude(shim, container, &exit).await;
    if let Some(io) = io {
        drain(shim, &record, &io).await;
    }
    tracing::info!(id = record.id, code = exit.code, reason = exit.reason.as_str(), "the container has ended");
    container.enter(State::Exited(exit));
    shim.tell_of_container(container, ContainerEventType::ContainerStoppedEvent);
}

/// Lets the last output of a container that ended reach its log, and then its pipes go: while they are there, a restart
/// looks into them.
pub async fn drain(shim: &Shim, record: &ContainerRecord, io: &ContainerIo) {
    if !io.drained(DRAIN).await {
        let why = "a process holds its output open after its end, or the disk of its log is full";
        tracing::warn!(id = record.id, "the container's log may not have all of its output: {why}");
        return;
    }
    let paths = start::paths(shim, record);
    let removed = blocking("remove a container's pipes", move || {
        paths.remove().map_err(Error::part("cannot remove a container's pipes"))
    });
    if let Err(error) = removed.await {
        tracing::warn!(id = record.id, "they stay until the container is removed: {error}");
    }
    shim.keeper.let_go(&record.id);
}

fn describe(shim: &Shim, record: &ContainerRecord, started_at: i64, outcome: Outcome) -> Exit {
    let Outcome::Ended(exit) = outcome else { return lost(started_at, now()) };
    let oom_kills = oom_kills(shim, record, exit.code);
    Exit {
        code: i32::try_from(exit.code).unwrap_or(255),
        started_at,
        finished_at: if exit.at > 0 { exit.at } else { now() },
        reason: reason(exit.code, oom_kills),
        message: String::new(),
    }
}

/// The kernel's count of kills for memory. The container's own is there until its task is deleted; but systemd removes a
/// scope as soon as it is empty. Then the pod's tells, of a container that was killed: it counts the others' too.
fn oom_kills(shim: &Shim, record: &ContainerRecord, code: u32) -> u64 {
    let Some(cgroups) = &shim.cgroups else { return 0 };
    if let Some(own) = cgroups.oom_kills(&cgroup::of_container(cgroups, &record.cgroup)) {
        return own;
    }
    if code != KILLED {
        return 0;
    }
    let before = read::<Started>(&shim.folders.container(&record.id).started()).map_or(0, |began| began.pod_oom_kills);
    cgroup::oom_kills_in_pod(cgroups, &record.cgroup).saturating_sub(before)
}

/// Keeps the end, then deletes the task. Where the disk refuses the first, containerd goes on keeping the task, which
/// knows its exit too.
async fn conclude(shim: &Arc<Shim>, container: &Arc<Container>, exit: &Exit) {
    let id = &container.record().id;
    if let Err(error) = keep_exit(shim, id, exit).await {
        tracing::error!(id, "the container's end is not on disk, its task stays until it is: {error}");
        conclude_later(shim, container, exit.clone());
        return;
    }
    if let Err(error) = delete_task(shim, id).await {
        tracing::warn!(id, "the task of a container that ended stays until it is removed: {error}");
    }
}

/// As soon as there is room, unless the container is removed before.
fn conclude_later(shim: &Arc<Shim>, container: &Arc<Container>, exit: Exit) {
    let (shim, container) = (shim.clone(), container.clone());
    let id = container.record().id.clone();
    persist(format!("keep how container {id} ended"), move || {
        let (shim, container, id, exit) = (shim.clone(), container.clone(), id.clone(), exit.clone());
        async move {
            let _turn = container.turn.lock().await;
            if shim.containers.get(&id).is_none() {
                return Ok(());
            }
            keep_exit(&shim, &id, &exit).await?;
            delete_task(&shim, &id).await
        }
    });
}

/// Keeps how a container ended.
///
/// # Errors
/// Where the disk refuses.
pub async fn keep_exit(shim: &Shim, id: &str, exit: &Exit) -> Result<()> {
    let (path, exit) = (shim.folders.container(id).exit(), exit.clone());
    blocking("keep a container's end", move || keep(&path, &exit)).await
}

/// Deletes a task that has ended, or that never began. What is not there is success.
///
/// # Errors
/// What the shim said.
pub async fn delete_task(shim: &Shim, id: &str) -> Result<()> {
    let task = ProcessId::init(id);
    match shim.containerd.delete_process(task).await {
        // A task that was created and not started is ended first.
        Err(crate::containerd::Error::FailedPrecondition { .. }) => {
            shim.containerd.kill_process(task, super::SIGKILL).await?;
            let waited = tokio::time::timeout(Duration::from_secs(10), shim.containerd.wait_process(task)).await;
            if waited.is_err() {
                tracing::warn!(id, "a task does not end after SIGKILL");
            }
            shim.containerd.delete_process(task).await?;
            Ok(())
        }
        other => Ok(other.map(drop)?),
    }
}
