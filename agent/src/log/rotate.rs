//! Keeps each log within its bounds: a log that is too large is renamed and the runtime told to open a new one; older ones
//! are compressed, the oldest removed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri::v1::{ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest, ReopenContainerLogRequest};
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::jiff::Timestamp;
use lifecycle::Stop;

use super::files::rotated;
use super::pods_with_logs;
use crate::runtime::Runtime;

/// The bounds of a container's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// containerLogMaxSize, bytes.
    pub max_size: u64,
    /// containerLogMaxFiles, at least 2.
    pub max_files: u32,
    /// containerLogMonitorInterval.
    pub interval: Duration,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5, interval: Duration::from_secs(10) }
    }
}

/// Which container wrote a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Writer {
    uid: String,
    container: String,
    attempt: u32,
}

/// Rotates the logs below `root` until `stop`.
pub async fn run_rotation(root: PathBuf, rotation: Rotation, runtime: Runtime, stop: Stop) {
    let mut tick = tokio::time::interval(rotation.interval.max(Duration::from_secs(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! { () = stop.stopped() => return, _ = tick.tick() => {} }
        let dir = root.clone();
        let large = tokio::task::spawn_blocking(move || large_logs(&dir, rotation.max_size)).await.unwrap_or_default();
        if large.is_empty() {
            continue;
        }
        let running = match running(&runtime).await {
            Ok(running) => running,
            Err(error) => {
                tracing::warn!("rotate logs: list containers: {error}");
                continue;
            }
        };
        for (writer, log) in large {
            let Some(id) = running.get(&writer) else { continue };
            if let Err(error) = rotate(&runtime, id, &log, rotation.max_files).await {
                tracing::warn!("rotate {}: {error}", log.display());
            }
        }
    }
}

fn large_logs(root: &Path, max_size: u64) -> Vec<(Writer, PathBuf)> {
    let mut found = Vec::new();
    for (uid, pod) in pods_with_logs(root) {
        for container in fs::read_dir(pod).into_iter().flatten().flatten() {
            for log in fs::read_dir(container.path()).into_iter().flatten().flatten() {
                let name = log.file_name();
                let attempt = name.to_str().and_then(|n| n.strip_suffix(".log")?.parse().ok());
                let large = log.metadata().is_ok_and(|m| m.is_file() && m.len() >= max_size);
                if let Some(attempt) = attempt.filter(|_| large) {
                    let container = container.file_name().to_string_lossy().into_owned();
                    found.push((Writer { uid: uid.clone(), container, attempt }, log.path()));
                }
            }
        }
    }
    found
}

async fn running(runtime: &Runtime) -> crate::runtime::Result<HashMap<Writer, String>> {
    let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning.into() });
    let filter = Some(ContainerFilter { state, ..ContainerFilter::default() });
    let listed = runtime.list_containers(ListContainersRequest { filter }).await?;
    let writer = |c: cri::v1::Container| {
        let uid = c.labels.get("io.kubernetes.pod.uid")?.clone();
        let container = c.labels.get("io.kubernetes.container.name")?.clone();
        Some((Writer { uid, container, attempt: c.metadata?.attempt }, c.id))
    };
    Ok(listed.containers.into_iter().filter_map(writer).collect())
}

#[derive(Debug, thiserror::Error)]
enum RotateError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the work was given up: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the runtime does not open a new log: {0}")]
    Reopen(#[from] crate::runtime::RuntimeError),
}

async fn rotate(runtime: &Runtime, id: &str, log: &Path, max_files: u32) -> Result<(), RotateError> {
    let (path, now) = (log.to_owned(), Timestamp::now());
    let renamed = tokio::task::spawn_blocking(move || make_room_and_rename(&path, max_files, now)).await??;
    let request = ReopenContainerLogRequest { container_id: id.into() };
    if let Err(error) = runtime.reopen_container_log(request).await {
        // The container writes on into the file that it has: give it its name back.
        if !log.exists() {
            fs::rename(&renamed, log)?;
        }
        return Err(error.into());
    }
    Ok(())
}

/// What happens to the rotated files of a log before one more joins them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tidy {
    Remove(PathBuf),
    Compress(PathBuf),
}

/// With the file in use and the one that is rotated now, at most `max_files` stay. `rotated` is oldest first.
pub(super) fn tidy(rotated: &[PathBuf], max_files: u32) -> Vec<Tidy> {
    let keep = usize::try_from(max_files).unwrap_or(usize::MAX).saturating_sub(2);
    let surplus = rotated.len().saturating_sub(keep);
    let removed = rotated[..surplus].iter().cloned().map(Tidy::Remove);
    let kept = rotated[surplus..].iter().filter(|path| path.extension().is_none_or(|e| e != "gz"));
    removed.chain(kept.cloned().map(Tidy::Compress)).collect()
}

pub(super) fn make_room_and_rename(log: &Path, max_files: u32, now: Timestamp) -> io::Result<PathBuf> {
    for action in tidy(&rotated(log)?, max_files) {
        match action {
            Tidy::Remove(path) => fs::remove_file(path)?,
            Tidy::Compress(path) => compress(&path)?,
        }
    }
    let renamed = with_suffix(log, &format!(".{}", now.strftime("%Y%m%d-%H%M%S")));
    fs::rename(log, &renamed)?;
    Ok(renamed)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn compress(path: &Path) -> io::Result<()> {
    let (temporary, finished) = (with_suffix(path, ".tmp"), with_suffix(path, ".gz"));
    let mut encoder = GzEncoder::new(File::create(&temporary)?, Compression::default());
    let copied = io::copy(&mut File::open(path)?, &mut encoder).and_then(|_| encoder.finish()?.sync_all());
    if let Err(error) = copied {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    fs::rename(&temporary, &finished)?;
    fs::remove_file(path)
}
