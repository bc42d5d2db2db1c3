//! The server as its clients see it: a SPDY client made of the `streams` crate, and a WebSocket client.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::HeaderMap;
use hyper_util::rt::TokioIo;
use streams::channel::{Protocol, Received};
use streams::forward::{ForwardStream, PROTOCOL};
use streams::remote::{PROTOCOL_VERSION, StreamType, V4};
use streams::spdy::{Event, Session, Side};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// Commands: `cat` copies its input to its output and `yes` writes until nobody listens; `exit N` does, after a word on
/// both outputs; `sizes N` tells the first N sizes of the terminal; `wait` waits for the client to leave.
#[derive(Default)]
struct Commands {
    left: Arc<AtomicUsize>,
}

async fn run(command: Vec<String>, mut streams: Streams, left: Arc<AtomicUsize>) -> Outcome {
    let mut stdout = streams.stdout.take();
    let number = command.get(1).and_then(|n| n.parse::<i32>().ok()).unwrap_or_default();
    match (command[0].as_str(), &mut stdout) {
        ("cat", Some(stdout)) => match tokio::io::copy(&mut streams.stdin.unwrap(), stdout).await {
            Ok(_) => Outcome::Success,
            Err(error) => {
                left.fetch_add(1, Ordering::SeqCst);
                Outcome::Failed(error.to_string())
            }
        },
        ("yes", Some(stdout)) => {
            while stdout.write_all(&[b'y'; 1000]).await.is_ok() {}
            left.fetch_add(1, Ordering::SeqCst);
            Outcome::Success
        }
        ("exit", stdout) => {
            if let Some(stdout) = stdout {
                stdout.write_all(b"out").await.unwrap();
            }
            if let Some(stderr) = &mut streams.stderr {
                stderr.write_all(b"err").await.unwrap();
            }
            if number == 0 { Outcome::Success } else { Outcome::Exited(number) }
        }
        ("sizes", Some(stdout)) => {
            for _ in 0..number {
                let (width, height) = streams.resize.recv().await.unwrap();
                stdout.write_all(format!("{width}x{height} ").as_bytes()).await.unwrap();
            }
            Outcome::Success
        }
        ("wait", _) => {
            streams.gone.cancelled().await;
            left.fetch_add(1, Ordering::SeqCst);
            Outcome::Success
        }
        (other, _) => Outcome::Failed(format!("no such command {other:?}")),
    }
}

impl Executor for Commands {
    fn exec(&self, request: ExecRequest, streams: Streams) -> BoxFuture<'static, Outcome> {
        Box::pin(run(request.cmd, streams, self.left.clone()))
    }

    fn attach(&self, request: AttachRequest, mut streams: Streams) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move {
            let stdout = streams.stdout.as_mut().ok_or("no output")?;
            stdout.write_all(request.container_id.as_bytes()).await.map_err(|error| error.to_string())
        })
    }

    /// Port 7 echoes, the others refuse.
    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
        mut stream: Box<dyn Connection>,
    ) -> BoxFuture<'static, Result<(), String>> {
        let sandbox = sandbox.to_owned();
        Box::pin(async move {
            if port != 7 {
                return Err("connection refused".into());
            }
            stream.write_all(sandbox.as_bytes()).await.map_err(|error| error.to_string())?;
            let (mut from, mut to) = tokio::io::split(stream);
            tokio::io::copy(&mut from, &mut to).await.map_err(|error| error.to_string())?;
            to.shutdown().await.map_err(|error| error.to_string())
        })
    }
}

struct Bed {
    urls: Urls,
    left: Arc<AtomicUsize>,
    stop: Stop,
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

async fn bed_with(idle: Duration) -> Bed {
    let server = StreamServer::bind("127.0.0.1:0", idle).await.unwrap();
    let (urls, stop, commands) = (server.urls(), Stop::new(), Commands::default());
    let left = commands.left.clone();
    tokio::spawn(server.serve(Arc::new(commands), stop.clone()));
    Bed { urls, left, stop }
}

async fn bed() -> Bed {
    bed_with(IDLE).await
}

impl Bed {
    async fn clients_left(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.left.load(Ordering::SeqCst) < count && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.left.load(Ordering::SeqCst), count);
    }
}

