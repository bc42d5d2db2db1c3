//! Signals taken one by one where the program wants them, instead of by handlers.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// Signals that are blocked and waited for. While they are blocked none is lost, for PID 1 too, which would not
/// get an unblocked and unhandled one at all. Source: sigwaitinfo(2), pid_namespaces(7).
#[derive(Debug)]
pub struct Signals(SigSet);

impl Signals {
    /// Blocks them for the calling thread and all that it starts from now on; programs too, but for those that
    /// [`unblocked`] prepares.
    ///
    /// # Errors
    /// Never for signals that may be blocked.
    pub fn block(signals: &[Signal]) -> io::Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
        Ok(Self(set))
    }

    /// The next of them, or nothing after `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<Signal> {
        let time = libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: both pointers lead to live values; no siginfo is asked for.
        let number = unsafe { libc::sigtimedwait(self.0.as_ref(), std::ptr::null_mut(), &raw const time) };
        Signal::try_from(number).ok()
    }
}

/// Lets `command` start with no signal blocked: a program that nobody can ask to end is of no use.
pub fn unblocked(command: &mut Command) {
    // SAFETY: pthread_sigmask may be called between fork and exec (signal-safety(7)).
    unsafe {
        command.pre_exec(|| Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?));
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Cannot fail for the set that was blocked.
        let _ = pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&self.0), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_can_be_asked_to_end_though_we_block_the_signal() {
        let signals = Signals::block(&[Signal::SIGTERM]).unwrap();
        let mut command = Command::new("sleep");
        unblocked(command.arg("60"));
        let mut child = command.spawn().unwrap();
        super::super::kill(child.id(), Signal::SIGTERM).unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(signals.next(Duration::ZERO), None);
    }
}
