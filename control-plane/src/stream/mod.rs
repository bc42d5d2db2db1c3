//! Streams between clients and kubelets: logs, exec, attach, port-forward, and plain proxying.
//!
//! ```text
//! client                              API server                              kubelet
//! GET log ───────────────────────────▶ locate ───────────── GET /containerLogs ──▶
//! POST, Upgrade: SPDY/3.1 ───────────▶ splice ───────────── the same bytes ──────▶
//! GET, WebSocket v5...base64.channel ▶ translate ────────── SPDY/3.1, v4 ────────▶
//! GET, WebSocket SPDY/3.1+portforward▶ tunnel ───────────── SPDY/3.1 ────────────▶
//! ```
//!
//! Each stream is one task that ends with either of its connections.

mod headers;
mod kubelet;
mod locate;
mod logs;
mod options;
mod proxy;
mod pump;
mod splice;
mod translate;
mod tunnel;
mod websocket;

use std::sync::Arc;

use api::status::Status;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::ports::{Body, ConnectRequest, Connector};
use crate::registry::Subresource;
use crate::server::Server;
use kubelet::{Kubelet, Target};
use options::{Query, Remote};

/// Reaches kubelets under the API server's own identity.
pub struct Streams {
    kubelet: Arc<Kubelet>,
}

impl Streams {
    /// `tls` holds the client certificate that kubelets know (`apiserver-kubelet-client`), and whom they must be.
    pub fn new(tls: rustls::ClientConfig) -> Self {
        Self { kubelet: Arc::new(Kubelet::new(tls)) }
    }

    async fn serve(&self, server: &Server, asked: ConnectRequest) -> Result<http::Response<Body>, Status> {
        let query = Query::parse(asked.request.uri().query());
        if asked.subresource == Subresource::Proxy {
            return proxy::serve(&self.kubelet, server, asked).await;
        }
        let pod = server.get(asked.resource, &asked.namespace, &asked.name).await?;
        match asked.subresource {
            Subresource::Log => logs::serve(&self.kubelet, server, &pod, &query).await,
            Subresource::PortForward => {
                let path = format!("/portForward/{}/{}{}", asked.namespace, asked.name, query.ports());
                let target = place(server, &pod).await?;
                tunnel::serve(self.kubelet.clone(), target, path, asked.request).await
            }
            Subresource::Exec | Subresource::Attach => {
                let verb = if asked.subresource == Subresource::Exec { "exec" } else { "attach" };
                let container = locate::container(&pod, query.get("container"))?;
                let remote = Remote::of(&query);
                let path = format!("/{verb}/{}/{}/{container}{}", asked.namespace, asked.name, remote.query(&query));
                let target = place(server, &pod).await?;
                translate::serve(self.kubelet.clone(), target, (path, remote), asked.request).await
            }
            _ => Err(Status::method_not_allowed()),
        }
    }
}

impl Connector for Streams {
    fn connect<'a>(
        &'a self,
        server: &'a Arc<Server>,
        request: ConnectRequest,
    ) -> BoxFuture<'a, Result<http::Response<Body>, Status>> {
        Box::pin(self.serve(server, request))
    }
}

/// The kubelet of a pod that must have one.
async fn place(server: &Server, pod: &Value) -> Result<Target, Status> {
    match locate::node(pod) {
        Some(node) => kubelet_of(server, node).await,
        None => Err(Status::bad_request(format!("pod {} does not have a host assigned", api::meta::name(pod)))),
    }
}

async fn kubelet_of(server: &Server, node: &str) -> Result<Target, Status> {
    let resource = server.resource("", "nodes").ok_or_else(|| Status::not_found("nodes", node))?;
    let node = server.get(resource, "", node).await?;
    locate::kubelet(&node, &server.config.kubelet_preferred_address_types)
}
