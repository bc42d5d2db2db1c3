//! Image volumes: mounts of a container that show another image, with the owners and the label that the container needs.

use std::sync::Arc;

use containerd_client::types::Mount;
use cri::v1::ContainerConfig;

use super::create::labels;
use super::mapped;
use super::spec::{security_of, selinux};
use crate::error::{Error, Result};
use crate::image::RootfsOptions;
use crate::sandbox::record::SandboxRecord;
use crate::shim::{Shim, blocking};

/// More images in one container than this are refused.
const MOST: usize = 64;

/// Keys of the snapshots of a container's first `count` image volumes; at most [`MOST`].
pub(crate) fn keys(id: &str, count: usize) -> Vec<String> {
    (0..count.min(MOST)).map(|n| format!("{id}-image-{n}")).collect()
}

/// Mounts the images that the container's mounts ask for, and returns its config with the folders where they are, and
/// the keys of their snapshots.
///
/// # Errors
/// `NotFound` for an image that was not pulled, and what containerd or the kernel said; the caller removes what is left.
pub(super) async fn mount(
    shim: &Arc<Shim>,
    sandbox: &SandboxRecord,
    id: &str,
    config: &ContainerConfig,
) -> Result<(ContainerConfig, Vec<String>)> {
    let mut resolved = config.clone();
    let asked = |mount: &&mut cri::v1::Mount| mount.image.as_ref().is_some_and(|image| !image.image.is_empty());
    let wanted: Vec<&mut cri::v1::Mount> = resolved.mounts.iter_mut().filter(asked).collect();
    if wanted.len() > MOST {
        return Err(Error::Invalid(format!("a container may have {MOST} image volumes, and not {}", wanted.len())));
    }
    let keys = keys(id, wanted.len());
    let selinux = selinux::labels(&shim.host, &security_of(config), &sandbox.config, sandbox.selinux_level.as_deref())?;
    for (n, (mount, key)) in wanted.into_iter().zip(&keys).enumerate() {
        let name = mount.image.as_ref().map_or("", |image| image.image.as_str());
        let image = shim.images.find(name).await?;
        let image = image.ok_or_else(|| Error::NotFound { kind: "image", id: name.to_owned() })?;
        let options = RootfsOptions { read_only: true, labels: labels(id) };
        let mounts = shim.images.prepare_rootfs(&image, key, options).await?;
        let folder = shim.folders.container(id).images().join(n.to_string());
        mount.host_path = folder.to_string_lossy().into_owned();
        mount.readonly = true;
        // As they are mapped here already.
        mount.uid_mappings.clear();
        mount.gid_mappings.clear();
        let label = selinux.as_ref().filter(|_| mount.selinux_relabel).map(|labels| labels.mount.clone());
        if label.is_some() || mapped::maps(sandbox)?.is_some() {
            mapped::show_image(shim, sandbox, folder, (&mounts, label)).await?;
            continue;
        }
        blocking("mount an image volume", move || {
            std::fs::create_dir_all(&folder).map_err(Error::io("make", &folder))?;
            show(&mounts, &folder).map_err(Error::part(format!("cannot mount image volume {}", folder.display())))
        })
        .await?;
    }
    Ok((resolved, keys))
}

/// A snapshot's mounts at `folder`, read-only.
fn show(mounts: &[Mount], folder: &std::path::Path) -> kernel::mount::Result<()> {
    for mount in mounts {
        if mount.r#type == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind") {
            kernel::mount::bind(mount.source.as_ref(), folder, true)?;
            kernel::mount::remount_read_only(folder)?;
        } else {
            let options = mount.options.iter().filter(|option| !["ro", "rw"].contains(&option.as_str()));
            let options = options.map(String::as_str).collect::<Vec<_>>().join(",");
            kernel::mount::mount(&mount.r#type, &mount.source, folder, &options)?;
        }
    }
    Ok(())
}
