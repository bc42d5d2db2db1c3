//! CheckpointContainer: criu's images and what is needed to make the container again, in one tar archive.
//!
//! The archive's names are those that Podman, CRI-O and containerd give: `checkpoint/` with criu's images,
//! `config.dump`, `spec.dump`, `status.dump`, `container.log`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri::v1::CheckpointContainerRequest;
use serde_json::json;

use super::exec::target;
use super::record::ContainerRecord;
use super::update::spec_of;
use crate::containerd::runc::CheckpointOptions;
use crate::error::{Error, Result};
use crate::sandbox::stop::remove_folder;
use crate::shim::{Shim, blocking};

/// Writes a checkpoint of a running container, which goes on, to the file that the request names.
///
/// # Errors
/// `Unsupported` where this node has no criu; `State` for a container that does not run; what criu said.
pub async fn checkpoint(shim: &Arc<Shim>, request: &CheckpointContainerRequest) -> Result<()> {
    let (container, _) = target(shim, &request.container_id)?;
    if !has_criu(std::env::var_os("PATH")) {
        return Err(Error::Unsupported("cannot checkpoint a container: this node has no criu, install it".to_owned()));
    }
    let location = PathBuf::from(&request.location);
    if !location.is_absolute() {
        let given = &request.location;
        return Err(Error::Invalid(format!("a checkpoint's location is an absolute path, and not {given:?}")));
    }
    let _turn = container.turn.lock().await;
    let record = container.record();
    let folder = shim.folders.container(&record.id).files.join("checkpoint");
    let made = make(shim, &record, &folder, request.timeout).await;
    let kept = match made {
        Ok(parts) => {
            let (folder, location) = (folder.clone(), location);
            blocking("write a checkpoint", move || archive(&folder, &parts, &location)).await
        }
        Err(error) => Err(error),
    };
    let removed = blocking("remove a checkpoint's images", move || remove_folder(&folder)).await;
    kept.and(removed)
}

fn has_criu(path: Option<std::ffi::OsString>) -> bool {
    path.is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("criu").is_file()))
}

/// Files of the archive that are written here, by name.
type Parts = Vec<(&'static str, Vec<u8>)>;

async fn make(shim: &Arc<Shim>, record: &ContainerRecord, folder: &Path, timeout: i64) -> Result<Parts> {
    let stored = shim.containerd.container(&record.id).await?;
    let spec = serde_json::to_vec(&spec_of(&stored)?).map_err(Error::part("cannot write the container's spec"))?;
    std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
    let path = folder.to_string_lossy().into_owned();
    let options = CheckpointOptions { image_path: path.clone(), work_path: path, ..CheckpointOptions::default() };
    let timeout = u64::try_from(timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    shim.containerd.checkpoint_task(&record.id, options.to_any(), timeout).await?;
    let metadata = record.metadata();
    let config = json!({
        "id": record.id,
        "name": metadata.name,
        "rootfsImageName": record.image.name,
        "rootfsImageRef": record.image.id,
        "runtime": stored.runtime.as_ref().map(|runtime| runtime.name.as_str()),
        "createdTime": record.created_at,
    });
    let status =
        json!({ "metadata": { "name": metadata.name, "attempt": metadata.attempt }, "logPath": record.log_path });
    let mut parts = vec![
        ("spec.dump", spec),
        ("config.dump", config.to_string().into()),
        ("status.dump", status.to_string().into()),
    ];
    if let Some(log) = record.log_path.as_deref().and_then(|path| std::fs::read(path).ok()) {
        parts.push(("container.log", log));
    }
    Ok(parts)
}

/// For root alone: memory holds secrets.
fn archive(folder: &Path, parts: &Parts, location: &Path) -> Result<()> {
    let staged = location.with_extension("part");
    let written = write(folder, parts, &staged).and_then(|()| std::fs::rename(&staged, location));
    written.map_err(|error| {
        // The first failure is the one to report.
        let _ = std::fs::remove_file(&staged);
        Error::io("write", location)(error)
    })
}

fn write(folder: &Path, parts: &Parts, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(io::BufWriter::new(file));
    for (name, content) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, content.as_slice())?;
    }
    archive.append_dir_all("checkpoint", folder)?;
    let mut file = archive.into_inner()?;
    file.flush()?;
    file.get_ref().sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_all_parts_and_criu_s_images() {
        let dir = tempfile::tempdir().unwrap();
        let (images, location) = (dir.path().join("images"), dir.path().join("checkpoint.tar"));
        std::fs::create_dir(&images).unwrap();
        std::fs::write(images.join("core-1.img"), "x").unwrap();
        archive(&images, &vec![("spec.dump", b"{}".to_vec())], &location).unwrap();
        let mut read = tar::Archive::new(File::open(&location).unwrap());
        let mut names: Vec<String> =
            read.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        assert_eq!(names, ["checkpoint/", "checkpoint/core-1.img", "spec.dump"]);
        assert!(!has_criu(Some(dir.path().into())));
        std::fs::write(dir.path().join("criu"), "").unwrap();
        assert!(has_criu(Some(dir.path().into())));
    }
}
