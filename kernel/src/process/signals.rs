//! Signals taken one by one where the program wants them, instead of by handlers.

use std::io;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// Signals that are blocked and waited for. While they are blocked none is lost, for PID 1 too, which would not
/// get an unblocked and unhandled one at all. Source: sigwaitinfo(2), pid_namespaces(7).
#[derive(Debug)]
pub struct Signals(SigSet);

impl Signals {
    /// Blocks them for the calling thread and all that it starts from now on. Programs that it starts with
    /// `std::process::Command` have them unblocked.
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

impl Drop for Signals {
    fn drop(&mut self) {
        // Cannot fail for the set that was blocked.
        let _ = pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&self.0), None);
    }
}
