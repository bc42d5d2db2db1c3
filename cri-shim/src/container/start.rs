//! StartContainer: the task is made, its start is written down, and it begins.

use std::path::Path;
use std::sync::Arc;

use cri::v1::ContainerEventType;

use super::record::{ContainerRecord, Exit, Reason, Started, keep};
use super::{Container, Running, State, cgroup, exit, labelled, mapped};
use crate::containerd::tasks::{ProcessId, Stdio};
use crate::error::{Error, Result};
use crate::log::{ContainerIo, IoPaths};
use crate::record::now;
use crate::sandbox::record::{Phase, SandboxRecord};
use crate::sandbox::{self, Sandbox};
use crate::shim::{Shim, blocking, persist};
use crate::trace::{Stages, slow_start};

/// The exit code of what could not begin, as everywhere.
const CANNOT_START: i32 = 128;

/// Starts a container that was created. One that runs is the answer to a retry.
///
/// # Errors
/// `State` for a container that has ended or whose sandbox has stopped; else what the runtime said, and the container
/// has ended with `StartError` then.
pub async fn start(shim: &Arc<Shim>, id: &str) -> Result<()> {
    let container = shim.containers.find(id)?;
    let _turn = container.turn.lock().await;
    let record = container.record();
    // Removed while we waited for our turn.
    shim.containers.find(&record.id)?;
    match container.state() {
        State::Created => {}
        State::Running(_) => return Ok(()),
        State::Exited(_) => return Err(Error::State(format!("container {} has ended: make another", record.id))),
    }
    let sandbox = shim.sandboxes.get(&record.sandbox).filter(|sandbox| sandbox.phase() == Phase::Ready);
    let sandbox = sandbox.ok_or_else(|| {
        Error::State(format!("container {}: its pod sandbox {} has stopped", record.id, record.sandbox))
    })?;
    let stages = Stages::new("StartContainer", &record.id);
    match begin(shim, &sandbox.record, &record, &stages).await {
        Ok((running, io)) => {
            tell_of_time(&sandbox, &container, &stages);
            container.set_io(Some(io.clone()));
            container.enter(State::Running(running));
            shim.tell_of_container(&container, ContainerEventType::ContainerStartedEvent);
            exit::watch(shim, &container, running, Some(io));
            Ok(())
        }
        Err(error) => {
            fail(shim, &container, &error).await;
            Err(error)
        }
    }
}

/// The pod's start is over with its first container's; the others have a start of their own.
fn tell_of_time(sandbox: &Sandbox, container: &Container, stages: &Stages) {
    let (record, trace) = (container.record(), stages.trace());
    tracing::info!(id = record.id, %trace, "the container has begun");
    let calls = [sandbox.trace.take(), container.trace.take(), Some(trace)];
    if let Some(slowest) = slow_start(&calls.into_iter().flatten().collect::<Vec<_>>()) {
        let pod = sandbox::record::name(&sandbox.record.metadata());
        tracing::info!(id = record.id, pod, "a slow start: {slowest}");
    }
}

async fn begin(
    shim: &Arc<Shim>,
    sandbox: &SandboxRecord,
    record: &Arc<ContainerRecord>,
    stages: &Stages,
) -> Result<(Running, ContainerIo)> {
    let id = record.id.as_str();
    let folders = shim.folders.container(id);
    let paths = paths(shim, record);
    let snapshotter = shim.containerd.snapshotter(&shim.settings.snapshotter);
    let mounts = stages.run("mounts", snapshotter.mounts(id));
    let pipes = stages.run("pipes", open_io(shim, paths.clone(), record));
    let (rootfs, io) = futures::join!(mounts, pipes);
    let (rootfs, io) = (labelled::mounts(shim, id, rootfs?).await?, io?);
    let mapped = mapped::show(shim, sandbox, folders.rootfs(), rootfs).await?;
    let task = shim.containerd.create_task(id, mapped.mounts.clone(), stdio(&paths, record.config.tty));
    let created = stages.run("task", task).await;
    let hidden = mapped.hide().await;
    let pid = created?;
    hidden?;
    // Before it begins, so that a restart between the two knows when.
    let started_at = now();
    let pod_oom_kills = shim.cgroups.as_ref().map_or(0, |all| cgroup::oom_kills_in_pod(all, &record.cgroup));
    keep(&folders.started(), &Started { started_at, pod_oom_kills })?;
    stages.run("start", shim.containerd.start_process(ProcessId::init(id))).await?;
    Ok((Running { started_at, pid }, io))
}