fn exec(command: &[&str], flags: &str) -> ExecRequest {
    ExecRequest {
        container_id: "c1".into(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: flags.contains('t'),
        stdin: flags.contains('i'),
        stdout: flags.contains('o'),
        stderr: flags.contains('e'),
    }
}

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Asks for an upgrade; the answer, and the connection where it was granted.
async fn upgrade(url: &str, protocol: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Option<Upgraded>) {
    let uri: http::Uri = url.parse().unwrap();
    let stream = TcpStream::connect(uri.authority().unwrap().as_str()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = http::Request::post(uri.path())
        .header("host", uri.authority().unwrap().as_str())
        .header("connection", "Upgrade")
        .header("upgrade", protocol);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let mut response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let upgraded = match status {
        101 => Some(TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap())),
        _ => None,
    };
    (status, response.headers().clone(), upgraded)
}

/// A client over SPDY.
struct Spdy<T> {
    io: T,
    session: Session,
    got: BTreeMap<u32, Vec<u8>>,
    replied: usize,
    finished: Vec<u32>,
    reset: Vec<u32>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Spdy<T> {
    fn new(io: T) -> Self {
        let session = Session::new(Side::Client);
        Self { io, session, got: BTreeMap::new(), replied: 0, finished: Vec::new(), reset: Vec::new() }
    }

    async fn flush(&mut self) {
        let output = self.session.take_output();
        self.io.write_all(&output).await.unwrap();
    }

    /// Reads once; false at the end of the connection.
    async fn turn(&mut self) -> bool {
        self.flush().await;
        let mut chunk = vec![0; 16 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.io.read(&mut chunk)).await.expect("nothing came");
        let read = read.unwrap_or(0);
        for event in self.session.receive(&chunk[..read]).unwrap() {
            match event {
                Event::Data { id, data } => {
                    self.session.consumed(id, data.len());
                    self.got.entry(id).or_default().extend_from_slice(&data);
                }
                Event::Finished(id) => self.finished.push(id),
                Event::Reset { id, .. } => self.reset.push(id),
                Event::Replied(_) => self.replied += 1,
                Event::Opened { .. } | Event::GoAway => {}
            }
        }
        read > 0
    }

    async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.turn().await, "the connection ended early");
        }
    }

    fn open(&mut self, kind: StreamType) -> u32 {
        self.session.open(kind.headers()).unwrap()
    }

    fn send(&mut self, id: u32, data: impl Into<Bytes>) {
        self.session.send(id, data.into()).unwrap();
    }

    fn text(&self, id: u32) -> &str {
        self.got.get(&id).map_or("", |got| std::str::from_utf8(got).unwrap())
    }
}

async fn spdy(url: &str, version: &str) -> Spdy<Upgraded> {
    let (status, headers, upgraded) = upgrade(url, "SPDY/3.1", &[(PROTOCOL_VERSION, version)]).await;
    assert_eq!((status, headers[PROTOCOL_VERSION].to_str().unwrap()), (101, version));
    Spdy::new(upgraded.unwrap())
}

const KEY: [(&str, &str); 2] = [("sec-websocket-version", "13"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];

async fn websocket(url: &str, protocol: &str) -> WebSocketStream<Upgraded> {
    let headers = [&KEY[..], &[("sec-websocket-protocol", protocol)]].concat();
    let (status, headers, upgraded) = upgrade(url, "websocket", &headers).await;
    assert_eq!((status, headers["sec-websocket-protocol"].to_str().unwrap()), (101, protocol));
    WebSocketStream::from_raw_socket(upgraded.unwrap(), Role::Client, None).await
}

/// What came on each channel, until the server closed.
async fn channels(socket: &mut WebSocketStream<Upgraded>, protocol: Protocol) -> BTreeMap<u8, String> {
    let mut got = BTreeMap::<u8, String>::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.expect("nothing came");
        let data: Bytes = match message.expect("no close").unwrap() {
            Message::Binary(data) if !protocol.base64 => data,
            Message::Text(text) if protocol.base64 => text.into(),
            Message::Close(_) => return got,
            other => panic!("{other:?}"),
        };
        let Received::Data { channel, data } = protocol.decode(data).unwrap() else { panic!() };
        got.entry(channel).or_default().push_str(std::str::from_utf8(&data).unwrap());
    }
}

fn status(outcome: &Outcome) -> String {
    outcome.to_status().to_string()
}

