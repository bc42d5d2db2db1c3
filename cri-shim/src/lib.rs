//! The place of the CRI server over containerd's native API, with pause-container sandboxes.
//!
//! Nothing stands here yet: the agent drives containerd's own CRI plugin through `--container-runtime-endpoint`.
