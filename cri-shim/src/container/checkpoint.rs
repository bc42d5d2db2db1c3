//! CheckpointContainer: criu's images and what is needed to make the container again, in one tar archive.
//!
//! The archive's names are those that Podman, CRI-O and containerd give: `checkpoint/` with criu's images, `dump.log`,
//! `rootfs-diff.tar` (what the container changed in its image's files), `config.dump`, `spec.dump`, `status.dump`,
//! `container.log`. Source: checkpoint-restore/checkpointctl, lib/metadata.go.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::Container as Stored;
use cri::v1::CheckpointContainerRequest;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::exec::target;
use super::record::ContainerRecord;
use super::update::spec_of;
use super::{Running, status};
use crate::containerd::runc::CheckpointOptions;
use crate::containerd::snapshots::NewSnapshot;
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
    // It may have ended meanwhile.
    let (_, running) = target(shim, &request.container_id)?;
    let record = container.record();
    let folder = shim.folders.container(&record.id).files.join("checkpoint");
    let kept = match make(shim, &record, running, &folder, request.timeout).await {
        Ok(()) => {
            let folder = folder.clone();
            blocking("write a checkpoint", move || archive(&folder, &location)).await
        }
        Err(error) => Err(error),
    };
    let removed = blocking("remove a checkpoint's images", move || remove_folder(&folder)).await;
    kept.and(removed)
}

fn has_criu(path: Option<std::ffi::OsString>) -> bool {
    path.is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("criu").is_file()))
}

/// Fills `folder` with what the archive shall hold.
async fn make(shim: &Arc<Shim>, record: &ContainerRecord, running: Running, folder: &Path, timeout: i64) -> Result<()> {
    let containerd = &shim.containerd;
    let stored = containerd.container(&record.id).await?;
    let spec = serde_json::to_value(spec_of(&stored)?).map_err(Error::part("cannot write the container's spec"))?;
    let documents = [
        ("spec.dump", spec),
        ("config.dump", config_dump(record, &stored, OffsetDateTime::now_utc())),
        ("status.dump", status_dump(record, running)),
    ];
    let (begun, log) = (folder.to_owned(), record.log_path.clone());
    blocking("begin a checkpoint", move || begin(&begun, &documents, log.as_deref())).await?;
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let options = CheckpointOptions {
        image_path: text(folder.join("checkpoint")),
        work_path: text(folder.to_owned()),
        ..CheckpointOptions::default()
    };
    let timeout = u64::try_from(timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    // Its files are to be those of the moment that its memory is of.
    containerd.pause_task(&record.id).await?;
    let dumped = match containerd.checkpoint_task(&record.id, options.to_any(), timeout).await {
        Ok(()) => rootfs_diff(shim, &record.id, &folder.join("rootfs-diff.tar")).await,
        Err(error) => Err(with_reason(error.into(), &folder.join("dump.log"))),
    };
    let resumed = containerd.resume_task(&record.id).await;
    dumped.and(resumed.map_err(Error::from))
}

/// The runtime says no more than that criu failed; criu's own words about why are in its log.
fn with_reason(error: Error, log: &Path) -> Error {
    let log = std::fs::read(log).unwrap_or_default();
    let said = errors(&String::from_utf8_lossy(&log));
    match said.is_empty() {
        true => error,
        false => Error::Part { attempt: error.to_string(), message: format!("criu says {said}"), code: error.code() },
    }
}

/// Of lines as `(00.012345) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds` the first few, in one. The cause
/// is among them: before it are features that this kernel lacks, behind it what could not be done therefore.
fn errors(log: &str) -> String {
    const ENOUGH: usize = 5;
    let words = log.lines().filter_map(|line| line.find("Error (").map(|at| &line[at..]));
    words.take(ENOUGH).collect::<Vec<_>>().join("; ")
}

/// What is older in `folder` is of a checkpoint that broke off.
fn begin(folder: &Path, documents: &[(&str, Value)], log: Option<&Path>) -> Result<()> {
    remove_folder(folder)?;
    // For root alone: memory holds secrets.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder.join("checkpoint"));
    made.map_err(Error::io("make", folder))?;
    for (name, document) in documents {
        let path = folder.join(name);
        std::fs::write(&path, document.to_string()).map_err(Error::io("write", &path))?;
    }
    match log.map(|log| std::fs::copy(log, folder.join("container.log"))) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("copy the log to", folder)(error)),
        _ => Ok(()),
    }
}

