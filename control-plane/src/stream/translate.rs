//! Exec and attach: a client that speaks WebSocket channels meets a kubelet that speaks SPDY (KEP-4006). A client that
//! speaks SPDY itself is passed through.

use std::sync::Arc;

use api::status::Status;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use streams::channel::{Protocol, Received};
use streams::remote::{Outcome, PROTOCOL_VERSION, StreamType, V4};
use streams::spdy::{self, Event, Session, Side, StreamId};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::kubelet::{Kubelet, Target, Upgraded, refusal};
use super::options::Remote;
use super::pump::{self, Outbox, Relay};
use super::{headers, splice, websocket};
use crate::ports::Body;

/// The client is not read while this much waits for the kubelet.
const STDIN_FULL: usize = 256 * 1024;
/// More than a `Status` needs.
const OUTCOME_LIMIT: usize = 64 * 1024;

/// Serves a request whose pod and container exist. What fails once the client's WebSocket is open is told on its error
/// channel.
///
/// # Errors
/// Where the request is no upgrade that can be served.
pub async fn serve(
    kubelet: Arc<Kubelet>,
    target: Target,
    (path, remote): (String, Remote),
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    if !headers::is_websocket(request.headers()) {
        return splice::serve(&kubelet, &target, &path, request).await;
    }
    let offered: Vec<String> =
        headers::values(request.headers(), header::SEC_WEBSOCKET_PROTOCOL.as_str()).map(str::to_owned).collect();
    let protocol = Protocol::negotiate(offered.iter().map(String::as_str)).ok_or_else(|| {
        Status::bad_request(format!("unable to upgrade: requested protocol(s) are not supported: {offered:?}"))
    })?;
    let (response, socket) = websocket::accept(&mut request, protocol.name)?;
    tokio::spawn(async move {
        let Ok(client) = socket.await else { return };
        let mut translator = Translator::new(protocol, remote);
        let mut out = Outbox::default();
        translator.greet(&mut out);
        match connect(&kubelet, &target, &path).await {
            Ok(backend) => {
                translator.open(&mut out);
                pump::run(client, backend, &mut translator, out).await;
            }
            Err(status) => {
                translator.fail(&status, &mut out);
                pump::run(client, tokio::io::empty(), &mut translator, out).await;
            }
        }
    });
    Ok(response)
}

type Backend = hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>;

async fn connect(kubelet: &Kubelet, target: &Target, path: &str) -> Result<Backend, Status> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(spdy::UPGRADE));
    headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(V4));
    match kubelet.upgrade(target, Method::POST, path, headers).await.map_err(Status::internal)? {
        Upgraded::Yes(_, backend) => Ok(backend),
        Upgraded::No(answer) => {
            Err(Status::internal(format!("unable to upgrade connection: {}", refusal(answer).await)))
        }
    }
}

/// One remote command between its two protocols.
struct Translator {
    protocol: Protocol,
    remote: Remote,
    session: Session,
    streams: Vec<(StreamType, StreamId)>,
    /// Outputs, and the error stream, that have not ended.
    running: Vec<StreamType>,
    outcome: Vec<u8>,
}

impl Translator {
    fn new(protocol: Protocol, remote: Remote) -> Self {
        let outputs = [StreamType::Stdout, StreamType::Stderr, StreamType::Error];
        let running = remote.streams().into_iter().filter(|kind| outputs.contains(kind)).collect();
        let session = Session::new(Side::Client);
        Self { protocol, remote, session, streams: Vec::new(), running, outcome: Vec::new() }
    }

    /// An empty message on the lowest channel to the client, by which it knows that the connection stands.
    fn greet(&self, out: &mut Outbox) {
        let channel = match self.remote {
            Remote { stdout: true, .. } => StreamType::Stdout,
            Remote { stderr: true, .. } => StreamType::Stderr,
            _ => StreamType::Error,
        };
        self.send(channel, &[], out);
    }

    /// Opens the streams towards the kubelet.
    fn open(&mut self, out: &mut Outbox) {
        for kind in self.remote.streams() {
            if let Ok(id) = self.session.open(kind.headers()) {
                self.streams.push((kind, id));
            }
        }
        self.flush(out);
    }

    fn send(&self, kind: StreamType, data: &[u8], out: &mut Outbox) {
        let message = self.protocol.encode(kind.channel(), data);
        out.send(match self.protocol.base64 {
            true => Message::Text(String::from_utf8_lossy(&message).into_owned().into()),
            false => Message::Binary(message),
        });
    }

    fn flush(&mut self, out: &mut Outbox) {
        out.to_kubelet.extend_from_slice(&self.session.take_output());
    }

    fn id(&self, kind: StreamType) -> Option<StreamId> {
        self.streams.iter().find(|(known, _)| *known == kind).map(|(_, id)| *id)
    }