#[tokio::test]
async fn spdy_carries_outputs_and_the_exit_status() {
    let bed = bed().await;
    for (version, told) in [
        (V4, status(&Outcome::Exited(3))),
        ("v3.channel.k8s.io", Outcome::Exited(3).message()),
        ("v2.channel.k8s.io", Outcome::Exited(3).message()),
        ("channel.k8s.io", Outcome::Exited(3).message()),
    ] {
        let mut client = spdy(&bed.urls.exec(exec(&["exit", "3"], "oe")).unwrap(), version).await;
        let [error, out, err] =
            [StreamType::Error, StreamType::Stdout, StreamType::Stderr].map(|kind| client.open(kind));
        client.until(|client| client.finished.len() == 3).await;
        assert_eq!(
            (client.text(out), client.text(err), client.text(error)),
            ("out", "err", told.as_str()),
            "{version}"
        );
        assert_eq!(*client.finished.last().unwrap(), error, "the outcome comes after all output");
    }
}

#[tokio::test]
async fn spdy_closes_the_input_alone() {
    let bed = bed().await;
    let mut client = spdy(&bed.urls.exec(exec(&["cat"], "io")).unwrap(), V4).await;
    let [error, input, out] = [StreamType::Error, StreamType::Stdin, StreamType::Stdout].map(|kind| client.open(kind));
    client.send(input, "hello");
    client.until(|client| client.text(out) == "hello").await;
    client.send(input, ", world");
    client.session.finish(input);
    client.until(|client| client.finished.contains(&error)).await;
    assert_eq!(client.text(out), "hello, world");
    assert_eq!(client.text(error), status(&Outcome::Success));
}

#[tokio::test]
async fn terminals_are_resized_over_both() {
    let bed = bed().await;
    let mut client = spdy(&bed.urls.exec(exec(&["sizes", "2"], "to")).unwrap(), V4).await;
    let [error, out, resize] =
        [StreamType::Error, StreamType::Stdout, StreamType::Resize].map(|kind| client.open(kind));
    client.send(resize, "{\"Width\":80,\"Height\":24}\n{\"Width\":132,\"Hei");
    client.flush().await;
    client.send(resize, "ght\":43}\n");
    client.until(|client| client.finished.contains(&error)).await;
    assert_eq!(client.text(out), "80x24 132x43 ");

    let protocol = Protocol::negotiate(["v5.channel.k8s.io"]).unwrap();
    let mut socket = websocket(&bed.urls.exec(exec(&["sizes", "1"], "to")).unwrap(), protocol.name).await;
    socket.send(Message::Binary(protocol.encode(4, b"{\"Width\":80,\"Height\":24}"))).await.unwrap();
    assert_eq!(channels(&mut socket, protocol).await[&1], "80x24 ");
}

#[tokio::test]
async fn every_channel_protocol_carries_the_exit_status() {
    let bed = bed().await;
    let names = [
        "v5.channel.k8s.io",
        V4,
        "v4.base64.channel.k8s.io",
        "v3.channel.k8s.io",
        "channel.k8s.io",
        "base64.channel.k8s.io",
    ];
    for name in names {
        let protocol = Protocol::negotiate([name]).unwrap();
        for (code, outcome) in [("0", Outcome::Success), ("7", Outcome::Exited(7))] {
            let mut socket = websocket(&bed.urls.exec(exec(&["exit", code], "oe")).unwrap(), name).await;
            let got = channels(&mut socket, protocol).await;
            let told = if protocol.status { status(&outcome) } else { outcome.message() };
            assert_eq!(got[&1], "out", "{name}");
            assert_eq!(got[&2], "err", "{name}");
            assert_eq!(got.get(&3).cloned().unwrap_or_default(), told, "{name}");
        }
    }
}

#[tokio::test]
async fn version_5_closes_the_input_alone() {
    let bed = bed().await;
    let protocol = Protocol::negotiate(["v5.channel.k8s.io"]).unwrap();
    let mut socket = websocket(&bed.urls.exec(exec(&["cat"], "io")).unwrap(), protocol.name).await;
    let greeting = socket.next().await.unwrap().unwrap();
    assert_eq!(greeting, Message::Binary(Bytes::from_static(b"\x01")), "the connection stands");
    socket.send(Message::Ping(Bytes::from_static(b"alive?"))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"alive?")));
    socket.send(Message::Binary(protocol.encode(0, b"hello"))).await.unwrap();
    socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
    let got = channels(&mut socket, protocol).await;
    assert_eq!((got[&1].as_str(), got[&3].as_str()), ("hello", status(&Outcome::Success).as_str()));
}

