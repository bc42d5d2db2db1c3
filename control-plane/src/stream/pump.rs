//! Moves messages and bytes between a client's WebSocket and a kubelet, through a `Relay` that decides what becomes of
//! them. Reading stops in the direction whose queue is full, writing never waits for the other direction.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

/// A queue of this many bytes stops the reading that fills it.
const FULL: usize = 256 * 1024;
const CHUNK: usize = 32 * 1024;
/// As upstream: a stream on which nothing moves for four hours is over.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// How long a connection that is over may take to close.
pub const LINGER: Duration = Duration::from_secs(2);

/// What is to be written, and whether that is all.
#[derive(Default)]
pub struct Outbox {
    to_client: VecDeque<Message>,
    to_client_len: usize,
    pub to_kubelet: BytesMut,
    /// The stream is over once both queues are empty.
    pub done: bool,
}

impl Outbox {
    pub fn send(&mut self, message: Message) {
        self.to_client_len += message.len();
        self.to_client.push_back(message);
    }

    #[cfg(test)]
    pub fn take(&mut self) -> (Vec<Message>, Bytes) {
        self.to_client_len = 0;
        (self.to_client.drain(..).collect(), self.to_kubelet.split().freeze())
    }
}

/// Decides what becomes of what arrives. Pure.
pub trait Relay: Send {
    fn client_sent(&mut self, message: Bytes, out: &mut Outbox);
    fn kubelet_sent(&mut self, bytes: &[u8], out: &mut Outbox);
    /// The kubelet sends no more.
    fn kubelet_closed(&mut self, out: &mut Outbox);
    /// More waits within the relay than it should; the client is read later.
    fn is_full(&self) -> bool {
        false
    }
}

/// What happened next.
enum Turn {
    FromClient(Option<Result<Message, tungstenite::Error>>),
    FromKubelet(std::io::Result<usize>),
    ClientWritten(Result<(), tungstenite::Error>),
    KubeletWritten(std::io::Result<()>),
}

/// Runs until the relay is done or a connection breaks, and closes both.
pub async fn run<C, K>(client: WebSocketStream<C>, kubelet: K, relay: &mut dyn Relay, mut out: Outbox)
where
    C: AsyncRead + AsyncWrite + Unpin,
    K: AsyncRead + AsyncWrite,
{
    let (mut client_sink, mut client_stream) = client.split();
    let (mut kubelet_read, mut kubelet_write) = tokio::io::split(kubelet);
    let mut chunk = vec![0; CHUNK];
    let (mut flush_client, mut flush_kubelet) = (false, false);
    loop {
        flush_client |= !out.to_client.is_empty();
        flush_kubelet |= !out.to_kubelet.is_empty();
        if out.done && !flush_client {
            break;
        }
        let read_client = !out.done && !relay.is_full() && out.to_kubelet.len() < FULL;
        let read_kubelet = !out.done && out.to_client_len < FULL;
        let Outbox { to_client, to_client_len, to_kubelet, .. } = &mut out;
        let turn = async {
            tokio::select! {
                message = client_stream.next(), if read_client => Turn::FromClient(message),
                read = kubelet_read.read(&mut chunk), if read_kubelet => Turn::FromKubelet(read),
                written = poll_fn(|cx| send_all(cx, &mut client_sink, to_client, to_client_len)), if flush_client => {
                    Turn::ClientWritten(written)
                }
                written = poll_fn(|cx| write_all(cx, &mut kubelet_write, to_kubelet)), if flush_kubelet => {
                    Turn::KubeletWritten(written)
                }
            }
        };
        let Ok(turn) = tokio::time::timeout(IDLE, turn).await else { break };
        match turn {
            Turn::FromClient(Some(Ok(Message::Binary(data)))) => relay.client_sent(data, &mut out),
            Turn::FromClient(Some(Ok(Message::Text(text)))) => relay.client_sent(text.into(), &mut out),
            // A ping is answered with the next flush.
            Turn::FromClient(Some(Ok(Message::Ping(_)))) => flush_client = true,
            Turn::FromClient(Some(Ok(Message::Pong(_) | Message::Frame(_)))) => {}
            Turn::FromClient(Some(Ok(Message::Close(_)) | Err(_)) | None) => break,
            Turn::FromKubelet(Ok(read)) if read > 0 => relay.kubelet_sent(&chunk[..read], &mut out),
            Turn::FromKubelet(_) => relay.kubelet_closed(&mut out),
            Turn::ClientWritten(Ok(())) => flush_client = false,
            Turn::KubeletWritten(Ok(())) => flush_kubelet = false,
            Turn::ClientWritten(Err(_)) => break,
            Turn::KubeletWritten(Err(_)) => {
                out.to_kubelet.clear();
                flush_kubelet = false;
                relay.kubelet_closed(&mut out);
            }
        }
    }
    // What the client still sends is read, or closing would take back what it has not read yet.
    let parting = async {
        let _ = kubelet_write.shutdown().await;
        let _ = client_sink.close().await;
        while let Some(Ok(_)) = client_stream.next().await {}
    };
    let _ = tokio::time::timeout(LINGER, parting).await;
}

/// Sends and flushes what is queued. Loses nothing when it is dropped midway.
fn send_all<S>(
    cx: &mut Context<'_>,
    sink: &mut S,
    queue: &mut VecDeque<Message>,
    queued: &mut usize,
) -> Poll<Result<(), S::Error>>
where
    S: Sink<Message> + Unpin,
{
    let mut sink = Pin::new(sink);
    while !queue.is_empty() {
        ready!(sink.as_mut().poll_ready(cx))?;
        if let Some(message) = queue.pop_front() {
            *queued -= message.len();
            sink.as_mut().start_send(message)?;
        }
    }
    sink.poll_flush(cx)
}

/// As `send_all`, for bytes.
fn write_all<W>(cx: &mut Context<'_>, writer: &mut W, bytes: &mut BytesMut) -> Poll<std::io::Result<()>>
where
    W: AsyncWrite + Unpin,
{
    let mut writer = Pin::new(writer);
    while !bytes.is_empty() {
        let written = ready!(writer.as_mut().poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
        }
        bytes.advance(written);
    }
    writer.poll_flush(cx)
}
