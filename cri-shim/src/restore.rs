//! What a restarted shim finds, and what it makes of it: first a decision for each sandbox and container, then the deed.
//!
//! | found | made of it |
//! |---|---|
//! | a sandbox's record and a life that is ready, its namespaces alive | ready |
//! | a record without life: the machine was rebooted | to be torn down, by whoever asks |
//! | a life that is half-made, with or without record | undone |
//! | a task that runs, and when it began | running: its log goes on, its end is waited for |
//! | a command of ExecSync in it | ended: nobody waits for it |
//! | a task that was made and did not begin | undone: created |
//! | a task that has ended | its end is written down, the task deleted, and the last output put into the log |
//! | an end that is written down, with pipes beside it | the last output is put into the log |
//! | no task, though it began | ended, nobody knows how |
//! | a record that cannot be read | a sandbox: the record in its life, or else to be torn down; a container: by what else is known of it (`remnant.rs`) |
//! | files, snapshots and pipes of what containerd has no record of | removed |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use containerd_client::services::v1::Container as Stored;
use containerd_client::types::v1::{Process, Status};
use futures::future::join_all;
use serde::de::DeserializeOwned;

use crate::container::exec::Command;
use crate::container::exec_sync::end_left_behind;
use crate::container::exit::{self, Outcome};
use crate::container::record::{ContainerRecord, Exit, Started};
use crate::container::{self, Container, Running, State};
use crate::containerd::tasks::{self, nanos};
use crate::error::{Error, Result};
use crate::folders::{SandboxFolders, names};
use crate::record::from_extension;
use crate::remnant;
use crate::sandbox::record::{Life, Phase, SandboxRecord};
use crate::sandbox::{self, Sandbox};
use crate::shim::{Shim, blocking};

/// A container's task as containerd tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    None,
    Created,
    Running { pid: u32 },
    Ended(tasks::Exit),
}

/// What is made of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// It did not begin; a task that waits to begin is deleted.
    Created,
    Running(Running),
    /// It ended while nobody looked.
    Ends {
        started_at: i64,
        outcome: Outcome,
    },
    /// Its end is known; what is left of its task is deleted.
    Ended(Exit),
}

/// What was written down comes first: it was written because the task was about to be deleted.
fn fate(task: Task, started: Option<Started>, exit: Option<Exit>, created_at: i64) -> Fate {
    // Without a word on its beginning it began after it was created: so much is known.
    let started_at = started.map_or(created_at, |started| started.started_at);
    match (exit, task) {
        (Some(exit), _) => Fate::Ended(exit),
        (None, Task::Running { pid }) => Fate::Running(Running { started_at, pid }),
        (None, Task::Ended(exit)) => Fate::Ends { started_at, outcome: Outcome::Ended(exit) },
        (None, Task::None) if started.is_some() => Fate::Ends { started_at, outcome: Outcome::Lost },
        (None, Task::Created | Task::None) => Fate::Created,
    }
}

/// The phase of a sandbox with a record, after what is beside its namespaces.
fn phase(life: Option<Phase>, alive: bool) -> Phase {
    match life {
        Some(Phase::Ready) if alive => Phase::Ready,
        Some(Phase::Stopped) => Phase::Stopped,
        // Half-made too: nobody was told of it.
        Some(Phase::Making) => Phase::Making,
        Some(Phase::Ready | Phase::Stopping) | None => Phase::Stopping,
    }
}

fn task(process: Option<&Process>) -> Task {
    let Some(process) = process else { return Task::None };
    match process.status() {
        Status::Created => Task::Created,
        Status::Running | Status::Paused | Status::Pausing => Task::Running { pid: process.pid },
        Status::Stopped => {
            Task::Ended(tasks::Exit { code: process.exit_status, at: nanos(process.exited_at.as_ref()) })
        }
        // Its shim does not answer.
        Status::Unknown => Task::None,
    }
}

