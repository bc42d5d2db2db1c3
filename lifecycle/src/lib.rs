//! What every daemon shares around its work: logging, the signal to stop, supervised tasks, identity.

pub mod client;
pub mod file;
pub mod http;
pub mod kubeconfig;
pub mod logging;
pub mod pki;
pub mod stop;
pub mod tls;
pub mod watch;

pub use stop::Stop;

/// Makes aws-lc-rs the process's TLS provider. Every `main` and every test that speaks TLS calls it first;
/// a second call changes nothing.
pub fn install_crypto() {
    // An error only says that a provider is there already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
