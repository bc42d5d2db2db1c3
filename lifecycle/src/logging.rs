//! Logs go to standard error, one line an event; `RUST_LOG` or the daemon's `-v` says how much.

use tracing_subscriber::EnvFilter;

/// Starts logging for this process. `default` is a filter such as `info`, used where `RUST_LOG` is unset.
/// A second call changes nothing.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).try_init();
}
