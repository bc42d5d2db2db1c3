//! Watches over HTTP: a stream of frames, one for each change that the client's selection sees.

use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;

use super::list::{Page, parse_version};
use super::negotiate::{Format, Media, Shape};
use super::query::ListQuery;
use super::{body, encode, table};
use crate::ports::Body;
use crate::registry::{Resource, storage};
use crate::server::{Server, decode, from_store};
use crate::store::{self, Revision};
use crate::watch::{Change, FrameKey, Kind, Message, Selection};

/// Frames that wait for the client's connection.
const BUFFER: usize = 64;

/// How often a client that asked for bookmarks gets one while nothing happens.
const BOOKMARKS: Duration = Duration::from_secs(50);

/// How long a watch lasts where the client did not say.
const LASTS: Duration = Duration::from_secs(30 * 60);

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// With all objects as ADDED; `marked`: and a bookmark behind them.
    State {
        marked: bool,
    },
    After(Revision),
    /// With what happens from now on.
    Now,
}

fn start(query: &ListQuery) -> Result<Start, Status> {
    let any = query.resource_version.is_empty() || query.resource_version == "0";
    match query.send_initial_events {
        Some(true) => Ok(Start::State { marked: true }),
        Some(false) if any => Ok(Start::Now),
        None if any => Ok(Start::State { marked: false }),
        _ => parse_version(&query.resource_version).map(Start::After),
    }
}

/// The answer to a watch. Frames flow for as long as the client, the server and the time allow.
///
/// # Errors
/// 400 for a bad version.
pub async fn watch(
    server: &Arc<Server>,
    resource: &'static Resource,
    selection: Selection,
    query: &ListQuery,
    format: Format,
) -> Result<Response<Body>, Status> {
    let start = start(query)?;
    let lasts = query.timeout_seconds.filter(|s| *s > 0).map_or(LASTS, Duration::from_secs);
    let (out, frames) = mpsc::channel(BUFFER);
    let watcher = Watcher {
        server: server.clone(),
        resource,
        selection,
        format: Format { pretty: false, ..format },
        bookmarks: query.bookmarks,
        columns_sent: false,
        last_bookmark: Instant::now(),
        deadline: Instant::now() + lasts,
        out,
    };
    tokio::spawn(watcher.run(start));
    let stream = tokio_stream(frames).map(|bytes: Bytes| Ok(Frame::data(bytes)));
    let media = match format.media {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        Media::Json | Media::Yaml => "application/json",
    };
    let mut response = body::answer(200, media, Bytes::new());
    *response.body_mut() = BodyExt::boxed_unsync(StreamBody::new(stream));
    Ok(response)
}

fn tokio_stream<T>(receiver: mpsc::Receiver<T>) -> impl futures::Stream<Item = T> {
    futures::stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
}

struct Watcher {
    server: Arc<Server>,
    resource: &'static Resource,
    selection: Selection,
    format: Format,
    bookmarks: bool,
    columns_sent: bool,
    last_bookmark: Instant,
    deadline: Instant,
    out: mpsc::Sender<Bytes>,
}

/// The watch is over: the client went, the time is up, or an error was told.
struct Over;

impl Watcher {
    async fn run(mut self, start: Start) {
        // `Over` needs no handling: dropping the sender ends the answer.
        let _ = self.follow(start).await;
    }

    async fn follow(&mut self, start: Start) -> Result<(), Over> {
        let prefix = storage::prefix(self.resource);
        let mut hub = match self.server.hubs.subscribe(&self.server.store, &prefix).await {
            Ok(hub) => hub,
            Err(error) => return self.fail(&from_store(error)).await,
        };
        let mut after = match start {
            Start::Now => hub.position,
            Start::After(revision) => revision,
            Start::State { marked } => self.state(marked).await?,
        };
        if after < hub.position {
            after = self.catch_up(after, hub.position).await?;
        }
        loop {
            let message = tokio::select! {
                message = hub.messages.recv() => message,
                () = tokio::time::sleep_until(self.deadline) => return Err(Over),
                () = self.out.closed() => return Err(Over),
                () = self.server.stop.stopped() => return Err(Over),
            };
            match message {
                Ok(Message::Change(change)) if change.event.revision > after => self.tell(&change).await?,
                Ok(Message::Change(_)) => {}
                Ok(Message::Progress(revision)) if revision >= after => self.progress(revision).await?,
                Ok(Message::Progress(_)) => {}
                // Too slow, or the store failed: the client goes on from its last revision.
                Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => {
                    return Err(Over);
                }
            }
        }
    }

    /// All objects of now, as ADDED.
    async fn state(&mut self, marked: bool) -> Result<Revision, Over> {
        let query = ListQuery::default();
        let page: Page = match self.server.page(self.resource, &self.selection, &query).await {
            Ok(page) => page,
            Err(status) => return self.fail(&status).await.map(|()| 0),
        };
        for entry in &page.entries {
            let object = match decode(self.resource, entry) {
                Ok(object) => object,
                Err(status) => return self.fail(&status).await.map(|()| 0),
            };
            let bytes = self.encoded(&object)?;
            self.send(encode::frame(self.format, Kind::Added, &bytes)).await?;
        }
        if marked && self.bookmarks {
            self.bookmark(page.revision, json!({"k8s.io/initial-events-end": "true"})).await?;
        }
        Ok(page.revision)
    }

