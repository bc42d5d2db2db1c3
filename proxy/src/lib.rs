//! What kube-proxy does, in nftables: packets to a Service's addresses go to its endpoints.
//!
//! [`watch`] feeds [`model`]; [`plan`] decides where packets go; [`mod@nftables`] writes that down; [`sync`] brings the
//! kernel from one plan to the next and ends [`stale`] flows; [`run`] is the daemon around it.

pub mod backend;
mod config;
mod health_check;
pub mod iptables;
mod metrics;
pub mod model;
pub mod nftables;
pub mod plan;
mod run;
mod server;
mod stale;
pub mod sync;
mod watch;

pub use config::Options;
pub use run::run;
