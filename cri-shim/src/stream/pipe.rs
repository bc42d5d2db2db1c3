//! The streams of a connection as their users hold them: a reader that is fed by the connection, and a writer that feeds
//! it. What waits in either is bounded: the connection is not read while its readers hold too much, and a writer waits while
//! too much of its own has not been sent.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// What a writer may have on its way, bytes.
const WINDOW: usize = 64 * 1024;
const CHUNK: usize = 16 * 1024;

/// What the readers of a connection hold together.
#[derive(Default)]
pub struct Backlog {
    len: AtomicUsize,
    /// Wakes the connection when a reader took something.
    pub waker: AtomicWaker,
}

impl Backlog {
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Lane {
    chunks: VecDeque<Bytes>,
    end: Option<End>,
    reader: Option<Waker>,
    reader_gone: bool,
    /// Taken by the reader, and not yet reported.
    consumed: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Broken,
}

struct Shared {
    lane: Mutex<Lane>,
    backlog: Arc<Backlog>,
}

impl Shared {
    fn lane(&self) -> std::sync::MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn consumed(&self, lane: &mut Lane, len: usize) {
        lane.consumed += len;
        self.backlog.len.fetch_sub(len, Ordering::AcqRel);
        self.backlog.waker.wake();
    }
}

/// The connection's end of a reader. Dropped before `finish`, the reader meets an error.
pub struct Inlet(Arc<Shared>);

/// What a peer sends on a stream.
pub struct Reader(Arc<Shared>);

/// Both ends of what a peer sends.
pub fn inbound(backlog: Arc<Backlog>) -> (Inlet, Reader) {
    let shared = Arc::new(Shared { lane: Mutex::default(), backlog });
    (Inlet(shared.clone()), Reader(shared))
}

impl Inlet {
    /// Never waits: the connection reads no more while the backlog is long.
    pub fn push(&self, data: Bytes) {
        let mut lane = self.0.lane();
        self.0.backlog.len.fetch_add(data.len(), Ordering::AcqRel);
        if lane.reader_gone || lane.end.is_some() {
            self.0.consumed(&mut lane, data.len());
        } else if !data.is_empty() {
            lane.chunks.push_back(data);
            wake(&mut lane);
        }
    }

    /// The peer sends no more. Idempotent.
    pub fn finish(&self) {
        self.end(End::Finished);
    }

    /// Bytes that the reader took since this was asked last.
    pub fn take_consumed(&self) -> usize {
        std::mem::take(&mut self.0.lane().consumed)
    }

    fn end(&self, end: End) {
        let mut lane = self.0.lane();
        lane.end.get_or_insert(end);
        wake(&mut lane);
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.end(End::Broken);
    }
}

fn wake(lane: &mut Lane) {
    if let Some(reader) = lane.reader.take() {
        reader.wake();
    }
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut lane = self.0.lane();
        let Some(front) = lane.chunks.front_mut() else {
            return match lane.end {
                Some(End::Finished) => Poll::Ready(Ok(())),
                Some(End::Broken) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => {
                    lane.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        };
        let len = front.len().min(buffer.remaining());
        buffer.put_slice(&front[..len]);
        front.advance(len);
        if front.is_empty() {
            lane.chunks.pop_front();
        }
        self.0.consumed(&mut lane, len);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut lane = self.0.lane();
        lane.reader_gone = true;
        let dropped = lane.chunks.drain(..).map(|chunk| chunk.len()).sum();
        self.0.consumed(&mut lane, dropped);
    }
}

/// What a writer sends.
pub enum Sent {
    /// Dropping the permit lets the writer go on.
    Data(Bytes, OwnedSemaphorePermit),
    Finish,
}

/// What goes to a peer on a stream. Shut down or dropped, it finishes the stream.
pub struct Writer {
    id: u32,
    to: UnboundedSender<(u32, Sent)>,
    window: PollSemaphore,
    finished: bool,
}

impl Writer {
    pub fn new(id: u32, to: UnboundedSender<(u32, Sent)>) -> Self {
        Self { id, to, window: PollSemaphore::new(Arc::new(Semaphore::new(WINDOW))), finished: false }
    }

    fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            // A connection that is gone needs not be told.
            let _ = self.to.send((self.id, Sent::Finish));
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        if self.finished {
            return Poll::Ready(Err(broken()));
        }
        let len = bytes.len().min(CHUNK);
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        let permit = ready!(self.window.poll_acquire_many(cx, len as u32)).ok_or_else(broken)?;
        let sent = self.to.send((self.id, Sent::Data(Bytes::copy_from_slice(&bytes[..len]), permit)));
        Poll::Ready(sent.map(|()| len).map_err(|_| broken()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn a_reader_gets_all_that_came_and_then_its_end() {
        let backlog = Arc::new(Backlog::default());
        let (inlet, mut reader) = inbound(backlog.clone());
        inlet.push("one".into());
        inlet.push("two".into());
        assert_eq!(backlog.len(), 6);
        let mut four = [0; 4];
        reader.read_exact(&mut four).await.unwrap();
        assert_eq!((&four, backlog.len(), inlet.take_consumed()), (b"onet", 2, 4));
        inlet.finish();
        let mut rest = String::new();
        reader.read_to_string(&mut rest).await.unwrap();
        assert_eq!((rest.as_str(), backlog.len()), ("wo", 0));

        let (inlet, mut reader) = inbound(backlog.clone());
        inlet.push("lost".into());
        drop(inlet);
        assert_eq!(reader.read_to_string(&mut rest).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

        let (inlet, reader) = inbound(backlog.clone());
        inlet.push("one".into());
        drop(reader);
        inlet.push("two".into());
        assert_eq!((backlog.len(), inlet.take_consumed()), (0, 6));
    }

    #[tokio::test]
    async fn a_writer_waits_for_its_window_and_meets_the_end_of_the_connection() {
        let (to, mut from) = mpsc::unbounded_channel();
        let mut writer = Writer::new(7, to);
        writer.write_all(&vec![0; WINDOW]).await.unwrap();
        let more = tokio::spawn(async move {
            let written = writer.write_all(b"more").await;
            (written.is_ok(), writer)
        });
        tokio::task::yield_now().await;
        assert!(!more.is_finished());
        let Some((7, Sent::Data(data, permit))) = from.recv().await else { panic!() };
        assert_eq!(data.len(), CHUNK);
        drop(permit);
        let (written, mut writer) = more.await.unwrap();
        assert!(written);
        drop(from);
        assert_eq!(writer.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
