//! Lists without a limit, as a stream: the store is read a part at a time, always at the same revision, and each part
//! goes out before the next is read. So a list of any length takes the memory of one part.

use std::io::Write;
use std::sync::Arc;

use api::status::Status;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::future::BoxFuture;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::list::Page;
use super::negotiate::Format;
use super::query::ListQuery;
use super::{body, encode};
use crate::ports::{Body, BodyError};
use crate::registry::Resource;
use crate::server::Server;
use crate::watch::Selection;

/// How many objects a part holds.
const PART: usize = 1000;

/// The answer to a list in plain JSON.
///
/// # Errors
/// As for a list of one page; what fails later breaks the answer off.
pub async fn list(
    server: &Arc<Server>,
    resource: &'static Resource,
    selection: Selection,
    query: &ListQuery,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    let parts = ListQuery { limit: PART, ..query.clone() };
    let from = server.origin(&selection, query)?;
    let first = server.collect(resource, &selection, &parts, from).await?;
    if first.token.is_none() {
        let bytes = encode::list(resource, Format::JSON, &first, server.now())?;
        return Ok(body::compressed(headers, body::answer(200, "application/json", Bytes::new()), bytes));
    }
    let gzip = body::accepts_gzip(headers);
    let rest = Rest {
        server: server.clone(),
        resource,
        selection,
        parts,
        part: Some(first),
        begun: false,
        gzip: gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast())),
    };
    let stream = futures::stream::try_unfold(rest, |rest| rest.step());
    let mut response = body::answer(200, "application/json", Bytes::new());
    if gzip {
        body::say_gzip(response.headers_mut());
    }
    *response.body_mut() = BodyExt::boxed_unsync(StreamBody::new(stream));
    Ok(response)
}

/// A frame and what follows it; none at the end.
type Step = Result<Option<(Frame<Bytes>, Rest)>, BodyError>;

/// What of a list is still to be sent.
struct Rest {
    server: Arc<Server>,
    resource: &'static Resource,
    selection: Selection,
    parts: ListQuery,
    /// The part that comes next.
    part: Option<Page>,
    begun: bool,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Rest {
    fn step(mut self) -> BoxFuture<'static, Step> {
        Box::pin(async move {
            let Some(part) = self.part.take() else { return Ok(None) };
            let bytes = self.encode(&part)?;
            if let (Some(_), Some(last)) = (&part.token, part.entries.last()) {
                let from = (Some(part.revision), Some(last.key.to_string()));
                self.part = Some(self.server.collect(self.resource, &self.selection, &self.parts, from).await?);
            }
            Ok(Some((Frame::data(bytes), self)))
        })
    }

    fn encode(&mut self, part: &Page) -> Result<Bytes, BodyError> {
        let size: usize = part.entries.iter().map(|entry| entry.value.len() + 40).sum();
        let mut out = BytesMut::with_capacity(size + 256);
        if !self.begun {
            let metadata = serde_json::json!({"resourceVersion": part.revision.to_string()});
            encode::json_head(self.resource, &metadata, &mut out);
        }
        encode::json_items(self.resource, &part.entries, !self.begun, &mut out)?;
        self.begun = true;
        let is_last = part.token.is_none();
        if is_last {
            out.extend_from_slice(encode::JSON_TAIL);
        }
        let Some(gzip) = &mut self.gzip else { return Ok(out.freeze()) };
        gzip.write_all(&out)?;
        if is_last {
            gzip.try_finish()?;
        }
        Ok(std::mem::take(gzip.get_mut()).into())
    }
}
