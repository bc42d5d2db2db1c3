//! From a container's volumeMounts to the CRI's mounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cri::v1::{Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Pod, VolumeMount};

use super::error::SubPathError;
use super::sources::Source;
use super::{Volumes, sources, subpath, uid, volume_dir};

/// What the container runtime can do (`RuntimeHandlerFeatures` of the CRI).
#[derive(Clone, Copy, Debug, Default)]
pub struct Support {
    pub recursive_read_only: bool,
}

/// A container whose mounts are wanted.
#[derive(Clone, Copy, Debug)]
pub struct MountRequest<'a> {
    pub pod: &'a Pod,
    /// The container's name.
    pub container: &'a str,
    /// Its volumeMounts.
    pub mounts: &'a [VolumeMount],
    /// Its environment, for subPathExpr.
    pub environment: &'a BTreeMap<String, String>,
    pub support: Support,
}

impl Volumes {
    /// The CRI's mounts of a container, in its order. Each subPath is resolved beneath its volume and mounted where the
    /// runtime finds it; call this before each creation of the container.
    ///
    /// # Errors
    /// Where a mount cannot be prepared; prints as the message of a `CreateContainerConfigError`.
    pub async fn container_mounts(&self, request: MountRequest<'_>) -> Result<Vec<Mount>, SubPathError> {
        let mut out = Vec::with_capacity(request.mounts.len());
        for (index, mount) in request.mounts.iter().enumerate() {
            out.push(self.mount(&request, index, mount).await?);
        }
        Ok(out)
    }

    async fn mount(
        &self,
        request: &MountRequest<'_>,
        index: usize,
        mount: &VolumeMount,
    ) -> Result<Mount, SubPathError> {
        let root = &self.inner.root;
        let container = request.container;
        let missing = || SubPathError::NoVolume { volume: mount.name.clone(), container: container.into() };
        let volumes = request.pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let volume = volumes.into_iter().find(|v| v.name == mount.name).ok_or_else(missing)?;
        let source = sources::parse(volume).map_err(|_| missing())?;
        let volume_path = volume_dir(root, uid(request.pod), &source, &volume.name);
        let sub_path = subpath::wanted(mount, request.environment)?;
        let host_path = if sub_path.as_os_str().is_empty() {
            volume_path
        } else {
            let dir = self.pod_dir(uid(request.pod)).join("volume-subpaths").join(&mount.name).join(container);
            let place = subpath::Place { volume: volume_path, sub_path, target: dir.join(index.to_string()) };
            self.prepare(place, mount, container).await?
        };
        let readonly = mount.read_only == Some(true);
        Ok(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly,
            propagation: propagation(mount.mount_propagation.as_deref()).into(),
            recursive_read_only: recursive_read_only(mount, readonly, request.support)?,
            // What the machine's own folders are labelled is not for a pod to change.
            selinux_relabel: !matches!(source, Source::HostPath { .. }),
            ..Mount::default()
        })
    }

    async fn prepare(&self, place: subpath::Place, mount: &VolumeMount, name: &str) -> Result<PathBuf, SubPathError> {
        let target = place.target.clone();
        let failed =
            |reason: String| SubPathError::Prepare { volume: mount.name.clone(), container: name.into(), reason };
        match tokio::task::spawn_blocking(move || subpath::mount(&place)).await {
            Ok(Ok(())) => Ok(target),
            Ok(Err(cause)) => Err(failed(cause.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

fn absolute(path: &str) -> String {
    if Path::new(path).is_absolute() { path.into() } else { format!("/{path}") }
}

fn propagation(mode: Option<&str>) -> MountPropagation {
    match mode {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    }
}

fn recursive_read_only(mount: &VolumeMount, readonly: bool, support: Support) -> Result<bool, SubPathError> {
    let volume = || mount.name.clone();
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => Ok(false),
        Some("IfPossible") => Ok(readonly && support.recursive_read_only && unpropagated(mount)),
        Some(_) if !readonly || !unpropagated(mount) => {
            Err(SubPathError::RecursiveReadOnlyWritable { volume: volume() })
        }
        Some(_) if !support.recursive_read_only => Err(SubPathError::RecursiveReadOnly { volume: volume() }),
        Some(_) => Ok(true),
    }
}

fn unpropagated(mount: &VolumeMount) -> bool {
    matches!(mount.mount_propagation.as_deref(), None | Some("None"))
}
