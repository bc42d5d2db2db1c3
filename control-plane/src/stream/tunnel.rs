//! Port-forward. A client that speaks SPDY is passed through; one that tunnels SPDY through WebSocket (KEP-4006) sends
//! its bytes in binary messages, wherever these begin and end. The kubelet sees the same SPDY connection from both.

use std::sync::Arc;

use api::status::Status;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use streams::forward::{TUNNEL_PREFIX, tunneled};
use streams::remote::PROTOCOL_VERSION;
use streams::spdy;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::kubelet::{Kubelet, Target, Upgraded};
use super::pump::{self, Outbox, Relay};
use super::{headers, splice, websocket};
use crate::ports::Body;

/// # Errors
/// Where the request is no upgrade, or the kubelet refuses.
pub async fn serve(
    kubelet: Arc<Kubelet>,
    target: Target,
    path: String,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let websocket = headers::is_websocket(request.headers());
    let offered = headers::values(request.headers(), header::SEC_WEBSOCKET_PROTOCOL.as_str());
    let Some(inner) = tunneled(offered).filter(|_| websocket).map(str::to_owned) else {
        return splice::serve(&kubelet, &target, &path, request).await;
    };
    let mut wanted = HeaderMap::new();
    wanted.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    wanted.insert(header::UPGRADE, HeaderValue::from_static(spdy::UPGRADE));
    wanted.insert(PROTOCOL_VERSION, inner.parse().map_err(|_| Status::bad_request("bad WebSocket protocol"))?);
    // The kubelet answers first: its refusal is the client's.
    let backend = match kubelet.upgrade(&target, Method::POST, &path, wanted).await? {
        Upgraded::Yes(_, backend) => backend,
        Upgraded::No(answer) => return splice::passed_on(answer),
    };
    let (response, socket) = websocket::accept(&mut request, &format!("{TUNNEL_PREFIX}{inner}"))?;
    tokio::spawn(async move {
        if let Ok(client) = socket.await {
            pump::run(client, backend, &mut Tunnel, Outbox::default()).await;
        }
    });
    Ok(response)
}

/// Messages to bytes and back.
struct Tunnel;

impl Relay for Tunnel {
    fn client_sent(&mut self, message: Bytes, out: &mut Outbox) {
        out.to_kubelet.extend_from_slice(&message);
    }

    fn kubelet_sent(&mut self, bytes: &[u8], out: &mut Outbox) {
        out.send(Message::Binary(Bytes::copy_from_slice(bytes)));
    }

    fn kubelet_closed(&mut self, out: &mut Outbox) {
        if !out.done {
            out.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })));
            out.done = true;
        }
    }
}
