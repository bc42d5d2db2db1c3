//! Request bodies as objects, and answers as bytes.

use api::status::Status;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt, Collected, Full, Limited};
use serde_json::Value;

use super::negotiate::{Format, Media};
use crate::ports::{Body, BodyError};

/// The largest body of a request, in bytes.
const LIMIT: usize = 3 << 20;

/// Answers of this size are compressed for those who accept it.
const COMPRESS: usize = 128 << 10;

/// A decoded body.
pub struct Decoded {
    pub value: Value,
    /// Fields that were given twice, where the format tells.
    pub duplicates: Vec<String>,
}

/// Reads a body to its end.
///
/// # Errors
/// 413 where it is too large, 400 where it breaks off.
pub async fn read(body: Body) -> Result<Bytes, Status> {
    match collected(body).await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => {
            Err(Status::too_large(format!("Request entity too large: limit is {LIMIT}")))
        }
        Err(e) => Err(Status::bad_request(format!("cannot read the body: {e}"))),
    }
}

/// Boxed here, where the compiler still knows all lifetimes of the body's error.
fn collected(body: Body) -> BoxFuture<'static, Result<Collected<Bytes>, BodyError>> {
    Box::pin(Limited::new(body, LIMIT).collect())
}

/// The media type of a body, without its parameters.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Decodes a body by its media type; JSON where there is none.
///
/// # Errors
/// 415 for a type that the server does not read, 400 for a body that is none of its type.
pub fn decode(content_type: &str, bytes: &[u8]) -> Result<Decoded, Status> {
    let parsed = match content_type {
        "application/vnd.kubernetes.protobuf" => {
            let value = api::protobuf::decode(bytes).map_err(|e| Status::bad_request(e.to_string()))?;
            return Ok(Decoded { value, duplicates: Vec::new() });
        }
        "application/yaml" | "text/yaml" => api::yaml::parse(bytes).map_err(|e| Status::bad_request(e.to_string()))?,
        "" | "application/json" => api::json::parse(bytes)
            .map_err(|e| Status::bad_request(format!("couldn't decode the body as JSON: {e}")))?,
        other => {
            return Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, \
                 application/yaml, application/vnd.kubernetes.protobuf (got {other:?})"
            )));
        }
    };
    Ok(Decoded { value: parsed.value, duplicates: parsed.duplicates })
}

/// An object as bytes.
///
/// # Errors
/// 406 where it has no form of this kind.
pub fn encode(media: Media, pretty: bool, value: &Value) -> Result<Bytes, Status> {
    match media {
        Media::Json if pretty => {
            let mut text = serde_json::to_vec_pretty(value).map_err(Status::internal)?;
            text.push(b'\n');
            Ok(text.into())
        }
        Media::Json => {
            let mut text = serde_json::to_vec(value).map_err(Status::internal)?;
            text.push(b'\n');
            Ok(text.into())
        }
        Media::Yaml => api::yaml::write(value).map(Into::into).map_err(Status::internal),
        Media::Protobuf => {
            api::protobuf::encode(value).map(Into::into).map_err(|e| Status::not_acceptable(e.to_string()))
        }
    }
}

/// The body of bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer of bytes.
pub fn answer(code: u16, content_type: &str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
    response
}

/// An answer of an object.
///
/// # Errors
/// As [`encode`].
pub fn object(code: u16, format: Format, value: &Value) -> Result<Response<Body>, Status> {
    let bytes = encode(format.media, format.pretty, value)?;
    Ok(answer(code, format.media.content_type(), bytes))
}

/// The answer of a failure, in a form that the client reads if that can be.
pub fn failure(media: Media, status: &Status) -> Response<Body> {
    let value = status.to_value();
    let (media, bytes) = match encode(media, false, &value) {
        Ok(bytes) => (media, bytes),
        Err(_) => (Media::Json, Bytes::from(value.to_string())),
    };
    let mut response = answer(status.code, media.content_type(), bytes);
    if let Some(seconds) = status.details["retryAfterSeconds"].as_u64() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    } else if status.code == 429 {
        response.headers_mut().insert(header::RETRY_AFTER, 1.into());
    }
    response
}

/// Compresses a large answer for a client that accepts it.
pub fn compressed(accepts: &HeaderMap, response: Response<Body>, bytes: Bytes) -> Response<Body> {
    let (mut head, _) = response.into_parts();
    if bytes.len() < COMPRESS || !accepts_gzip(accepts) {
        return Response::from_parts(head, full(bytes));
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::fast());
    match std::io::Write::write_all(&mut encoder, &bytes).and_then(|()| encoder.finish()) {
        Ok(small) => {
            say_gzip(&mut head.headers);
            Response::from_parts(head, full(small))
        }
        // Writing to memory does not fail; if it did, the plain form is an answer as well.
        Err(_) => Response::from_parts(head, full(bytes)),
    }
}

/// Whether a client reads gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let value = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok());
    value.is_some_and(|v| v.split(',').any(|e| e.split(';').next().unwrap_or_default().trim() == "gzip"))
}

/// Tells that an answer is compressed.
pub fn say_gzip(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
    headers.insert(header::VARY, header::HeaderValue::from_static("Accept-Encoding"));
}
