//! The pipes of a command that runs in a container: kept for ExecSync, or at the streams of a client.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::task::TaskTracker;

use super::attach::{AttachStreams, InputEnd, Stdin, pour};
use super::{IoError, IoPaths};

/// How much of each output ExecSync keeps, bytes. Source: cri-api, ExecSyncResponse.
pub const CAPTURE_LIMIT: usize = 16 * 1024 * 1024;

/// The outputs of a command, read while it runs.
pub struct Capture {
    kept: [Kept; 2],
    tasks: TaskTracker,
    stop: tokio_util::sync::DropGuard,
}

type Kept = Arc<Mutex<Captured>>;

/// What was kept of an output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    pub bytes: Vec<u8>,
    /// There was more than the limit.
    pub cut: bool,
}

impl Capture {
    /// Begins to read; call it before the command starts. What exceeds `limit` is read and dropped.
    ///
    /// # Errors
    /// Where a path is no named pipe.
    pub fn open(paths: &IoPaths, limit: usize) -> Result<Self, IoError> {
        let (kept, tasks) = (<[Kept; 2]>::default(), TaskTracker::new());
        let stop = tokio_util::sync::CancellationToken::new();
        let open = |path: &Option<_>| path.as_deref().map(receiver).transpose();
        let pipes = [open(&paths.stdout)?, open(&paths.stderr)?];
        for (pipe, kept) in pipes.into_iter().zip(&kept) {
            let Some(pipe) = pipe else { continue };
            let (kept, stop) = (kept.clone(), stop.clone());
            tasks.spawn(async move { stop.run_until_cancelled(keep(pipe, &kept, limit)).await });
        }
        tasks.close();
        Ok(Self { kept, tasks, stop: stop.drop_guard() })
    }

    /// Standard output and standard error after the command has ended: all of it, or what there is after `patience`,
    /// where a child that it left behind holds them open.
    pub async fn finish(self, patience: Duration) -> [Captured; 2] {
        // Both end the same way.
        let _ = tokio::time::timeout(patience, self.tasks.wait()).await;
        drop(self.stop);
        self.kept.map(|kept| std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

async fn keep(mut pipe: pipe::Receiver, kept: &Mutex<Captured>, limit: usize) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = pipe.read(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = read.min(limit.saturating_sub(kept.bytes.len()));
        kept.bytes.extend_from_slice(&chunk[..room]);
        kept.cut |= room < read;
    }
}

/// The pipes of a command for a client.
pub struct CommandIo {
    stdin: Option<PathBuf>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl CommandIo {
    /// Opens the outputs; call it before the command starts.
    ///
    /// # Errors
    /// Where a path is no named pipe.
    pub fn open(paths: &IoPaths) -> Result<Self, IoError> {
        Ok(Self {
            stdin: paths.stdin.clone(),
            stdout: paths.stdout.as_deref().map(receiver).transpose()?,
            stderr: paths.stderr.as_deref().map(receiver).transpose()?,
        })
    }

    /// Copies until the outputs have ended, which is soon after the command has, unless a child that it left behind holds
    /// them open; without outputs, until the input has ended. A client that is gone ends the input and holds nothing up.
    pub async fn relay(self, streams: AttachStreams, end: InputEnd) {
        let Self { stdin, stdout, stderr } = self;
        let copied = |pipe: Option<pipe::Receiver>, to| async move {
            if let Some(pipe) = pipe {
                pour(pipe, to).await;
            }
        };
        let only_input = stdout.is_none() && stderr.is_none();
        let outputs = join(copied(stdout, streams.stdout), copied(stderr, streams.stderr));
        let input = async move {
            if let (Some(stdin), Some(from)) = (&stdin, streams.stdin) {
                match Stdin::open_to_reader(stdin).await {
                    Ok(stdin) => stdin.fill(from).await,
                    Err(error) => tracing::warn!("a command in a container gets no input: {error}"),
                }
                if let InputEnd::Close(tell) = end {
                    tell.await;
                }
            }
            if !only_input {
                std::future::pending().await
            }
        };
        let outputs = async move {
            outputs.await;
            if only_input {
                std::future::pending().await
            }
        };
        tokio::select! { () = input => {}, () = outputs => {} }
    }
}

fn receiver(path: &Path) -> Result<pipe::Receiver, IoError> {
    pipe::OpenOptions::new().open_receiver(path).map_err(|source| IoError::Open { path: path.to_owned(), source })
}
