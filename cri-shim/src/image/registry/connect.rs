//! Connections to registries: directly or through a proxy, with TLS or without.

use std::error::Error as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::failure::reason;
use super::proxy::{Proxies, Proxy};

/// How long a TLS handshake and a proxy's answer may take, as in Go's transport.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Why there is no connection. Never names credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("{0}")]
    Tcp(String),
    #[error("no TLS: {0}")]
    Tls(String),
    #[error("{0}")]
    Certificate(String),
    #[error("the proxy {proxy}: {why}")]
    Proxy { proxy: String, why: String },
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// Dials one host of a registry, and where that sends us.
#[derive(Clone)]
pub struct Dialer {
    pub proxies: Arc<Proxies>,
    pub tls: Arc<ClientConfig>,
    /// For the connection without TLS.
    pub patience: Duration,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection.
pub struct Wire {
    stream: TokioIo<Box<dyn Stream>>,
    /// A proxy reads the requests, and wants full addresses in them.
    through_proxy: bool,
}

impl Dialer {
    /// The proxy by which `uri` is reached, where it reads the requests itself.
    pub fn reading_proxy(&self, uri: &Uri) -> Option<&Proxy> {
        let (tls, host, port) = target(uri).ok()?;
        if tls { None } else { self.proxies.of(tls, host, port) }
    }

    /// Whether `authority` answers to TLS. Where it cannot be reached at all, it is taken to.
    pub async fn speaks_tls(&self, authority: &str) -> bool {
        let Ok(uri) = format!("https://{authority}").parse() else { return true };
        !matches!(self.dial(uri).await, Err(DialError::Tls(_)))
    }

    async fn dial(&self, uri: Uri) -> Result<Wire, DialError> {
        let (tls, host, port) = target(&uri)?;
        let proxy = self.proxies.of(tls, host, port);
        let stream: Box<dyn Stream> = match proxy {
            None => self.tcp(host, port).await?,
            Some(proxy) => {
                let failed = |error: DialError| DialError::Proxy { proxy: proxy.host.clone(), why: error.to_string() };
                let mut stream = self.tcp(&proxy.host, proxy.port).await.map_err(failed)?;
                if proxy.tls {
                    stream = self.handshake(stream, &proxy.host).await.map_err(failed)?;
                }
                if tls { tunnel(stream, proxy, host, port).await? } else { stream }
            }
        };
        let stream = if tls { self.handshake(stream, host).await? } else { stream };
        Ok(Wire { stream: TokioIo::new(stream), through_proxy: proxy.is_some() && !tls })
    }

    /// IPv6 and IPv4 nearly at once, where a name has both.
    async fn tcp(&self, host: &str, port: u16) -> Result<Box<dyn Stream>, DialError> {
        let failed = |error: String| DialError::Tcp(error);
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let uri: Uri = format!("http://{host}:{port}").parse().map_err(|error| failed(format!("{error}")))?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(30)));
        connector.set_connect_timeout(Some(self.patience));
        poll_fn(|context| connector.poll_ready(context)).await.map_err(|error| failed(chain(&error)))?;
        match timeout(self.patience, connector.call(uri)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream.into_inner())),
            Ok(Err(error)) => Err(failed(chain(&error))),
            Err(_) => Err(DialError::Late(self.patience)),
        }
    }

    async fn handshake(&self, stream: Box<dyn Stream>, host: &str) -> Result<Box<dyn Stream>, DialError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| DialError::Tls(error.to_string()))?;
        let connector = TlsConnector::from(self.tls.clone());
        match timeout(HANDSHAKE, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(why)) => DialError::Certificate(why.to_string()),
                _ => DialError::Tls(error.to_string()),
            }),
            Err(_) => Err(DialError::Late(HANDSHAKE)),
        }
    }
}

/// Whether with TLS, where, and at which port.
fn target(uri: &Uri) -> Result<(bool, &str, u16), DialError> {
    let tls = uri.scheme_str() == Some("https");
    let host = uri.host().ok_or_else(|| DialError::Tcp(format!("{uri} has no host")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((tls, host, uri.port_u16().unwrap_or(if tls { 443 } else { 80 })))
}

/// Has the proxy connect us through. Source: RFC 9110 section 9.3.6.
async fn tunnel(stream: Box<dyn Stream>, proxy: &Proxy, host: &str, port: u16) -> Result<Box<dyn Stream>, DialError> {
    let failed = |why: String| DialError::Proxy { proxy: proxy.host.clone(), why };
    let work = async {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| failed(chain(&error)))?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("{host}:{port}"))
            .header(HOST, format!("{host}:{port}"));
        if let Some(credentials) = &proxy.credentials {
            request = request.header(PROXY_AUTHORIZATION, credentials);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|error| failed(chain(&error)))?;
        match answer.status() {
            status if status.is_success() => {}
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                return Err(failed("it wants other credentials; check HTTPS_PROXY".to_owned()));
            }
            status => {
                let why = format!("it answers with status {} {}", status.as_u16(), reason(&answer));
                return Err(failed(why.trim_end().to_owned()));
            }
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|error| failed(chain(&error)))?;
        Ok(Box::new(TokioIo::new(upgraded)) as Box<dyn Stream>)
    };
    timeout(HANDSHAKE, work).await.unwrap_or(Err(DialError::Late(HANDSHAKE)))
}

/// An error and what is behind it, each once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        source = error.source();
    }
    text
}

/// The reason of ours inside an error of the client.
pub fn dial_error(error: &hyper_util::client::legacy::Error) -> Option<&DialError> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(own) = error.downcast_ref() {
            return Some(own);
        }
        source = error.source();
    }
    None
}

impl Service<Uri> for Dialer {
    type Response = Wire;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Wire, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial(uri).await })
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.through_proxy)
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
