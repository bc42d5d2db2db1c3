//! The images that bosun carries, so that a node starts where no registry can be reached.
//!
//! Each is one static program in one layer, as an OCI image archive (a tar of an OCI image layout) that
//! containerd imports. The bytes depend on nothing but the programs: the same build gives the same digests.

pub mod archive;

use std::sync::OnceLock;

use archive::Image;

/// The name under which Kubernetes knows the pause image.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// The name of our own for the same image.
pub const BOSUN_PAUSE: &str = "bosun.local/pause:3.10";
/// The echo server for demos and tests; `images/programs/echo.rs` says what it can do.
pub const ECHO: &str = "bosun.local/echo:1";

/// The archive of the pause image: what holds a pod's namespaces. It carries both of its names.
pub fn pause_archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let program = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
        // The user is nobody, as in the original: pause needs no right at all.
        archive::build(&Image {
            names: &[PAUSE, BOSUN_PAUSE],
            path: "pause",
            program,
            links: &[],
            user: "65535:65535",
            ports: &[],
        })
    })
}

/// The archive of the echo image.
pub fn echo_archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let program = include_bytes!(concat!(env!("OUT_DIR"), "/echo"));
        archive::build(&Image { names: &[ECHO], path: "echo", program, links: &[], user: "", ports: &["8080/tcp"] })
    })
}
