//! A client's connection after its upgrade: bytes as they are, or the messages of a WebSocket.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::io::poll_read_buf;

const CHUNK: usize = 16 * 1024;
/// How long a peer may take to leave after it was told all.
const LINGER: Duration = Duration::from_secs(2);

/// A connection; what it carries comes and goes in pieces.
pub enum Transport {
    Bytes(TokioIo<Upgraded>),
    /// Each piece is a message, of text for the base64 protocols.
    Messages {
        socket: Box<WebSocketStream<TokioIo<Upgraded>>>,
        text: bool,
        pinged: bool,
    },
}

impl Transport {
    pub async fn websocket(io: Upgraded, text: bool) -> Self {
        // Small buffers: an idle stream costs little.
        let config = WebSocketConfig::default()
            .read_buffer_size(CHUNK)
            .write_buffer_size(0)
            .max_message_size(Some(4 << 20))
            .max_frame_size(Some(4 << 20));
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await;
        Self::Messages { socket: Box::new(socket), text, pinged: false }
    }

    /// The next piece; none at the end of the connection, whatever brought it about.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self {
            Self::Bytes(io) => {
                let mut piece = BytesMut::with_capacity(CHUNK);
                let read = ready!(poll_read_buf(Pin::new(io), cx, &mut piece));
                Poll::Ready(read.ok().filter(|read| *read > 0).map(|_| piece.freeze()))
            }
            Self::Messages { socket, pinged, .. } => loop {
                match ready!(Pin::new(&mut *socket).poll_next(cx)) {
                    Some(Ok(Message::Binary(data))) => return Poll::Ready(Some(data)),
                    Some(Ok(Message::Text(text))) => return Poll::Ready(Some(text.into())),
                    // The answer is queued within, and goes out with a flush.
                    Some(Ok(Message::Ping(_))) => *pinged = Pin::new(&mut *socket).poll_flush(cx).is_pending(),
                    Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Poll::Ready(None),
                }
            },
        }
    }

    /// Something waits within to be flushed: the answer to a ping.
    pub fn wants_flush(&self) -> bool {
        matches!(self, Self::Messages { pinged: true, .. })
    }

    /// Sends and flushes what is queued. What it could not send stays in the queue.
    ///
    /// # Errors
    /// Where the peer is gone.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, queue: &mut VecDeque<Bytes>) -> Poll<io::Result<()>> {
        match self {
            Self::Bytes(io) => {
                while let Some(front) = queue.front_mut() {
                    let written = ready!(Pin::new(&mut *io).poll_write(cx, front))?;
                    if written == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    front.advance(written);
                    if front.is_empty() {
                        queue.pop_front();
                    }
                }
                Pin::new(io).poll_flush(cx)
            }
            Self::Messages { socket, text, pinged } => {
                let mut socket = Pin::new(&mut **socket);
                while !queue.is_empty() {
                    ready!(socket.as_mut().poll_ready(cx)).map_err(io::Error::other)?;
                    if let Some(piece) = queue.pop_front() {
                        socket.as_mut().start_send(message(piece, *text)).map_err(io::Error::other)?;
                    }
                }
                ready!(socket.poll_flush(cx)).map_err(io::Error::other)?;
                *pinged = false;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Ends the connection. What the peer still sends is read, or closing would take back what it has not read yet.
    pub async fn part(self) {
        let parting = async {
            match self {
                Self::Bytes(mut io) => {
                    io.shutdown().await?;
                    let mut rest = vec![0; CHUNK];
                    while io.read(&mut rest).await? > 0 {}
                }
                Self::Messages { mut socket, .. } => {
                    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                    socket.send(Message::Close(Some(frame))).await.map_err(io::Error::other)?;
                    while let Some(Ok(_)) = socket.next().await {}
                }
            }
            Ok::<_, io::Error>(())
        };
        // A peer that is gone has parted.
        let _ = tokio::time::timeout(LINGER, parting).await;
    }
}

fn message(piece: Bytes, text: bool) -> Message {
    if text { Message::Text(String::from_utf8_lossy(&piece).into_owned().into()) } else { Message::Binary(piece) }
}
