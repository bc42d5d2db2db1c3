//! Why a volume could not be made or mounted, in the words that users of Kubernetes know from Events.

use std::io;
use std::path::{Path, PathBuf};

use super::objects::ObjectError;

/// One volume's failure: the message of a `FailedMount` Event.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
pub struct VolumeError {
    pub volume: String,
    pub cause: Cause,
}

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("configmap references non-existent config key: {0}")]
    MissingConfigKey(String),
    #[error("references non-existent secret key: {0}")]
    MissingSecretKey(String),
    #[error("failed to fetch token: {0}")]
    Token(String),
    #[error("hostPath type check failed: {} is not {wanted}", path.display())]
    HostPathType { path: PathBuf, wanted: &'static str },
    #[error("hostPath type check failed: {0} is an invalid volume type")]
    UnknownHostPathType(String),
    #[error("invalid path {0:?}: a path in a volume is relative and has no '..'")]
    InvalidPath(String),
    #[error("unknown storage medium {0:?}")]
    UnknownMedium(String),
    #[error("{0}")]
    Downward(String),
    /// A kind of volume that this agent does not have.
    #[error("volume type {0} is not supported by this node")]
    Unsupported(&'static str),
    #[error("no volume source is given")]
    NoSource,
    #[error("{operation} {}: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Mount(#[from] kernel::mount::Error),
    #[error("the work was given up: {0}")]
    Task(String),
}

impl Cause {
    /// True if the volume waits for an object that is not there yet.
    pub fn is_missing_object(&self) -> bool {
        matches!(
            self,
            Self::Object(ObjectError::NotFound { .. }) | Self::MissingConfigKey(_) | Self::MissingSecretKey(_)
        )
    }
}

/// Why a container cannot mount its volumes: the message of a `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume { volume: String, container: String },
    #[error("error SubPath `{0}` must not be an absolute path")]
    Absolute(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    Backsteps(String),
    #[error("cannot resolve subPathExpr {0:?}: a variable in it is not defined")]
    Expression(String),
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}: {reason}")]
    Prepare { volume: String, container: String, reason: String },
    #[error("volume {volume:?} requested recursive read-only mount, but it is not supported by the runtime")]
    RecursiveReadOnly { volume: String },
    #[error("recursive read-only mount of volume {volume:?} needs readOnly and no mount propagation")]
    RecursiveReadOnlyWritable { volume: String },
}

pub(super) fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Cause + use<> {
    let path = path.to_owned();
    move |source| Cause::File { operation, path, source }
}
