//! `/bosun/store`: a copy of the store while it runs (GET), and a store made from such a copy (PUT). For administrators.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use api::status::Status;
use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use super::{Asked, body};
use crate::ports::Body;
use crate::server::from_store;
use crate::store;

pub(super) async fn answer(asked: &Asked<'_>, body: Body) -> Result<Response<Body>, Status> {
    match asked.head.method {
        Method::GET => snapshot(asked).await,
        Method::PUT => restore(asked, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// A file that goes when it is not needed any more.
struct Passing(PathBuf);

impl Passing {
    fn new(folder: &Path) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = folder.join(format!("passing-{}.redb", COUNT.fetch_add(1, Ordering::Relaxed)));
        // A process that died may have left one.
        let _ = std::fs::remove_file(&path);
        Self(path)
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn snapshot(asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let store = &asked.server.store;
    let copy = Passing::new(store.folder());
    let revision = store.snapshot(copy.0.clone()).await.map_err(from_store)?;
    tracing::info!(revision, "a snapshot goes out");
    // The file has no name any more while it is read: it ends with its reader.
    let file = tokio::fs::File::open(&copy.0).await.map_err(Status::internal)?;
    let frames = ReaderStream::with_capacity(file, 64 << 10).map_ok(Frame::data).map_err(Into::into);
    let mut response = body::answer(200, "application/octet-stream", Bytes::new());
    *response.body_mut() = BodyExt::boxed_unsync(StreamBody::new(frames));
    Ok(response)
}

/// What is written between here and the start of the next process is lost, as what was written since the snapshot is.
async fn restore(asked: &Asked<'_>, mut body: Body) -> Result<Response<Body>, Status> {
    let store = &asked.server.store;
    let incoming = Passing::new(store.folder());
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::StorageFull => from_store(store::Error::Full(format!("{}: {error}", incoming.0.display()))),
        _ => Status::internal(format!("write {}: {error}", incoming.0.display())),
    };
    let mut file = File::create_new(&incoming.0).map_err(failed)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Status::bad_request(format!("cannot read the body: {e}")))?;
        if let Ok(data) = frame.into_data() {
            file.write_all(&data).map_err(failed)?;
        }
    }
    drop(file);
    let refused = |error: store::Error| Status::bad_request(format!("this is no snapshot of a store: {error}"));
    store.restore(incoming.0.clone()).await.map_err(refused)?;
    tracing::warn!("the API server ends, to begin again with the store that was handed in");
    asked.server.stop.stop();
    Ok(body::answer(200, "text/plain", "the API server begins again with this store\n"))
}
