//! Containers' output, from the named pipes that a task writes to, into CRI log files and to those who attach.
//!
//! containerd's shim holds both ends of each output's pipe open as long as the container runs, and the keeper
//! ([`crate::keeper`]) holds it until the log has everything. While nobody reads, a pipe fills and the container waits; so
//! our death costs the container time and no output. A line is taken off the pipe only once the log has it ([`step`]):
//! killed at any instruction, a successor goes on with the first line that is not in the log, and writes at most one
//! step's lines (256 KiB) again. What this cannot hold: output that still waits in the pipe (256 KiB a stream) when the
//! container ends while neither of us nor the keeper runs; the kernel frees it then.
//!
//! | file | what |
//! |---|---|
//! | [`record`] | bytes to records, pure |
//! | [`file`] | the log file: append, mend, reopen |
//! | [`step`] | look, write, take |
//! | [`follow`] | the task of an output: readiness, unfinished lines, a full disk |
//! | [`audience`], [`attach`] | those who are attached |
//! | [`command`] | ExecSync's capture, and exec's pipes |

mod attach;
mod audience;
mod command;
mod file;
mod follow;
mod record;
mod step;
#[cfg(test)]
mod tests;
mod workshop;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kernel::fifo;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::task::TaskTracker;

pub use attach::{AttachStreams, Input, InputEnd, Output};
pub use command::{CAPTURE_LIMIT, Capture, Captured, CommandIo};
pub use file::LogError;
pub use record::{Carried, Stream, Tail, Timestamp, carried, encode};

use attach::{Stdin, play};
use file::LogFile;
use follow::{Follower, Shared};

/// What an output's pipe holds before the container waits, bytes.
const CAPACITY: usize = 256 * 1024;

