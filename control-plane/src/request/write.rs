//! Create, update, patch, delete.

use api::schema::Definition;
use api::status::Status;
use http::header::HeaderValue;
use http::{HeaderName, Response};
use serde_json::Value;

use super::path::Place;
use super::{Asked, body, encode, read};
use crate::ports::{Body, Question};
use crate::registry::{Resource, Subresource, storage};
use crate::verbs::{Call, Change, DeleteOptions, meta};

/// The group, version and kind of what a write to a subresource carries.
fn kind_of(resource: &Resource, subresource: Option<Subresource>) -> (String, &'static str) {
    match subresource {
        Some(Subresource::Scale) => ("autoscaling/v1".into(), "Scale"),
        Some(Subresource::Eviction) => ("policy/v1".into(), "Eviction"),
        Some(Subresource::Binding) => ("v1".into(), "Binding"),
        Some(Subresource::Token) => ("authentication.k8s.io/v1".into(), "TokenRequest"),
        _ => (storage::api_version(resource), resource.kind),
    }
}

fn call(asked: &Asked<'_>, place: &Place) -> Result<Call, Status> {
    let query = asked.query.write(place.resource.kind)?;
    Ok(Call {
        user: asked.user.clone(),
        resource: place.resource,
        subresource: place.subresource,
        namespace: place.namespace.clone(),
        name: place.name.clone(),
        dry_run: query.dry_run,
        field_validation: query.field_validation,
        duplicates: Vec::new(),
        warnings: Vec::new(),
    })
}

/// The object of a body, if it is of the kind that the path says.
async fn object(asked: &Asked<'_>, call: &mut Call, body: Body) -> Result<Value, Status> {
    let bytes = body::read(body).await?;
    let decoded = body::decode(body::content_type(&asked.head.headers), &bytes)?;
    call.duplicates = decoded.duplicates;
    let mut object = decoded.value;
    let (version, kind) = kind_of(call.resource, call.subresource);
    let Some(fields) = object.as_object_mut() else {
        let message = format!("couldn't get version/kind; json parse error: the body is no object (expected a {kind})");
        return Err(Status::bad_request(message));
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let (given_version, given_kind) = (text("apiVersion"), text("kind"));
    if !given_kind.is_empty() && given_kind != kind {
        return Err(Status::bad_request(format!(
            "{given_kind} in version {given_version:?} cannot be handled as a {kind}: converting ({given_kind}) to \
             ({kind}): unknown conversion"
        )));
    }
    // The eviction API is understood in the version before, as well.
    let is_known = given_version == version || (kind == "Eviction" && given_version == "policy/v1beta1");
    if !given_version.is_empty() && !is_known {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({version})"
        )));
    }
    fields.insert("apiVersion".into(), version.into());
    fields.insert("kind".into(), kind.into());
    Ok(object)
}

pub(super) async fn create(asked: Asked<'_>, mut place: Place, body: Body) -> Result<Response<Body>, Status> {
    let server = asked.server;
    let mut call = call(&asked, &place)?;
    // `bindings` is the older way to write a pod's binding.
    if place.resource.plural == "bindings" && place.resource.group.is_empty() {
        let Some(pods) = server.resource("", "pods") else { return Err(Status::method_not_allowed()) };
        place.subresource = Some(Subresource::Binding);
        (call.resource, call.subresource) = (pods, place.subresource);
    }
    let object = object(&asked, &mut call, body).await?;
    match place.subresource {
        Some(Subresource::Binding) => {
            if call.name.is_empty() {
                call.name = meta(&object, "name").to_owned();
            }
            let status = server.bind(&mut call, object).await?;
            respond(&asked, &call, 201, &status)
        }
        Some(Subresource::Eviction) => {
            let status = server.evict(&mut call, &object).await?;
            respond(&asked, &call, 201, &status)
        }
        Some(Subresource::Token) => question(asked, call, object).await,
        Some(_) => Err(Status::method_not_allowed()),
        None if place.resource.virtual_only => question(asked, call, object).await,
        None if place.resource.namespaced && place.namespace.is_empty() => Err(Status::method_not_allowed()),
        None => {
            let created = server.create_object(&mut call, object).await?;
            respond(&asked, &call, 201, &created)
        }
    }
}

