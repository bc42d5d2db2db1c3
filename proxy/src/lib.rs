//! What kube-proxy does: packets to a Service's addresses go to its endpoints.
//!
//! [`watch`] feeds [`model`]; [`plan`] decides where packets go; a [`backend`] writes that down, in [`mod@nftables`],
//! [`mod@iptables`] or [`ipvs`]; [`sync`] brings the kernel from one plan to the next and ends [`stale`] flows; [`run`] is
//! the daemon around it, with [`health_check`] for load balancers.

pub mod backend;
mod claims;
mod config;
#[cfg(test)]
mod examples;
mod health_check;
pub mod iptables;
pub mod ipvs;
mod metrics;
mod missing;
pub mod model;
pub mod nftables;
mod parameters;
pub mod plan;
mod run;
mod server;
mod stale;
pub mod sync;
mod watch;

pub use config::{Config, Options};
pub use run::run;
