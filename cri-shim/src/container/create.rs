//! CreateContainer: file system, spec, record; all of it or nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_client::services::v1::Container as Stored;
use containerd_client::types::Mount;
use cri::v1::{ContainerConfig, ContainerEventType, CreateContainerRequest, NamespaceMode};
use oci_spec::runtime::Spec;

use super::record::{ContainerRecord, EXTENSION, ImageNames, KIND, StopSignal, User, name};
use super::spec::{
    self, Accounts, ContainerInput, IdMappings, NamespacePaths, Rootfs, SPEC, SandboxView, container_spec,
    declared_volumes, gather, populate_volumes,
};
use super::{Container, State, exec, remove, volumes};
use crate::containerd::containers::runtime;
use crate::containerd::runc;
use crate::error::{Error, Result};
use crate::image::{Image, RootfsOptions};
use crate::record::{new_id, now, to_extension};
use crate::sandbox::Sandbox;
use crate::sandbox::record::{KIND_LABEL, Phase};
use crate::shim::{Shim, blocking, persist};
use crate::trace::Stages;

/// Keeps a snapshot from containerd's garbage collector while no container object names it yet. It stays: what owns it
/// removes it, and a restart removes those that nothing owns.
const GC_ROOT: &str = "containerd.io/gc.root";
/// Says which container or sandbox a snapshot belongs to.
pub(crate) const OWNER: &str = "bosun.local/owner";

/// Makes a container and returns its id; one that is there already is the answer to a retry. What fails is undone.
///
/// # Errors
/// `NotFound` for an unknown sandbox or image, `State` for a sandbox that has stopped, `Invalid` for a request that
/// cannot be, and whatever containerd said.
pub async fn create(shim: &Arc<Shim>, request: CreateContainerRequest, stages: &Stages) -> Result<String> {
    let sandbox = shim.sandboxes.find(&request.pod_sandbox_id)?;
    let _turn = sandbox.turn.read().await;
    if sandbox.phase() != Phase::Ready {
        return Err(Error::State(format!("pod sandbox {} has stopped", sandbox.record.id)));
    }
    let config = request.config.ok_or_else(|| Error::Invalid("the request has no container config".to_owned()))?;
    let metadata = config.metadata.clone().filter(|metadata| !metadata.name.is_empty());
    let metadata = metadata.ok_or_else(|| Error::Invalid("the container's config has no name".to_owned()))?;
    let asked = name(&sandbox.record.id, &metadata);
    let existing = shim.containers_of(&sandbox.record.id).into_iter().map(|container| container.record());
    if let Some(found) = existing.into_iter().find(|record| name(&record.sandbox, &record.metadata()) == asked) {
        return Ok(found.id.clone());
    }
    let image = image(shim, &config).await?;
    let id = new_id();
    match make(shim, Making { sandbox: &sandbox, config, image, id: &id }, stages).await {
        Ok(record) => {
            let container = Arc::new(Container::new(record, State::Created));
            shim.containers.insert(&id, container.clone());
            let trace = stages.trace();
            tracing::info!(id, name = asked, %trace, "the container is created");
            container.trace.keep(trace);
            shim.tell_of_container(&container, ContainerEventType::ContainerCreatedEvent);
            Ok(id)
        }
        Err(error) => match remove::discard(shim, &id, &volumes::keys(&id, usize::MAX)).await {
            Ok(()) => Err(error),
            Err(more) => {
                discard_later(shim, id);
                Err(Error::Several(vec![error, more]))
            }
        },
    }
}

/// Nobody knows of it, so that nobody would ask for its removal.
fn discard_later(shim: &Arc<Shim>, id: String) {
    let shim = shim.clone();
    persist(format!("discard container {id}"), move || {
        let (shim, id) = (shim.clone(), id.clone());
        async move { remove::discard(&shim, &id, &volumes::keys(&id, usize::MAX)).await }
    });
}

struct Making<'a> {
    sandbox: &'a Arc<Sandbox>,
    config: ContainerConfig,
    image: Image,
    id: &'a str,
}

async fn image(shim: &Shim, config: &ContainerConfig) -> Result<Image> {
    let wanted = config.image.as_ref().map_or("", |image| image.image.as_str());
    if wanted.is_empty() {
        return Err(Error::Invalid("the container's config names no image".to_owned()));
    }
    let found = shim.images.find(wanted).await?;
    found.ok_or_else(|| Error::NotFound { kind: "image", id: wanted.to_owned() })
}

