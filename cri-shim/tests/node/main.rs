//! The shim's whole way, on a containerd and a kernel of its own: what the kubelet would ask, and what is left after it.

#![allow(clippy::unwrap_used)] // clippy takes helpers of an integration test for other code

mod archive;
mod bed;
mod checkpoint;
mod disk;
mod pods;
mod registry;
mod restarts;
mod streams;
