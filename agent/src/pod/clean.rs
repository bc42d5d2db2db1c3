//! Removing what a pod leaves: dead containers, sandboxes, logs, volumes, its cgroup.

use super::context::Context;
use super::lookup::ContainerPhase;
use super::spec;
use super::start::gone_or;
use super::view::{Container as Running, View};
use crate::config::Config;
use crate::runtime::RuntimeError;
use crate::sandbox;
use cri::v1::{RemoveContainerRequest, RemovePodSandboxRequest};
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use tracing::warn;

/// Dead containers of each name that are kept beside the latest, for `logs --previous`.
const KEEP: usize = 1;

/// Containers that nobody needs any more: ended, and neither the latest of their name nor the one before it.
pub fn superfluous(view: &View) -> Vec<&Running> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut out = Vec::new();
    for container in &view.containers {
        let count = seen.entry(&container.name).or_default();
        *count += 1;
        if *count > 1 + KEEP && container.phase != ContainerPhase::Running {
            out.push(container);
        }
    }
    out
}

/// Removes containers that nobody needs, with their logs, and sandboxes that are dead and empty.
///
/// # Errors
/// What the runtime said first.
pub async fn sweep(ctx: &Context, view: &View) -> Result<(), RuntimeError> {
    let superfluous = superfluous(view);
    for container in &superfluous {
        remove_container(ctx, container).await?;
    }
    for sandbox in view.sandboxes.iter().skip(1).filter(|sandbox| !sandbox.ready) {
        let of_it = |container: &&Running| container.sandbox == sandbox.id;
        if view.containers.iter().filter(of_it).all(|container| superfluous.contains(&container)) {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            gone_or(ctx.runtime.remove_pod_sandbox(request).await)?;
        }
    }
    Ok(())
}

/// Removes all that the runtime holds of the pod, and its logs.
///
/// # Errors
/// What the runtime said first.
pub async fn everything(ctx: &Context, pod: &Pod, view: &View) -> Result<(), RuntimeError> {
    for container in &view.containers {
        remove_container(ctx, container).await?;
    }
    for sandbox in &view.sandboxes {
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        gone_or(ctx.runtime.remove_pod_sandbox(request).await)?;
    }
    remove_logs(pod, &ctx.config);
    Ok(())
}

async fn remove_container(ctx: &Context, container: &Running) -> Result<(), RuntimeError> {
    let request = RemoveContainerRequest { container_id: container.id.clone() };
    gone_or(ctx.runtime.remove_container(request).await)?;
    if let (Some(folder), Some(name)) = (container.log_path.parent(), container.log_path.file_name()) {
        let prefix = name.to_string_lossy().into_owned();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            // The log and what rotation made of it: 0.log, 0.log.20260101-000000.gz.
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    Ok(())
}

fn remove_logs(pod: &Pod, config: &Config) {
    let folder = sandbox::log_directory(pod, config);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(folder = %folder.display(), %error, "the pod's logs were not removed");
        }
        _ => {}
    }
}

/// Removes what the node holds for the pod beside the runtime: its volumes and cgroup. With `whole` its folder too.
///
/// # Errors
/// Why something is left, for the log and for another try.
pub async fn node_parts(ctx: &Context, pod: &Pod, whole: bool) -> Result<(), String> {
    let uid = spec::uid(pod).to_string();
    let volumes = if whole { ctx.volumes.remove_pod_dir(&uid).await } else { ctx.volumes.teardown(&uid).await };
    volumes.map_err(|error| error.to_string())?;
    let cgroups = ctx.cgroups.clone();
    let removed = tokio::task::spawn_blocking(move || cgroups.remove_pod(&uid)).await;
    removed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
