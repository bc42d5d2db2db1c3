//! A pod sandbox.

pub mod namespaces;
