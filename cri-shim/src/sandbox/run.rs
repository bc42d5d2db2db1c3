//! RunPodSandbox: all of a sandbox or nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use containerd_client::services::v1::Container;
use cri::v1::{ContainerEventType, PodSandboxConfig, RunPodSandboxRequest};
use kernel::namespaces::{self, IdMaps, Request};
use prost_types::Any;

use super::namespaces::{Defaults, plan};
use super::record::{EXTENSION, KIND, KIND_LABEL, Life, Phase, SandboxRecord, name, validate};
use super::spec::sandbox_user_namespace;
use super::{Sandbox, files, level, network, pause, stop};
use crate::container::cgroup;
use crate::container::spec::SPEC;
use crate::containerd::containers::runtime;
use crate::containerd::runc;
use crate::error::{Error, Result};
use crate::folders::SandboxFolders;
use crate::record::{new_id, now, to_extension};
use crate::shim::{Shim, blocking};
use crate::trace::Stages;

/// Bytes of a pod's /dev/shm, as everywhere.
const SHM_SIZE: u64 = 64 << 20;

/// Makes a sandbox and returns its id; one that is ready already is the answer to a retry. What fails is undone.
///
/// # Errors
/// `Invalid` for a request that cannot be, `Exists` for a pod whose sandbox of this attempt has stopped, and whatever
/// containerd, the kernel or the network said.
pub async fn run(shim: &Arc<Shim>, request: RunPodSandboxRequest, stages: &Stages) -> Result<String> {
    let RunPodSandboxRequest { config, runtime_handler: handler } = request;
    let config = config.ok_or_else(|| Error::Invalid("the request has no pod sandbox config".to_owned()))?;
    validate(&config)?;
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    cgroup::check_parent(parent, shim.host.systemd_cgroup)?;
    sandbox_user_namespace(&config, &shim.handler(&handler)?.ability)?;
    if let Some(id) = existing(shim, &config)? {
        return Ok(id);
    }
    let id = new_id();
    // Held until the index has the sandbox.
    let level = level::reserve(shim, &id, &config);
    let selinux_level = level.as_ref().map(|level| level.text().to_owned());
    let record = SandboxRecord { id, created_at: now(), handler, selinux_level, config };
    let life = Life { phase: Phase::Making, ips: Vec::new(), trace: String::new(), record };
    let sandbox = Arc::new(Sandbox::new(life));
    let made = make(shim, &sandbox, stages).await;
    match made.and_then(|ips| ready(shim, &sandbox, ips, stages)) {
        Ok(id) => Ok(id),
        Err(error) => Err(undo(shim, sandbox, error).await),
    }
}

/// The sandbox that a request asks for again.
fn existing(shim: &Shim, config: &PodSandboxConfig) -> Result<Option<String>> {
    let asked = name(&config.metadata.clone().unwrap_or_default());
    let all = shim.sandboxes.all();
    let Some(found) = all.iter().find(|sandbox| name(&sandbox.record.metadata()) == asked) else { return Ok(None) };
    let id = found.record.id.clone();
    match found.phase() {
        Phase::Ready => Ok(Some(id)),
        _ => Err(Error::Exists(format!(
            "pod sandbox {id} of {asked} has stopped: remove it, or ask for the next attempt"
        ))),
    }
}

fn ready(shim: &Arc<Shim>, sandbox: &Arc<Sandbox>, ips: Vec<IpAddr>, stages: &Stages) -> Result<String> {
    let id = &sandbox.record.id;
    let trace = stages.trace();
    let life = sandbox.live(|life| {
        life.phase = Phase::Ready;
        life.ips = ips;
        life.trace = trace.to_string();
    });
    sandbox.trace.keep(trace);
    life.write(&shim.folders.sandbox(id).life())?;
    shim.sandboxes.insert(id, sandbox.clone());
    tracing::info!(id, pod = name(&sandbox.record.metadata()), trace = life.trace, "the pod sandbox is ready");
    shim.tell_of_sandbox(sandbox, ContainerEventType::ContainerCreatedEvent);
    shim.tell_of_sandbox(sandbox, ContainerEventType::ContainerStartedEvent);
    if sandbox.record.needs_pause() {
        pause::watch(shim, sandbox);
    }
    Ok(id.clone())
}

