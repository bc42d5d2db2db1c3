//! What a container's lifecycle hooks do.

use crate::probe::exec::{self, CommandError, Commands, Outcome, Target};
use crate::runtime::Runtime;
use k8s_openapi::api::core::v1::{LifecycleHandler, Probe};
use std::time::Duration;

/// An HTTP hook may take as long as its container may take to end; this bounds one without an end.
const HTTP_TIMEOUT: i32 = 600;

/// Why a hook failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    #[error("command exited with {code}: {output}")]
    Exit { code: i32, output: String },
    #[error("{0}")]
    Failed(String),
}

/// Runs the hook to its end.
///
/// # Errors
/// Where it did not succeed.
pub async fn run(runtime: &Runtime, handler: &LifecycleHandler, target: Target<'_>) -> Result<(), HookError> {
    if let Some(action) = &handler.exec {
        let command = action.command.clone().unwrap_or_default();
        return match Commands::run(runtime, target.container_id, command, Duration::ZERO).await {
            Ok(done) if done.exit_code == 0 => Ok(()),
            Ok(done) => {
                let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
                Err(HookError::Exit { code: done.exit_code, output })
            }
            Err(CommandError::TimedOut) => Err(HookError::Failed("timed out".into())),
            Err(CommandError::Failed(reason)) => Err(HookError::Failed(reason)),
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    // An HTTP hook asks as an HTTP probe does.
    let probe = Probe {
        http_get: handler.http_get.clone(),
        tcp_socket: handler.tcp_socket.clone(),
        timeout_seconds: Some(HTTP_TIMEOUT),
        ..Probe::default()
    };
    match exec::run(&probe, target, runtime).await {
        Outcome::Success | Outcome::Warning(_) => Ok(()),
        Outcome::Failure(reason) | Outcome::Unknown(reason) => Err(HookError::Failed(reason)),
    }
}