/// Reads what containerd and the disk know into the indexes, goes on with what runs and undoes what is half-made.
///
/// # Errors
/// Where containerd does not answer: nothing is undone then.
pub async fn restore(shim: &Arc<Shim>) -> Result<()> {
    let (stored, tasks) = futures::try_join!(shim.containerd.list_containers(), shim.containerd.tasks())?;
    let tasks: BTreeMap<&str, &Process> = tasks.iter().map(|process| (task_name(process), process)).collect();
    join_all(tasks.iter().map(|(id, process)| resume(shim, id, process))).await;
    let (mut sandboxes, mut containers) = (Vec::new(), Vec::new());
    for one in &stored {
        let of_life = |one: &Stored| Some(Life::read(&shim.folders.sandbox(&one.id).life())?.record);
        let otherwise = |one: &Stored| of_life(one).unwrap_or_else(|| remnant::sandbox(one));
        sandboxes.extend(read::<SandboxRecord>(one, sandbox::record::EXTENSION, otherwise));
        containers.extend(read::<ContainerRecord>(one, container::record::EXTENSION, remnant::container));
    }
    let used: BTreeSet<String> = containers.iter().map(|record| record.sandbox.clone()).collect();
    let restored = containers.into_iter().map(|record| {
        let found = task(tasks.get(record.id.as_str()).copied());
        restore_container(shim, record, found)
    });
    join_all(restored).await;
    let restored = sandboxes.into_iter().map(|record| {
        let pause = task(tasks.get(record.id.as_str()).copied());
        let used = used.contains(&record.id);
        restore_sandbox(shim, record, pause, used)
    });
    join_all(restored).await;
    sweep(shim).await;
    Ok(())
}

/// Lets go on what a checkpoint paused that broke off.
async fn resume(shim: &Shim, id: &str, process: &Process) {
    if matches!(process.status(), Status::Paused | Status::Pausing)
        && let Err(error) = shim.containerd.resume_task(id).await
    {
        tracing::warn!(id, "a container that a checkpoint paused stays so: {error}");
    }
}

/// containerd 1.6 leaves the container's id out of a listing, and names the task by it.
fn task_name(process: &Process) -> &str {
    if process.container_id.is_empty() { &process.id } else { &process.container_id }
}

/// One that cannot be read keeps no other from being restored.
fn read<T: DeserializeOwned>(stored: &Stored, kind: &'static str, otherwise: impl Fn(&Stored) -> T) -> Option<T> {
    let record = from_extension(kind, &stored.id, stored.extensions.get(kind)?);
    Some(record.unwrap_or_else(|error| {
        tracing::error!(id = stored.id, "what is known of it counts, for whoever removes it: {error}");
        otherwise(stored)
    }))
}

async fn restore_container(shim: &Arc<Shim>, record: ContainerRecord, found: Task) {
    let folders = shim.folders.container(&record.id);
    let exit = container::record::read::<Exit>(&folders.exit());
    let fate = fate(found, container::record::read(&folders.started()), exit, record.created_at);
    let id = record.id.clone();
    tracing::debug!(id, ?fate, "a container was found");
    let state = match &fate {
        Fate::Created => State::Created,
        Fate::Running(running) => State::Running(*running),
        // Until its end is written down it counts as running, for those who wait for it.
        Fate::Ends { started_at, .. } => State::Running(Running { started_at: *started_at, pid: 0 }),
        Fate::Ended(exit) => State::Exited(exit.clone()),
    };
    let container = Arc::new(Container::new(record, state));
    shim.containers.insert(&id, container.clone());
    let ended = matches!(fate, Fate::Ended(_));
    match fate {
        Fate::Created | Fate::Ended(_) => {
            if found != Task::None
                && let Err(error) = exit::delete_task(shim, &id).await
            {
                tracing::warn!(id, "the task of a container that does not run stays until it is removed: {error}");
            }
            if ended && let Some(io) = container::start::reopen_io(shim, &container).await {
                exit::drain(shim, &container.record(), &io).await;
            }
        }
        Fate::Running(running) => {
            let io = container::start::reopen_io(shim, &container).await;
            exit::watch(shim, &container, running, io);
            // Listed before anybody can ask for new ones; their end may take its time.
            let (shim, commands) = (shim.clone(), Command::left_behind(shim, &id));
            tokio::spawn(async move { end_left_behind(&shim, &id, commands).await });
        }
        Fate::Ends { started_at, outcome } => {
            // What its pipes still hold goes into the log.
            let io = container::start::reopen_io(shim, &container).await;
            exit::finish(shim, &container, started_at, outcome, io).await;
        }
    }
}

