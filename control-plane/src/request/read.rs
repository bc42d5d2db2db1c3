//! Get, list, watch.

use api::status::Status;
use bytes::BytesMut;
use http::Response;

use super::list::{parse_version, too_large_version};
use super::path::Place;
use super::{Asked, body, encode, streaming, watching};
use crate::ports::Body;
use crate::registry::{Subresource, storage};
use crate::server::{decode, from_store, qualified};
use crate::verbs;
use crate::watch::Selection;

/// One object, or a part of it.
pub(super) async fn one(asked: Asked<'_>, place: Place) -> Result<Response<Body>, Status> {
    let (server, resource) = (asked.server, place.resource);
    let format = asked.format()?;
    let key = storage::key(resource, &place.namespace, &place.name);
    let (revision, entry) = server.store.get(&key).await.map_err(from_store)?;
    match asked.query.get("resourceVersion") {
        "" | "0" => {}
        wanted => {
            let wanted = parse_version(wanted)?;
            if wanted > revision {
                return Err(too_large_version(wanted, revision));
            }
        }
    }
    let Some(entry) = entry else { return Err(Status::not_found(&qualified(resource), &place.name)) };
    match place.subresource {
        None | Some(Subresource::Status | Subresource::EphemeralContainers | Subresource::Resize) => {}
        Some(Subresource::Scale) => {
            let scale = verbs::scale(&decode(resource, &entry)?)?;
            return body::object(200, format, &scale);
        }
        Some(_) => return Err(Status::method_not_allowed()),
    }
    if format.is_plain_json() {
        let mut bytes = BytesMut::with_capacity(entry.value.len() + 128);
        if storage::splice(resource, &entry.value, entry.modified, false, &mut bytes) {
            bytes.extend_from_slice(b"\n");
            return Ok(body::answer(200, "application/json", bytes.freeze()));
        }
    }
    let bytes = encode::object(resource, format, &decode(resource, &entry)?, server.now())?;
    Ok(body::answer(200, format.media.content_type(), bytes))
}

/// A list, or a watch.
pub(super) async fn collection(asked: Asked<'_>, place: Place) -> Result<Response<Body>, Status> {
    let format = asked.format()?;
    let query = asked.query.list()?;
    let selection = selection(&place, &query.label_selector, &query.field_selector)?;
    if query.watch {
        return watching::watch(asked.server, place.resource, selection, &query, format).await;
    }
    if query.limit == 0 && format.is_plain_json() {
        return streaming::list(asked.server, place.resource, selection, &query, &asked.head.headers).await;
    }
    let page = asked.server.page(place.resource, &selection, &query).await?;
    let bytes = encode::list(place.resource, format, &page, asked.server.now())?;
    let response = body::answer(200, format.media.content_type(), bytes::Bytes::new());
    Ok(body::compressed(&asked.head.headers, response, bytes))
}

/// What a request for a collection is about.
pub(super) fn selection(place: &Place, labels: &str, fields: &str) -> Result<Selection, Status> {
    let scope = storage::scope(place.resource, &place.namespace);
    let mut selection = Selection::parse(place.resource, scope, labels, fields)?;
    let below_namespace = !place.resource.namespaced || !place.namespace.is_empty();
    if let (Some(name), true) = (&selection.name, below_namespace) {
        selection.scope.push_str(name);
    }
    Ok(selection)
}
