//! /healthz and /livez on 10256, /metrics on 10249.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::metrics::{self, Metrics};

/// What the health answers are made from.
#[derive(Debug)]
pub struct Health(Mutex<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    started: Instant,
    synced: Option<Instant>,
    /// The oldest change that is not in the kernel.
    pending: Option<Instant>,
    /// Whether the node is to get no new connections from outside, because it is about to go.
    leaving: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(State { started: Instant::now(), synced: None, pending: None, leaving: false }))
    }
}

/// A change that waits so long means that the proxy does not work: twice the sync period, as kube-proxy has it.
const LATE: Duration = Duration::from_secs(60);

impl Health {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn pending(&self) {
        self.with(|state| state.pending = state.pending.or_else(|| Some(Instant::now())));
    }

    pub fn synced(&self) {
        self.with(|state| (state.synced, state.pending) = (Some(Instant::now()), None));
    }

    pub fn leaving(&self, leaving: bool) {
        self.with(|state| state.leaving = leaving);
    }

    /// As kube-proxy says it: updated just now while nothing waits, else when it last was.
    fn times(&self, alive: bool, more: &str) -> String {
        let now = SystemTime::now();
        let since = self.with(|state| state.synced.unwrap_or(state.started).elapsed());
        let updated = if alive { now } else { now.checked_sub(since).unwrap_or(now) };
        let text = |time: SystemTime| Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default();
        format!("{{\"lastUpdated\": \"{}\",\"currentTime\": \"{}\"{more}}}", text(updated), text(now))
    }

    /// Whether changes reach the kernel in time.
    pub fn is_alive(&self) -> bool {
        self.answer().0
    }

    /// Whether it works, and whether the node should get traffic.
    fn answer(&self) -> (bool, bool) {
        self.with(|state| {
            let waiting = state.pending.or_else(|| state.synced.is_none().then_some(state.started));
            let alive = waiting.is_none_or(|since| since.elapsed() < LATE);
            (alive, alive && state.synced.is_some() && !state.leaving)
        })
    }
}

/// Everything that is served.
#[derive(Debug, Clone)]
pub struct Pages {
    pub health: Arc<Health>,
    pub registry: Arc<Registry>,
    pub metrics: Metrics,
    pub mode: &'static str,
}

impl Pages {
    pub fn answer(&self, path: &str) -> Response<String> {
        let health = |ok: bool| if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let (alive, ready) = self.health.answer();
        let (status, body) = match path {
            "/healthz" => {
                self.metrics.healthz(ready);
                (health(ready), self.health.times(alive, &format!(",\"nodeEligible\": {ready}")))
            }
            "/livez" => {
                self.metrics.livez(alive);
                (health(alive), self.health.times(alive, ""))
            }
            "/metrics" => (StatusCode::OK, metrics::text(&self.registry)),
            "/proxyMode" => (StatusCode::OK, self.mode.into()),
            _ => (StatusCode::NOT_FOUND, "404 page not found\n".into()),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response
    }
}

/// Binds now and serves until the task is dropped, connections included. `answer` gets the path.
///
/// # Errors
/// Where the address is taken.
pub async fn listen(
    address: SocketAddr,
    answer: impl Fn(&str) -> Response<String> + Clone + Send + 'static,
) -> anyhow::Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    Ok(async move {
        let mut connections = JoinSet::new();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("cannot accept on {address}: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let answer = answer.clone();
            connections.spawn(async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let response = answer(request.uri().path());
                    std::future::ready(Ok::<_, Infallible>(response.map(|body| Full::new(Bytes::from(body)))))
                });
                // A client that goes away midway is its own affair.
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}