async fn restore_sandbox(shim: &Arc<Shim>, record: SandboxRecord, pause: Task, used: bool) {
    let folders = shim.folders.sandbox(&record.id);
    let life = Life::read(&folders.life());
    let alive =
        sandbox::run::is_alive(&folders, &record) && (!record.needs_pause() || matches!(pause, Task::Running { .. }));
    let phase = phase(life.as_ref().map(|life| life.phase), alive);
    let id = record.id.clone();
    tracing::debug!(id, ?phase, "a pod sandbox was found");
    let life = life.unwrap_or(Life { phase, ips: Vec::new(), trace: String::new(), record });
    let sandbox = Arc::new(Sandbox::new(Life { phase, ..life }));
    if phase == Phase::Making && !used {
        match undo(shim, &sandbox).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(id, "a half-made pod sandbox could not be undone: {error}"),
        }
    }
    if phase == Phase::Making {
        sandbox.live(|life| life.phase = Phase::Stopping);
    }
    shim.sandboxes.insert(&id, sandbox.clone());
    if phase == Phase::Ready && sandbox.record.needs_pause() {
        sandbox::pause::watch(shim, &sandbox);
    }
}

async fn undo(shim: &Arc<Shim>, sandbox: &Sandbox) -> Result<()> {
    sandbox::stop::release(shim, sandbox).await?;
    sandbox::stop::forget(shim, sandbox).await
}

/// Removes what belongs to nothing that is known: half-made sandboxes of which containerd has no record, folders,
/// snapshots. What cannot be removed does not keep the rest, and is tried again by the next restart.
async fn sweep(shim: &Arc<Shim>) {
    for id in names(&shim.folders.all_sandbox_states()) {
        if shim.sandboxes.get(&id).is_some() {
            continue;
        }
        let Some(life) = Life::read(&shim.folders.sandbox(&id).life()) else { continue };
        tracing::info!(id, "undoing a pod sandbox that was half-made");
        let sandbox = Arc::new(Sandbox::new(life));
        if let Err(error) = undo(shim, &sandbox).await {
            tracing::warn!(id, "a half-made pod sandbox could not be undone: {error}");
            // It still holds its network: it is shown, for whoever removes it.
            sandbox.live(|life| life.phase = Phase::Stopping);
            shim.sandboxes.insert(&id, sandbox);
        }
    }
    if let Err(error) = sweep_folders(shim).await {
        tracing::warn!("folders of what is gone stay: {error}");
    }
    if let Err(error) = sweep_rootfs(shim).await {
        tracing::warn!("snapshots of containers that are gone stay: {error}");
    }
}

async fn sweep_folders(shim: &Arc<Shim>) -> Result<()> {
    let shim = shim.clone();
    blocking("remove folders of what is gone", move || {
        let folders = &shim.folders;
        let mut errors = Vec::new();
        for id in names(&folders.all_sandbox_files()).iter().chain(&names(&folders.all_sandbox_states())) {
            if shim.sandboxes.get(id).is_none() {
                errors.extend(remove_sandbox_folders(&folders.sandbox(id)).err());
            }
        }
        for id in names(&folders.all_container_files()).iter().chain(&names(&folders.all_container_states())) {
            if shim.containers.get(id).is_none() {
                errors.extend(container::remove::clear(&folders.container(id)).err());
            }
        }
        Error::all(errors)
    })
    .await
}

fn remove_sandbox_folders(folders: &SandboxFolders) -> Result<()> {
    sandbox::stop::let_go(folders)?;
    sandbox::stop::remove_folder(&folders.files)?;
    sandbox::stop::remove_folder(&folders.state)
}

