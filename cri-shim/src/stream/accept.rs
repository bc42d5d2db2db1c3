//! Connections of clients, and their one request each.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use lifecycle::Stop;
use streams::remote::Outcome;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::handshake::{self, Agreed, Kind};
use super::mux::Mux;
use super::remote::{self, Speech};
use super::transport::Transport;
use super::wire::Wire;
use super::{Executor, Prepared, StreamServer, Urls, forward, wanted_by_attach, wanted_by_exec};

/// How long a client may take to say what it wants.
const HEADERS: Duration = Duration::from_secs(30);
/// A pause when no connection can be accepted: mostly for want of descriptors.
const BREATH: Duration = Duration::from_millis(100);

type Body = Full<Bytes>;

#[derive(Clone)]
struct Server {
    urls: Urls,
    executor: Arc<dyn Executor>,
    idle: Duration,
    stop: Stop,
}

pub async fn serve(server: StreamServer, executor: Arc<dyn Executor>, stop: Stop) {
    let StreamServer { listener, urls, idle } = server;
    let server = Server { urls, executor, idle, stop: stop.clone() };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.stopped() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(server.clone(), stream))),
                Err(error) => {
                    tracing::warn!("cannot accept a client of exec, attach or port-forward: {error}");
                    tokio::time::sleep(BREATH).await;
                }
            },
        }
    }
}

async fn connection(server: Server, stream: TcpStream) {
    // Keys that are typed go out at once.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(answer(&server, request)) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    // A client that breaks HTTP is told so by hyper.
    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

fn answer(server: &Server, mut request: Request<Incoming>) -> Response<Body> {
    let prepared = match fetch(&server.urls, request.uri().path()) {
        Ok(prepared) => prepared,
        Err(why) => return refuse(StatusCode::NOT_FOUND, why),
    };
    let kind = if matches!(prepared, Prepared::PortForward(_)) { Kind::PortForward } else { Kind::Remote };
    let (agreed, response) = match handshake::agree(kind, request.method(), request.headers()) {
        Ok(agreed) => agreed,
        Err(refusal) => {
            let mut response = refuse(refusal.status(), refusal.to_string());
            response.headers_mut().extend(refusal.headers());
            return response;
        }
    };
    let (server, upgrade) = (server.clone(), hyper::upgrade::on(&mut request));
    tokio::spawn(async move {
        let serving = async {
            if let Ok(upgraded) = upgrade.await {
                stream(&server, prepared, agreed, upgraded).await;
            }
        };
        tokio::select! { () = serving => {}, () = server.stop.stopped() => {} }
    });
    response.map(|()| Body::default())
}

/// The request that a path names.
fn fetch(urls: &Urls, path: &str) -> Result<Prepared, String> {
    let unknown = || "no such stream: its URL is good once, and for a minute after it was asked for".to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let (Some(what), Some(token), None) = (parts.next(), parts.next(), parts.next()) else { return Err(unknown()) };
    let prepared = urls.redeem(token).ok_or_else(unknown)?;
    let right = match prepared {
        Prepared::Exec(_) => "exec",
        Prepared::Attach(_) => "attach",
        Prepared::PortForward(_) => "portforward",
    };
    if what == right { Ok(prepared) } else { Err(unknown()) }
}

fn refuse(status: StatusCode, why: String) -> Response<Body> {
    let mut response = Response::new(Body::from(why));
    *response.status_mut() = status;
    response
}

async fn stream(server: &Server, prepared: Prepared, agreed: Agreed, upgraded: Upgraded) {
    let (transport, wire) = match &agreed {
        Agreed::Spdy(_) => (Transport::Bytes(TokioIo::new(upgraded)), Wire::spdy()),
        Agreed::Tunnel => (Transport::websocket(upgraded, false).await, Wire::spdy()),
        Agreed::Channels(protocol) => {
            (Transport::websocket(upgraded, protocol.base64).await, Wire::channels(*protocol))
        }
    };
    let mux = Mux::new(transport, wire, server.idle);
    let speech = match &agreed {
        Agreed::Spdy(version) => Speech::Spdy(*version),
        Agreed::Channels(protocol) => Speech::Channels(*protocol),
        // Only port-forward is tunneled.
        Agreed::Tunnel => Speech::Spdy(handshake::Version { status: true, resize: true }),
    };
    let executor = server.executor.clone();
    match prepared {
        Prepared::Exec(request) => {
            let wanted = wanted_by_exec(&request);
            remote::serve(mux, wanted, speech, move |streams| executor.exec(request, streams)).await;
        }
        Prepared::Attach(request) => {
            let wanted = wanted_by_attach(&request);
            let work = move |streams| -> futures::future::BoxFuture<'static, Outcome> {
                let attached = executor.attach(request, streams);
                Box::pin(async move { attached.await.map_or_else(Outcome::Failed, |()| Outcome::Success) })
            };
            remote::serve(mux, wanted, speech, work).await;
        }
        Prepared::PortForward(request) => {
            let sandbox = request.pod_sandbox_id;
            if let Agreed::Channels(_) = agreed {
                let ports: Vec<u16> = request.port.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
                forward::serve_channels(mux, sandbox, &ports, executor).await;
            } else {
                forward::serve(mux, sandbox, executor).await;
            }
        }
    }
}
