//! Port 10250, as the kubelet serves it: logs, exec, attach, port-forward, statistics and metrics, for those whom the API
//! server lets; and the health check on the loopback address.
//!
//! Each request is authenticated, then authorized, then routed. Nothing is served to an anonymous client, and a
//! certificate of the right authority alone opens nothing.

mod auth;
mod authorize;
mod logs;
mod respond;
mod route;
mod start;
mod streams;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lifecycle::Stop;
use lifecycle::pki::{Identity, PkiError, Subject};
use lifecycle::tls::{TlsError, reloading_server_config};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::pod::Pods;
use crate::probe::exec::COUNTS;
use crate::runtime::Runtime;
use crate::stats::Stats;
pub use start::Daemon;

use auth::{Authenticator, User};
use authorize::Authorizer;
use respond::{Answer, json, plain, text};
use route::Route;

/// Connections that are served at the same time; more wait.
const MAX_CONNECTIONS: usize = 1000;
/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(30);

/// What the server speaks for.
pub struct Parts {
    pub config: Arc<Config>,
    pub node_name: String,
    pub pods: Arc<dyn Pods>,
    pub runtime: Runtime,
    pub client: kube::Client,
    pub stats: Arc<Stats>,
    pub health: Health,
}

/// Says whether the agent works; the reason if it does not.
pub type Health = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Why the server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the client authority {}: {source}", path.display())]
    ClientAuthority { path: PathBuf, source: io::Error },
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("the serving certificate: {0}")]
    Identity(#[from] PkiError),
    #[error("listen on {address}: {source}; another kubelet or agent may run there")]
    Listen { address: SocketAddr, source: io::Error },
}

/// The files of the server's certificate and key: those that the configuration names, or `kubelet.crt` and `kubelet.key`
/// in `cert_dir`, which are made (the server vouches for itself) where they are missing.
///
/// # Errors
/// Where a file cannot be written.
pub fn serving_files(config: &Config, cert_dir: &Path, name: &str, ips: &[IpAddr]) -> Result<PairFiles, PkiError> {
    if let (Some(cert), Some(key)) = (&config.tls_cert_file, &config.tls_private_key_file) {
        return Ok(PairFiles { cert: cert.clone(), key: key.clone() });
    }
    let (cert, key) = (cert_dir.join("kubelet.crt"), cert_dir.join("kubelet.key"));
    if !(cert.exists() && key.exists()) {
        Identity::self_signed(&Subject::server(name, &[name.to_owned()], ips))?.save(&cert, &key)?;
    }
    Ok(PairFiles { cert, key })
}

/// Where a certificate and its key are.
pub struct PairFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Serves port 10250 until `stop`.
///
/// # Errors
/// Where the certificate or the client authority is unusable.
pub async fn serve(parts: Parts, listener: TcpListener, own: &PairFiles, stop: Stop) -> Result<(), ServerError> {
    let authority = match &parts.config.authentication.x509.client_ca_file {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            Some(read.map_err(|source| ServerError::ClientAuthority { path: path.clone(), source })?)
        }
        None => None,
    };
    let config = reloading_server_config(&own.cert, &own.key, authority.as_deref())?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = Arc::new(Server::new(parts));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some((stream, place)) = accept(&listener, &places, &stop).await {
        let (acceptor, server, stop) = (acceptor.clone(), server.clone(), stop.clone());
        tokio::spawn(async move {
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
            let user = stream.get_ref().1.peer_certificates().and_then(|chain| User::of_certificate(chain.first()?));
            let user = Arc::new(user);
            let work = |request| {
                let (server, user) = (server.clone(), user.clone());
                async move { server.answer(request, user.as_ref().as_ref()).await }
            };
            connection(TokioIo::new(stream), work, stop).await;
            drop(place);
        });
    }
    Ok(())
}

