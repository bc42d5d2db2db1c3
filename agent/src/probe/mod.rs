//! Probes of containers.

pub mod exec;