/// Why a container's input or output cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    #[error(transparent)]
    Fifo(#[from] fifo::Error),
    #[error("cannot open the named pipe {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot make folder {} for a container's named pipes: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot watch the named pipe {}: {source}", path.display())]
    Watch { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Where the named pipes of a task are; those it has not are missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoPaths {
    pub stdin: Option<PathBuf>,
    pub stdout: Option<PathBuf>,
    pub stderr: Option<PathBuf>,
}

impl IoPaths {
    /// The paths in `folder` for a task: always an output, an input if asked for, and errors apart unless there is a
    /// terminal, which has one output. `prefix` tells the commands of a container apart; it is empty for its own process.
    pub fn of(folder: &Path, prefix: &str, stdin: bool, tty: bool) -> Self {
        let path = |name: &str| match prefix {
            "" => folder.join(name),
            prefix => folder.join(format!("{prefix}-{name}")),
        };
        Self {
            stdin: stdin.then(|| path("stdin")),
            stdout: Some(path("stdout")),
            stderr: (!tty).then(|| path("stderr")),
        }
    }

    /// Makes the pipes, and the folder. What is there already is success.
    ///
    /// # Errors
    /// Where the folder cannot be made, or something else has a pipe's name.
    pub fn make(&self) -> Result<(), IoError> {
        for path in self.paths() {
            if let Some(folder) = path.parent() {
                let failed = |source| IoError::Folder { path: folder.to_owned(), source };
                std::fs::create_dir_all(folder).map_err(failed)?;
            }
            fifo::make(path, 0o600)?;
        }
        Ok(())
    }

    /// Removes the pipes; whoever has one open keeps it. What is gone already is success.
    ///
    /// # Errors
    /// Of the last one that could not be removed.
    pub fn remove(&self) -> io::Result<()> {
        let gone = |path: &Path| match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        self.paths().filter_map(|path| gone(path).err()).last().map_or(Ok(()), Err)
    }

    /// A path as containerd's requests have it: empty for a stream that is not there.
    pub fn text(path: &Option<PathBuf>) -> String {
        path.as_deref().map(|path| path.display().to_string()).unwrap_or_default()
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().filter_map(|path| path.as_deref())
    }
}

/// A container's input and output. Cloning shares it; with the last clone the following ends, and the pipes are as before.
#[derive(Clone)]
pub struct ContainerIo(Arc<Inner>);

struct Inner {
    stdin: Stdin,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    tty: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl ContainerIo {
    /// Opens a container's pipes and begins to follow its outputs, into a log if it has one. Before the task is created, or
    /// again after a restart of ours. Within a tokio runtime.
    ///
    /// # Errors
    /// Where a path is no named pipe, or the log cannot be opened.
    pub fn open(paths: &IoPaths, log: Option<&Path>, tty: bool) -> Result<Self, IoError> {
        let log = log.map(LogFile::open).transpose()?;
        let shared = Arc::new(Shared { log: Arc::new(log.into()), ..Shared::default() });
        let stdin = paths.stdin.as_deref().map(Stdin::open).transpose()?.unwrap_or_default();
        let open = |path: &Option<PathBuf>| path.as_deref().map(output).transpose();
        let outputs = [open(&paths.stdout)?, open(&paths.stderr)?];
        let tasks = TaskTracker::new();
        for (stream, output) in Stream::ALL.into_iter().zip(outputs) {
            match output {
                Some(pipe) => drop(tasks.spawn(Follower::new(pipe, stream, shared.clone()).run())),
                None => shared.audience(stream).dismiss(),
            }
        }
        tasks.close();
        Ok(Self(Arc::new(Inner { stdin, shared, tasks, tty })))
    }

    /// Goes on in a new log file, after a rotation moved the old one away. No line is lost or torn between them. Nothing
    /// to do for a container without a log.
    ///
    /// # Errors
    /// Where the new file cannot be opened; the old one stays in use then.
    pub async fn reopen_log(&self) -> Result<(), LogError> {
        let mut log = self.0.shared.log.clone().lock_owned().await;
        let Some(file) = log.as_ref() else { return Ok(()) };
        let path = file.path().to_owned();
        let reopened = tokio::task::spawn_blocking(move || log.as_mut().map_or(Ok(()), LogFile::reopen));
        let failed = |error| LogError { verb: "reopen", path, source: io::Error::other(error) };
        reopened.await.map_err(failed)??;
        self.0.shared.reopened.notify_waiters();
        Ok(())
    }

    /// Once the container has ended: waits until the log has all that it wrote, and says whether that came about within
    /// `patience`. It does not where a process outlives the container and holds its output open, or where the disk is
    /// full; the following goes on then.
    pub async fn drained(&self, patience: Duration) -> bool {
        self.0.shared.ended.cancel();
        tokio::time::timeout(patience, self.0.tasks.wait()).await.is_ok()
    }

    /// Ends the following after the step that is under way. What the log does not have yet is given up. For a container
    /// that is removed. It takes as long as a write to the log does: on a disk that hangs, for ever.
    pub async fn close(&self) {
        self.0.shared.stop.cancel();
        self.0.stdin.close();
        self.0.tasks.wait().await;
    }

    /// Puts a client at the container's streams, until the container ends, the client leaves, or its input ends where that
    /// means leaving.
    pub async fn attach(&self, streams: AttachStreams, end: InputEnd) {
        let AttachStreams { stdin, stdout, stderr, gone } = streams;
        // A terminal's output is one stream.
        let stderr = stderr.filter(|_| !self.0.tty);
        let alone = stdout.is_none() && stderr.is_none();
        let played = |stream, to: Option<Output>| {
            let seat = to.is_some().then(|| self.0.shared.audience(stream).attach());
            async move {
                match (seat, to) {
                    (Some(seat), Some(to)) => play(seat, to).await,
                    _ => Ok(()),
                }
            }
        };
        let outputs = futures::future::try_join(played(Stream::Stdout, stdout), played(Stream::Stderr, stderr));
        let ended = async {
            let gone = outputs.await.is_err();
            if alone && !gone {
                self.0.tasks.wait().await;
            }
        };
        let input = async {
            let Some(from) = stdin else { return gone.cancelled().await };
            tokio::select! { () = self.0.stdin.fill(from) => {}, () = gone.cancelled() => {} }
            if let InputEnd::Close(tell) = end {
                self.0.stdin.close();
                tell.await;
                gone.cancelled().await;
            }
        };
        tokio::select! { () = ended => {}, () = input => {} }
    }
}

fn output(path: &Path) -> Result<AsyncFd<File>, IoError> {
    let file = fifo::open_reader(path)?;
    // With less the container waits more often, and no more is lost.
    let _ = fifo::set_capacity(&file, CAPACITY);
    // SAFETY: the file owns its descriptor, which stays open and the same as long as the AsyncFd has the file.
    let watched = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) };
    watched.map_err(|error| IoError::Watch { path: path.to_owned(), source: error.into() })
}
