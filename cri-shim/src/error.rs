//! Why a call on a sandbox or a container failed, and the gRPC code that tells the caller which kind it was.

use std::io;
use std::path::Path;

use tonic::{Code, Status};

use crate::container::spec::SpecError;
use crate::image::ImageError;
use crate::stream::StreamError;
use crate::{containerd, record};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no {kind} has the id {id:?}: not found")]
    NotFound { kind: &'static str, id: String },
    #[error("{id:?} begins the ids of {count} {kind} objects: give more of the id")]
    Ambiguous { kind: &'static str, id: String, count: usize },
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The state of the sandbox or container does not allow it.
    #[error("{0}")]
    State(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    TimedOut(String),
    /// This node cannot do it, whoever asks.
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    #[error(transparent)]
    Record(#[from] record::Error),
    #[error("cannot {attempt}: {source}")]
    Io { attempt: String, source: io::Error },
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The network, the kernel: what they say is whole.
    #[error("{attempt}: {message}")]
    Part { attempt: String, message: String, code: Code },
    /// Tear-down goes on past errors: this is all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` on file work.
    pub fn io(attempt: &str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let attempt = format!("{attempt} {}", path.display());
        move |source| Self::Io { attempt, source }
    }

    /// For `map_err` on what another part of the shim reports.
    pub fn part<E: std::fmt::Display>(attempt: impl Into<String>) -> impl FnOnce(E) -> Self {
        let attempt = attempt.into();
        move |error| Self::Part { attempt, message: error.to_string(), code: Code::Unknown }
    }

    /// None of `errors`, the one, or all of them.
    ///
    /// # Errors
    /// Where there is any.
    pub fn all(mut errors: Vec<Self>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The gRPC code that a caller of ours gets.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::Ambiguous { .. } | Self::Invalid(_) => Code::InvalidArgument,
            Self::State(_) => Code::FailedPrecondition,
            Self::Exists(_) => Code::AlreadyExists,
            Self::TimedOut(_) => Code::DeadlineExceeded,
            Self::Unsupported(_) => Code::Unimplemented,
            Self::Containerd(error) => error.code(),
            Self::Image(error) => error.code(),
            Self::Spec(error) => error.code(),
            Self::Stream(StreamError::Invalid { .. }) => Code::InvalidArgument,
            Self::Stream(StreamError::TooMany { .. }) => Code::ResourceExhausted,
            Self::Io { source, .. } if is_no_space(source.kind()) => Code::ResourceExhausted,
            Self::Stream(_) | Self::Record(_) | Self::Io { .. } => Code::Internal,
            Self::Part { code, .. } => *code,
            Self::Several(errors) => errors.first().map_or(Code::Unknown, Self::code),
        }
    }
}

fn is_no_space(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_carry_their_code_and_all_that_happened() {
        let missing = || Error::NotFound { kind: "container", id: "ab".into() };
        assert_eq!(Status::from(missing()).code(), Code::NotFound);
        let both = Error::all(vec![missing(), Error::State("sandbox x has stopped".into())]).unwrap_err();
        assert_eq!(both.to_string(), "no container has the id \"ab\": not found; sandbox x has stopped");
        assert!(Error::all(Vec::new()).is_ok());
    }
}
