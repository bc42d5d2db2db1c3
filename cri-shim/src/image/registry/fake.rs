//! A registry for tests: it answers as it is told, also with what no registry should.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub authorization: String,
    pub range: String,
    pub body: String,
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Whole,
    Break,
    Stall,
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    pub ending: Ending,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), ending: Ending::Whole }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn ending(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }
}

pub type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// A server that lives as long as this.
pub struct Fake {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: JoinSet<()>,
}

impl Fake {
    pub async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(Arc::new(handler), None).await
    }

    pub async fn start_tls(tls: ServerConfig, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(Arc::new(handler), Some(TlsAcceptor::from(Arc::new(tls)))).await
    }

    async fn serve(handler: Handler, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let mut task = JoinSet::new();
        let log = seen.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, log, tls) = (handler.clone(), log.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => connection(stream, handler, log).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, handler, log).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen, _task: task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// `METHOD PATH` of each request.
    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: Handler,
    log: Arc<Mutex<Vec<Seen>>>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, log) = (handler.clone(), log.clone());
        async move {
            let seen = read(request).await;
            let reply = handler(&seen);
            log.lock().unwrap().push(seen);
            Ok::<_, Infallible>(response(reply))
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn read(request: Request<Incoming>) -> Seen {
    let text =
        |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        authorization: text("authorization"),
        range: text("range"),
        body: String::from_utf8(request.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap(),
    }
}

/// After what was sent before has left.
async fn broken() -> std::io::Result<Frame<Bytes>> {
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    Err(std::io::Error::other("broken on purpose"))
}

fn response(reply: Reply) -> Response<UnsyncBoxBody<Bytes, std::io::Error>> {
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    let end = match reply.ending {
        Ending::Whole => stream::empty().boxed(),
        Ending::Break => stream::once(broken()).boxed(),
        Ending::Stall => stream::pending().boxed(),
    };
    let body = stream::iter([Ok(Frame::data(reply.body))]).chain(end);
    response.body(UnsyncBoxBody::new(StreamBody::new(body))).unwrap()
}
