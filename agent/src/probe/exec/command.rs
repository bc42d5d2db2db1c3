//! Probes by a command in the container.

use std::future::Future;
use std::time::Duration;

use super::{Outcome, clip};

/// What a command in a container ended with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandOutput {
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Why a command in a container has no exit code.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    #[error("timed out")]
    TimedOut,
    #[error("{0}")]
    Failed(String),
}

/// Who runs commands in containers: the CRI, or a test.
pub trait Commands: Sync {
    /// Runs the command to its end or until `timeout`.
    ///
    /// # Errors
    /// [`CommandError::TimedOut`], or what the runtime said.
    fn run(
        &self,
        container_id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> impl Future<Output = Result<CommandOutput, CommandError>> + Send;
}

impl Commands for crate::runtime::Runtime {
    async fn run(
        &self,
        container_id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<CommandOutput, CommandError> {
        let timeout = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let request = cri::v1::ExecSyncRequest { container_id: container_id.into(), cmd: command, timeout };
        match self.exec_sync(request).await {
            Ok(done) => Ok(CommandOutput { exit_code: done.exit_code, stdout: done.stdout, stderr: done.stderr }),
            Err(crate::runtime::RuntimeError::Deadline { .. }) => Err(CommandError::TimedOut),
            Err(crate::runtime::RuntimeError::Failed { code: tonic::Code::DeadlineExceeded, .. }) => {
                Err(CommandError::TimedOut)
            }
            Err(other) => Err(CommandError::Failed(other.to_string())),
        }
    }
}

pub(super) async fn probe(
    commands: &impl Commands,
    container_id: &str,
    command: Vec<String>,
    timeout: Duration,
) -> Outcome {
    let line = command.join(" ");
    match commands.run(container_id, command, timeout).await {
        Ok(done) if done.exit_code == 0 => Outcome::Success,
        Ok(done) => {
            let mut output = done.stdout;
            output.extend(done.stderr);
            Outcome::Failure(clip(String::from_utf8_lossy(&output).into_owned()))
        }
        Err(CommandError::TimedOut) => {
            Outcome::Failure(format!("command timed out: {line:?} timed out after {timeout:?}"))
        }
        Err(CommandError::Failed(reason)) => Outcome::Unknown(reason),
    }
}
