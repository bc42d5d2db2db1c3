//! What containerd's shim for runc and crun is told beyond its common interface.
//! Source: containerd, api/types/runc/options/oci.proto. Fields that are not set here are left out: they are zero.

use prost::Message;
use prost_types::Any;

/// The shim's name among containerd's runtimes.
pub const RUNTIME: &str = "io.containerd.runc.v2";

/// How the shim calls the OCI runtime.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Options {
    /// Who owns the pipes that a container's programs write to. Its root must, or it cannot open /dev/stderr.
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    /// The runtime's program, by name or path; empty for `runc`.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// Where the runtime keeps its state; empty for the shim's choice.
    #[prost(string, tag = "7")]
    pub root: String,
    /// Cgroup paths are `slice:prefix:name` and made by systemd.
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
}

impl Options {
    pub fn to_any(&self) -> Any {
        Any { type_url: "containerd.runc.v1.Options".to_owned(), value: self.encode_to_vec() }
    }
}

/// How a task is checkpointed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CheckpointOptions {
    /// The task ends with its checkpoint.
    #[prost(bool, tag = "1")]
    pub exit: bool,
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    #[prost(bool, tag = "5")]
    pub file_locks: bool,
    /// The folder that gets criu's images.
    #[prost(string, tag = "8")]
    pub image_path: String,
    /// The folder of criu's log.
    #[prost(string, tag = "9")]
    pub work_path: String,
}

impl CheckpointOptions {
    pub fn to_any(&self) -> Any {
        Any { type_url: "containerd.runc.v1.CheckpointOptions".to_owned(), value: self.encode_to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_the_bytes_that_containerd_reads() {
        let options = Options { binary_name: "crun".into(), systemd_cgroup: true, ..Options::default() };
        assert_eq!(options.encode_to_vec(), [0x32, 4, b'c', b'r', b'u', b'n', 0x48, 1]);
        let mapped = Options { io_uid: 5, io_gid: 6, ..Options::default() };
        assert_eq!(mapped.encode_to_vec(), [0x20, 5, 0x28, 6]);
        assert_eq!(options.to_any().type_url, "containerd.runc.v1.Options");
    }
}
