//! The content store: blobs by digest, and writes that can be gone on with. Source: api/services/content/v1/content.proto.

use std::collections::HashMap;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use futures::SinkExt;
use futures::channel::mpsc;
use prost_types::FieldMask;
use tokio::io::AsyncWriteExt;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Streaming};

use super::{Containerd, Error, Result, leased, request, unbounded};

/// The largest answer taken from containerd, which sends at most 16 MiB.
pub(super) const MESSAGE: usize = 16 << 20;
/// Writes that may be on the way unanswered: enough to hide the round trip, few enough to bound memory.
const UNANSWERED: usize = 4;

pub type Labels = HashMap<String, String>;

/// A blob on its way into the store.
#[derive(Debug, Clone, Copy)]
pub struct Ingest<'a> {
    /// Names the write: who opens it again goes on where it stopped.
    pub reference: &'a str,
    /// Bytes.
    pub total: u64,
    pub digest: &'a str,
}

impl Containerd {
    fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel()).max_decoding_message_size(MESSAGE)
    }

    /// # Errors
    /// [`Error::NotFound`] where the store has no such blob.
    pub async fn content_info(&self, digest: &str) -> Result<Info> {
        let answer = self.content().info(request(InfoRequest { digest: digest.to_owned() })).await;
        let answer = answer.map_err(Error::of(format!("look up content {digest}")))?;
        Ok(answer.into_inner().info.unwrap_or_default())
    }

    /// Adds to a blob's labels, or changes them; an empty value takes a label away.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the store has no such blob.
    pub async fn content_label(&self, digest: &str, labels: Labels) -> Result<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_owned(), labels, ..Info::default() };
        let update = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        let answer = self.content().update(request(update)).await;
        answer.map_err(Error::of(format!("label content {digest}")))?;
        Ok(())
    }

    /// A whole small blob: a manifest, a configuration.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the store has no such blob, [`Error::Other`] where it is larger than `limit` bytes.
    pub async fn content_read(&self, digest: &str, limit: usize) -> Result<Bytes> {
        let attempt = || format!("read content {digest}");
        let read = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut parts = self.content().read(request(read)).await.map_err(Error::of(attempt()))?.into_inner();
        let mut whole = BytesMut::new();
        while let Some(part) = parts.message().await.map_err(Error::of(attempt()))? {
            if whole.len() + part.data.len() > limit {
                return Err(Error::Other { attempt: attempt(), message: format!("it has more than {limit} bytes") });
            }
            whole.extend_from_slice(&part.data);
        }
        Ok(whole.freeze())
    }

    /// Writes a blob of any size to a file.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the store has no such blob, [`Error::Other`] where the file cannot be written.
    pub async fn content_copy(&self, digest: &str, to: &Path) -> Result<()> {
        let attempt = || format!("copy content {digest} to {}", to.display());
        let unwritten = |error: std::io::Error| Error::Other { attempt: attempt(), message: error.to_string() };
        let mut file = tokio::fs::File::create(to).await.map_err(unwritten)?;
        let read = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let mut parts = self.content().read(unbounded(read)).await.map_err(Error::of(attempt()))?.into_inner();
        while let Some(part) = parts.message().await.map_err(Error::of(attempt()))? {
            file.write_all(&part.data).await.map_err(unwritten)?;
        }
        file.flush().await.map_err(unwritten)
    }

    /// Throws an unfinished write away. None is fine.
    ///
    /// # Errors
    /// Where containerd fails.
    pub async fn content_abort(&self, reference: &str) -> Result<()> {
        let abort = async || {
            let answer = self.content().abort(request(AbortRequest { r#ref: reference.to_owned() })).await;
            answer.map_err(Error::of(format!("abort the write {reference}")))
        };
        match self.freeing(abort).await {
            Err(Error::NotFound { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens a write, at the byte where the last one of that name stopped. Without a lease the unfinished write is kept
    /// for a day and its blob belongs to nobody; with one both belong to it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where the store has the blob, [`Error::Unavailable`] while another holds the write.
    pub async fn content_write(
        &self,
        ingest: Ingest<'_>,
        lease: Option<&MetadataValue<Ascii>>,
    ) -> Result<ContentWriter> {
        let attempt = format!("write content {}", ingest.digest);
        let (mut requests, queue) = mpsc::channel(1);
        let total = i64::try_from(ingest.total).unwrap_or(i64::MAX);
        let start = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: ingest.reference.to_owned(),
            total,
            expected: ingest.digest.to_owned(),
            ..WriteContentRequest::default()
        };
        let call: Request<_> = match lease {
            Some(lease) => leased(unbounded(queue), lease),
            None => unbounded(queue),
        };
        // The queue is ours and empty: the send cannot fail, and containerd answers only after it.
        let _ = requests.send(start.clone()).await;
        let answers = self.content().write(call).await.map_err(Error::of(attempt.clone()))?.into_inner();
        let mut writer = ContentWriter { requests, answers, start, attempt, offset: 0, unanswered: 1 };
        let answer = writer.answer().await?;
        writer.offset = u64::try_from(answer.offset).unwrap_or(0);
        Ok(writer)
    }
}

/// An open write. Dropped without [`ContentWriter::commit`] it leaves what was written, to be gone on with.
pub struct ContentWriter {
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    start: WriteContentRequest,
    attempt: String,
    offset: u64,
    unanswered: usize,
}

impl ContentWriter {
    /// How many bytes were handed in, this time and before.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends. Returns before containerd has written it, within a bound.
    ///
    /// # Errors
    /// What went wrong with this or an earlier append.
    pub async fn write(&mut self, data: Bytes) -> Result<()> {
        let length = data.len() as u64;
        self.send(WriteAction::Write, data, Labels::new()).await?;
        self.offset += length;
        while self.unanswered > UNANSWERED {
            self.answer().await?;
        }
        Ok(())
    }

    /// Appends the rest, has containerd check length and digest, and makes it a blob with these labels. That somebody
    /// else was faster is fine.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] where the bytes are not those of the digest.
    pub async fn commit(mut self, rest: Bytes, labels: Labels) -> Result<()> {
        self.send(WriteAction::Commit, rest, labels).await?;
        while self.unanswered > 0 {
            match self.answer().await {
                Err(Error::AlreadyExists { .. }) => return Ok(()),
                other => other?,
            };
        }
        Ok(())
    }

    /// Waits until containerd has written what was handed in.
    ///
    /// # Errors
    /// What went wrong with an earlier append.
    pub async fn settle(&mut self) -> Result<()> {
        while self.unanswered > 0 {
            self.answer().await?;
        }
        Ok(())
    }

    async fn send(&mut self, action: WriteAction, data: Bytes, labels: Labels) -> Result<()> {
        let message = WriteContentRequest {
            action: action.into(),
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            data: data.into(),
            labels,
            ..self.start.clone()
        };
        if self.requests.send(message).await.is_err() {
            // The call is over; its answers say why.
            self.settle().await?;
            return Err(self.ended());
        }
        self.unanswered += 1;
        Ok(())
    }

    async fn answer(&mut self) -> Result<WriteContentResponse> {
        let answer = self.answers.message().await.map_err(Error::of(self.attempt.clone()))?;
        self.unanswered -= 1;
        answer.ok_or_else(|| self.ended())
    }

    fn ended(&self) -> Error {
        Error::Unavailable { attempt: self.attempt.clone(), message: "the write ended early".to_owned() }
    }
}
