//! The server of exec, attach and port-forward. A request that was prepared over CRI gets a URL that is good once and for
//! a minute; its client then speaks SPDY/3.1, or WebSocket channels of version 5 and before.
//!
//! | file | what |
//! |---|---|
//! | [`tokens`] | the URLs' tokens, pure |
//! | [`handshake`] | which protocol a request becomes, pure |
//! | [`wire`], [`resize`] | the protocols under one face, pure |
//! | [`mux`], [`transport`], [`pipe`] | a connection, and its streams as readers and writers |
//! | [`remote`], [`forward`] | exec and attach; port-forward |
//! | [`accept`] | connections and requests |

mod accept;
mod forward;
mod handshake;

mod mux;
mod pipe;
mod remote;
mod resize;
#[cfg(test)]
mod tests;
mod tokens;
mod transport;
mod wire;

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use futures::future::BoxFuture;
use lifecycle::Stop;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use resize::Sizes;
pub use streams::remote::Outcome;

use crate::log::{AttachStreams, Input, Output};
use tokens::Tokens;

/// How long a stream may be without any movement, if nothing else is said. As kubelet's `streamingConnectionIdleTimeout`.
pub const IDLE: Duration = Duration::from_secs(4 * 3600);

/// Why the server cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("cannot listen for streams on {address}: {source}")]
    Listen { address: String, source: io::Error },
    /// The request itself is wrong: `InvalidArgument`.
    #[error("cannot prepare {what}: {why}")]
    Invalid { what: &'static str, why: &'static str },
    /// `ResourceExhausted`.
    #[error("cannot prepare {what}: {waiting} prepared streams wait already for their clients; try again within a minute", waiting = tokens::WAITING)]
    TooMany { what: &'static str },
    #[error("cannot make a token for {what}: {source}")]
    Random { what: &'static str, source: io::Error },
}

/// The streams of a client; those that it did not ask for are missing.
///
/// The end of a client's input, and a client that has left, are told by `stdin` (an end, or an error) and by `gone`; then
/// writers fail with `BrokenPipe`. An output ends for the client when its writer is shut down or dropped.
pub struct Streams {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    /// Width and height of the client's terminal, in characters, whenever they change.
    pub resize: mpsc::Receiver<(u16, u16)>,
    /// Cancelled when the connection is over.
    pub gone: CancellationToken,
}

impl Streams {
    /// The streams for a container's or command's pipes, and the sizes for its terminal.
    pub fn split(self) -> (AttachStreams, mpsc::Receiver<(u16, u16)>) {
        let Self { stdin, stdout, stderr, resize, gone } = self;
        (AttachStreams { stdin, stdout, stderr, gone }, resize)
    }
}

/// A connection to a port, as its client sees it.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Does what clients ask for.
pub trait Executor: Send + Sync {
    /// Runs a command to its end. It is not cancelled when the client leaves.
    fn exec(&self, request: ExecRequest, streams: Streams) -> BoxFuture<'static, Outcome>;

    /// Ends when the container does, or the client leaves. It is not cancelled then.
    ///
    /// # Errors
    /// What the client is told.
    fn attach(&self, request: AttachRequest, streams: Streams) -> BoxFuture<'static, Result<(), String>>;

    /// Connects a client with a port of a sandbox, until either ends both directions. Cancelled when the client leaves.
    ///
    /// # Errors
    /// What the client is told.
    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
        stream: Box<dyn Connection>,
    ) -> BoxFuture<'static, Result<(), String>>;
}

/// Which streams a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// # Errors
    /// As the CRI demands: some stream, and no errors apart from a terminal.
    fn check(self, what: &'static str) -> Result<(), StreamError> {
        let invalid = |why| Err(StreamError::Invalid { what, why });
        if self.tty && self.stderr {
            return invalid("tty and stderr cannot both be true");
        }
        if !(self.stdin || self.stdout || self.stderr) {
            return invalid("one of stdin, stdout and stderr must be set");
        }
        Ok(())
    }
}

/// A request that waits for its client.
#[derive(Debug)]
enum Prepared {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// Prepares requests. Cloning shares the server's memory of them.
#[derive(Clone)]
pub struct Urls {
    address: SocketAddr,
    tokens: Arc<Mutex<Tokens<Prepared>>>,
}

impl Urls {
    /// Where a client finds the streams of a command.
    ///
    /// # Errors
    /// Where the request asks for impossible streams, or too many wait.
    pub fn exec(&self, request: ExecRequest) -> Result<String, StreamError> {
        wanted_by_exec(&request).check("exec")?;
        if request.container_id.is_empty() || request.cmd.is_empty() {
            return Err(StreamError::Invalid { what: "exec", why: "container_id and cmd must be set" });
        }
        self.prepare("exec", Prepared::Exec(request))
    }

    /// Where a client finds the streams of a container.
    ///
    /// # Errors
    /// As [`Urls::exec`].
    pub fn attach(&self, request: AttachRequest) -> Result<String, StreamError> {
        wanted_by_attach(&request).check("attach")?;
        if request.container_id.is_empty() {
            return Err(StreamError::Invalid { what: "attach", why: "container_id must be set" });
        }
        self.prepare("attach", Prepared::Attach(request))
    }

    /// Where a client finds the ports of a sandbox.
    ///
    /// # Errors
    /// Where no sandbox is named, or too many wait.
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String, StreamError> {
        if request.pod_sandbox_id.is_empty() {
            return Err(StreamError::Invalid { what: "portforward", why: "pod_sandbox_id must be set" });
        }
        if request.port.iter().any(|port| u16::try_from(*port).is_err()) {
            return Err(StreamError::Invalid { what: "portforward", why: "a port is a number below 65536" });
        }
        self.prepare("portforward", Prepared::PortForward(request))
    }

    fn prepare(&self, what: &'static str, request: Prepared) -> Result<String, StreamError> {
        let random = random().map_err(|source| StreamError::Random { what, source })?;
        let token = self.tokens().issue(request, random, Instant::now()).ok_or(StreamError::TooMany { what })?;
        Ok(format!("http://{}/{what}/{token}", self.address))
    }

    fn redeem(&self, token: &str) -> Option<Prepared> {
        self.tokens().redeem(token, Instant::now())
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens<Prepared>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn random() -> io::Result<[u8; tokens::RANDOM]> {
    let mut random = [0; tokens::RANDOM];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random)
}

fn wanted_by_exec(request: &ExecRequest) -> Wanted {
    Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty }
}

fn wanted_by_attach(request: &AttachRequest) -> Wanted {
    Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty }
}

/// The server, listening. It serves from [`StreamServer::serve`] on; until then clients wait.
pub struct StreamServer {
    listener: TcpListener,
    urls: Urls,
    idle: Duration,
}

impl StreamServer {
    /// Listens on `address`, such as `127.0.0.1:0`: an address that clients on this node reach, for the URLs name it.
    /// `idle` is how long a stream may be without any movement.
    ///
    /// # Errors
    /// Where the address cannot be listened on.
    pub async fn bind(address: &str, idle: Duration) -> Result<Self, StreamError> {
        let failed = |source| StreamError::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let urls = Urls { address: listener.local_addr().map_err(failed)?, tokens: Arc::default() };
        Ok(Self { listener, urls, idle })
    }

    /// What prepares requests for this server.
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Serves until `stop`; then all connections end.
    pub async fn serve(self, executor: Arc<dyn Executor>, stop: Stop) {
        accept::serve(self, executor, stop).await;
    }
}