/// A snapshot is made before its container's record: it may be all that there is.
async fn sweep_rootfs(shim: &Arc<Shim>) -> Result<()> {
    let known = |owner: &str| shim.containers.get(owner).is_some() || shim.sandboxes.get(owner).is_some();
    container::create::remove_orphans(shim, known).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::record::Reason;

    const BEGAN: Option<Started> = Some(Started { started_at: 5, pod_oom_kills: 0 });

    #[test]
    fn a_running_task_runs_whether_or_not_its_start_was_written() {
        let task = Task::Running { pid: 7 };
        assert_eq!(fate(task, BEGAN, None, 3), Fate::Running(Running { started_at: 5, pid: 7 }));
        assert_eq!(fate(task, None, None, 3), Fate::Running(Running { started_at: 3, pid: 7 }));
    }

    #[test]
    fn an_end_that_was_written_counts_before_any_task() {
        let exit = Exit { code: 1, started_at: 5, finished_at: 6, reason: Reason::Error, message: String::new() };
        for task in [Task::None, Task::Created, Task::Ended(tasks::Exit { code: 0, at: 9 })] {
            assert_eq!(fate(task, BEGAN, Some(exit.clone()), 3), Fate::Ended(exit.clone()));
        }
    }

    #[test]
    fn an_end_that_nobody_saw_is_the_tasks_or_unknown() {
        let exit = tasks::Exit { code: 137, at: 9 };
        let seen = Fate::Ends { started_at: 5, outcome: Outcome::Ended(exit) };
        assert_eq!(fate(Task::Ended(exit), BEGAN, None, 3), seen);
        assert_eq!(fate(Task::None, BEGAN, None, 3), Fate::Ends { started_at: 5, outcome: Outcome::Lost });
    }

    #[test]
    fn what_did_not_begin_is_created() {
        assert_eq!(fate(Task::None, None, None, 3), Fate::Created);
        assert_eq!(fate(Task::Created, None, None, 3), Fate::Created);
        // Killed between writing the start down and the start itself.
        assert_eq!(fate(Task::Created, BEGAN, None, 3), Fate::Created);
    }

    #[test]
    fn a_sandbox_is_ready_only_with_its_namespaces() {
        assert_eq!(phase(Some(Phase::Ready), true), Phase::Ready);
        assert_eq!(phase(Some(Phase::Ready), false), Phase::Stopping);
        assert_eq!(phase(None, false), Phase::Stopping);
        assert_eq!(phase(Some(Phase::Stopped), true), Phase::Stopped);
        assert_eq!(phase(Some(Phase::Making), true), Phase::Making);
    }

    #[test]
    fn tasks_are_told_by_their_status() {
        let process = |status: Status| Process { status: status.into(), pid: 4, exit_status: 3, ..Process::default() };
        assert_eq!(task(Some(&process(Status::Paused))), Task::Running { pid: 4 });
        assert_eq!(task(Some(&process(Status::Stopped))), Task::Ended(tasks::Exit { code: 3, at: 0 }));
        assert_eq!(task(Some(&process(Status::Unknown))), Task::None);
        assert_eq!(task(None), Task::None);
        assert_eq!(task_name(&Process { id: "c1".into(), ..Process::default() }), "c1");
    }

    #[tokio::test]
    async fn what_cannot_be_undone_is_shown_and_keeps_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let shim = crate::shim::tests::alone(dir.path());
        let record = sandbox::record::tests::record(cri::v1::NamespaceOption { pid: 1, ..Default::default() });
        let half = shim.folders.sandbox(&record.id);
        std::fs::create_dir_all(&half.state).unwrap();
        let life = Life { phase: Phase::Making, ips: Vec::new(), trace: String::new(), record };
        life.write(&half.life()).unwrap();
        // A file in place of a folder cannot be removed as one.
        std::fs::write(shim.folders.all_container_files().join("a"), "").unwrap();
        let gone = shim.folders.container("b");
        std::fs::create_dir(&gone.files).unwrap();

        sweep(&shim).await;
        let shown = shim.sandboxes.get(&life.record.id).expect("it still has its network");
        assert_eq!(shown.phase(), Phase::Stopping);
        assert!(half.life().exists(), "its address is known by nobody else");
        assert!(!gone.files.exists());
    }
}
