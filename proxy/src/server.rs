//! /healthz and /livez on 10256, /metrics on 10249.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper::{Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use prometheus_client::registry::Registry;

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
