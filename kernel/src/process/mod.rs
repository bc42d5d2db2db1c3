//! Processes: who they are across restarts of ours, the signals that a supervisor takes, the dead that it buries,
//! and programs started in namespaces of their own.

mod detached;
mod identity;
mod namespaces;
mod signals;
mod tree;

use std::io;
use std::os::unix::process::CommandExt;

use nix::errno::Errno;
use nix::sys::signal::kill as send;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

pub use detached::{Detached, allow_all_open_files};
pub use identity::Identity;
pub use namespaces::{Namespaces, inherit, isolate, listener, set_hostname};
pub use nix::sys::signal::Signal;
pub use signals::{Signals, unblocked};
pub use tree::kill_tree;

/// Lets the C library keep two pools of memory instead of one for each thread: a daemon waits more than it allocates.
pub fn few_pools() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers and may be called at any time from any thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// How the C library is told to keep no freed memory for each thread. Source: the GNU C library's manual, Memory Allocation
/// Tunables.
const NO_THREAD_CACHES: &str = "glibc.malloc.tcache_count=0";
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Runs this program anew, unless that was done, without the C library's caches of freed memory for each thread: they keep
/// the pages of a burst of work from going back. The library takes it only from the environment, before `main`; children do
/// not inherit it.
///
/// # Safety
/// Nobody else reads or writes the environment meanwhile: there is no other thread.
///
/// # Errors
/// Where this program cannot be run again; it may go on as it is.
pub unsafe fn without_thread_caches() -> io::Result<()> {
    let told = std::env::var(TUNABLES).unwrap_or_default();
    match uncached(&told) {
        Tunables::Taken(others) => {
            // SAFETY: the caller's promise.
            unsafe {
                if others.is_empty() { std::env::remove_var(TUNABLES) } else { std::env::set_var(TUNABLES, others) }
            }
            Ok(())
        }
        Tunables::ToTake(all) => {
            let mut again = std::process::Command::new(std::env::current_exe()?);
            Err(again.args(std::env::args_os().skip(1)).env(TUNABLES, all).exec())
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Tunables<'a> {
    /// This program began with it; what the environment had before.
    Taken(&'a str),
    /// What it has to begin with.
    ToTake(String),
}

fn uncached(told: &str) -> Tunables<'_> {
    match told.strip_suffix(NO_THREAD_CACHES) {
        Some(others) => Tunables::Taken(others.trim_end_matches(':')),
        None if told.is_empty() => Tunables::ToTake(NO_THREAD_CACHES.to_owned()),
        None => Tunables::ToTake(format!("{told}:{NO_THREAD_CACHES}")),
    }
}

/// Gives freed memory back to the kernel. The C library keeps what a burst of work used, for the next.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointers and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

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

/// The line of a process. Its name is of any bytes that the process chose. Source: proc(5), stat.
fn stat(process: impl std::fmt::Display) -> io::Result<String> {
    let bytes = std::fs::read(format!("/proc/{process}/stat"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Every reader of this module over the same text, for whoever throws bytes at them.
pub fn read_any(stat: &str) {
    let _ = identity::numbers(stat);
    let _ = tree::parse(stat);
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

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot run {program}: {source}")]
    Start { program: String, source: io::Error },
    #[error("{program} failed with {status}: {said}")]
    Failed { program: String, status: std::process::ExitStatus, said: String },
}

/// Adds the administrator's folders to the PATH that programs are found by: a shell that became root by `su` may lack them.
///
/// # Safety
/// Nothing else may read or write the environment meanwhile: for the first lines of a `main`.
pub unsafe fn find_administrators_programs() {
    let mut folders: Vec<_> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    for folder in ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(std::path::PathBuf::from) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    if let Ok(path) = std::env::join_paths(folders) {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var("PATH", path) };
    }
}

/// Runs a program to its end and returns what it printed. Its input is empty.
///
/// # Errors
/// Where it cannot be started, or fails; then with the last line of its standard error.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, RunError> {
    let mut command = std::process::Command::new(program);
    unblocked(&mut command);
    let output = command.args(arguments).stdin(std::process::Stdio::null()).output();
    let program = program.to_owned();
    let output = output.map_err(|source| RunError::Start { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim_end().lines().last().unwrap_or("it said nothing").to_owned();
    Err(RunError::Failed { program, status: output.status, said })
}

/// Runs a program (`words` has its name first) whose input `write` gives.
///
/// # Errors
/// Where it cannot be started or fails; or what `write` failed with, where the program itself had nothing to say.
pub fn feed(words: &[String], write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<(), RunError> {
    use std::process::{Command, Stdio};
    let program = words.first().cloned().unwrap_or_default();
    let start = |source| RunError::Start { program: program.clone(), source };
    let mut command = Command::new(&program);
    command.args(words.get(1..).unwrap_or_default());
    unblocked(&mut command);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    // A program that refuses its input early breaks the pipe; then what it says counts.
    let wrote = child.stdin.take().map_or(Ok(()), |mut input| write(&mut input));
    let output = child.wait_with_output().map_err(start)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim_end().lines().last().unwrap_or("it said nothing").to_owned();
        let said = wrote.err().filter(|e| e.kind() != io::ErrorKind::BrokenPipe).map_or(said, |e| e.to_string());
        return Err(RunError::Failed { program, status: output.status, said });
    }
    wrote.map_err(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_begins_anew_does_so_once_and_leaves_the_environment_as_it_was() {
        for told in ["", "glibc.malloc.perturb=1"] {
            let Tunables::ToTake(all) = uncached(told) else { panic!("{told}") };
            assert_eq!(uncached(&all), Tunables::Taken(told));
        }
    }
}