    fn kind(&self, id: StreamId) -> Option<StreamType> {
        self.streams.iter().find(|(_, known)| *known == id).map(|(kind, _)| *kind)
    }

    fn on_event(&mut self, event: Event, out: &mut Outbox) {
        match event {
            Event::Data { id, data } => {
                self.session.consumed(id, data.len());
                match self.kind(id) {
                    Some(StreamType::Error) => {
                        let room = OUTCOME_LIMIT - self.outcome.len();
                        self.outcome.extend_from_slice(&data[..data.len().min(room)]);
                    }
                    Some(kind @ (StreamType::Stdout | StreamType::Stderr)) => self.send(kind, &data, out),
                    _ => {}
                }
            }
            Event::Finished(id) | Event::Reset { id, .. } => match self.kind(id) {
                // The command reads no more; its other streams go on.
                Some(StreamType::Stdin) => self.session.finish(id),
                Some(kind) => self.ended(kind, out),
                None => {}
            },
            Event::Opened { id, .. } => self.session.reset(id, spdy::status::REFUSED_STREAM),
            Event::Replied(_) | Event::GoAway => {}
        }
    }

    /// The outcome goes out after all output, and ends the stream.
    fn ended(&mut self, kind: StreamType, out: &mut Outbox) {
        self.running.retain(|running| *running != kind);
        if self.running.is_empty() && !out.done {
            let outcome = Outcome::of_error_stream(&self.outcome);
            match self.protocol.status {
                true if !self.outcome.is_empty() => self.send(StreamType::Error, &self.outcome.clone(), out),
                true => self.send(StreamType::Error, outcome.to_status().to_string().as_bytes(), out),
                false if outcome != Outcome::Success => {
                    self.send(StreamType::Error, outcome.message().as_bytes(), out);
                }
                false => {}
            }
            close(out);
        }
    }

    fn fail(&self, status: &Status, out: &mut Outbox) {
        let text = match self.protocol.status {
            true => status.to_value().to_string(),
            false => status.message.clone(),
        };
        self.send(StreamType::Error, text.as_bytes(), out);
        close(out);
    }
}

fn close(out: &mut Outbox) {
    out.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })));
    out.done = true;
}

impl Relay for Translator {
    fn client_sent(&mut self, message: Bytes, out: &mut Outbox) {
        match self.protocol.decode(message) {
            Ok(Received::Data { channel, data }) => {
                let input = StreamType::of_channel(channel)
                    .filter(|kind| matches!(kind, StreamType::Stdin | StreamType::Resize));
                if let Some(id) = input.and_then(|kind| self.id(kind)) {
                    // The command may have closed its input; what comes after is lost, as in a pipe.
                    let _ = self.session.send(id, data);
                }
            }
            Ok(Received::Close { channel }) => {
                if let Some(id) = StreamType::of_channel(channel).and_then(|kind| self.id(kind)) {
                    self.session.finish(id);
                }
            }
            Ok(Received::Nothing) => {}
            Err(error) => {
                out.send(Message::Close(Some(CloseFrame {
                    code: CloseCode::Protocol,
                    reason: error.to_string().into(),
                })));
                out.done = true;
            }
        }
        self.flush(out);
    }

    fn kubelet_sent(&mut self, bytes: &[u8], out: &mut Outbox) {
        match self.session.receive(bytes) {
            Ok(events) => events.into_iter().for_each(|event| self.on_event(event, out)),
            Err(error) => self.fail(&Status::internal(format!("the kubelet broke SPDY: {error}")), out),
        }
        self.flush(out);
    }

    fn kubelet_closed(&mut self, out: &mut Outbox) {
        if out.done {
            return;
        }
        // A kubelet that told the outcome may leave without ending its streams one by one.
        if self.outcome.is_empty() {
            self.fail(&Status::internal("the connection to the kubelet was lost"), out);
            return;
        }
        self.running = vec![StreamType::Error];
        self.ended(StreamType::Error, out);
    }

