//! Streams of a client at the pipes of a container or of a command in it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use kernel::fifo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::IoError;

/// What a client sends.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;
/// What a client gets.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// The streams of one client; those that it did not ask for are missing.
#[derive(Default)]
pub struct AttachStreams {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    /// The client has left.
    pub gone: CancellationToken,
}

/// What the end of a client's input means.
pub enum InputEnd {
    /// The client leaves; the container's input stays open for the next.
    Detach,
    /// It is the end of the container's input. The future says so to containerd (`Tasks.CloseIO`), whose shim holds the
    /// pipe open as well.
    Close(BoxFuture<'static, ()>),
}

const CHUNK: usize = 16 * 1024;

/// How often it is looked whether the shim reads an input yet.
const READER_PAUSE: Duration = Duration::from_millis(2);

/// The end of a standard input that writes, shared by all who are attached.
#[derive(Clone, Default)]
pub struct Stdin(Arc<Mutex<Option<Arc<pipe::Sender>>>>);

impl Stdin {
    /// # Errors
    /// Where the path is no named pipe.
    pub fn open(path: &Path) -> Result<Self, IoError> {
        // Reading as well, it opens though nobody reads yet, and never breaks.
        let sender = pipe::OpenOptions::new().read_write(true).open_sender(path);
        let sender = sender.map_err(|source| IoError::Open { path: path.to_owned(), source })?;
        Ok(Self(Arc::new(Mutex::new(Some(Arc::new(sender))))))
    }

    /// Opens it as soon as containerd's shim reads. A command is fed by one client, which may be through at once: bytes that
    /// nobody has come to read go when the pipe is closed, and the shim would then wait for ever for a writer.
    ///
    /// # Errors
    /// Where the path is no named pipe.
    pub async fn open_to_reader(path: &Path) -> Result<Self, IoError> {
        loop {
            if let Some(file) = fifo::open_writer_to_reader(path)? {
                let sender = pipe::Sender::from_file(file);
                let sender = sender.map_err(|source| IoError::Open { path: path.to_owned(), source })?;
                return Ok(Self(Arc::new(Mutex::new(Some(Arc::new(sender))))));
            }
            tokio::time::sleep(READER_PAUSE).await;
        }
    }

    /// Nothing can be written from here on. Idempotent.
    pub fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// # Errors
    /// `BrokenPipe` once it is closed.
    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let sender = sender.ok_or(io::ErrorKind::BrokenPipe)?;
            sender.writable().await?;
            match sender.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Copies until the client sends no more, or until this is closed.
    pub async fn fill(&self, mut from: Input) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(read) = from.read(&mut chunk).await {
            if read == 0 || self.write(&chunk[..read]).await.is_err() {
                return;
            }
        }
    }
}

/// Gives a client what its seat receives.
///
/// # Errors
/// Where the client is gone.
pub async fn play(mut from: mpsc::Receiver<Bytes>, mut to: Output) -> io::Result<()> {
    while let Some(piece) = from.recv().await {
        to.write_all(&piece).await?;
        to.flush().await?;
    }
    // A client that left has nothing to be told.
    let _ = to.shutdown().await;
    Ok(())
}

/// Gives a client what a pipe carries until its end. Once the client is gone, or where there is none, the rest is read
/// and dropped, so that the writer does not hang.
pub async fn pour(mut from: pipe::Receiver, mut to: Option<Output>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        let Some(writer) = &mut to else { continue };
        let sent = async {
            writer.write_all(&chunk[..read]).await?;
            writer.flush().await
        };
        if sent.await.is_err() {
            to = None;
        }
    }
    if let Some(mut writer) = to {
        let _ = writer.shutdown().await;
    }
}
