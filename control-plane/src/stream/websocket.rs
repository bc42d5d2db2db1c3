//! The server's half of a WebSocket opening (RFC 6455, 4.2), and its messages.

use api::status::Status;
use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::kubelet::empty;
use crate::ports::Body;

/// A client's connection after the opening.
pub type WebSocket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Accepts the opening with a subprotocol (none where it is empty): the answer, and the connection once it was sent.
///
/// # Errors
/// 400 where the request is no opening.
pub fn accept(
    request: &mut Request<Body>,
    protocol: &str,
) -> Result<(Response<Body>, impl Future<Output = Result<WebSocket, hyper::Error>> + use<>), Status> {
    let refuse = |why: &str| Status::bad_request(format!("unable to upgrade: {why}"));
    let headers = request.headers();
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(refuse("missing or bad WebSocket version"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| refuse("missing WebSocket key"))?;
    let accept = derive_accept_key(key.as_bytes());
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let response = response.body(empty()).map_err(|e| refuse(&e.to_string()))?;
    let upgrade = hyper::upgrade::on(request);
    let socket = async move {
        let io = TokioIo::new(upgrade.await?);
        Ok(WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await)
    };
    Ok((response, socket))
}

/// Small buffers: an idle stream costs little.
fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_message_size(Some(4 * 1024 * 1024))
        .max_frame_size(Some(4 * 1024 * 1024))
}
