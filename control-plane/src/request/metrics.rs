//! `/metrics`, with the names of the original.

use std::time::Duration;

use api::status::Status;
use http::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::body;
use crate::ports::Body;
use crate::server::Server;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verb: String,
    resource: String,
    subresource: String,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    verb: String,
    resource: String,
}

/// What the server counts.
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    durations: Family<Timed, Histogram, fn() -> Histogram>,
    revision: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let buckets: fn() -> Histogram =
            || Histogram::new([0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0]);
        let durations = Family::new_with_constructor(buckets);
        let revision = Gauge::default();
        registry.register("apiserver_request", "Requests by verb, resource and code", requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Time from a request to its answer, watches and streams aside",
            durations.clone(),
        );
        registry.register("apiserver_store_revision", "The newest revision of the store", revision.clone());
        Self { registry, requests, durations, revision }
    }
}

impl Metrics {
    /// Takes up an answered request: verb, resource, subresource.
    pub(super) fn observe(&self, label: (String, String, String), code: u16, took: Duration) {
        let (verb, resource, subresource) = label;
        let streams = verb == "watch" || code == 101;
        let timed = Timed { verb: verb.clone(), resource: resource.clone() };
        self.requests.get_or_create(&Labels { verb, resource, subresource, code: code.into() }).inc();
        if !streams {
            self.durations.get_or_create(&timed).observe(took.as_secs_f64());
        }
    }
}

/// `/metrics`
pub(super) fn answer(server: &Server) -> Result<Response<Body>, Status> {
    let metrics = &server.metrics;
    metrics.revision.set(i64::try_from(server.store.revision()).unwrap_or(i64::MAX));
    let mut text = String::new();
    encode(&mut text, &metrics.registry).map_err(Status::internal)?;
    Ok(body::answer(200, "application/openmetrics-text; version=1.0.0; charset=utf-8", text))
}
