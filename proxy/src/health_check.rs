//! Health check node ports: where a load balancer asks whether this node has endpoints of a Service whose external
//! traffic stays on the node. One small HTTP server for each such Service, with kube-proxy's answers.

use std::collections::BTreeMap;
use std::future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::{Response, StatusCode};
use lifecycle::http::listen;
use tokio::task::JoinSet;

use crate::model::{Facts, Name, NodePorts};
use crate::plan::HealthCheck;
use crate::server::Health;

#[derive(Debug)]
pub struct HealthChecks {
    health: Arc<Health>,
    servers: BTreeMap<Name, Server>,
}

#[derive(Debug)]
struct Server {
    port: u16,
    addresses: Vec<IpAddr>,
    ready: Arc<AtomicUsize>,
    /// Ends with this value. Empty where no address could be listened on.
    tasks: JoinSet<()>,
}

impl HealthChecks {
    pub fn new(health: Arc<Health>) -> Self {
        Self { health, servers: BTreeMap::new() }
    }

    /// Serves what is wanted on the addresses that node ports answer on, and nothing else.
    pub async fn follow(&mut self, wanted: &BTreeMap<Name, HealthCheck>, facts: &Facts) {
        let addresses = addresses(facts);
        let stays = |name: &Name, server: &Server| {
            wanted.get(name).is_some_and(|check| check.port == server.port)
                && server.addresses == addresses
                && !server.tasks.is_empty()
        };
        let (kept, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.servers).into_iter().partition(|(name, server)| stays(name, server));
        self.servers = kept;
        for mut server in ended.into_values() {
            // Its port may be wanted again at once.
            server.tasks.shutdown().await;
        }
        for (name, check) in wanted {
            match self.servers.get(name) {
                Some(server) => server.ready.store(check.ready, Ordering::Relaxed),
                None => {
                    let server = self.start(name, *check, addresses.clone()).await;
                    self.servers.insert(name.clone(), server);
                }
            }
        }
    }

    async fn start(&self, name: &Name, check: HealthCheck, addresses: Vec<IpAddr>) -> Server {
        let ready = Arc::new(AtomicUsize::new(check.ready));
        let mut tasks = JoinSet::new();
        for ip in &addresses {
            let (service, count, health) = (name.clone(), ready.clone(), self.health.clone());
            let answer = move |_| future::ready(answer(&service, count.load(Ordering::Relaxed), health.is_alive()));
            match listen(SocketAddr::new(*ip, check.port), answer).await {
                Ok(server) => drop(tasks.spawn(server)),
                // The host has no IPv6.
                Err(_) if *ip == Ipv6Addr::UNSPECIFIED && addresses.len() > 1 => {}
                Err(error) => tracing::warn!("load balancers cannot ask for {name}: {error:#}"),
            }
        }
        Server { port: check.port, addresses, ready, tasks }
    }
}

fn addresses(facts: &Facts) -> Vec<IpAddr> {
    match facts.node_ports {
        NodePorts::Listed => facts.node_ips.clone(),
        NodePorts::Everywhere | NodePorts::Localhost => {
            vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
        }
    }
}

/// Source: kube-proxy's pkg/proxy/healthcheck; load balancers of clouds read the code, some the weight.
fn answer(name: &str, ready: usize, alive: bool) -> Response<String> {
    let (namespace, name) = name.split_once('/').unwrap_or_default();
    let body = serde_json::json!({
        "service": { "namespace": namespace, "name": name },
        "localEndpoints": ready,
        "serviceProxyHealthy": alive,
    });
    let mut response = Response::new(body.to_string());
    if ready == 0 || !alive {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", hyper::header::HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", ready.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ready_endpoint_and_a_proxy_that_works_make_a_node_healthy() {
        assert_eq!(answer("a/b", 1, true).status(), 200);
        assert_eq!(answer("a/b", 0, true).status(), 503);
        let sick = answer("a/b", 2, false);
        assert_eq!(sick.status(), 503);
        assert_eq!(sick.headers()["x-load-balancing-endpoint-weight"], "2");
        let body: serde_json::Value = serde_json::from_str(sick.body()).unwrap();
        assert_eq!(body["service"]["name"], "b");
        assert_eq!((body["localEndpoints"].as_u64(), body["serviceProxyHealthy"].as_bool()), (Some(2), Some(false)));
    }

    #[tokio::test]
    async fn servers_come_and_go_with_their_services() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let facts = Facts { node_ips: vec![free.ip()], ..Facts::default() };
        let wanted = |ready| BTreeMap::from([(Name::from("a/b"), HealthCheck { port: free.port(), ready })]);
        let status = || async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = tokio::net::TcpStream::connect(free).await.ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await.ok()?;
            text.split(' ').nth(1).map(str::to_owned)
        };
        let mut checks = HealthChecks::new(Arc::default());
        checks.follow(&wanted(1), &facts).await;
        assert_eq!(status().await.as_deref(), Some("200"));
        checks.follow(&wanted(0), &facts).await;
        assert_eq!(status().await.as_deref(), Some("503"));
        let more = Facts { node_ips: vec![free.ip(), "127.0.0.2".parse().unwrap()], ..Facts::default() };
        checks.follow(&wanted(1), &more).await;
        assert_eq!(status().await.as_deref(), Some("200"), "on the same port with other addresses");
        checks.follow(&BTreeMap::new(), &facts).await;
        tokio::task::yield_now().await;
        assert_eq!(status().await, None);
    }
}