/// Serves `/healthz` without TLS or authentication, for the loopback address, until `stop`.
pub async fn serve_healthz(listener: TcpListener, health: Health, stop: Stop) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some((stream, place)) = accept(&listener, &places, &stop).await {
        let (health, stop) = (health.clone(), stop.clone());
        tokio::spawn(async move {
            let work = |request: Request<Incoming>| {
                let path = request.uri().path();
                let known = path == "/healthz" || path.starts_with("/healthz/");
                let answer =
                    if known { healthz(&health) } else { plain(StatusCode::NOT_FOUND, "404 page not found\n") };
                std::future::ready(answer)
            };
            connection(TokioIo::new(stream), work, stop).await;
            drop(place);
        });
    }
}

type Place = tokio::sync::OwnedSemaphorePermit;

/// The next connection, as soon as there is a place for it; `None` once `stop` was said.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &Stop,
) -> Option<(tokio::net::TcpStream, Place)> {
    loop {
        let place = tokio::select! {
            () = stop.stopped() => return None,
            place = places.clone().acquire_owned() => place.ok()?,
        };
        let accepted = tokio::select! { () = stop.stopped() => return None, accepted = listener.accept() => accepted };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                return Some((stream, place));
            }
            Err(error) => {
                tracing::warn!("accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection<I, W, F>(io: TokioIo<I>, work: W, stop: Stop)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    W: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    let service = service_fn(|request| {
        let answer = work(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

fn healthz(health: &Health) -> Answer {
    match health() {
        Ok(()) => plain(StatusCode::OK, "ok"),
        Err(reason) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n")),
    }
}

struct Server {
    parts: Parts,
    authenticator: Authenticator,
    authorizer: Authorizer,
}

impl Server {
    fn new(parts: Parts) -> Self {
        let (client, config) = (parts.client.clone(), parts.config.clone());
        let authenticator = Authenticator::new(client.clone(), &config.authentication);
        let authorizer = Authorizer::new(client, &config.authorization, &parts.node_name);
        Self { parts, authenticator, authorizer }
    }

    async fn answer(&self, request: Request<Incoming>, certificate: Option<&User>) -> Answer {
        let user = match certificate {
            Some(user) => Some(user.clone()),
            None => self.authenticator.authenticate(request.headers()).await,
        };
        let Some(user) = user else { return plain(StatusCode::UNAUTHORIZED, "Unauthorized") };
        if let Err(refusal) = self.authorizer.authorize(&user, request.method(), request.uri().path()).await {
            return refusal.into();
        }
        match route::route(request.method(), request.uri().path()) {
            Ok(route) => self.serve(route, request).await,
            Err(refusal) => refusal.into(),
        }
    }

    async fn serve(&self, route: Route, request: Request<Incoming>) -> Answer {
        let parts = &self.parts;
        match route {
            Route::Healthz => healthz(&parts.health),
            Route::Metrics => respond::metrics(parts.stats.agent_metrics().await),
            Route::MetricsResource => respond::metrics(parts.stats.resource_metrics().await),
            Route::MetricsProbes => respond::metrics(COUNTS.exposition(|uid| parts.pods.by_uid(uid).is_some())),
            Route::MetricsCadvisor => respond::metrics(parts.stats.cadvisor_metrics().await),
            Route::StatsSummary => json(StatusCode::OK, &parts.stats.summary().await),
            Route::Pods => self.pods(|_| true),
            Route::RunningPods => {
                let running = |uid: &str| parts.pods.sandbox(uid).is_some();
                self.pods(running)
            }
            Route::ContainerLogs(target) => logs::answer(parts, &target, request.uri().query().unwrap_or_default()),
            Route::Exec(target) => streams::exec(parts, &target, request).await,
            Route::Attach(target) => streams::attach(parts, &target, request).await,
            Route::PortForward(target) => streams::port_forward(parts, &target, request).await,
            Route::Run(target) => streams::run(parts, &target, request.uri().query().unwrap_or_default()).await,
        }
    }

    fn pods(&self, wanted: impl Fn(&str) -> bool) -> Answer {
        let uid = |pod: &k8s_openapi::api::core::v1::Pod| pod.metadata.uid.clone().unwrap_or_default();
        let pods: Vec<_> = self.parts.pods.list().into_iter().filter(|pod| wanted(&uid(pod))).collect();
        let items: Vec<_> = pods.iter().map(|pod| &**pod).collect();
        json(
            StatusCode::OK,
            &serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
        )
    }
}

#[cfg(test)]
mod tests;
