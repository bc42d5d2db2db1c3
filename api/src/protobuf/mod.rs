//! Kubernetes protobuf, by table: bodies in the `k8s\0` envelope to JSON values and back.
//!
//! The JSON is what Go's encoder would show: zero values that are no pointers are left out. Source: `data/README.md`,
//! k8s.io/apimachinery `runtime/serializer/protobuf`.

mod decode;
mod encode;
mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

pub use decode::decode_message;
pub use encode::encode_message;
pub use wire::{put_bytes, put_number};

use crate::schema::{self, Definition};

/// What a body begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";
/// The media type of a body.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The media type of a watch's frames.
pub const STREAM_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// How deep messages may nest.
const DEPTH: usize = 100;

/// Why bytes are no object, or an object cannot be put into bytes.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
    #[error("content encoding {0:?} of a protobuf body is not supported")]
    Encoding(String),
    #[error("protobuf: unexpected end of input in {0}")]
    Truncated(&'static str),
    #[error("protobuf: {owner} field {tag}: {why}")]
    Field { owner: &'static str, tag: u32, why: &'static str },
    #[error("protobuf: {owner} field {tag} holds no JSON: {why}")]
    EmbeddedJson { owner: &'static str, tag: u32, why: String },
    #[error("protobuf: messages nest deeper than {DEPTH}")]
    TooDeep,
    #[error("encode {owner}.{field} as protobuf: {why}")]
    Value { owner: &'static str, field: &'static str, why: String },
}

/// The object in an enveloped body, with `apiVersion` and `kind` as the envelope says.
///
/// # Errors
/// Where the bytes are cut, garbage, or of a kind that the API does not have.
pub fn decode(body: &[u8]) -> Result<Value, Error> {
    let envelope = open(body)?;
    let unknown = || Error::UnknownKind { api_version: envelope.api_version.clone(), kind: envelope.kind.clone() };
    let definition = schema::by_api_version(&envelope.api_version, &envelope.kind).ok_or_else(unknown)?;
    let mut object = serde_json::Map::new();
    object.insert("apiVersion".into(), envelope.api_version.into());
    object.insert("kind".into(), envelope.kind.into());
    object.extend(decode_message(definition, envelope.raw)?);
    Ok(Value::Object(object))
}

/// An envelope taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope<'a> {
    pub api_version: String,
    pub kind: String,
    /// The bare message.
    pub raw: &'a [u8],
}

/// Opens the envelope and leaves the message as it is.
///
/// # Errors
/// As [`decode`].
pub fn open(body: &[u8]) -> Result<Envelope<'_>, Error> {
    let rest = body.strip_prefix(MAGIC).ok_or(Error::NoMagic)?;
    let mut envelope = Envelope { api_version: String::new(), kind: String::new(), raw: &[] };
    let mut fields = wire::Reader::new(rest, "Unknown");
    while let Some((tag, value)) = fields.next()? {
        match tag {
            1 => {
                let mut meta = wire::Reader::new(fields.bytes(tag, value)?, "TypeMeta");
                while let Some((tag, value)) = meta.next()? {
                    match tag {
                        1 => envelope.api_version = meta.text(tag, value)?.to_owned(),
                        2 => envelope.kind = meta.text(tag, value)?.to_owned(),
                        _ => {}
                    }
                }
            }
            2 => envelope.raw = fields.bytes(tag, value)?,
            3 => match fields.text(tag, value)? {
                "" => {}
                encoding => return Err(Error::Encoding(encoding.to_owned())),
            },
            _ => {}
        }
    }
    Ok(envelope)
}

/// An object as an enveloped body. Equal objects give equal bytes.
///
/// # Errors
/// Where the API does not have the object's `apiVersion` and `kind`, or a value has the wrong type.
pub fn encode(object: &Value) -> Result<Vec<u8>, Error> {
    let (api_version, kind) = (crate::meta::api_version(object), crate::meta::kind(object));
    Ok(seal(api_version, kind, &encode_message(definition_of(api_version, kind)?, object)?))
}

fn definition_of(api_version: &str, kind: &str) -> Result<&'static Definition, Error> {
    let unknown = || Error::UnknownKind { api_version: api_version.into(), kind: kind.into() };
    schema::by_api_version(api_version, kind).ok_or_else(unknown)
}

/// Puts a bare message into its envelope.
pub fn seal(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    wire::put_bytes(&mut meta, 1, api_version.as_bytes());
    wire::put_bytes(&mut meta, 2, kind.as_bytes());
    let mut body = Vec::with_capacity(message.len() + meta.len() + 20);
    body.extend_from_slice(MAGIC);
    wire::put_bytes(&mut body, 1, &meta);
    wire::put_bytes(&mut body, 2, message);
    // Go writes both of these, empty.
    wire::put_bytes(&mut body, 3, b"");
    wire::put_bytes(&mut body, 4, b"");
    body
}

/// A list as an enveloped body, from items that are bare messages already (see [`encode_message`]).
/// `kind` is as `PodList`, `metadata` a `ListMeta`.
///
/// # Errors
/// Where `metadata` has a value of the wrong type.
pub fn encode_list<'a>(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    items: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, Error> {
    let meta = schema::by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    let mut message = Vec::new();
    if let Some(definition) = meta {
        wire::put_bytes(&mut message, 1, &encode_message(definition, metadata)?);
    }
    for item in items {
        wire::put_bytes(&mut message, 2, item);
    }
    Ok(seal(api_version, kind, &message))
}

/// One event of a watch, with its length before it. `kind` is as `ADDED`, `object` an enveloped body.
pub fn watch_event_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(object.len() + 6);
    wire::put_bytes(&mut raw, 1, object);
    let mut frame = Vec::with_capacity(raw.len() + kind.len() + 16);
    frame.extend_from_slice(&[0; 4]);
    wire::put_bytes(&mut frame, 1, kind.as_bytes());
    wire::put_bytes(&mut frame, 2, &raw);
    // A frame is one object; bodies are limited to megabytes long before this could overflow.
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Base64 as Go's JSON reads it: standard alphabet, padded, line breaks ignored. The error is the offset of the fault.
pub(crate) fn base64(text: &str) -> Result<Vec<u8>, usize> {
    let decoded = if text.contains(['\r', '\n']) {
        STANDARD.decode(text.replace(['\r', '\n'], ""))
    } else {
        STANDARD.decode(text)
    };
    decoded.map_err(|error| match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        base64::DecodeError::InvalidLength(at) => at,
        base64::DecodeError::InvalidPadding => text.len(),
    })
}

#[cfg(test)]
mod tests;
