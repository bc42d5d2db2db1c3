//! A container's file system in a pod with a user namespace: what root owns in an image is the pod's root's.
//!
//! Snapshotters and shims that map owners came with containerd 2. Here the tree is mounted with mapped owners for as
//! long as the task is made, and containerd's shim takes it as it is: one way for every containerd. Source: KEP-127.

use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use kernel::mount::{Layers, Upper};
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
    let writable = layers(&snapshot).filter(|layers| layers.upper.is_some());
    let layers = writable.ok_or_else(|| Error::part(failed.clone())(unfit(shim, &snapshot)))?;
    let namespace = shim.folders.sandbox(&sandbox.id).namespaces().join("user");
    let target = folder.clone();
    blocking("map the owners of a container's files", move || {
        std::fs::create_dir_all(&target).map_err(Error::io("make", &target))?;
        kernel::mount::overlay(&layers, Some((&namespace, &maps)), &target).map_err(Error::part(failed))
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

/// Shows the snapshot of an image at `folder`, read-only: with mapped owners as above, and with `label` for all of its files.
///
/// # Errors
/// As above.
pub(crate) async fn show_image(
    shim: &Shim,
    sandbox: &SandboxRecord,
    folder: PathBuf,
    (snapshot, label): (&[Mount], Option<String>),
) -> Result<()> {
    let failed = format!("cannot mount image volume {}", folder.display());
    let maps = maps(sandbox)?;
    let Some(layers) = layers(snapshot) else { return Err(Error::part(failed)(unfit(shim, snapshot))) };
    let options = label.map(|label| format!("context=\"{label}\""));
    let layers = Layers { upper: None, options: layers.options.into_iter().chain(options).collect(), ..layers };
    let namespace = shim.folders.sandbox(&sandbox.id).namespaces().join("user");
    blocking("mount an image volume", move || {
        std::fs::create_dir_all(&folder).map_err(Error::io("make", &folder))?;
        let users = maps.as_ref().map(|maps| (namespace.as_path(), maps));
        kernel::mount::overlay(&layers, users, &folder).map_err(Error::part(failed))
    })
    .await
}

fn unfit(shim: &Shim, snapshot: &[Mount]) -> String {
    let kinds: Vec<&str> = snapshot.iter().map(|mount| mount.r#type.as_str()).collect();
    format!("snapshotter {} gives {}: use overlayfs", shim.settings.snapshotter, kinds.join(", "))
}

pub(super) fn maps(sandbox: &SandboxRecord) -> Result<Option<IdMaps>> {
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

/// The folders of an overlay, or the one folder of an image of one layer; `None` for any other snapshot.
fn layers(snapshot: &[Mount]) -> Option<Layers> {
    let [mount] = snapshot else { return None };
    match mount.r#type.as_str() {
        "bind" => Some(Layers { lower: vec![mount.source.clone().into()], upper: None, options: Vec::new() }),
        "overlay" => {
            let value = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
            let upper = value("upperdir").zip(value("workdir"));
            let told = |option: &&String| {
                let keys = ["lowerdir=", "upperdir=", "workdir="];
                // These two are for mount(8).
                ["ro", "rw"].contains(&option.as_str()) || keys.iter().any(|key| option.starts_with(key))
            };
            Some(Layers {
                lower: value("lowerdir")?.split(':').map(PathBuf::from).collect(),
                upper: upper.map(|(changes, work)| Upper { changes: changes.into(), work: work.into() }),
                options: mount.options.iter().filter(|option| !told(option)).cloned().collect(),
            })
        }
        _ => None,
    }
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
        assert_eq!(layers.upper, Some(Upper { changes: "/s/3/fs".into(), work: "/s/3/work".into() }));
        // With its quotes, for they are joined by commas.
        assert_eq!(layers.options, ["index=off", "context=\"a:b:c:s0:c1,c2\""]);
    }

    #[test]
    fn an_image_has_one_folder_or_several() {
        let one = layers(&[bound(Path::new("/s"))]).unwrap();
        let two = layers(&overlay(&["ro", "lowerdir=/a:/b"])).unwrap();
        assert_eq!(one, Layers { lower: vec!["/s".into()], upper: None, options: Vec::new() });
        assert_eq!(two, Layers { lower: vec!["/a".into(), "/b".into()], upper: None, options: Vec::new() });
        let other = Mount { r#type: "erofs".into(), ..Mount::default() };
        assert_eq!((layers(&[other]), layers(&[])), (None, None));
    }
}