/// Writes a tar of what the container's tree has more than its image.
async fn rootfs_diff(shim: &Shim, id: &str, to: &Path) -> Result<()> {
    let containerd = &shim.containerd;
    let snapshotter = containerd.snapshotter(&shim.settings.snapshotter);
    // It holds the view of the image and the tar; what we leave behind if we die goes with it.
    let lease = containerd.lease().await?;
    let view = format!("{id}-checkpoint");
    let made = async {
        let parent = snapshotter.parent(id).await?;
        let new = NewSnapshot { key: &view, parent: &parent, labels: Default::default() };
        let (image, tree) = (snapshotter.view(new, Some(&lease)).await?, snapshotter.mounts(id).await?);
        let attempt = format!("find what container {id} changed in its image's files");
        let digest = containerd.diff(image, tree, &lease, &attempt).await?;
        containerd.content_copy(&digest, to).await
    };
    let made = made.await;
    let removed = snapshotter.remove(&view).await;
    lease.end().await;
    Ok(made.and(removed)?)
}

fn config_dump(record: &ContainerRecord, stored: &Stored, now: OffsetDateTime) -> Value {
    let created = OffsetDateTime::from_unix_timestamp_nanos(record.created_at.into()).unwrap_or(now);
    let text = |time: OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
    json!({
        "id": record.id,
        "name": record.metadata().name,
        "rootfsImage": record.image.name,
        "rootfsImageName": record.image.name,
        "rootfsImageRef": record.image.reference,
        "runtime": stored.runtime.as_ref().map(|runtime| runtime.name.as_str()),
        "createdTime": text(created),
        "checkpointedTime": text(now),
    })
}

/// The fields of the CRI's `ContainerStatus` that its readers look at, as Go writes them.
fn status_dump(record: &ContainerRecord, running: Running) -> Value {
    let status = status::status(record, &super::State::Running(running));
    let metadata = record.metadata();
    json!({
        "id": status.id,
        "metadata": { "name": metadata.name, "attempt": metadata.attempt },
        "state": status.state,
        "created_at": status.created_at,
        "started_at": status.started_at,
        "image": { "image": status.image.unwrap_or_default().image },
        "image_ref": status.image_ref,
        "image_id": status.image_id,
        "labels": status.labels,
        "annotations": status.annotations,
        "log_path": status.log_path,
    })
}

/// The file is whole or not there.
fn archive(folder: &Path, location: &Path) -> Result<()> {
    let staged = location.with_extension("part");
    let written = write(folder, &staged).and_then(|()| std::fs::rename(&staged, location));
    written.map_err(|error| {
        // The first failure is the one to report.
        let _ = std::fs::remove_file(&staged);
        Error::io("write", location)(error)
    })
}

fn write(folder: &Path, path: &Path) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(io::BufWriter::new(file));
    archive.append_dir_all("", folder)?;
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
        let (folder, log, location) =
            (dir.path().join("made"), dir.path().join("0.log"), dir.path().join("checkpoint.tar"));
        std::fs::create_dir_all(folder.join("checkpoint")).unwrap();
        std::fs::write(folder.join("checkpoint/stale.img"), "of an earlier one").unwrap();
        std::fs::write(&log, "a line").unwrap();
        begin(&folder, &[("spec.dump", json!({}))], Some(&log)).unwrap();
        std::fs::write(folder.join("checkpoint/core-1.img"), "x").unwrap();
        archive(&folder, &location).unwrap();
        let mut read = tar::Archive::new(File::open(&location).unwrap());
        let mut names: Vec<String> =
            read.entries().unwrap().map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        assert_eq!(names, ["checkpoint", "checkpoint/core-1.img", "container.log", "spec.dump"]);
        begin(&folder, &[], Some(&dir.path().join("none.log"))).unwrap();
        begin(&folder, &[], None).unwrap();
    }

    #[test]
    fn criu_s_own_word_is_part_of_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        let error = || Error::State("criu failed".to_owned());
        assert_eq!(with_reason(error(), &log).to_string(), "criu failed");
        std::fs::write(&log, b"(00.000001) Version\n(00.000002) Error (criu/a.c:3): no \xff\n(00.1) Error (b): c\n")
            .unwrap();
        let said = with_reason(error(), &log);
        assert_eq!(said.to_string(), "criu failed: criu says Error (criu/a.c:3): no \u{fffd}; Error (b): c");
        assert_eq!(said.code(), error().code());
    }

    #[test]
    fn criu_is_looked_for_on_the_path() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_criu(Some(dir.path().into())) && !has_criu(None));
        std::fs::write(dir.path().join("criu"), "").unwrap();
        assert!(has_criu(Some(dir.path().into())));
    }
}
