//! containerd as the shim sees it: one connection, calls with a namespace and a deadline, errors told apart by kind.
//!
//! Each service of containerd has a file with the calls that are used. Source: containerd's api/services.

pub mod containers;
pub mod content;
pub mod diff;
pub mod images;
pub mod introspection;
pub mod leases;
mod reserve;
pub mod runc;
pub mod snapshots;
pub mod tasks;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tower::service_fn;

/// The namespace of containerd in which Kubernetes' objects live, as its own CRI plugin has it.
pub const NAMESPACE: &str = "k8s.io";
/// How long a call may take that moves no data.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// The largest answer that is read, bytes: what containerd sends by default at most.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Why a call to containerd failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("cannot {attempt}: not found: {message}")]
    NotFound { attempt: String, message: String },
    #[error("cannot {attempt}: it exists already: {message}")]
    AlreadyExists { attempt: String, message: String },
    /// containerd says that its state does not allow it: a task that has ended, a snapshot in use.
    #[error("cannot {attempt}: {message}")]
    FailedPrecondition { attempt: String, message: String },
    /// containerd has no such service or method: an older one.
    #[error("cannot {attempt}: this containerd does not serve it: {message}")]
    Unimplemented { attempt: String, message: String },
    /// Nobody answers on its socket. It may come back.
    #[error("cannot {attempt}: containerd does not answer: {message}")]
    Unavailable { attempt: String, message: String },
    #[error("cannot {attempt}: containerd did not finish in time: {message}")]
    DeadlineExceeded { attempt: String, message: String },
    /// Its disk is full, or a quota is used up: as it says itself.
    #[error("cannot {attempt}: {message}")]
    NoSpace { attempt: String, message: String },
    #[error("cannot {attempt}: {message}")]
    Other { attempt: String, message: String },
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: what was attempted, and containerd's answer.
    pub fn of(attempt: impl Into<String>) -> impl FnOnce(Status) -> Self {
        let attempt = attempt.into();
        move |status| {
            let message = status.message().to_owned();
            match status.code() {
                Code::NotFound => Self::NotFound { attempt, message },
                Code::AlreadyExists => Self::AlreadyExists { attempt, message },
                Code::FailedPrecondition => Self::FailedPrecondition { attempt, message },
                Code::Unimplemented => Self::Unimplemented { attempt, message },
                Code::Unavailable => Self::Unavailable { attempt, message },
                Code::DeadlineExceeded | Code::Cancelled => Self::DeadlineExceeded { attempt, message },
                _ if is_no_space(&message) => Self::NoSpace { attempt, message },
                _ => Self::Other { attempt, message },
            }
        }
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }

    /// The gRPC code that a caller of ours gets.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::NoSpace { .. } => Code::ResourceExhausted,
            Self::Other { .. } => Code::Unknown,
        }
    }
}

/// containerd has no code for it and passes on what the kernel calls ENOSPC and EDQUOT.
fn is_no_space(message: &str) -> bool {
    ["no space left on device", "disk quota exceeded"].iter().any(|text| message.contains(text))
}

/// A containerd. Cloning shares the connection, which is made at the first call and again after it broke.
#[derive(Clone)]
pub struct Containerd {
    channel: Channel,
    socket: PathBuf,
    reserve: Option<Arc<reserve::Reserve>>,
}

impl Containerd {
    /// Nothing is connected yet: a containerd that starts later is met by later calls.
    pub fn new(socket: &Path) -> Self {
        let path = socket.to_owned();
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is never used: the socket is. HTTP/2 windows of containerd's own clients.
        let endpoint = Endpoint::from_static("http://containerd").initial_stream_window_size(1 << 20);
        let channel = endpoint.connect_with_connector_lazy(connect);
        Self { channel, socket: socket.to_owned(), reserve: None }
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// `message` as a request in our namespace that must be answered within [`DEADLINE`].
pub fn request<T>(message: T) -> Request<T> {
    let mut request = unbounded(message);
    request.set_timeout(DEADLINE);
    request
}

/// A request in our namespace without a deadline: a wait, a stream, a transfer.
pub fn unbounded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    request
}

/// A request whose new objects belong to `lease` and are kept from the garbage collector as long as it lives.
pub fn leased<T>(mut request: Request<T>, lease: &MetadataValue<Ascii>) -> Request<T> {
    request.metadata_mut().insert("containerd-lease", lease.clone());
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_the_error_of_its_kind() {
        let gone = Error::of("load container \"abc\"")(Status::not_found("container \"abc\": not found"));
        assert!(gone.is_not_found());
        assert_eq!(gone.to_string(), "cannot load container \"abc\": not found: container \"abc\": not found");
        assert_eq!(Error::of("x")(Status::internal("y")).code(), Code::Unknown);
        let full = Error::of("write content a")(Status::unknown("write /x/meta.db: no space left on device"));
        assert_eq!(full.to_string(), "cannot write content a: write /x/meta.db: no space left on device");
        assert_eq!(full.code(), Code::ResourceExhausted);
    }
}