#[tokio::test]
async fn a_command_is_held_back_by_a_client_that_does_not_read_and_loses_nothing() {
    let bed = bed().await;
    let input = "0123456789".repeat(4_000_000);
    let mut client = spdy(&bed.urls.exec(exec(&["cat"], "io")).unwrap(), V4).await;
    let [error, stdin, out] = [StreamType::Error, StreamType::Stdin, StreamType::Stdout].map(|kind| client.open(kind));
    client.until(|client| client.replied == 3).await;
    client.send(stdin, input.clone());
    client.session.finish(stdin);
    // All of the input before any of the output is read: neither side may hold more than its bounds.
    let output = client.session.take_output();
    let (mut read, mut write) = tokio::io::split(client.io);
    let sending = tokio::spawn(async move { write.write_all(&output).await.map(|()| write) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!sending.is_finished(), "40 MB went in though nothing came out");
    let mut got = 0;
    let mut chunk = vec![0; 64 * 1024];
    while !client.finished.contains(&error) {
        let len = read.read(&mut chunk).await.unwrap();
        for event in client.session.receive(&chunk[..len]).unwrap() {
            match event {
                Event::Data { id, data } if id == out => {
                    assert!(data.iter().zip(input.as_bytes()[got..].iter()).all(|(a, b)| a == b));
                    got += data.len();
                }
                Event::Finished(id) => client.finished.push(id),
                _ => {}
            }
        }
    }
    assert_eq!(got, input.len());
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_is_told_to_the_command() {
    let bed = bed().await;
    let mut client = spdy(&bed.urls.exec(exec(&["wait"], "o")).unwrap(), V4).await;
    client.open(StreamType::Error);
    client.open(StreamType::Stdout);
    client.turn().await;
    drop(client);
    bed.clients_left(1).await;

    for command in ["cat", "yes"] {
        let url = bed.urls.exec(exec(&[command], "io")).unwrap();
        let mut socket = websocket(&url, "v5.channel.k8s.io").await;
        socket.next().await.unwrap().unwrap();
        drop(socket);
    }
    bed.clients_left(3).await;
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves_ends() {
    let bed = bed_with(Duration::from_millis(200)).await;
    let mut client = spdy(&bed.urls.exec(exec(&["cat"], "io")).unwrap(), V4).await;
    let [_, input, _] = [StreamType::Error, StreamType::Stdin, StreamType::Stdout].map(|kind| client.open(kind));
    let began = Instant::now();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.send(input, "x");
        client.turn().await;
    }
    while client.turn().await {}
    assert!(began.elapsed() >= Duration::from_millis(500), "it moved until 300 ms");
    bed.clients_left(1).await;
}

#[tokio::test]
async fn attach_reaches_its_container() {
    let bed = bed().await;
    let request = AttachRequest { container_id: "c9".into(), stdout: true, ..AttachRequest::default() };
    let mut client = spdy(&bed.urls.attach(request).unwrap(), V4).await;
    let [error, out] = [StreamType::Error, StreamType::Stdout].map(|kind| client.open(kind));
    client.until(|client| client.finished.len() == 2).await;
    assert_eq!((client.text(out), client.text(error)), ("c9", status(&Outcome::Success).as_str()));
}

fn forward() -> PortForwardRequest {
    PortForwardRequest { pod_sandbox_id: "s1 ".into(), port: vec![7, 9] }
}

/// Two connections to ports at once, one that echoes and one that is refused.
async fn forwards(mut client: Spdy<impl AsyncRead + AsyncWrite + Unpin>) {
    let open = |client: &mut Spdy<_>, port, request_id: &str, error| {
        let stream = ForwardStream { port, request_id: request_id.into(), error };
        client.session.open(stream.headers()).unwrap()
    };
    let echo = [true, false].map(|error| open(&mut client, 7, "0", error));
    client.send(echo[1], "hello");
    client.until(|client| client.text(echo[1]) == "s1 hello").await;
    let refused = [true, false].map(|error| open(&mut client, 9, "1", error));
    client.until(|client| refused.iter().all(|id| client.finished.contains(id))).await;
    assert_eq!(client.text(refused[0]), "error forwarding port 9 to pod sandbox s1 : connection refused");
    client.session.finish(echo[1]);
    client.until(|client| echo.iter().all(|id| client.finished.contains(id))).await;
    assert_eq!(client.text(echo[0]), "");
    let odd = client.session.open(streams::spdy::Headers::of(&[("port", "x")])).unwrap();
    client.until(|client| client.reset == [odd]).await;
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy() {
    let bed = bed().await;
    forwards(spdy(&bed.urls.port_forward(forward()).unwrap(), PROTOCOL).await).await;
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy_in_a_websocket() {
    let bed = bed().await;
    let socket = websocket(&bed.urls.port_forward(forward()).unwrap(), "SPDY/3.1+portforward.k8s.io").await;
    // Messages to bytes and back, as a client of the tunnel has it.
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(far);
        let (mut sink, mut stream) = socket.split();
        let out = async {
            let mut chunk = vec![0; 1000];
            while let Ok(read @ 1..) = from.read(&mut chunk).await {
                sink.send(Message::Binary(Bytes::copy_from_slice(&chunk[..read]))).await.unwrap();
            }
        };
        let back = async {
            while let Some(Ok(Message::Binary(data))) = stream.next().await {
                to.write_all(&data).await.unwrap();
            }
        };
        tokio::join!(out, back)
    });
    forwards(Spdy::new(near)).await;
}

#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let bed = bed().await;
    let protocol = Protocol::negotiate([V4]).unwrap();
    let mut socket = websocket(&bed.urls.port_forward(forward()).unwrap(), V4).await;
    let mut got = BTreeMap::<u8, Vec<u8>>::new();
    socket.send(Message::Binary(protocol.encode(0, b"hello"))).await.unwrap();
    while got.get(&0).is_none_or(|data| data.len() < 10) || got.get(&3).is_none_or(|error| error.len() < 10) {
        let Message::Binary(message) = socket.next().await.unwrap().unwrap() else { panic!() };
        let Received::Data { channel, data } = protocol.decode(message).unwrap() else { panic!() };
        got.entry(channel).or_default().extend_from_slice(&data);
    }
    assert_eq!(got[&0], b"\x07\0s1 hello");
    assert_eq!(got[&1], b"\x07\0");
    assert_eq!(got[&2], b"\x09\0");
    assert_eq!(got[&3], b"\x09\0error forwarding port 9 to pod sandbox s1 : connection refused");
}

#[tokio::test]
async fn urls_are_good_once_and_for_what_they_say() {
    let bed = bed().await;
    let url = bed.urls.exec(exec(&["exit", "0"], "o")).unwrap();
    let version = [(PROTOCOL_VERSION, V4)];
    assert_eq!(upgrade(&url.replace("/exec/", "/attach/"), "SPDY/3.1", &version).await.0, 404);
    assert_eq!(upgrade(&url, "SPDY/3.1", &version).await.0, 404, "another kind used it up");
    let url = bed.urls.exec(exec(&["exit", "0"], "o")).unwrap();
    let (status, headers, _) = upgrade(&url, "SPDY/3.1", &[(PROTOCOL_VERSION, "v9.channel.k8s.io")]).await;
    assert_eq!((status, headers["x-accepted-stream-protocol-versions"].to_str().unwrap()), (403, V4));
    assert_eq!(upgrade(&bed.urls.exec(exec(&["x"], "o")).unwrap(), "h2c", &[]).await.0, 400);
    assert_eq!(upgrade(&url.replace("/exec/", "/x/y/"), "SPDY/3.1", &version).await.0, 404);
}

#[tokio::test]
async fn impossible_requests_are_refused_before_they_get_a_url() {
    let bed = bed().await;
    for (flags, command, why) in
        [("", "x", "one of stdin, stdout and stderr must be set"), ("toe", "x", "tty and stderr cannot both be true")]
    {
        let error = bed.urls.exec(exec(&[command], flags)).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot prepare exec: {why}"));
    }
    assert!(matches!(bed.urls.exec(exec(&[], "o")), Err(StreamError::Invalid { .. })));
    let ports = PortForwardRequest { pod_sandbox_id: "s".into(), port: vec![70_000] };
    assert!(matches!(bed.urls.port_forward(ports), Err(StreamError::Invalid { .. })));
}
