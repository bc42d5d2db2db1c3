//! The task of a pod whose containers share a PID namespace: it holds the namespace and buries its orphans.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use containerd_client::services::v1::Container as Stored;
use containerd_client::types::v1::Status;
use oci_spec::runtime::Spec;

use super::record::{Phase, SandboxRecord};
use super::spec::{PauseInput, pause_spec, sandbox_seccomp_reference};
use super::{Sandbox, stop};
use crate::container::create::labels;
use crate::container::spec::{self, NamespacePaths, SPEC};
use crate::container::{SIGKILL, exit, labelled, mapped};
use crate::containerd::tasks::{ProcessId, Stdio};
use crate::error::{Error, Result};
use crate::image::{Image, RootfsOptions};
use crate::seccomp::Profile;
use crate::shim::{Shim, blocking};
use cri::v1::ContainerEventType;

/// How long pause may take to end after SIGKILL.
const AFTER_KILL: Duration = Duration::from_secs(60);

/// The pause image, from containerd or from our own archive.
async fn image(shim: &Shim) -> Result<Image> {
    let name = &shim.settings.pause_image;
    if let Some(image) = shim.images.find(name).await? {
        return Ok(image);
    }
    let _turn = shim.importing.lock().await;
    if let Some(image) = shim.images.find(name).await? {
        return Ok(image);
    }
    shim.images.import(Bytes::from_static(shim.settings.pause)).await?;
    let found = shim.images.find(name).await?;
    found.ok_or_else(|| Error::State(format!("the archive that this program carries has no image {name}")))
}

/// Adds to a sandbox's record in containerd what a task of it needs.
///
/// # Errors
/// What the image or the spec is refused for.
pub(super) async fn describe(shim: &Arc<Shim>, record: &SandboxRecord, stored: &mut Stored) -> Result<()> {
    let image = image(shim).await?;
    let (decider, of) = (shim.clone(), record.clone());
    let spec = blocking("decide the pause task's spec", move || decide(&decider, &of, &image)).await?;
    let failed = Error::part(format!("cannot write the spec of pod sandbox {}", record.id));
    stored.spec = Some(spec::encode(SPEC, &spec).map_err(failed)?);
    stored.image = shim.settings.pause_image.clone();
    stored.snapshotter = shim.settings.snapshotter.clone();
    stored.snapshot_key = record.id.clone();
    Ok(())
}

fn decide(shim: &Shim, record: &SandboxRecord, image: &Image) -> Result<Spec> {
    let folders = shim.folders.sandbox(&record.id);
    let reference = sandbox_seccomp_reference(&record.config)?;
    let profile = reference.map(|file| Profile::read(file.as_ref())).transpose().map_err(spec::SpecError::from)?;
    // Where they will be: this is decided while they are made.
    let planned = super::run::planned(record)?;
    let at = |name: &str, wanted: bool| wanted.then(|| folders.namespaces().join(name));
    let namespaces = NamespacePaths {
        net: at("net", planned.net),
        ipc: at("ipc", planned.ipc),
        uts: at("uts", planned.uts),
        user: at("user", planned.user.is_some()),
        pid: None,
    };
    let (resolv_conf, shm) = (folders.resolv_conf(), folders.shm());
    let shm = if record.host_ipc() { std::path::Path::new("/dev/shm") } else { &shm };
    Ok(pause_spec(&PauseInput {
        id: &record.id,
        config: &record.config,
        namespaces: &namespaces,
        image: &image.config,
        image_name: &shim.settings.pause_image,
        host: &shim.host,
        handler: &shim.handler(&record.handler)?.ability,
        resolv_conf: &resolv_conf,
        shm,
        seccomp: profile.as_ref(),
        selinux_level: record.selinux_level.as_deref(),
    })?)
}

/// Makes the pause task's file system. Nothing to do for a pod without one.
///
/// # Errors
/// What containerd said.
pub(super) async fn prepare(shim: &Shim, record: &SandboxRecord) -> Result<()> {
    if !record.needs_pause() {
        return Ok(());
    }
    let image = image(shim).await?;
    let options = RootfsOptions { read_only: false, labels: labels(&record.id) };
    shim.images.prepare_rootfs(&image, &record.id, options).await?;
    Ok(())
}

/// Starts the pause task.
///
/// # Errors
/// What the runtime said.
pub(super) async fn start(shim: &Shim, record: &SandboxRecord) -> Result<()> {
    let id = record.id.as_str();
    let rootfs = shim.containerd.snapshotter(&shim.settings.snapshotter).mounts(id).await?;
    let rootfs = labelled::mounts(shim, id, rootfs).await?;
    let mapped = mapped::show(shim, record, shim.folders.sandbox(id).rootfs(), rootfs).await?;
    let created = shim.containerd.create_task(id, mapped.mounts.clone(), Stdio::default()).await;
    let hidden = mapped.hide().await;
    created?;
    hidden?;
    shim.containerd.start_process(ProcessId::init(id)).await?;
    Ok(())
}

/// Waits in a task of its own for the pause task's end: with it the pod's PID namespace has ended, and the pod.
pub fn watch(shim: &Arc<Shim>, sandbox: &Arc<Sandbox>) {
    let (shim, sandbox) = (shim.clone(), sandbox.clone());
    tokio::spawn(async move {
        exit::wait(&shim, &sandbox.record.id).await;
        if sandbox.phase() == Phase::Ready {
            tracing::warn!(id = sandbox.record.id, "the pause task of a pod has ended, and with it the pod");
            stop::enter(&shim, &sandbox, Phase::Stopping);
            shim.tell_of_sandbox(&sandbox, ContainerEventType::ContainerStoppedEvent);
        }
    });
}

/// The number of the pause task's process; `None` for a pod without one.
///
/// # Errors
/// What containerd said.
pub async fn pid(shim: &Shim, record: &SandboxRecord) -> Result<Option<u32>> {
    if !record.needs_pause() {
        return Ok(None);
    }
    let process = shim.containerd.process(ProcessId::init(&record.id)).await?;
    Ok(process.filter(|process| process.status() == Status::Running).map(|process| process.pid))
}

/// Ends the pause task and deletes it. What is not there is success.
///
/// # Errors
/// What the shim said.
pub(super) async fn end(shim: &Shim, id: &str) -> Result<()> {
    let task = ProcessId::init(id);
    if shim.containerd.process(task).await?.is_none() {
        return Ok(());
    }
    shim.containerd.kill_process(task, SIGKILL).await?;
    if tokio::time::timeout(AFTER_KILL, exit::wait(shim, id)).await.is_err() {
        return Err(Error::TimedOut(format!("the pause task of pod sandbox {id} does not end after SIGKILL")));
    }
    shim.containerd.delete_process(task).await?;
    Ok(())
}

/// Removes the pause task's file system.
///
/// # Errors
/// What containerd said.
pub(super) async fn forget(shim: &Shim, id: &str) -> Result<()> {
    Ok(shim.images.remove_rootfs(id).await?)
}