/// What could not begin has ended, and says why to whoever asks.
async fn fail(shim: &Arc<Shim>, container: &Arc<Container>, error: &Error) {
    let id = &container.record().id;
    if let Err(error) = exit::delete_task(shim, id).await {
        tracing::warn!(id, "the task of a container that could not start is still there: {error}");
        delete_task_later(shim, container);
    }
    let exit = Exit {
        code: CANNOT_START,
        started_at: 0,
        finished_at: now(),
        reason: Reason::StartError,
        message: error.to_string(),
    };
    if let Err(error) = exit::keep_exit(shim, id, &exit).await {
        tracing::warn!(id, "that a container could not start is not on disk: {error}");
    }
    container.enter(State::Exited(exit));
    shim.tell_of_container(container, ContainerEventType::ContainerStoppedEvent);
}

/// It may run after all: where containerd went away before it answered.
fn delete_task_later(shim: &Arc<Shim>, container: &Arc<Container>) {
    let (shim, container) = (shim.clone(), container.clone());
    let id = container.record().id.clone();
    persist(format!("delete the task of container {id}"), move || {
        let (shim, container, id) = (shim.clone(), container.clone(), id.clone());
        async move {
            let _turn = container.turn.lock().await;
            // Its removal deletes the task too.
            if shim.containers.get(&id).is_none() { Ok(()) } else { exit::delete_task(&shim, &id).await }
        }
    });
}

/// Opens a container's pipes and its log, for a container that begins or that was found running. From here on its output
/// is safe though we end.
async fn open_io(shim: &Shim, paths: IoPaths, record: &Arc<ContainerRecord>) -> Result<ContainerIo> {
    let (id, record) = (record.id.clone(), record.clone());
    let opened = blocking("open a container's pipes", move || {
        let attempt = format!("cannot open the pipes of container {}", record.id);
        paths.make().map_err(Error::part(attempt.clone()))?;
        if let Some(folder) = record.log_path.as_deref().and_then(Path::parent) {
            std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        }
        ContainerIo::open(&paths, record.log_path.as_deref(), record.config.tty).map_err(Error::part(attempt))
    });
    let io = opened.await?;
    shim.keeper.hold(&id).await;
    Ok(io)
}

/// The pipes and the log of a container that was found running, or whose log may lack its last output. `None` where its
/// pipes are gone.
pub async fn reopen_io(shim: &Arc<Shim>, container: &Container) -> Option<ContainerIo> {
    let record = container.record();
    let paths = paths(shim, &record);
    if !paths.stdout.as_deref().is_some_and(Path::exists) {
        return None;
    }
    let opened = open_io(shim, paths, &record).await;
    let io = opened.inspect_err(|error| tracing::warn!(id = record.id, "its log does not go on: {error}")).ok();
    container.set_io(io.clone());
    io
}

/// Where a container's pipes are, from its start until its log has all of its output.
pub(super) fn paths(shim: &Shim, record: &ContainerRecord) -> IoPaths {
    IoPaths::of(&shim.folders.container(&record.id).io(), "", record.config.stdin, record.config.tty)
}

/// The pipes as containerd's requests have them.
pub(super) fn stdio(paths: &IoPaths, terminal: bool) -> Stdio {
    let IoPaths { stdin, stdout, stderr } = paths;
    let [stdin, stdout, stderr] = [stdin, stdout, stderr].map(IoPaths::text);
    Stdio { stdin, stdout, stderr, terminal }
}

#[cfg(test)]
mod tests {
    use cri::v1::NamespaceOption;

    use super::*;
    use crate::sandbox::record::Life;
    use crate::shim::tests::alone;

    #[tokio::test]
    async fn what_was_removed_meanwhile_does_not_begin() {
        let dir = tempfile::tempdir().unwrap();
        let shim = alone(dir.path());
        let of_pod = sandbox::record::tests::record(NamespaceOption::default());
        let life = Life { phase: Phase::Ready, ips: Vec::new(), trace: String::new(), record: of_pod };
        shim.sandboxes.insert(&life.record.id.clone(), Arc::new(Sandbox::new(life)));
        let record = super::super::record::tests::record();
        let id = record.id.clone();
        let container = Arc::new(Container::new(record, State::Created));
        shim.containers.insert(&id, container.clone());
        let removal = container.turn.lock().await;
        let mut starting = Box::pin(start(&shim, &id));
        assert!(futures::poll!(&mut starting).is_pending());
        shim.containers.remove(&id);
        drop(removal);
        let error = starting.await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert!(!shim.folders.container(&id).files.exists(), "it left something");
    }
}
