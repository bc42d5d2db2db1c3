//! A kubelet without containers: it logs what it is asked, echoes, and speaks SPDY as a runtime does, which takes no
//! input while its output is not read.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lifecycle::pki::{Ca, Subject};
use streams::forward::ForwardStream;
use streams::remote::{Outcome, PROTOCOL_VERSION, StreamType, V4};
use streams::spdy::{Event, Session, Side, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Io = TokioIo<hyper::upgrade::Upgraded>;

/// Listens with a certificate of its own making; serves whoever shows one of the cluster's.
pub async fn start(ca: &Ca) -> SocketAddr {
    let identity = lifecycle::pki::Identity::self_signed(&Subject::server("n1", &["n1".into()], &[])).unwrap();
    let tls = lifecycle::tls::server_config(&identity, Some(ca.cert_pem())).unwrap();
    let tls = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let stream = tls.accept(stream).await.unwrap();
                assert!(stream.get_ref().1.peer_certificates().is_some(), "the API server shows who it is");
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .with_upgrades();
                let _ = connection.await;
            });
        }
    });
    address
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let plain = |code: u16, text: String| Ok(Response::builder().status(code).body(Full::from(text)).unwrap());
    let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let command: Vec<String> = pairs.iter().filter(|(key, _)| key == "command").map(|(_, word)| word.clone()).collect();
    if path.starts_with("/containerLogs/") {
        return match query.contains("previous") {
            true => plain(400, "container \"a\" in pod \"p\" is waiting to start: ContainerCreating".into()),
            false => plain(200, format!("{path} {query}\n")),
        };
    }
    if command == ["gone"] {
        return plain(404, "container not found (\"a\")".into());
    }
    let forward = path.starts_with("/portForward/");
    let offered = request.headers().get_all(PROTOCOL_VERSION);
    let offered: Vec<String> = offered.iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    let chosen = if forward { "portforward.k8s.io" } else { V4 };
    assert!(offered.iter().any(|version| version == chosen), "{offered:?}");
    let upgrade = hyper::upgrade::on(&mut request);
    let flags =
        ["input", "output", "error", "tty"].map(|flag| pairs.iter().any(|(key, value)| key == flag && value == "1"));
    tokio::spawn(async move {
        let io = TokioIo::new(upgrade.await.unwrap());
        if forward { serve_ports(io).await } else { serve_command(io, command, flags).await }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("Connection", "Upgrade")
        .header("Upgrade", "SPDY/3.1")
        .header(PROTOCOL_VERSION, chosen);
    Ok(response.body(Full::default()).unwrap())
}

/// Reads and handles until the peer is gone.
async fn drive(mut io: Io, mut handle: impl FnMut(&mut Session, Event)) {
    let mut session = Session::new(Side::Server);
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let Ok(read @ 1..) = io.read(&mut chunk).await else { return };
        for event in session.receive(&chunk[..read]).unwrap() {
            handle(&mut session, event);
        }
        // As a command that blocks in a write: nothing is read until this is through.
        if io.write_all(&session.take_output()).await.is_err() || io.flush().await.is_err() {
            return;
        }
    }
}

async fn serve_command(io: Io, command: Vec<String>, [input, output, error, tty]: [bool; 4]) {
    let expected = 1 + usize::from(input) + usize::from(output) + usize::from(error && !tty) + usize::from(tty);
    let mut streams: BTreeMap<StreamType, StreamId> = BTreeMap::new();
    drive(io, |session, event| match event {
        Event::Opened { id, headers } => {
            streams.insert(StreamType::of_headers(&headers).unwrap(), id);
            session.reply(id).unwrap();
            if streams.len() == expected {
                begin(session, &streams, &command);
            }
        }
        Event::Data { id, data } if streams.get(&StreamType::Stdin) == Some(&id) => {
            session.consumed(id, data.len());
            session.send(streams[&StreamType::Stdout], data).unwrap();
        }
        Event::Finished(id) if streams.get(&StreamType::Stdin) == Some(&id) => {
            end(session, &streams, Outcome::Success);
        }
        _ => {}
    })
    .await;
}

fn begin(session: &mut Session, streams: &BTreeMap<StreamType, StreamId>, command: &[String]) {
    match command.first().map(String::as_str) {
        Some("echo") => {
            let line = format!("{}\n", command[1..].join(" "));
            session.send(streams[&StreamType::Stdout], line.into()).unwrap();
            end(session, streams, Outcome::Success);
        }
        Some("fail") => {
            session.send(streams[&StreamType::Stderr], "oops\n".into()).unwrap();
            end(session, streams, Outcome::Exited(command[1].parse().unwrap()));
        }
        _ => {}
    }
}

fn end(session: &mut Session, streams: &BTreeMap<StreamType, StreamId>, outcome: Outcome) {
    session.send(streams[&StreamType::Error], outcome.to_status().to_string().into()).unwrap();
    streams.values().for_each(|id| session.finish(*id));
}

/// Gives back in capitals what comes to a port.
async fn serve_ports(io: Io) {
    let mut data_streams: Vec<StreamId> = Vec::new();
    drive(io, |session, event| match event {
        Event::Opened { id, headers } => {
            let stream = ForwardStream::of_headers(&headers).unwrap();
            assert_eq!(stream.port, 8080);
            if !stream.error {
                data_streams.push(id);
            }
            session.reply(id).unwrap();
        }
        Event::Data { id, data } => {
            session.consumed(id, data.len());
            session.send(id, data.to_ascii_uppercase().into()).unwrap();
        }
        Event::Finished(id) => session.finish(id),
        _ => {}
    })
    .await;
}
