//! Why no spec can be made for a container.

use std::io;
use std::path::{Path, PathBuf};

use tonic::Code;

use crate::seccomp;

use super::cdi::CdiError;

/// Why no spec can be made. Each message says what in the request is at fault, and what would do.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("no command to run: neither the container's config nor its image names one")]
    NoCommand,
    #[error("environment variable {name:?} is {fault}")]
    Environment { name: String, fault: &'static str },
    #[error("run_as_group {0} is set without run_as_user or run_as_username: set one of them too")]
    GroupWithoutUser(i64),
    #[error("{what} {value} is out of range: user and group ids go from 0 to {}", u32::MAX - 1)]
    IdRange { what: &'static str, value: String },
    #[error("the image's {file} has no {what} {name:?}")]
    NoSuchAccount { file: &'static str, what: &'static str, name: String },
    #[error("unknown value {value} of {field}")]
    UnknownValue { field: &'static str, value: i32 },
    #[error("unknown capability {0:?}: names are those of capabilities(7), with or without CAP_, or ALL")]
    UnknownCapability(String),
    #[error("capability {0} cannot be given: this runtime does not have it itself")]
    CapabilityNotHeld(String),
    #[error("a privileged container needs a privileged pod sandbox")]
    PrivilegedInUnprivilegedSandbox,
    #[error("the {0} path {1:?} in the container is not absolute")]
    NotAbsolute(&'static str, String),
    #[error("the mount of {path:?} is refused: {reason}")]
    Mount { path: String, reason: &'static str },
    // Clients look for the first word.
    #[error(
        "RROUnsupported: the mount of {path:?} is refused: runtime handler {handler:?} or this kernel (before 5.12) has no recursive read-only mounts"
    )]
    RecursiveReadOnlyUnsupported { path: String, handler: String },
    #[error(
        "the mount of {path:?} is refused: unknown mount option {option:?}, only noexec, nodev and nosuid may be set"
    )]
    MountOption { path: String, option: String },
    #[error(
        "the mount of {path:?} is refused: {} lies on {}, which is not {wanted}: run mount --make-{remedy} on it",
        from.display(),
        mount_point.display()
    )]
    Propagation { path: String, from: PathBuf, mount_point: PathBuf, wanted: &'static str, remedy: &'static str },
    #[error("user namespace: {0}")]
    UserNamespace(&'static str),
    #[error("runtime handler {handler:?} cannot run containers in user namespaces")]
    UserNamespaceUnsupported { handler: String },
    #[error("{namespace} namespace: {reason}")]
    Namespace { namespace: &'static str, reason: &'static str },
    #[error("{kind} profile: {reason}")]
    Profile { kind: &'static str, reason: String },
    #[error(transparent)]
    Seccomp(#[from] seccomp::ProfileError),
    #[error("SELinux option {option} {value:?} is malformed")]
    SelinuxOption { option: &'static str, value: String },
    #[error("device {path:?}: {reason}")]
    Device { path: String, reason: String },
    #[error(transparent)]
    Cdi(#[from] CdiError),
    #[error("unified cgroup settings ({0}) need cgroup v2, which this machine does not run")]
    UnifiedWithoutV2(String),
    #[error("stop signal {0:?} is unknown")]
    StopSignal(String),
    #[error("the container's stored spec has no {0}")]
    Incomplete(&'static str),
    #[error("cannot {attempt} {}: {source}", path.display())]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot look into the container's image: {0}")]
    Rootfs(#[from] kernel::mount::Error),
}

impl SpecError {
    /// For `map_err`: what was attempted on which path.
    pub(crate) fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { attempt, path, source }
    }

    /// The gRPC code that the caller gets.
    pub fn code(&self) -> Code {
        match self {
            Self::File { .. } | Self::Rootfs(_) | Self::Incomplete(_) => Code::Internal,
            Self::RecursiveReadOnlyUnsupported { .. }
            | Self::UserNamespaceUnsupported { .. }
            | Self::CapabilityNotHeld(_)
            | Self::UnifiedWithoutV2(_)
            | Self::Propagation { .. } => Code::FailedPrecondition,
            _ => Code::InvalidArgument,
        }
    }
}