/// What cannot be undone now stays known as a stopped sandbox, for whoever removes it.
async fn undo(shim: &Arc<Shim>, sandbox: Arc<Sandbox>, error: Error) -> Error {
    let id = sandbox.record.id.clone();
    sandbox.live(|life| life.phase = Phase::Stopping);
    let undone = match stop::release(shim, &sandbox).await {
        Ok(()) => stop::forget(shim, &sandbox).await,
        failed => failed,
    };
    match undone {
        Ok(()) => error,
        Err(more) => {
            tracing::warn!(id, "a pod sandbox that failed could not be undone: {more}");
            shim.sandboxes.insert(&id, sandbox);
            Error::Several(vec![error, more])
        }
    }
}

/// Writes down what will be, then makes it. containerd's record, which waits for a disk, is made beside the rest.
async fn make(shim: &Arc<Shim>, sandbox: &Arc<Sandbox>, stages: &Stages) -> Result<Vec<IpAddr>> {
    let record = &sandbox.record;
    let folders = shim.folders.sandbox(&record.id);
    std::fs::create_dir_all(&folders.state).map_err(Error::io("make", &folders.state))?;
    sandbox.life().write(&folders.life())?;
    let recorded = stages.run("record", write_record(shim, record));
    let furnished = async {
        stages.run("namespaces", furnish(shim, record.clone(), folders.clone())).await?;
        let (ips, paused) = futures::join!(
            stages.run("network", network::add(shim, record)),
            stages.run("pause", pause::prepare(shim, record))
        );
        paused?;
        ips
    };
    // Both are waited for, so that nothing is undone while it is still being done.
    let (recorded, furnished) = futures::join!(recorded, furnished);
    recorded?;
    let ips = furnished?;
    if record.needs_pause() {
        stages.run("pause task", pause::start(shim, record)).await?;
    }
    Ok(ips)
}

async fn write_record(shim: &Arc<Shim>, record: &SandboxRecord) -> Result<()> {
    let mut labels: HashMap<String, String> = record.config.labels.clone();
    labels.insert(KIND_LABEL.to_owned(), KIND.to_owned());
    let options = shim.handler(&record.handler)?.options(&shim.folders.state, shim.host.systemd_cgroup);
    let mut container = Container {
        id: record.id.clone(),
        labels,
        runtime: runtime(runc::RUNTIME, Some(options.to_any())),
        // containerd keeps no container without one; nothing is ever started from this.
        spec: Some(Any { type_url: SPEC.to_owned(), value: br#"{"ociVersion":"1.0.2"}"#.to_vec() }),
        extensions: [(EXTENSION.to_owned(), to_extension(EXTENSION, record)?)].into(),
        ..Container::default()
    };
    if record.needs_pause() {
        pause::describe(shim, record, &mut container).await?;
    }
    Ok(shim.containerd.create_container(container).await?)
}

/// Namespaces, files, shared memory.
async fn furnish(shim: &Shim, record: SandboxRecord, folders: SandboxFolders) -> Result<()> {
    let etc = shim.settings.etc.clone();
    blocking("furnish the pod sandbox", move || {
        let host = host_name();
        let request = planned(&record)?;
        if request != Request::default() {
            namespaces::pin(&folders.namespaces(), &request)
                .map_err(Error::part("cannot make the pod's namespaces"))?;
        }
        let hostname = if record.host_network() { &host } else { &record.config.hostname };
        files::write(&folders, &etc, hostname, record.config.dns_config.as_ref())?;
        if !record.host_ipc() {
            share_memory(&folders.shm(), request.user.as_ref())?;
        }
        Ok(())
    })
    .await
}

fn share_memory(shm: &PathBuf, user: Option<&IdMaps>) -> Result<()> {
    std::fs::create_dir_all(shm).map_err(Error::io("make", shm))?;
    kernel::mount::shared_memory(shm, SHM_SIZE)
        .and_then(|()| user.map_or(Ok(()), |maps| kernel::mount::hand_over(shm, maps)))
        .map_err(Error::part("cannot make the pod's shared memory"))
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}

/// Whether the namespaces that the pod has for itself are there.
pub(crate) fn is_alive(folders: &SandboxFolders, record: &SandboxRecord) -> bool {
    let Ok(wanted) = planned(record) else { return false };
    let there = namespaces::pinned(&folders.namespaces());
    let has = [
        (wanted.net, there.net.is_some()),
        (wanted.ipc, there.ipc.is_some()),
        (wanted.uts, there.uts.is_some()),
        (wanted.user.is_some(), there.user.is_some()),
    ];
    has.iter().all(|(wanted, there)| there >= wanted)
}

/// The namespaces that the pod gets for itself, and how they are furnished.
///
/// # Errors
/// `Invalid` for a request that reaches beyond the pod.
pub(crate) fn planned(record: &SandboxRecord) -> Result<Request> {
    plan(&record.config, Defaults::default()).map_err(|error| Error::Invalid(error.to_string()))
}