async fn make(shim: &Arc<Shim>, making: Making<'_>, stages: &Stages) -> Result<ContainerRecord> {
    let Making { sandbox, config, image, id } = making;
    let options = RootfsOptions { read_only: false, labels: labels(id) };
    let prepared = stages.run("file system", shim.images.prepare_rootfs(&image, id, options));
    let mounted = stages.run("image volumes", volumes::mount(shim, &sandbox.record, id, &config));
    let (rootfs, resolved) = futures::join!(prepared, mounted);
    let (rootfs, (resolved, volumes)) = (rootfs?, resolved?);
    let pid = target_pid(shim, sandbox, &config).await?;
    let decided = Deciding {
        shim: shim.clone(),
        sandbox: sandbox.clone(),
        config: resolved,
        image: image.clone(),
        id: id.to_owned(),
        rootfs,
        pid,
    };
    let spec = stages.run("spec", blocking("decide a container's spec", move || decided.spec())).await?;
    let record = describe(sandbox, config, &image, &spec, (id, volumes))?;
    let stored = stored(shim, sandbox, &record, &spec)?;
    stages.run("record", shim.containerd.create_container(stored)).await?;
    Ok(record)
}

/// Labels of a snapshot that belongs to `owner`.
pub(crate) fn labels(owner: &str) -> HashMap<String, String> {
    [(GC_ROOT.to_owned(), "bosun".to_owned()), (OWNER.to_owned(), owner.to_owned())].into()
}

/// The PID namespace that the container shares, if it does: the pod's, or that of another container.
async fn target_pid(shim: &Arc<Shim>, sandbox: &Sandbox, config: &ContainerConfig) -> Result<Option<PathBuf>> {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
    let of = |pid: u32| Some(PathBuf::from(format!("/proc/{pid}/ns/pid")));
    match options.pid() {
        NamespaceMode::Target => {
            let (container, running) = exec::target(shim, &options.target_id)?;
            if container.record().sandbox != sandbox.record.id {
                let target = &container.record().id;
                return Err(Error::Invalid(format!("the target container {target} is in another pod sandbox")));
            }
            Ok(of(running.pid))
        }
        NamespaceMode::Pod => Ok(crate::sandbox::pause::pid(shim, &sandbox.record).await?.and_then(of)),
        NamespaceMode::Container | NamespaceMode::Node => Ok(None),
    }
}

/// All that a spec is decided from, for a thread that may block.
struct Deciding {
    shim: Arc<Shim>,
    sandbox: Arc<Sandbox>,
    config: ContainerConfig,
    image: Image,
    id: String,
    rootfs: Vec<Mount>,
    pid: Option<PathBuf>,
}

impl Deciding {
    fn spec(self) -> Result<Spec> {
        let Self { shim, sandbox, config, image, id, rootfs, pid } = self;
        let record = &sandbox.record;
        let folders = shim.folders.sandbox(&record.id);
        let of_image = image.config.config().clone().unwrap_or_default();
        let volumes = declared_volumes(&config, &of_image, &shim.folders.container(&id).volumes());
        let needed = !volumes.is_empty() || Accounts::are_needed(&config, &of_image);
        let tree = if needed { Rootfs::of_snapshot(&rootfs)? } else { None };
        if let Some(tree) = &tree {
            populate_volumes(tree, &volumes)?;
        }
        let request = spec::Request { config: &config, rootfs: tree.as_ref(), host: &shim.host };
        let gathered = gather(&request)?;
        let pinned = kernel::namespaces::pinned(&folders.namespaces());
        let namespaces = NamespacePaths { net: pinned.net, ipc: pinned.ipc, uts: pinned.uts, user: pinned.user, pid };
        let (resolv_conf, hosts, hostname) = (folders.resolv_conf(), folders.hosts(), folders.hostname());
        let shm = folders.shm();
        let shm = if record.host_ipc() { Path::new("/dev/shm") } else { &shm };
        let view = SandboxView {
            id: &record.id,
            config: &record.config,
            namespaces: &namespaces,
            resolv_conf: &resolv_conf,
            hosts: &hosts,
            hostname: &hostname,
            shm,
            selinux_level: record.selinux_level.as_deref(),
        };
        let input = ContainerInput {
            id: &id,
            sandbox: &view,
            config: &config,
            image: &image.config,
            host: &shim.host,
            handler: &shim.handler(&record.handler)?.ability,
            volumes: &volumes,
            gathered: &gathered,
        };
        let spec = container_spec(&input)?;
        if let Some(relabel) = spec::selinux::relabel(&input, &spec)? {
            relabel.run().map_err(Error::part(format!("cannot relabel the mounts of container {id}")))?;
        }
        Ok(spec)
    }
}

