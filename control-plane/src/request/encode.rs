//! Objects and lists in the form that the client wants: whole, as metadata alone, or as a Table.

use api::status::Status;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use super::list::Page;
use super::negotiate::{Format, Media, Shape};
use super::{body, table};
use crate::registry::{Resource, storage};
use crate::server::decode;
use crate::store::Entry;

/// `meta.k8s.io/v1`, or the older one.
fn meta_version(beta: bool) -> &'static str {
    if beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
}

/// The metadata of an object, as an object of its own.
pub fn partial(object: &Value, beta: bool) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": meta_version(beta), "metadata": object["metadata"],
    })
}

/// One object.
///
/// # Errors
/// Where it has no such form.
pub fn object(resource: &Resource, format: Format, object: &Value, now: i64) -> Result<Bytes, Status> {
    let shaped = match format.shape {
        Shape::Table { beta, include } => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            let row = table::row(resource, object, include, now);
            table::table(resource, meta_version(beta), metadata, vec![row], true)
        }
        Shape::Partial { beta } => partial(object, beta),
        Shape::Whole => return body::encode(format.media, format.pretty, object),
    };
    body::encode(format.media, format.pretty, &shaped)
}

/// A list of objects.
///
/// # Errors
/// Where one of them is broken or has no such form.
pub fn list(resource: &Resource, format: Format, page: &Page, now: i64) -> Result<Bytes, Status> {
    let objects = || page.entries.iter().map(|entry| decode(resource, entry));
    let list = match format.shape {
        Shape::Whole if format.is_plain_json() => return json_list(resource, page),
        Shape::Whole if format.media == Media::Protobuf => return protobuf_list(resource, page),
        Shape::Whole => {
            let items = objects().map(|object| object.map(bare)).collect::<Result<Vec<_>, _>>()?;
            json!({
                "kind": format!("{}List", resource.kind), "apiVersion": storage::api_version(resource),
                "metadata": page.metadata(), "items": items,
            })
        }
        Shape::Partial { beta } => {
            let items =
                objects().map(|object| object.map(|o| bare(partial(&o, beta)))).collect::<Result<Vec<_>, _>>()?;
            json!({
                "kind": "PartialObjectMetadataList", "apiVersion": meta_version(beta),
                "metadata": page.metadata(), "items": items,
            })
        }
        Shape::Table { beta, include } => {
            let rows = objects()
                .map(|object| object.map(|o| table::row(resource, &o, include, now)))
                .collect::<Result<Vec<_>, _>>()?;
            table::table(resource, meta_version(beta), page.metadata(), rows, true)
        }
    };
    body::encode(format.media, format.pretty, &list)
}

/// An item of a list says its kind only once, on the list.
fn bare(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove("kind");
        fields.shift_remove("apiVersion");
    }
    object
}

/// From stored bytes, without parsing them.
fn json_list(resource: &Resource, page: &Page) -> Result<Bytes, Status> {
    let size: usize = page.entries.iter().map(|entry| entry.value.len() + 40).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    json_head(resource, &page.metadata(), &mut out);
    json_items(resource, &page.entries, true, &mut out)?;
    out.extend_from_slice(JSON_TAIL);
    Ok(out.freeze())
}

/// What a list begins with, up to its first item.
pub fn json_head(resource: &Resource, metadata: &Value, out: &mut BytesMut) {
    let (kind, version) = (resource.kind, storage::api_version(resource));
    let head = format!(r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{metadata},"items":["#);
    out.extend_from_slice(head.as_bytes());
}

/// Items of a list; a comma stands before all but the `first`.
///
/// # Errors
/// Where a stored object is none.
pub fn json_items(resource: &Resource, entries: &[Entry], first: bool, out: &mut BytesMut) -> Result<(), Status> {
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 || !first {
            out.extend_from_slice(b",");
        }
        if !storage::splice(resource, &entry.value, entry.modified, true, out) {
            out.extend_from_slice(bare(decode(resource, entry)?).to_string().as_bytes());
        }
    }
    Ok(())
}

/// What a list ends with, behind its last item.
pub const JSON_TAIL: &[u8] = b"]}\n";

fn protobuf_list(resource: &Resource, page: &Page) -> Result<Bytes, Status> {
    let refused = |e: api::protobuf::Error| Status::not_acceptable(e.to_string());
    let definition = api::schema::by_kind(resource.group, resource.version, resource.kind)
        .ok_or_else(|| Status::not_acceptable(format!("{} has no protobuf form", resource.kind)))?;
    let mut items = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        let object = decode(resource, entry)?;
        items.push(api::protobuf::encode_message(definition, &object).map_err(refused)?);
    }
    let kind = format!("{}List", resource.kind);
    let items = items.iter().map(Vec::as_slice);
    let bytes = api::protobuf::encode_list(&storage::api_version(resource), &kind, &page.metadata(), items);
    bytes.map(Into::into).map_err(refused)
}

/// A frame of a watch.
///
/// # Errors
/// Where the object has no such form.
pub fn frame(format: Format, kind: crate::watch::Kind, object: &[u8]) -> Bytes {
    match format.media {
        Media::Protobuf => api::protobuf::watch_event_frame(kind.word(), object).into(),
        Media::Json | Media::Yaml => {
            let mut out = BytesMut::with_capacity(object.len() + 40);
            out.extend_from_slice(br#"{"type":""#);
            out.extend_from_slice(kind.word().as_bytes());
            out.extend_from_slice(br#"","object":"#);
            out.extend_from_slice(object.trim_ascii_end());
            out.extend_from_slice(b"}\n");
            out.freeze()
        }
    }
}
