//! A CRI v1 server over containerd's native API.
//!
//! A call comes in at [`server`], becomes a decision in [`sandbox`], [`container`] or [`image`], and ends in calls to
//! [`containerd`], the network ([`cni`]) and the kernel. All durable state is containerd's: a pod sandbox and a container
//! are each a containerd container whose labels are the pod's and whose extension is our record.
//!
//! | room | what |
//! |---|---|
//! | [`containerd`] | typed calls to containerd, one file a service |
//! | [`sandbox`] | a pod's pinned namespaces, its files, its record, its life |
//! | [`container`] | the OCI spec (`spec/`), the record, create, start, stop, remove, ExecSync |
//! | [`image`] | references, hosts.toml, registries, pull, unpack, list, remove |
//! | [`cni`] | the network configuration and the plugins' exec contract |
//! | [`log`] | containers' output to CRI log files, and to those who attach |
//! | [`keeper`] | the process that holds output while we are away |
//! | [`stream`] | the server of exec, attach and port-forward |
//! | [`trace`] | the steps of a pod's start, and which were slow |
//! | [`stats`] | CPU, memory, disk and network by sandbox and container |

pub mod cni;
pub mod container;
pub mod containerd;
pub mod error;
pub mod events;
pub mod flight;
pub mod folders;
pub mod handler;
pub mod image;
pub mod index;
pub mod keeper;
pub mod log;
pub mod options;
pub mod record;
mod remnant;
pub mod restore;
pub mod run;
pub mod sandbox;
pub mod seccomp;
pub mod server;
pub mod shim;
pub mod stats;
pub mod stream;
pub mod trace;

pub use options::Options;
pub use run::{Carried, run};
