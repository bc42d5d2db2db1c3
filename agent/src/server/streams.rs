//! exec, attach and port-forward: the runtime is asked for a URL, and the client's upgrade passes to it as raw bytes, be it
//! SPDY or WebSocket.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::v1::{AttachRequest, ExecRequest, ExecSyncRequest, PortForwardRequest};
use http::header::{CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::TcpStream;

use super::Parts;
use super::respond::{Answer, Refusal, text};
use super::route::Target;
use crate::pod::{ContainerPhase, ContainerRef};
use crate::runtime::RuntimeError;

/// How long the runtime may take to answer an upgrade.
const UPGRADE_WAIT: Duration = Duration::from_secs(30);
/// How much of an error of the runtime is passed on.
const MAX_ERROR: usize = 64 * 1024;

/// What an exec or attach wants of its streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
    pub command: Vec<String>,
    pub ports: Vec<i32>,
}

/// Reads the query of an exec, attach or port-forward.
pub(super) fn wanted(query_text: &str) -> Wanted {
    let mut wanted = Wanted::default();
    for (key, value) in query(query_text) {
        let set = matches!(value.as_str(), "1" | "true");
        match key.as_str() {
            "input" | "stdin" => wanted.stdin = set,
            "output" | "stdout" => wanted.stdout = set,
            "error" | "stderr" => wanted.stderr = set,
            "tty" => wanted.tty = set,
            "command" => wanted.command.push(value),
            "port" => wanted.ports.extend(value.split(',').filter_map(|p| p.parse::<i32>().ok())),
            _ => {}
        }
    }
    // A terminal has one output.
    wanted.stderr &= !wanted.tty;
    wanted
}

/// Keys and values of a query, decoded.
pub(super) fn query(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) fn find_pod(parts: &Parts, target: &Target) -> Option<Arc<Pod>> {
    parts.pods.find(&target.namespace, &target.pod, target.uid.as_deref())
}

fn running(parts: &Parts, target: &Target) -> Result<ContainerRef, Refusal> {
    let Some(pod) = find_pod(parts, target) else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "pod does not exist"));
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let found = parts.pods.container(uid, &target.container, false);
    found.filter(|c| matches!(c.phase, ContainerPhase::Running | ContainerPhase::Unknown)).ok_or_else(|| {
        let message = format!("unable to upgrade connection: container not found ({:?})", target.container);
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })
}

fn refused(error: &RuntimeError) -> Answer {
    text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

pub(super) async fn exec(parts: &Parts, target: &Target, request: Request<Incoming>) -> Answer {
    if let Some(refusal) = no_upgrade(request.headers()) {
        return refusal.into();
    }
    let container = match running(parts, target) {
        Ok(container) => container,
        Err(refusal) => return refusal.into(),
    };
    let wanted = wanted(request.uri().query().unwrap_or_default());
    if let Err(refusal) = some_stream(&wanted) {
        return refusal.into();
    }
    let ask = ExecRequest {
        container_id: container.id,
        cmd: wanted.command,
        tty: wanted.tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    match parts.runtime.exec(ask).await {
        Ok(answer) => forward(&answer.url, request).await,
        Err(error) => refused(&error),
    }
}

pub(super) async fn attach(parts: &Parts, target: &Target, request: Request<Incoming>) -> Answer {
    if let Some(refusal) = no_upgrade(request.headers()) {
        return refusal.into();
    }
    let container = match running(parts, target) {
        Ok(container) => container,
        Err(refusal) => return refusal.into(),
    };
    let wanted = wanted(request.uri().query().unwrap_or_default());
    if let Err(refusal) = some_stream(&wanted) {
        return refusal.into();
    }
    // Whether there is a terminal is the container's to say, not the client's.
    let tty = find_pod(parts, target).is_some_and(|pod| has_terminal(&pod, &target.container));
    let ask = AttachRequest {
        container_id: container.id,
        stdin: wanted.stdin,
        tty,
        stdout: wanted.stdout,
        stderr: wanted.stderr && !tty,
    };
    match parts.runtime.attach(ask).await {
        Ok(answer) => forward(&answer.url, request).await,
        Err(error) => refused(&error),
    }
}

fn has_terminal(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ordinary = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ordinary = ordinary.map(|c| (&c.name, c.tty));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.name, c.tty));
    ordinary.chain(ephemeral).any(|(n, tty)| n == name && tty == Some(true))
}

