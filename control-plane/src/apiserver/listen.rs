//! HTTPS: connections, their handshakes, and the requests on them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Options;
use crate::ports::Peer;
use crate::request;
use crate::server::Server;

/// How long a client may take to greet.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may lie between two requests. As upstream's; not a round minute, at which clients that ask once a
/// minute would meet the end of their connection.
const IDLE: Duration = Duration::from_secs(90);

/// How long what is under way may take after stop was said.
const DRAIN: Duration = Duration::from_secs(5);

/// Requests at a time on one HTTP/2 connection.
const STREAMS: u32 = 1000;

/// How often a silent HTTP/2 client is asked whether it is there.
const PING: Duration = Duration::from_secs(30);

pub(super) fn tls(options: &Options) -> anyhow::Result<TlsAcceptor> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let authorities = options.client_ca_file.as_deref().map(read).transpose()?;
    let (cert, key) = (&options.tls_cert_file, &options.tls_private_key_file);
    let config = lifecycle::tls::reloading_server_config(cert, key, authorities.as_deref())
        .with_context(|| format!("use {}", cert.display()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

pub(super) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

/// Accepts connections until the server stops, and lets the last requests end.
pub(super) async fn serve(server: Arc<Server>, listener: TcpListener, tls: TlsAcceptor) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    connections.spawn(connection(server.clone(), tls.clone(), stream, address));
                }
                Err(error) => {
                    // Out of descriptors, mostly: others will be closed.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = server.stop.stopped() => break,
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
}

async fn connection(server: Arc<Server>, tls: TlsAcceptor, stream: TcpStream, address: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "a handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Peer { address, certificates: certificates.iter().map(|c| c.clone().into_owned()).collect() };
    let stop = server.stop.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let server = server.clone();
        async move { Ok::<_, Infallible>(request::serve(server, request.map(request::boxed)).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "a connection broke");
    }
}
