//! Probes by HTTP GET, with the kubelet's rules: 200 to 399 is healthy, redirects are followed on the same host only,
//! a certificate is not verified.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ContainerPort, HTTPGetAction};
use lifecycle::tls::{ServerTrust, client_config};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{MAX_MESSAGE, Outcome, clip, dial_error, host_port, port};

const MAX_REDIRECTS: usize = 10;

/// What a probe asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTarget {
    pub https: bool,
    pub host: String,
    pub port: u16,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl HttpTarget {
    /// The URL as messages name it.
    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", host_port(&self.host, self.port), self.path)
    }
}

/// The request of an action on a pod with this address.
///
/// # Errors
/// A reason, where a named port is unknown.
pub fn http_target(action: &HTTPGetAction, address: IpAddr, ports: &[ContainerPort]) -> Result<HttpTarget, String> {
    let path = action.path.as_deref().unwrap_or("/");
    let headers = action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone()));
    Ok(HttpTarget {
        https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host: action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| address.to_string()),
        port: port(&action.port, ports)?,
        path: if path.starts_with('/') { path.into() } else { format!("/{path}") },
        headers: headers.collect(),
    })
}

struct Answer {
    status: u16,
    location: Option<String>,
    body: String,
}

pub(super) async fn probe(target: &HttpTarget, timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, ask(target)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            target.url()
        )),
    }
}

async fn ask(target: &HttpTarget) -> Outcome {
    let mut here = target.clone();
    for _ in 0..=MAX_REDIRECTS {
        let answer = match get(&here).await {
            Ok(answer) => answer,
            Err(reason) => return Outcome::Failure(format!("Get {:?}: {reason}", here.url())),
        };
        let redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        match answer.location.filter(|_| redirect).and_then(|location| follow(&here, &location)) {
            Some(next) if next.host == target.host => here = next,
            Some(_) => return Outcome::Warning(format!("Probe terminated redirects, Response body: {}", answer.body)),
            None if (200..400).contains(&answer.status) => return Outcome::Success,
            None => return Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status)),
        }
    }
    Outcome::Failure(format!("Get {:?}: stopped after {MAX_REDIRECTS} redirects", here.url()))
}

/// Where a `Location` leads from here; `None` if it is no URL.
fn follow(from: &HttpTarget, location: &str) -> Option<HttpTarget> {
    let uri: Uri = location.parse().ok()?;
    let mut next = from.clone();
    if let Some(host) = uri.host() {
        next.https = uri.scheme_str() == Some("https");
        next.host = host.trim_matches(['[', ']']).into();
        next.port = uri.port_u16().unwrap_or(if next.https { 443 } else { 80 });
    }
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    next.path = if path.starts_with('/') {
        path.into()
    } else {
        let folder = from.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{folder}/{path}")
    };
    Some(next)
}

async fn get(target: &HttpTarget) -> Result<Answer, String> {
    let address = host_port(&target.host, target.port);
    let stream = TcpStream::connect(&address).await.map_err(|e| format!("dial tcp {address}: {}", dial_error(&e)))?;
    let _ = stream.set_nodelay(true);
    if !target.https {
        return exchange(TokioIo::new(stream), target).await;
    }
    let config = client_config(ServerTrust::Anybody, None).map_err(|e| e.to_string())?;
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())?;
    exchange(TokioIo::new(stream), target).await
}

async fn exchange<S>(io: TokioIo<S>, target: &HttpTarget) -> Result<Answer, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(io).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(connection);
    let result = async {
        let mut request = Request::get(&target.path).body(Empty::new()).map_err(|e| e.to_string())?;
        *request.headers_mut() = headers(target);
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| if e.is_incomplete_message() { "EOF".into() } else { e.to_string() })?;
        let status = answer.status().as_u16();
        let location = answer.headers().get(LOCATION).and_then(|v| v.to_str().ok()).map(String::from);
        Ok(Answer { status, location, body: body(answer.into_body()).await })
    }
    .await;
    driver.abort();
    result
}

async fn body(mut body: hyper::body::Incoming) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_MESSAGE {
        let Some(Ok(frame)) = body.frame().await else { break };
        bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
    }
    clip(String::from_utf8_lossy(&bytes).into_owned())
}

/// The probe's own headers first; an empty `User-Agent` or `Accept` of the user means none at all.
fn headers(target: &HttpTarget) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &target.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    for (name, default) in [(USER_AGENT, "kube-probe/1.37"), (ACCEPT, "*/*")] {
        match headers.get(&name) {
            None => drop(headers.insert(name, HeaderValue::from_static(default))),
            Some(value) if value.is_empty() => drop(headers.remove(name)),
            Some(_) => {}
        }
    }
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&host_port(&target.host, target.port))
    {
        headers.insert(HOST, host);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers
}