fn describe(
    sandbox: &Sandbox,
    config: ContainerConfig,
    image: &Image,
    spec: &Spec,
    (id, volumes): (&str, Vec<String>),
) -> Result<ContainerRecord> {
    let of_image = image.config.config().clone().unwrap_or_default();
    let signal = spec::stop_signal(&config, &of_image)?;
    let user = spec.process().as_ref().map(|process| process.user().clone()).unwrap_or_default();
    let folder = Path::new(&sandbox.record.config.log_directory);
    let log_path = (!config.log_path.is_empty()).then(|| folder.join(&config.log_path));
    let cgroup = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
    Ok(ContainerRecord {
        id: id.to_owned(),
        sandbox: sandbox.record.id.clone(),
        created_at: now(),
        image: image_names(&config, image),
        stop_signal: StopSignal { number: signal.number, cri: signal.cri.into() },
        user: User { uid: user.uid(), gid: user.gid(), groups: user.additional_gids().clone().unwrap_or_default() },
        log_path: log_path.filter(|path| path.is_absolute()),
        cgroup: cgroup.to_string_lossy().into_owned(),
        volumes,
        config,
    })
}

/// An image that was asked for by its id is shown by a name that people know, where it has one.
fn image_names(config: &ContainerConfig, image: &Image) -> ImageNames {
    let asked = config.image.as_ref().map_or("", |image| image.image.as_str());
    let by_id = asked == image.id || image.id.strip_prefix("sha256:").is_some_and(|hex| hex.starts_with(asked));
    let known = image.tags.first().or(image.digests.first());
    ImageNames {
        name: known.filter(|_| by_id).map_or_else(|| asked.to_owned(), Clone::clone),
        reference: image.digests.first().unwrap_or(&image.id).clone(),
        id: image.id.clone(),
    }
}

fn stored(shim: &Shim, sandbox: &Sandbox, record: &ContainerRecord, spec: &Spec) -> Result<Stored> {
    let mut labels = record.config.labels.clone();
    labels.insert(KIND_LABEL.to_owned(), KIND.to_owned());
    let handler = shim.handler(&sandbox.record.handler)?;
    let ids = spec::user_namespace(sandbox.record.namespaces().userns_options.as_ref())?;
    let (io_uid, io_gid) = ids.as_ref().map_or((0, 0), IdMappings::root);
    let options = handler.options(&shim.folders.state, shim.host.systemd_cgroup);
    let options = runc::Options { io_uid, io_gid, ..options };
    let failed = Error::part(format!("cannot write the spec of container {}", record.id));
    Ok(Stored {
        id: record.id.clone(),
        labels,
        image: record.image.name.clone(),
        runtime: runtime(runc::RUNTIME, Some(options.to_any())),
        spec: Some(spec::encode(SPEC, spec).map_err(failed)?),
        snapshotter: shim.settings.snapshotter.clone(),
        snapshot_key: record.id.clone(),
        extensions: [(EXTENSION.to_owned(), to_extension(EXTENSION, record)?)].into(),
        ..Stored::default()
    })
}

/// Removes the snapshots of ours whose owner is not known.
///
/// # Errors
/// What containerd said.
pub async fn remove_orphans(shim: &Shim, known: impl Fn(&str) -> bool) -> Result<()> {
    for snapshot in shim.containerd.snapshotter(&shim.settings.snapshotter).list().await? {
        if snapshot.labels.get(OWNER).is_some_and(|owner| !known(owner)) {
            tracing::info!(key = snapshot.name, "removing a snapshot that belongs to nothing");
            shim.images.remove_rootfs(&snapshot.name).await?;
        }
    }
    Ok(())
}
