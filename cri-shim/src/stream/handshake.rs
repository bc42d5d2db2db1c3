//! Which protocol a request for a stream becomes, and the answer that says so. Pure.
//!
//! Over SPDY the versions are offered in `X-Stream-Protocol-Version`, over WebSocket in `Sec-WebSocket-Protocol`.
//! Source: k8s.io/apimachinery/pkg/util/httpstream, KEP-4006.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use streams::channel::Protocol;
use streams::forward::{self, TUNNEL_PREFIX};
use streams::remote::{PROTOCOL_VERSION, V4};
use streams::spdy;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The header of a refusal that lists what would have been accepted.
const ACCEPTED_VERSIONS: header::HeaderName = header::HeaderName::from_static("x-accepted-stream-protocol-versions");
const V3: &str = "v3.channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
/// The first version; a client that offers none means it.
const V1: &str = "channel.k8s.io";

/// The two families of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Exec and attach.
    Remote,
    PortForward,
}

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreed {
    Spdy(Version),
    Channels(Protocol),
    /// SPDY in the messages of a WebSocket.
    Tunnel,
}

/// What a version of exec and attach over SPDY can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The error stream carries a `Status`; a plain message otherwise.
    pub status: bool,
    pub resize: bool,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("unable to upgrade: exec, attach and port-forward are asked for by GET or POST")]
    Method,
    #[error(
        "unable to upgrade: the request asks for neither SPDY/3.1 nor a WebSocket; see the Connection and Upgrade headers"
    )]
    NoUpgrade,
    #[error("unable to upgrade: missing or bad WebSocket version or key")]
    WebSocket,
    #[error("unable to upgrade: none of the protocols {offered:?} is served; serving {served:?}")]
    Protocol { offered: Vec<String>, served: &'static [&'static str] },
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoUpgrade | Self::WebSocket => StatusCode::BAD_REQUEST,
            Self::Protocol { .. } => StatusCode::FORBIDDEN,
        }
    }

    /// Headers of the answer.
    pub fn headers(&self) -> HeaderMap {
        let Self::Protocol { served, .. } = self else { return HeaderMap::new() };

        served.iter().map(|version| (ACCEPTED_VERSIONS, HeaderValue::from_static(version))).collect()
    }
}

/// Agrees with a client, or says why not. The response has no body.
///
/// # Errors
/// Where the request is no upgrade to what is served.
pub fn agree(kind: Kind, method: &Method, headers: &HeaderMap) -> Result<(Agreed, Response<()>), Refusal> {
    if *method != Method::GET && *method != Method::POST {
        return Err(Refusal::Method);
    }
    match upgrade(headers).map(str::to_ascii_lowercase).as_deref() {
        Some("websocket") => websocket(kind, headers),
        Some(protocol) if protocol.eq_ignore_ascii_case(spdy::UPGRADE) => over_spdy(kind, headers),
        _ => Err(Refusal::NoUpgrade),
    }
}

/// The protocol that a request wants to change to.
fn upgrade(headers: &HeaderMap) -> Option<&str> {
    let asks = values(headers, header::CONNECTION.as_str())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE)?.to_str().ok().filter(|_| asks)
}

fn over_spdy(kind: Kind, headers: &HeaderMap) -> Result<(Agreed, Response<()>), Refusal> {
    let offered: Vec<&str> = values(headers, PROTOCOL_VERSION).flat_map(|v| v.split(',')).map(str::trim).collect();
    let served: &'static [&'static str] = match kind {
        Kind::Remote => &[V4, V3, V2, V1],
        Kind::PortForward => &[forward::PROTOCOL],
    };
    let oldest = served[served.len() - 1];
    let version = match offered[..] {
        [] => Some(oldest),
        _ => offered.iter().find_map(|offer| served.iter().find(|version| *version == offer)).copied(),
    };
    let version = version.ok_or_else(|| Refusal::Protocol {
        offered: offered.iter().map(|offer| (*offer).to_owned()).collect(),
        served,
    })?;
    let mut response = switching(spdy::UPGRADE);
    if !offered.is_empty() {
        response.headers_mut().insert(PROTOCOL_VERSION, HeaderValue::from_static(version));
    }
    let version = Version { status: version == V4, resize: version == V4 || version == V3 };
    Ok((Agreed::Spdy(version), response))
}

