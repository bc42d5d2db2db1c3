//! The agent stands in for the kubelet: it makes the pods that the API binds to this node run, and says how they are.
//!
//! Shape: each pod has one worker ([`pod`]) that compares the API's pod with what the container runtime holds,
//! decides purely, acts through the CRI ([`runtime`]) and patches the pod's status.

pub mod cgroup;
pub mod config;
pub mod container;
pub mod event;
mod hook;
pub mod image;
pub mod log;
pub mod node;
pub mod options;
pub mod pod;
pub mod probe;
mod quantity;
mod run;
pub mod runtime;
pub mod sandbox;
pub mod server;
mod services;
pub mod stats;
pub mod volume;

pub use config::Config;
pub use options::Options;
pub use run::run;
