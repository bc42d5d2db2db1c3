//! The net daemon: what Calico's Felix and BIRD, or flannel, do on a node.
//!
//! [`routes`] leads packets to the pods of other nodes, with [`speaker`] where routes come by BGP; [`policy`] keeps
//! NetworkPolicies in nftables; [`trace`] says what becomes of a packet; [`control`] is the socket at which plugins and
//! the command ask; [`run`] is the daemon around them.

mod config;
pub mod control;
mod options;
pub mod policy;
pub mod routes;
mod run;
pub mod speaker;
pub mod trace;

pub use config::Config;
pub use options::Options;
pub use run::{Ground, run};