fn some_stream(wanted: &Wanted) -> Result<(), Refusal> {
    if wanted.stdin || wanted.stdout || wanted.stderr {
        return Ok(());
    }
    Err(Refusal::new(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr"))
}

pub(super) async fn port_forward(parts: &Parts, target: &Target, request: Request<Incoming>) -> Answer {
    if let Some(refusal) = no_upgrade(request.headers()) {
        return refusal.into();
    }
    let Some(pod) = find_pod(parts, target) else { return text(StatusCode::NOT_FOUND, "pod does not exist".into()) };
    let Some(sandbox) = parts.pods.sandbox(pod.metadata.uid.as_deref().unwrap_or_default()) else {
        let message = format!("failed to find sandbox of pod {:?} that is ready", target.pod);
        return text(StatusCode::INTERNAL_SERVER_ERROR, message);
    };
    let port = wanted(request.uri().query().unwrap_or_default()).ports;
    match parts.runtime.port_forward(PortForwardRequest { pod_sandbox_id: sandbox, port }).await {
        Ok(answer) => forward(&answer.url, request).await,
        Err(error) => refused(&error),
    }
}

/// /run: the command of `cmd`, split at spaces, to its end; both outputs are the answer.
pub(super) async fn run(parts: &Parts, target: &Target, query_text: &str) -> Answer {
    let container = match running(parts, target) {
        Ok(container) => container,
        Err(refusal) => return refusal.into(),
    };
    let command = query(query_text).find(|(key, _)| key == "cmd").map(|(_, value)| value).unwrap_or_default();
    let cmd = command.split(' ').map(String::from).collect();
    match parts.runtime.exec_sync(ExecSyncRequest { container_id: container.id, cmd, timeout: 0 }).await {
        Ok(done) => {
            let output = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
            let ok = done.exit_code == 0;
            text(if ok { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }, output)
        }
        Err(error) => refused(&error),
    }
}

/// The refusal of a request that asks for no upgrade.
fn no_upgrade(headers: &HeaderMap) -> Option<Refusal> {
    let message = "unable to upgrade: missing upgrade headers in request";
    (!wants_upgrade(headers)).then(|| Refusal::new(StatusCode::BAD_REQUEST, message))
}

/// Passes an upgrade on to the runtime's streaming server at `url`.
async fn forward(url: &str, request: Request<Incoming>) -> Answer {
    match tokio::time::timeout(UPGRADE_WAIT, connect(url, request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(reason)) => text(StatusCode::BAD_GATEWAY, format!("the runtime's streaming server {url}: {reason}")),
        Err(_) => text(StatusCode::GATEWAY_TIMEOUT, format!("the runtime's streaming server {url} does not answer")),
    }
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    headers.contains_key(UPGRADE) && connection.into_iter().any(|v| v.to_ascii_lowercase().contains("upgrade"))
}

async fn connect(url: &str, mut request: Request<Incoming>) -> Result<Answer, String> {
    let uri: Uri = url.parse().map_err(|_| "its URL cannot be read".to_owned())?;
    if uri.scheme_str() != Some("http") {
        return Err("only http is supported between the agent and the runtime".into());
    }
    let host = uri.host().ok_or("its URL has no host")?;
    let authority = uri.authority().map_or(host, |a| a.as_str());
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(80)));
    let stream = stream.await.map_err(|e| e.to_string())?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection.with_upgrades());

    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut ask = Request::new(Empty::<Bytes>::new());
    *ask.method_mut() = request.method().clone();
    *ask.uri_mut() = path.parse().map_err(|_| "its URL cannot be read".to_owned())?;
    *ask.headers_mut() = passed_on(request.headers(), authority)?;
    let mut answer = sender.send_request(ask).await.map_err(|e| e.to_string())?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(not_upgraded(answer, request.headers()).await);
    }
    let mut out = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *out.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *out.headers_mut() = answer.headers().clone();
    let (client, runtime) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
    tokio::spawn(async move {
        let (Ok(client), Ok(runtime)) = tokio::join!(client, runtime) else { return };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        let _ = tokio::io::copy_bidirectional(&mut client, &mut runtime).await;
    });
    Ok(out)
}

/// The client's headers but those that are its business with this server alone.
fn passed_on(headers: &HeaderMap, authority: &str) -> Result<HeaderMap, String> {
    let mut out = headers.clone();
    out.remove(http::header::AUTHORIZATION);
    out.remove(http::header::CONTENT_LENGTH);
    out.remove(http::header::TRANSFER_ENCODING);
    // The runtime compares a browser's origin with the host, which is another one here.
    out.remove(http::header::ORIGIN);
    out.insert(HOST, HeaderValue::from_str(authority).map_err(|e| e.to_string())?);
    Ok(out)
}

/// The runtime's own words, and for a WebSocket which protocols it did not take.
async fn not_upgraded(answer: Response<Incoming>, asked: &HeaderMap) -> Answer {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ERROR).collect().await;
    let said = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_owned()).unwrap_or_default();
    match asked.get(SEC_WEBSOCKET_PROTOCOL).and_then(|p| p.to_str().ok()) {
        Some(protocols) => {
            let message =
                format!("the container runtime does not speak WebSocket protocol {protocols:?}: {status} {said}");
            text(StatusCode::BAD_REQUEST, message)
        }
        None => text(status, said),
    }
}
