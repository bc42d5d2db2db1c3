//! A container's file system in a pod with a user namespace: what root owns in the image is the pod's root's.
//!
//! Snapshotters and shims that map owners came with containerd 2. Here the tree is mounted with mapped owners for as
//! long as the task is made, and containerd's shim takes it as it is: one way for every containerd. Source: KEP-127.

use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use kernel::mount::Layers;
use kernel::namespaces::IdMaps;

use crate::error::{Error, Result};
use crate::sandbox::namespaces::user;
use crate::sandbox::record::SandboxRecord;
use crate::shim::{Shim, blocking};

/// What the task is made with.
pub(crate) struct Shown {
    pub mounts: Vec<Mount>,
    /// What is mounted until the task has it.
    folder: Option<PathBuf>,
}

/// Mounts a snapshot at `folder` with mapped owners, if the pod that its task is of has a user namespace.
///
/// # Errors
/// Where the snapshot is of a kind whose owners cannot be mapped, or the kernel refuses.
pub(crate) async fn show(shim: &Shim, sandbox: &SandboxRecord, folder: PathBuf, snapshot: Vec<Mount>) -> Result<Shown> {
    let Some(maps) = maps(sandbox)? else { return Ok(Shown { mounts: snapshot, folder: None }) };
    let failed = format!("cannot map the owners of the files for {}", folder.display());
    let layers = layers(&snapshot).ok_or_else(|| {
        let kinds: Vec<&str> = snapshot.iter().map(|mount| mount.r#type.as_str()).collect();
        let snapshotter = &shim.settings.snapshotter;
        Error::part(failed.clone())(format!("snapshotter {snapshotter} gives {}: use overlayfs", kinds.join(", ")))
    })?;
    let namespace = shim.folders.sandbox(&sandbox.id).namespaces().join("user");
    let target = folder.clone();
    blocking("map the owners of a container's files", move || {
        std::fs::create_dir_all(&target).map_err(Error::io("make", &target))?;
        kernel::mount::mapped_overlay(&layers, (&namespace, &maps), &target).map_err(Error::part(failed))
    })
    .await?;
    Ok(Shown { mounts: vec![bound(&folder)], folder: Some(folder) })
}

impl Shown {
    /// Unmounts what only the making of the task needed.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub(crate) async fn hide(self) -> Result<()> {
        let Some(folder) = self.folder else { return Ok(()) };
        let hide = move || {
            let failed = format!("cannot unmount {}", folder.display());
            kernel::mount::unmount_lazy(&folder).map_err(Error::part(failed))
        };
        blocking("unmount a container's files", hide).await
    }
}

fn maps(sandbox: &SandboxRecord) -> Result<Option<IdMaps>> {
    let maps = sandbox.namespaces().userns_options.as_ref().map(user).transpose();
    Ok(maps.map_err(|error| Error::Invalid(error.to_string()))?.flatten())
}

fn bound(folder: &Path) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: folder.to_string_lossy().into_owned(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
        ..Mount::default()
    }
}

/// The folders of an overlay; `None` for any other snapshot.
fn layers(snapshot: &[Mount]) -> Option<Layers> {
    let [mount] = snapshot else { return None };
    if mount.r#type != "overlay" {
        return None;
    }
    let value = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
    let (lower, upper, work) = (value("lowerdir")?, value("upperdir")?, value("workdir")?);
    let keys = ["lowerdir=", "upperdir=", "workdir="];
    let rest = mount.options.iter().filter(|option| !keys.iter().any(|key| option.starts_with(key)));
    Some(Layers {
        lower: lower.split(':').map(PathBuf::from).collect(),
        upper: upper.into(),
        work: work.into(),
        // Quotes are for a list of options; here each is given by itself.
        options: rest.map(|option| option.replace('"', "")).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Vec<Mount> {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        vec![Mount { r#type: "overlay".into(), source: "overlay".into(), options, ..Mount::default() }]
    }

    #[test]
    fn an_overlay_has_folders() {
        let asked = overlay(&[
            "index=off",
            "context=\"a:b:c:s0:c1,c2\"",
            "workdir=/s/3/work",
            "upperdir=/s/3/fs",
            "lowerdir=/s/2/fs:/s/1/fs",
        ]);
        let layers = layers(&asked).unwrap();
        assert_eq!(layers.lower, [PathBuf::from("/s/2/fs"), PathBuf::from("/s/1/fs")]);
        assert_eq!((layers.upper, layers.work), ("/s/3/fs".into(), "/s/3/work".into()));
        assert_eq!(layers.options, ["index=off", "context=a:b:c:s0:c1,c2"]);
    }

    #[test]
    fn other_snapshots_have_none() {
        assert_eq!(layers(&[bound(Path::new("/s"))]), None);
        assert_eq!(layers(&overlay(&["lowerdir=/a:/b"])), None);
        assert_eq!(layers(&[]), None);
    }
}