fn websocket(kind: Kind, headers: &HeaderMap) -> Result<(Agreed, Response<()>), Refusal> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or(Refusal::WebSocket)?;
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::WebSocket);
    }
    let offered = || values(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str());
    let refuse = |served| Refusal::Protocol { offered: offered().map(str::to_owned).collect(), served };
    let (agreed, name) = match kind {
        Kind::Remote => {
            let protocol =
                Protocol::negotiate(offered()).ok_or_else(|| refuse(&["v5.channel.k8s.io", V4, V3, V2, V1]))?;
            (Agreed::Channels(protocol), protocol.name.to_owned())
        }
        Kind::PortForward => match forward::tunneled(offered()) {
            Some(forward::PROTOCOL) => (Agreed::Tunnel, format!("{TUNNEL_PREFIX}{}", forward::PROTOCOL)),
            _ => {
                let protocol = Protocol::negotiate(offered())
                    .filter(|protocol| protocol.name.is_empty() || protocol.name.starts_with("v4."))
                    .ok_or_else(|| refuse(&["SPDY/3.1+portforward.k8s.io", V4]))?;
                (Agreed::Channels(protocol), protocol.name.to_owned())
            }
        },
    };
    let mut response = switching("websocket");
    let mut put = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    put(header::SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()));
    if !name.is_empty() {
        put(header::SEC_WEBSOCKET_PROTOCOL, &name);
    }
    Ok((agreed, response))
}

fn switching(protocol: &'static str) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    fn ask(kind: Kind, pairs: &[(&'static str, &'static str)]) -> Result<(Agreed, Response<()>), Refusal> {
        agree(kind, &Method::POST, &headers(pairs))
    }

    const SPDY: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn spdy_takes_the_clients_first_version_that_is_served() {
        let version = |offers: &[&'static str]| {
            let offers = offers.iter().map(|offer| ("x-stream-protocol-version", *offer));
            ask(Kind::Remote, &SPDY.into_iter().chain(offers).collect::<Vec<_>>())
        };
        let (agreed, response) = version(&["v9.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io"]).unwrap();
        assert_eq!(agreed, Agreed::Spdy(Version { status: false, resize: true }));
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()[PROTOCOL_VERSION], "v3.channel.k8s.io");

        let (agreed, response) = version(&[]).unwrap();
        assert_eq!(agreed, Agreed::Spdy(Version { status: false, resize: false }));
        assert!(!response.headers().contains_key(PROTOCOL_VERSION));

        let refusal = version(&["v9.channel.k8s.io"]).unwrap_err();
        assert_eq!(refusal.status(), 403);
        let accepted: Vec<_> = refusal.headers().get_all(ACCEPTED_VERSIONS).iter().cloned().collect();
        assert_eq!(accepted, [V4, V3, V2, V1]);
    }

    #[test]
    fn websockets_are_channels_or_a_tunnel() {
        let ask = |kind, offer| ask(kind, &[&WEBSOCKET[..], &[("sec-websocket-protocol", offer)]].concat());
        let (agreed, response) = ask(Kind::Remote, "v5.channel.k8s.io, v4.channel.k8s.io").unwrap();
        assert!(matches!(agreed, Agreed::Channels(protocol) if protocol.closes));
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

        let (agreed, response) = ask(Kind::PortForward, "SPDY/3.1+portforward.k8s.io").unwrap();
        assert_eq!(agreed, Agreed::Tunnel);
        assert_eq!(response.headers()["sec-websocket-protocol"], "SPDY/3.1+portforward.k8s.io");
        assert!(matches!(ask(Kind::PortForward, V4).unwrap().0, Agreed::Channels(_)));
        assert_eq!(ask(Kind::PortForward, "v5.channel.k8s.io").unwrap_err().status(), 403);
        assert_eq!(ask(Kind::Remote, "soap").unwrap_err().status(), 403);
    }

    #[test]
    fn what_is_no_upgrade_is_refused() {
        assert_eq!(ask(Kind::Remote, &[]).unwrap_err(), Refusal::NoUpgrade);
        assert_eq!(ask(Kind::Remote, &[("upgrade", "SPDY/3.1")]).unwrap_err(), Refusal::NoUpgrade);
        assert_eq!(ask(Kind::Remote, &WEBSOCKET[..3]).unwrap_err(), Refusal::WebSocket);
        assert_eq!(agree(Kind::Remote, &Method::PUT, &headers(&SPDY)).unwrap_err().status(), 405);
    }
}
