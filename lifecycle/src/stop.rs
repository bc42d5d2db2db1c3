//! The one way in which a daemon learns that it should end.

use tokio_util::sync::CancellationToken;

/// A signal to stop, shared by all tasks of a daemon. Cloning shares it; a child stops with its parent.
#[derive(Clone, Debug, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    pub fn new() -> Self {
        Self::default()
    }

    /// A part that can be stopped alone and stops with the whole.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Says stop. Idempotent.
    pub fn stop(&self) {
        self.0.cancel();
    }

    pub fn is_stopped(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns once stop was said.
    pub async fn stopped(&self) {
        self.0.cancelled().await;
    }

    /// Says stop at SIGTERM or SIGINT.
    ///
    /// # Errors
    /// Where the process may not handle signals.
    pub fn at_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let stop = self.clone();
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {}, () = stop.stopped() => {} }
            stop.stop();
        });
        Ok(())
    }
}
