//! Processes: who they are across restarts of ours, the signals that a supervisor takes, the dead that it buries,
//! and programs started in namespaces of their own.

mod identity;
mod namespaces;
mod signals;

use std::io;

use nix::errno::Errno;
use nix::sys::signal::kill as send;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

pub use identity::Identity;
pub use namespaces::{Namespaces, inherit, isolate, set_hostname};
pub use nix::sys::signal::Signal;
pub use signals::Signals;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

impl Ended {
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => write!(f, "signal {number}"),
        }
    }
}

/// Buries one dead child, any of them: a PID 1 gets those of others too. Nothing where none is dead.
/// Never beside a `Child::wait` of another thread: one of the two would miss its child.
pub fn reap() -> Option<(u32, Ended)> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Some((pid.as_raw().unsigned_abs(), Ended::Code(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Some((pid.as_raw().unsigned_abs(), Ended::Signal(signal as i32)));
            }
            Err(Errno::EINTR) => {}
            _ => return None,
        }
    }
}

/// Sends a signal. A process that is gone is success.
///
/// # Errors
/// Where the process may not be signalled.
pub fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    match send(raw(pid)?, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn raw(pid: u32) -> io::Result<Pid> {
    // 0 and negative numbers are groups to kill(2).
    i32::try_from(pid).ok().filter(|pid| *pid > 0).map(Pid::from_raw).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Whether this process may use a capability now, by its number in capability.h. Source: proc(5), CapEff.
///
/// # Errors
/// Where /proc cannot be read.
pub fn has_capability(number: u32) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(mask >> number & 1 == 1)
}
