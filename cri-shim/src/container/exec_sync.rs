//! ExecSync: a command to its end, or to the end of the caller's patience; nothing of it stays.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::types::v1::Status;
use cri::v1::{ExecSyncRequest, ExecSyncResponse};
use kernel::process::Identity;
use tokio_util::sync::CancellationToken;

use super::exec::{Command, Wanted, target};
use crate::error::{Error, Result};
use crate::log::{CAPTURE_LIMIT, Capture};
use crate::shim::{Shim, blocking};

/// Bytes of output in an answer: the kubelet takes 16 MiB in a message, which has a little more in it.
pub const RESPONSE: usize = (16 << 20) - 64;
/// How long output may come after the command's end, from children that it left behind.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a command and its children may take to end after SIGKILL.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// Runs the command. It goes on in a task of its own, so that it is ended and cleaned up also where the caller leaves.
///
/// # Errors
/// `TimedOut`, `NotFound`, `State` for a container that does not run, and what the runtime said.
pub async fn exec_sync(shim: &Arc<Shim>, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
    let left = CancellationToken::new();
    // Dropped with this future: when the caller has left.
    let _guard = left.clone().drop_guard();
    let shim = shim.clone();
    let work = tokio::spawn(async move { run(&shim, request, left).await });
    work.await.unwrap_or_else(|error| Err(Error::part("cannot run the command")(error)))
}

async fn run(shim: &Arc<Shim>, request: ExecSyncRequest, left: CancellationToken) -> Result<ExecSyncResponse> {
    let (container, _) = target(shim, &request.container_id)?;
    let patience = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let wanted = Wanted { words: request.cmd, stdin: false, tty: false, awaited: true };
    let command = Command::prepare(shim, &container.record().id, &wanted).await?;
    let done = execute(&command, &wanted, patience, left).await;
    command.discard().await;
    done
}

async fn execute(
    command: &Command,
    wanted: &Wanted,
    patience: Option<Duration>,
    left: CancellationToken,
) -> Result<ExecSyncResponse> {
    let capture =
        Capture::open(&command.paths, CAPTURE_LIMIT).map_err(Error::part("cannot read a command's output"))?;
    command.create(wanted).await?;
    let pid = command.start().await?;
    let identity = Identity::of(pid).ok();
    let impatient = async {
        match patience {
            Some(patience) => tokio::time::sleep(patience).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        code = command.wait() => {
            let exit_code = match code {
                Ok(code) => code,
                Err(error) => {
                    // Nobody will hear of its end: containerd is away, or the container's shim. Its number may be
                    // another's by now.
                    if identity.is_some_and(|identity| identity.is_alive()) {
                        end(command, pid).await;
                    }
                    return Err(error);
                }
            };
            let captured = capture.finish(DRAIN).await;
            let [mut stdout, mut stderr] = captured.map(|captured| captured.bytes);
            let (out, err) = share(stdout.len(), stderr.len());
            stdout.truncate(out);
            stderr.truncate(err);
            Ok(ExecSyncResponse { stdout, stderr, exit_code })
        }
        () = impatient => {
            end(command, pid).await;
            let after = patience.unwrap_or_default();
            Err(Error::TimedOut(format!("command {:?} timed out: it did not end in {after:?}", wanted.words)))
        }
        () = left.cancelled() => {
            end(command, pid).await;
            Err(Error::TimedOut(format!("command {:?} was ended: its caller has left", wanted.words)))
        }
    }
}

/// Ends what an earlier run of ours left of commands in a container that runs, and removes what has ended. A command of a
/// client that streamed goes on.
pub async fn end_left_behind(shim: &Shim, container: &str, commands: Vec<Command>) {
    for command in commands {
        match shim.containerd.process(command.process()).await {
            Ok(Some(process)) if process.status() == Status::Running && command.is_awaited() => {
                tracing::info!(container, "ending a command whose caller is gone");
                end(&command, process.pid).await;
            }
            Ok(Some(process)) if process.status() == Status::Running => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(container, "a command of an earlier run stays: {error}");
                continue;
            }
        }
        command.discard().await;
    }
}

/// How much of each output fits into an answer: where both are long, half of it each; else the long one has the rest.
fn share(stdout: usize, stderr: usize) -> (usize, usize) {
    let half = RESPONSE / 2;
    match (stdout <= half, stderr <= half) {
        (true, _) => (stdout, stderr.min(RESPONSE - stdout)),
        (false, true) => (stdout.min(RESPONSE - stderr), stderr),
        (false, false) => (half, half),
    }
}

/// The command with all that it started. Its own end is seen by the shim, which buries it; until then its number is its
/// own.
async fn end(command: &Command, pid: u32) {
    let killed = blocking("end a command", move || {
        kernel::process::kill_tree(pid, AFTER_KILL).map_err(Error::part("cannot end a command's processes"))
    });
    match killed.await {
        Ok(0) => {}
        Ok(left) => tracing::warn!("{left} processes of a command do not end after SIGKILL"),
        // The shim may reach what we may not.
        Err(error) => {
            tracing::warn!("{error}");
            command.kill().await;
        }
    }
    // What is deleted before its end is known stays.
    if tokio::time::timeout(AFTER_KILL, command.wait()).await.is_err() {
        tracing::warn!("the end of a command that was killed is not known");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_fits_into_a_message_whatever_was_printed() {
        let much = 20 << 20;
        assert_eq!(share(5, 7), (5, 7));
        assert_eq!(share(much, 0), (RESPONSE, 0));
        assert_eq!(share(10, much), (10, RESPONSE - 10));
        assert_eq!(share(much, 10), (RESPONSE - 10, 10));
        assert_eq!(share(much, much), (RESPONSE / 2, RESPONSE / 2));
    }
}