    fn is_full(&self) -> bool {
        self.id(StreamType::Stdin).is_some_and(|id| self.session.queued(id) > STDIN_FULL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A translator and the kubelet's end of it, with its streams accepted.
    struct Pair {
        translator: Translator,
        kubelet: Session,
        out: Outbox,
        ids: Vec<(StreamType, StreamId)>,
    }

    impl Pair {
        fn new(protocol: &str, remote: Remote) -> Self {
            let translator = Translator::new(Protocol::negotiate([protocol]).unwrap(), remote);
            let mut pair =
                Self { translator, kubelet: Session::new(Side::Server), out: Outbox::default(), ids: Vec::new() };
            pair.translator.open(&mut pair.out);
            for event in pair.pass_to_kubelet() {
                let Event::Opened { id, headers } = event else { panic!("{event:?}") };
                pair.ids.push((StreamType::of_headers(&headers).unwrap(), id));
                pair.kubelet.reply(id).unwrap();
            }
            assert!(pair.pass_to_client().is_empty());
            pair
        }

        fn id(&self, kind: StreamType) -> StreamId {
            self.ids.iter().find(|(known, _)| *known == kind).unwrap().1
        }

        fn pass_to_kubelet(&mut self) -> Vec<Event> {
            let bytes = std::mem::take(&mut self.out.to_kubelet);
            self.kubelet.receive(&bytes).unwrap()
        }

        fn pass_to_client(&mut self) -> Vec<Message> {
            let bytes = self.kubelet.take_output();
            self.translator.kubelet_sent(&bytes, &mut self.out);
            let (messages, to_kubelet) = self.out.take();
            self.kubelet.receive(&to_kubelet).unwrap();
            messages
        }

        fn finish(&mut self, kind: StreamType, data: &str) {
            let id = self.id(kind);
            self.kubelet.send(id, data.to_owned().into()).unwrap();
            self.kubelet.finish(id);
        }
    }

    const ALL: Remote = Remote { stdin: true, stdout: true, stderr: true, tty: false };

    #[test]
    fn channels_become_streams_and_back() {
        let mut pair = Pair::new("v5.channel.k8s.io", ALL);
        let kinds: Vec<_> = pair.ids.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [StreamType::Error, StreamType::Stdin, StreamType::Stdout, StreamType::Stderr]);

        pair.translator.client_sent(Bytes::from_static(b"\x00in"), &mut pair.out);
        pair.translator.client_sent(Bytes::from_static(b"\xff\x00"), &mut pair.out);
        let stdin = pair.id(StreamType::Stdin);
        assert_eq!(pair.pass_to_kubelet(), [Event::Data { id: stdin, data: "in".into() }, Event::Finished(stdin)]);

        pair.finish(StreamType::Stdout, "out");
        assert_eq!(pair.pass_to_client(), [Message::Binary("\u{1}out".into())]);
        let exit = Outcome::Exited(7).to_status().to_string();
        pair.finish(StreamType::Error, &exit);
        assert!(pair.pass_to_client().is_empty(), "the outcome waits for all output");
        pair.finish(StreamType::Stderr, "err");
        let messages = pair.pass_to_client();
        assert_eq!(messages[..2], [Message::Binary("\u{2}err".into()), Message::Binary(format!("\u{3}{exit}").into())]);
        assert!(messages[2].is_close() && pair.out.done);
    }

    #[test]
    fn success_is_a_status_from_version_4_on_and_silence_before() {
        let remote = Remote { stdin: false, stdout: true, stderr: false, tty: false };
        for (protocol, expected) in
            [("v5.channel.k8s.io", true), ("v4.channel.k8s.io", true), ("channel.k8s.io", false)]
        {
            let mut pair = Pair::new(protocol, remote);
            pair.finish(StreamType::Stdout, "");
            pair.finish(StreamType::Error, "");
            let messages = pair.pass_to_client();
            let status = match &messages[0] {
                Message::Binary(data) => {
                    serde_json::from_slice::<Value>(&data[1..]).unwrap()["status"] == json!("Success")
                }
                _ => false,
            };
            assert_eq!(status, expected, "{protocol}");
        }
    }

    #[test]
    fn old_protocols_carry_base64_and_plain_messages() {
        let mut pair =
            Pair::new("base64.channel.k8s.io", Remote { stdin: true, stdout: true, stderr: false, tty: true });
        pair.translator.client_sent(Bytes::from_static(b"4eyJXaWR0aCI6ODB9"), &mut pair.out);
        let resize = pair.id(StreamType::Resize);
        assert_eq!(pair.pass_to_kubelet(), [Event::Data { id: resize, data: "{\"Width\":80}".into() }]);
        pair.finish(StreamType::Stdout, "hi");
        pair.finish(StreamType::Error, &Outcome::Failed("no".into()).to_status().to_string());
        assert_eq!(pair.pass_to_client()[..2], [Message::Text("1aGk=".into()), Message::Text("3bm8=".into())]);
    }

    #[test]
    fn a_lost_kubelet_is_an_error_and_not_a_success() {
        let mut pair = Pair::new("v5.channel.k8s.io", ALL);
        pair.translator.kubelet_closed(&mut pair.out);
        let (messages, _) = pair.out.take();
        let Message::Binary(data) = &messages[0] else { panic!() };
        let status: Value = serde_json::from_slice(&data[1..]).unwrap();
        assert_eq!(status["message"], "Internal error occurred: the connection to the kubelet was lost");
        assert!(pair.out.done);
    }

    #[test]
    fn a_broken_channel_protocol_ends_the_stream() {
        let mut pair = Pair::new("v5.channel.k8s.io", ALL);
        pair.translator.client_sent(Bytes::from_static(b"\xff\x00\x00"), &mut pair.out);
        assert!(pair.out.done && pair.out.take().0[0].is_close());
    }
}