/// Has something computed: a token, a review.
async fn question(asked: Asked<'_>, mut call: Call, mut object: Value) -> Result<Response<Body>, Status> {
    let server = asked.server;
    let (version, kind) = kind_of(call.resource, call.subresource);
    if let Some(definition) = api::schema::by_api_version(&version, kind) {
        server.check_fields(&mut call, definition, &mut object)?;
    }
    if call.subresource.is_none() {
        call.resource.strategy.default(&mut object);
        let errors = call.resource.strategy.validate(&object);
        if !errors.is_empty() {
            return Err(Status::invalid(&crate::verbs::qualified_kind(call.resource), &call.name, &errors));
        }
    }
    let question = Question {
        user: call.user.clone(),
        resource: call.resource,
        subresource: call.subresource,
        namespace: call.namespace.clone(),
        name: call.name.clone(),
        object,
        dry_run: call.dry_run,
    };
    let answer = server.ports.answerer.answer(server, question).await?;
    respond(&asked, &call, 201, &answer)
}

pub(super) async fn update(asked: Asked<'_>, place: Place, body: Body) -> Result<Response<Body>, Status> {
    let mut call = call(&asked, &place)?;
    let object = object(&asked, &mut call, body).await?;
    change(asked, call, Change::Replace(object)).await
}

async fn change(asked: Asked<'_>, mut call: Call, change: Change) -> Result<Response<Body>, Status> {
    let object = match call.subresource {
        Some(Subresource::Scale) => asked.server.update_scale(&mut call, change).await?,
        Some(Subresource::Token | Subresource::Binding | Subresource::Eviction) => {
            return Err(Status::method_not_allowed());
        }
        _ => asked.server.update_object(&mut call, &change).await?.object,
    };
    respond(&asked, &call, 200, &object)
}

/// How a patch is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PatchKind {
    Json,
    Merge,
    Strategic,
}

impl PatchKind {
    fn parse(content_type: &str) -> Result<Self, Status> {
        match content_type {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(Status::unsupported_media_type(
                "server-side apply is not supported by this server yet; apply on the client \
                 (kubectl apply --server-side=false, helm --server-side=false)",
            )),
            other => Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json \
                 (got {other:?})"
            ))),
        }
    }

    fn apply(self, definition: Option<&'static Definition>, object: &Value, patch: &Value) -> Result<Value, Status> {
        let mut object = object.clone();
        let applied = match (self, definition) {
            (Self::Json, _) => api::patch::json(&mut object, patch),
            (Self::Strategic, Some(definition)) => api::patch::strategic(definition, &mut object, patch),
            (Self::Merge | Self::Strategic, _) => api::patch::merge(&mut object, patch),
        };
        applied.map(|()| object).map_err(|e| e.status())
    }
}

pub(super) async fn patch(asked: Asked<'_>, place: Place, body: Body) -> Result<Response<Body>, Status> {
    let kind = PatchKind::parse(body::content_type(&asked.head.headers))?;
    let mut call = call(&asked, &place)?;
    let bytes = body::read(body).await?;
    let parsed = api::json::parse(&bytes).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    call.duplicates = parsed.duplicates;
    let (version, name) = kind_of(call.resource, call.subresource);
    let definition = api::schema::by_api_version(&version, name);
    let patch = parsed.value;
    let apply = move |object: &Value| kind.apply(definition, object, &patch);
    change(asked, call, Change::Patch(Box::new(apply))).await
}

