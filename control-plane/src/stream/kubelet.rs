//! Connections to kubelets and other backends: HTTP/1.1, one for each request.

use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::ports::Body;

const DIAL: Duration = Duration::from_secs(30);
/// How much of a refusal is read.
const REFUSAL: usize = 64 * 1024;

/// Whom to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
}

impl Target {
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("error dialing backend: dial tcp {target}: i/o timeout")]
    Timeout { target: String },
    #[error("error dialing backend: dial tcp {target}: {source}")]
    Connect { target: String, source: std::io::Error },
    #[error("error dialing backend: {host:?} is no name for TLS")]
    Name { host: String },
    #[error("error dialing backend: {target}: {source}")]
    Http { target: String, source: hyper::Error },
}

impl From<DialError> for Status {
    fn from(error: DialError) -> Self {
        Self::new(500, "InternalError", error.to_string())
    }
}

/// What came of a request for an upgrade.
pub enum Upgraded {
    /// The backend's answer, and the connection that now belongs to the new protocol.
    Yes(Response<()>, TokioIo<hyper::upgrade::Upgraded>),
    No(Response<Incoming>),
}

/// Sends requests under one identity.
pub struct Kubelet {
    tls: TlsConnector,
}

impl Kubelet {
    pub fn new(tls: rustls::ClientConfig) -> Self {
        Self { tls: Arc::new(tls).into() }
    }

    /// Sends over TLS. The request's URI is a path with its query.
    ///
    /// # Errors
    /// Where no answer comes.
    pub async fn send(&self, target: &Target, request: Request<Body>) -> Result<Response<Incoming>, DialError> {
        let failed = |source| DialError::Connect { target: target.authority(), source };
        let name =
            ServerName::try_from(target.host.clone()).map_err(|_| DialError::Name { host: target.host.clone() })?;
        let handshake = async { self.tls.connect(name, dial(target).await?).await };
        let stream = tokio::time::timeout(DIAL, handshake)
            .await
            .map_err(|_| DialError::Timeout { target: target.authority() })?
            .map_err(failed)?;
        exchange(target, stream, request).await
    }

    /// Sends without TLS, for a pod that speaks none.
    ///
    /// # Errors
    /// Where no answer comes.
    pub async fn send_plain(&self, target: &Target, request: Request<Body>) -> Result<Response<Incoming>, DialError> {
        let stream = tokio::time::timeout(DIAL, dial(target))
            .await
            .map_err(|_| DialError::Timeout { target: target.authority() })?
            .map_err(|source| DialError::Connect { target: target.authority(), source })?;
        exchange(target, stream, request).await
    }

    /// Asks for another protocol on the connection.
    ///
    /// # Errors
    /// Where no answer comes.
    pub async fn upgrade(
        &self,
        target: &Target,
        method: http::Method,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Upgraded, DialError> {
        let mut request = Request::new(empty());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap_or_default();
        *request.headers_mut() = headers;
        let mut response = self.send(target, request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Upgraded::No(response));
        }
        let upgraded = hyper::upgrade::on(&mut response)
            .await
            .map_err(|source| DialError::Http { target: target.authority(), source })?;
        Ok(Upgraded::Yes(response.map(drop), TokioIo::new(upgraded)))
    }
}

/// The text of an answer that is no stream, cut where it is long.
pub async fn refusal(response: Response<Incoming>) -> String {
    match Limited::new(response.into_body(), REFUSAL).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim_end().to_owned(),
        Err(error) => format!("the answer could not be read: {error}"),
    }
}

pub fn empty() -> Body {
    http_body_util::Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync()
}

async fn dial(target: &Target) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange<S>(target: &Target, stream: S, mut request: Request<Body>) -> Result<Response<Incoming>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |source| DialError::Http { target: target.authority(), source };
    let host = target.authority().parse().map_err(|_| DialError::Name { host: target.host.clone() })?;
    request.headers_mut().insert(header::HOST, host);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the answer's body, or hands the connection to the upgrade.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(failed)
}