    /// What happened between the client's revision and the hub's.
    async fn catch_up(&mut self, after: Revision, upto: Revision) -> Result<Revision, Over> {
        let history = self.server.store.history(self.selection.scope.clone(), after, upto).await;
        match history {
            Ok(events) => {
                for event in events {
                    self.tell(&Change::new(event)).await?;
                }
                Ok(upto)
            }
            Err(store::Error::Compacted { wanted, compacted }) => {
                let status = Status::expired(format!("too old resource version: {wanted} ({compacted})"));
                self.fail(&status).await.map(|()| upto)
            }
            Err(error) => self.fail(&from_store(error)).await.map(|()| upto),
        }
    }

    async fn tell(&mut self, change: &Change) -> Result<(), Over> {
        if !change.event.key.starts_with(&self.selection.scope) {
            return Ok(());
        }
        let Some((kind, before)) = self.seen(change) else { return Ok(()) };
        // The first Table brings the columns and is this watcher's own.
        let key = FrameKey { resource: std::ptr::from_ref(self.resource).addr(), kind, format: self.format };
        let frame = match self.format.shape {
            Shape::Table { .. } if !self.columns_sent => self.encode_change(change, kind, before)?,
            _ => {
                let mut failed = false;
                let frame = change.frame(key, || match self.encode_change(change, kind, before) {
                    Ok(frame) => frame,
                    Err(Over) => {
                        failed = true;
                        Bytes::new()
                    }
                });
                if failed {
                    return Err(Over);
                }
                frame
            }
        };
        self.send(frame).await
    }

    fn seen(&self, change: &Change) -> Option<(Kind, bool)> {
        if self.selection.is_everything() {
            return Some(match change.event.value {
                Some(_) if change.event.created == change.event.revision => (Kind::Added, false),
                Some(_) => (Kind::Modified, false),
                None => (Kind::Deleted, true),
            });
        }
        let (now, before) = (change.object(self.resource), change.previous(self.resource));
        self.selection.sees(now.as_deref(), before.as_deref())
    }

    fn encode_change(&self, change: &Change, kind: Kind, before: bool) -> Result<Bytes, Over> {
        if self.format.is_plain_json() {
            let bytes = if before { &change.event.previous } else { &change.event.value };
            let mut object = BytesMut::new();
            if let Some(bytes) = bytes
                && storage::splice(self.resource, bytes, change.event.revision, false, &mut object)
            {
                return Ok(encode::frame(self.format, kind, &object));
            }
        }
        let object = if before { change.previous(self.resource) } else { change.object(self.resource) };
        let bytes = self.encoded(&*object.ok_or(Over)?)?;
        Ok(encode::frame(self.format, kind, &bytes))
    }

    fn encoded(&self, object: &Value) -> Result<Bytes, Over> {
        let now = self.server.now();
        let Shape::Table { include, beta } = self.format.shape else {
            return encode::object(self.resource, self.format, object, now).map_err(|_| Over);
        };
        let version = if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" };
        let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
        let row = table::row(self.resource, object, include, now);
        let table = table::table(self.resource, version, metadata, vec![row], !self.columns_sent);
        body::encode(self.format.media, false, &table).map_err(|_| Over)
    }

    async fn send(&mut self, frame: Bytes) -> Result<(), Over> {
        self.columns_sent = true;
        tokio::select! {
            sent = self.out.send(frame) => sent.map_err(|_| Over),
            () = tokio::time::sleep_until(self.deadline) => Err(Over),
        }
    }

    async fn progress(&mut self, revision: Revision) -> Result<(), Over> {
        if !self.bookmarks || self.last_bookmark.elapsed() < BOOKMARKS {
            return Ok(());
        }
        self.bookmark(revision, Value::Null).await
    }

    async fn bookmark(&mut self, revision: Revision, annotations: Value) -> Result<(), Over> {
        self.last_bookmark = Instant::now();
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if !annotations.is_null() {
            metadata["annotations"] = annotations;
        }
        let (kind, version) = (self.resource.kind, storage::api_version(self.resource));
        let object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        let bytes = match self.format.shape {
            Shape::Table { beta, .. } => {
                let version = if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" };
                let table = table::table(self.resource, version, metadata_of(&object), Vec::new(), false);
                body::encode(self.format.media, false, &table).map_err(|_| Over)?
            }
            _ => encode::object(self.resource, self.format, &object, 0).map_err(|_| Over)?,
        };
        let frame = encode::frame(self.format, Kind::Bookmark, &bytes);
        self.out.send(frame).await.map_err(|_| Over)
    }

    /// Tells an error as an event, and ends.
    async fn fail(&mut self, status: &Status) -> Result<(), Over> {
        let bytes = body::encode(self.format.media, false, &status.to_value()).map_err(|_| Over)?;
        let _ = self.out.send(encode::frame(self.format, Kind::Error, &bytes)).await;
        Err(Over)
    }
}

fn metadata_of(object: &Value) -> Value {
    json!({"resourceVersion": object["metadata"]["resourceVersion"]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_watch_begins() {
        let query = |version: &str, initial| ListQuery {
            resource_version: version.into(),
            send_initial_events: initial,
            ..ListQuery::default()
        };
        assert_eq!(start(&query("", None)), Ok(Start::State { marked: false }));
        assert_eq!(start(&query("0", None)), Ok(Start::State { marked: false }));
        assert_eq!(start(&query("7", None)), Ok(Start::After(7)));
        assert_eq!(start(&query("7", Some(true))), Ok(Start::State { marked: true }));
        assert_eq!(start(&query("7", Some(false))), Ok(Start::After(7)));
        assert_eq!(start(&query("", Some(false))), Ok(Start::Now));
    }
}