/// The options of a delete: the body's, and the query's where the body says nothing.
async fn options(asked: &Asked<'_>, body: Body) -> Result<DeleteOptions, Status> {
    let bytes = body::read(body).await?;
    let mut value = match bytes.is_empty() {
        true => Value::Object(serde_json::Map::new()),
        false => body::decode(body::content_type(&asked.head.headers), &bytes)?.value,
    };
    let Some(fields) = value.as_object_mut() else {
        return Err(Status::bad_request("the body of a delete must be DeleteOptions"));
    };
    if let Some(seconds) = asked.query.number("gracePeriodSeconds")? {
        fields.entry("gracePeriodSeconds").or_insert(seconds.into());
    }
    if let Some(orphan) = asked.query.flag("orphanDependents") {
        fields.entry("orphanDependents").or_insert(orphan.into());
    }
    let policy = asked.query.get("propagationPolicy");
    if !policy.is_empty() {
        fields.entry("propagationPolicy").or_insert(policy.into());
    }
    DeleteOptions::parse(&value)
}

pub(super) async fn delete(asked: Asked<'_>, place: Place, body: Body) -> Result<Response<Body>, Status> {
    let options = options(&asked, body).await?;
    let mut call = call(&asked, &place)?;
    let deleted = asked.server.delete_object(&mut call, &options).await?;
    let later =
        options.orphan_dependents == Some(false) || options.propagation == Some(crate::verbs::Propagation::Foreground);
    let code = if later && !deleted.gone { 202 } else { 200 };
    respond(&asked, &call, code, &deleted.answer(&call))
}

/// Deletes what a list would show, and answers with that list.
pub(super) async fn delete_collection(asked: Asked<'_>, place: Place, body: Body) -> Result<Response<Body>, Status> {
    let (server, resource) = (asked.server, place.resource);
    let options = options(&asked, body).await?;
    let query = asked.query.list()?;
    let selection = read::selection(&place, &query.label_selector, &query.field_selector)?;
    let page = server.page(resource, &selection, &query).await?;
    for entry in &page.entries {
        let object = crate::server::decode(resource, entry)?;
        let mut call = call(&asked, &place)?;
        call.namespace = meta(&object, "namespace").to_owned();
        call.name = meta(&object, "name").to_owned();
        match server.delete_object(&mut call, &options).await {
            Err(status) if status.code != 404 => return Err(status),
            _ => {}
        }
    }
    let format = asked.format()?;
    let bytes = encode::list(resource, format, &page, server.now())?;
    Ok(body::answer(200, format.media.content_type(), bytes))
}

/// The answer of a write, with its warnings.
fn respond(asked: &Asked<'_>, call: &Call, code: u16, object: &Value) -> Result<Response<Body>, Status> {
    let format = asked.format()?;
    let bytes = match object["kind"] == call.resource.kind {
        true => encode::object(call.resource, format, object, asked.server.now())?,
        false => body::encode(format.media, format.pretty, object)?,
    };
    let mut response = body::answer(code, format.media.content_type(), bytes);
    for warning in &call.warnings {
        let text: String = warning.chars().filter(|c| !c.is_control()).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(HeaderName::from_static("warning"), value);
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_is_applied_by_its_type() {
        let pod = api::schema::by_api_version("v1", "Pod");
        let object = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
        let strategic = json!({"spec": {"containers": [{"name": "a", "image": "y"}]}});
        let kind = PatchKind::parse("application/strategic-merge-patch+json").unwrap();
        assert_eq!(kind.apply(pod, &object, &strategic).unwrap()["spec"]["containers"][0]["image"], "y");
        let json_patch = json!([{"op": "remove", "path": "/metadata/labels/a"}]);
        assert_eq!(PatchKind::Json.apply(pod, &object, &json_patch).unwrap()["metadata"]["labels"], json!({}));
        assert_eq!(PatchKind::parse("application/apply-patch+yaml").map_err(|s| s.code), Err(415));
    }
}
