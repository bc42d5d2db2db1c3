//! Why an image cannot be had.

use tonic::{Code, Status};

use super::digest::Digest;
use super::manifest::DecodeError;
use super::platform::Platform;
use super::reference::ReferenceError;
use super::registry::failure::{FailureKind, HostFailure};
use crate::containerd;

/// Why something about an image failed. Names the registry and the reference, and never a credential.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("cannot pull {reference}: {why}")]
    Setup { reference: String, why: String },
    #[error("cannot pull {reference}: {}", told(.failures))]
    Pull { reference: String, failures: Vec<HostFailure> },
    #[error("cannot use {reference}: it has no image for {platform}; it has {offered}")]
    Platform { reference: String, platform: Platform, offered: String },
    #[error("cannot use {reference}: {digest}: {why}")]
    Decode { reference: String, digest: Digest, why: DecodeError },
    #[error("cannot unpack {reference}: layer {layer} unpacks to {found}, its configuration says {wanted}")]
    Layer { reference: String, layer: Digest, wanted: String, found: String },
    #[error("cannot use image {id}: its content is no longer there; pull it again")]
    Incomplete { id: String },
    #[error("cannot import an archive: {0}")]
    Archive(String),
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
}

fn told(failures: &[HostFailure]) -> String {
    if failures.is_empty() {
        return "none of its hosts may be asked; check the capabilities in its hosts.toml".to_owned();
    }
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl ImageError {
    /// Whether there was no room for it on containerd's disk.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Containerd(error) if error.is_no_space())
    }

    /// The gRPC code that the kubelet gets.
    pub fn code(&self) -> Code {
        match self {
            Self::Reference(_) | Self::Archive(_) => Code::InvalidArgument,
            Self::Setup { .. } => Code::FailedPrecondition,
            // The last host is the registry itself.
            Self::Pull { failures, .. } => failures.last().map_or(Code::FailedPrecondition, |last| match last.kind {
                FailureKind::NotFound(_) => Code::NotFound,
                FailureKind::Denied(_) => Code::PermissionDenied,
                FailureKind::Limited(_) => Code::ResourceExhausted,
                FailureKind::Stalled(_) => Code::DeadlineExceeded,
                FailureKind::Wrong(_) => Code::DataLoss,
                FailureKind::Setup(_) | FailureKind::Certificate(_) => Code::FailedPrecondition,
                FailureKind::Unreachable(_) | FailureKind::Broken(_) | FailureKind::Status(..) => Code::Unavailable,
            }),
            Self::Platform { .. } | Self::Incomplete { .. } => Code::FailedPrecondition,
            Self::Decode { .. } | Self::Layer { .. } => Code::DataLoss,
            Self::Containerd(error) => error.code(),
        }
    }
}

impl From<ImageError> for Status {
    fn from(error: ImageError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(failures: &[(&str, FailureKind)]) -> ImageError {
        let failure = |(host, kind): &(&str, FailureKind)| HostFailure { host: (*host).to_owned(), kind: kind.clone() };
        ImageError::Pull { reference: "a.b/c:1".to_owned(), failures: failures.iter().map(failure).collect() }
    }

    #[test]
    fn a_failed_pull_names_the_reference_each_host_and_the_remedy() {
        let error = pull(&[
            ("mirror", FailureKind::Unreachable("connection refused".to_owned())),
            ("a.b", FailureKind::Denied(String::new())),
        ]);
        assert_eq!(
            error.to_string(),
            "cannot pull a.b/c:1: mirror cannot be reached: connection refused; a.b denies access; check the pull secret, \
             and that the repository exists"
        );
        assert_eq!(error.code(), Code::PermissionDenied);
        assert!(pull(&[]).to_string().contains("hosts.toml"));
    }
}
