//! Containers of a pod.

pub mod spec;
