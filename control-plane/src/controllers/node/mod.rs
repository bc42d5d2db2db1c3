//! The controllers of nodes: who is alive, who is tainted, who has to leave, and which addresses a node's pods get.

mod eviction;
mod health;
mod ipam;
mod lifecycle;
mod pool;

pub use eviction::run as run_eviction;
pub use ipam::run as run_ipam;
pub use lifecycle::run as run_lifecycle;
pub use pool::Pool;
