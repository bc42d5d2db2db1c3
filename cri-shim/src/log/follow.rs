//! A task for each output of a container: waits for bytes, and moves them step by step.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::audience::Audience;
use super::file::LogFile;
use super::record::{Stream, Tail};
use super::step::{self, After, Cursor, Done};
use super::workshop;

/// A line that is not finished for so long is written in part, so that a prompt is seen.
const UNFINISHED: Duration = Duration::from_secs(1);
/// How often a log that takes no more is tried again. A rotation is tried at once.
const RETRY: Duration = Duration::from_secs(1);

/// What the streams of a container share.
#[derive(Default)]
pub struct Shared {
    pub log: Arc<Mutex<Option<LogFile>>>,
    /// The log was opened anew.
    pub reopened: Notify,
    /// The container has ended: a pipe without a writer stays so.
    pub ended: CancellationToken,
    pub stop: CancellationToken,
    pub audiences: [Audience; 2],
}

impl Shared {
    pub fn audience(&self, stream: Stream) -> &Audience {
        &self.audiences[stream as usize]
    }
}

/// One stream and how far it is.
pub struct Follower {
    pipe: Arc<AsyncFd<File>>,
    stream: Stream,
    shared: Arc<Shared>,
    shown: usize,
    /// When the line that is not finished is written nevertheless.
    due: Option<Instant>,
    /// The log took no more at the last step.
    full: bool,
}

/// What ended the waiting.
enum Wake<'a> {
    Ready(AsyncFdReadyGuard<'a, File>),
    Due,
    Ended,
}

impl Follower {
    pub fn new(pipe: AsyncFd<File>, stream: Stream, shared: Arc<Shared>) -> Self {
        Self { pipe: Arc::new(pipe), stream, shared, shown: 0, due: None, full: false }
    }

    /// Follows until the last writer is gone and the log has everything, or until it is stopped.
    pub async fn run(mut self) {
        if let Err(error) = self.follow().await {
            tracing::error!(stream = self.stream.name(), "cannot wait for a container's output: {error}");
        }
        self.shared.audience(self.stream).dismiss();
    }

    async fn follow(&mut self) -> io::Result<()> {
        let pipe = self.pipe.clone();
        let mut ended = false;
        loop {
            let wake = tokio::select! {
                ready = pipe.readable() => Wake::Ready(ready?),
                () = sleep_until(self.due.unwrap_or_else(Instant::now)), if self.due.is_some() => Wake::Due,
                () = self.shared.ended.cancelled(), if !ended => Wake::Ended,
                // Never within a step: a successor must not meet one at work.
                () = self.shared.stop.cancelled() => return Ok(()),
            };
            ended |= matches!(wake, Wake::Ended);
            let closed = matches!(&wake, Wake::Ready(guard) if guard.ready().is_read_closed());
            // After the end nothing comes that would finish a line.
            let tail = if closed || ended || matches!(wake, Wake::Due) { Tail::Write } else { Tail::Wait };
            let (after, moved) = match self.step(tail).await {
                Ok(done) => self.show(done).await,
                // No descriptors or threads left: the container waits as for a full disk.
                Err(error) => (After::Full(error), false),
            };
            match after {
                After::Abandoned if closed || ended => return Ok(()),
                After::More => {}
                // A pipe that had no writer when it was opened does not tell that it has none: it is looked at again.
                After::Rest(0) if ended && moved => self.due = Some(Instant::now()),
                After::Full(error) => self.hold(&error).await,
                After::Abandoned => self.rest(wake, 0, moved),
                After::Rest(len) => self.rest(wake, len, moved),
            }
        }
    }

    async fn step(&self, tail: Tail) -> io::Result<Done> {
        let mut lent = workshop::lend().await?;
        let mut log = self.shared.log.clone().lock_owned().await;
        let watched = !self.shared.audience(self.stream).is_empty();
        let cursor = Cursor { stream: self.stream, shown: self.shown, watched };
        let pipe = self.pipe.clone();
        let work = tokio::task::spawn_blocking(move || {
            let done = step::step(pipe.get_ref(), &mut log, cursor, tail, &mut lent.tools)?;
            lent.give_back();
            Ok::<_, io::Error>(done)
        });
        work.await.map_err(io::Error::other)?
    }

    /// Gives those who are attached their part. Returns how the pipe was left, and whether anything was taken from it.
    async fn show(&mut self, done: Done) -> (After, bool) {
        self.shown = done.shown;
        if let Some(fresh) = done.fresh {
            self.shared.stop.run_until_cancelled(self.shared.audience(self.stream).show(fresh)).await;
        }
        if self.full && !matches!(done.after, After::Full(_)) {
            self.full = false;
            tracing::info!(stream = self.stream.name(), "a container's log is written again");
        }
        (done.after, done.moved > 0)
    }

    /// Nothing is to be done before more comes, or before the unfinished line is due.
    fn rest(&mut self, wake: Wake<'_>, len: usize, moved: bool) {
        // Only this readiness is over; what came since then is not.
        if let Wake::Ready(mut guard) = wake {
            guard.clear_ready();
        }
        self.due = match len {
            0 => None,
            // It is another line's beginning.
            _ if moved => Some(Instant::now() + UNFINISHED),
            _ => Some(self.due.unwrap_or_else(|| Instant::now() + UNFINISHED)),
        };
    }

    /// The container waits for its log: nothing is read until it can be written.
    async fn hold(&mut self, error: &io::Error) {
        if !self.full {
            self.full = true;
            let path = self.path().await;
            tracing::warn!(
                stream = self.stream.name(),
                path,
                "cannot write a container's log, the container waits until it can: {error}; free space on its disk"
            );
        }
        // Tried again either way.
        let _ = timeout(RETRY, self.shared.stop.run_until_cancelled(self.shared.reopened.notified())).await;
    }

    async fn path(&self) -> String {
        self.shared.log.lock().await.as_ref().map(|log| log.path().display().to_string()).unwrap_or_default()
    }
}
