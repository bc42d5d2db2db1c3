//! OpenAPI v3, one document for each group and version, made from the schema tables; v2 in one document of all.

mod descriptions;
mod v2;

use std::collections::BTreeSet;

use api::schema::{self, Definition, ListType, Type};
use api::status::Status;
use http::{HeaderValue, Response, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use descriptions::Descriptions;

use super::{Asked, body, text};
use crate::ports::Body;
use crate::registry::{Registry, Resource, Subresource};

const PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

const MEDIA: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn versions(registry: &Registry) -> Vec<(&'static str, &'static str)> {
    let mut versions = Vec::new();
    for row in registry.rows() {
        if !versions.contains(&(row.group, row.version)) {
            versions.push((row.group, row.version));
        }
    }
    versions
}

/// Names the content that a document has: it changes with the program and its rows only.
fn hash(registry: &Registry, group: &str, version: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(env!("OPENAPI_HASH"));
    for row in registry.rows().iter().filter(|r| (r.group, r.version) == (group, version)) {
        digest.update(row.plural);
        row.subresources.iter().for_each(|s| digest.update(s.path()));
    }
    digest.finalize().iter().map(|b| format!("{b:02X}")).collect()
}

/// `/openapi/v3`
pub(super) fn index(asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let registry = &asked.server.registry;
    let paths: Map<String, Value> = versions(registry)
        .into_iter()
        .map(|(group, version)| {
            let base = base(group, version);
            let url = format!("/openapi/v3/{base}?hash={}", hash(registry, group, version));
            (base, json!({"serverRelativeURL": url}))
        })
        .collect();
    Ok(body::answer(200, "application/json", json!({"paths": paths}).to_string()))
}

pub(super) use v2::document as document_v2;

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/GROUP/VERSION`
pub(super) fn document(asked: &Asked<'_>, path: &str) -> Result<Response<Body>, Status> {
    let registry = &asked.server.registry;
    let found = versions(registry).into_iter().find(|(group, version)| base(group, version) == path);
    let Some((group, version)) = found else {
        return Err(Status::new(404, "NotFound", "the server could not find the requested resource"));
    };
    let tag = format!("\"{}\"", hash(registry, group, version));
    if text(&asked.head, header::IF_NONE_MATCH) == Some(tag.as_str()) {
        return Ok(body::answer(304, "application/json", Vec::new()));
    }
    let bytes = bytes::Bytes::from(describe(registry, group, version).to_string());
    let mut response = body::answer(200, "application/json", Vec::new());
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    if asked.query.get("hash").eq_ignore_ascii_case(tag.trim_matches('"')) {
        let forever = HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    Ok(body::compressed(&asked.head.headers, response, bytes))
}

/// Types that have a name and more than one form.
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

fn describe(registry: &Registry, group: &str, version: &str) -> Value {
    let mut wanted = BTreeSet::new();
    let mut paths = Map::new();
    for row in registry.rows().iter().filter(|r| (r.group, r.version) == (group, version)) {
        paths_of(row, &mut paths);
        reach(row, &mut wanted);
    }
    let descriptions = Descriptions::of(&wanted);
    let mut schemas: Map<String, Value> = wanted
        .into_iter()
        .filter_map(schema::by_name)
        .map(|definition| (definition.name.to_owned(), definition_schema(definition, &descriptions)))
        .collect();
    schemas.insert(QUANTITY.into(), json!({"oneOf": [{"type": "string"}, {"type": "number"}]}));
    let forms = json!([{"type": "integer"}, {"type": "string"}]);
    schemas.insert(INT_OR_STRING.into(), json!({"oneOf": forms, "format": "int-or-string"}));
    json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.37.1"},
        "paths": paths, "components": {"schemas": schemas},
    })
}

/// All definitions that a kind's objects hold.
fn reach(row: &Resource, wanted: &mut BTreeSet<&'static str>) {
    let mut open: Vec<&'static Definition> = Vec::new();
    let kinds = [(row.group, row.version, row.kind), ("", "v1", "DeleteOptions"), ("", "v1", "Status")];
    open.extend(kinds.iter().filter_map(|(group, version, kind)| schema::by_kind(group, version, kind)));
    open.extend(schema::by_kind(row.group, row.version, &format!("{}List", row.kind)));
    for subresource in row.subresources {
        open.extend(match subresource {
            Subresource::Scale => schema::by_kind("autoscaling", "v1", "Scale"),
            Subresource::Eviction => schema::by_kind("policy", "v1", "Eviction"),
            Subresource::Binding => schema::by_kind("", "v1", "Binding"),
            Subresource::Token => schema::by_kind("authentication.k8s.io", "v1", "TokenRequest"),
            _ => None,
        });
    }
    while let Some(definition) = open.pop() {
        if wanted.insert(definition.name) {
            open.extend(definition.fields.iter().filter_map(|field| field.ty.definition()));
        }
    }
}

fn reference(definition: &Definition) -> Value {
    json!({"$ref": format!("#/components/schemas/{}", definition.name)})
}

fn definition_schema(definition: &'static Definition, descriptions: &Descriptions) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in definition.fields {
        let mut property = type_schema(field.ty);
        if let Some(of) = property.as_object_mut() {
            match field.list {
                ListType::Unset => {}
                ListType::Atomic => {
                    of.insert("x-kubernetes-list-type".into(), "atomic".into());
                }
                ListType::Set => {
                    of.insert("x-kubernetes-list-type".into(), "set".into());
                }
                ListType::Map(keys) => {
                    of.insert("x-kubernetes-list-type".into(), "map".into());
                    of.insert("x-kubernetes-list-map-keys".into(), json!(keys));
                }
            }
            if let Some(key) = field.merge_key {
                of.insert("x-kubernetes-patch-merge-key".into(), key.into());
            }
            let strategies = [(field.merge, "merge"), (field.retain_keys, "retainKeys"), (field.replace, "replace")];
            let strategies: Vec<&str> = strategies.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
            if !strategies.is_empty() {
                of.insert("x-kubernetes-patch-strategy".into(), strategies.join(",").into());
            }
            if field.atomic {
                of.insert("x-kubernetes-map-type".into(), "atomic".into());
            }
            if let Some(text) = descriptions.field(definition.name, field.name) {
                of.insert("description".into(), text.into());
            }
        }
        properties.insert(field.name.into(), property);
        if field.required {
            required.push(field.name);
        }
    }
    let mut shape = json!({"type": "object"});
    if let Some(text) = descriptions.definition(definition.name) {
        shape["description"] = text.into();
    }
    if !properties.is_empty() {
        shape["properties"] = properties.into();
    }
    if !required.is_empty() {
        shape["required"] = json!(required);
    }
    let mut kinds: Vec<Value> = definition
        .kinds()
        .map(|(group, version, kind)| json!({"group": group, "version": version, "kind": kind}))
        .collect();
    if kinds.is_empty() && matches!(definition.short_name(), "DeleteOptions" | "Status") {
        kinds.push(json!({"group": "", "version": "v1", "kind": definition.short_name()}));
    }
    if !kinds.is_empty() {
        shape["x-kubernetes-group-version-kind"] = kinds.into();
    }
    shape
}

fn type_schema(ty: Type) -> Value {
    match ty {
        Type::String => json!({"type": "string", "default": ""}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::Boolean => json!({"type": "boolean"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Time | Type::MicroTime => json!({"type": "string", "format": "date-time"}),
        Type::Quantity => json!({"allOf": [{"$ref": format!("#/components/schemas/{QUANTITY}")}]}),
        Type::IntOrString => json!({"allOf": [{"$ref": format!("#/components/schemas/{INT_OR_STRING}")}]}),
        Type::RawExtension | Type::FieldsV1 => json!({"type": "object"}),
        Type::Json | Type::SchemaOr(..) => json!({}),
        Type::StringList => json!({"type": "array", "items": {"type": "string"}}),
        Type::Array(inner) => json!({"type": "array", "items": type_schema(*inner)}),
        Type::Map(inner) => json!({"type": "object", "additionalProperties": type_schema(*inner)}),
        Type::Object(_) => match ty.definition() {
            Some(definition) => json!({"allOf": [reference(definition)]}),
            None => json!({"type": "object"}),
        },
    }
}

fn parameter(name: &str, kind: &str) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn content(media: &[&str], schema: &Value) -> Value {
    media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

/// An operation: the query's parameters, and what goes in and comes out.
fn operation(row: &Resource, action: &str, query: &[(&str, &str)], input: Option<(&[&str], Value)>) -> Value {
    let own = schema::by_kind(row.group, row.version, row.kind).map_or(json!({"type": "object"}), reference);
    let mut operation = json!({
        "tags": [base(row.group, row.version).replace('/', "_")],
        "operationId": format!("{action}{}{}{}", row.group.replace('.', ""), row.version, row.kind),
        "parameters": query.iter().map(|(name, kind)| parameter(name, kind)).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": content(MEDIA, &own)}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": row.group, "version": row.version, "kind": row.kind},
    });
    if let Some((media, schema)) = input {
        operation["requestBody"] = json!({"content": content(media, &schema)});
    }
    operation
}

const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];

const WRITE: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];

const PATCH: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];

const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

fn paths_of(row: &Resource, paths: &mut Map<String, Value>) {
    let root = format!("/{}", base(row.group, row.version));
    let own = schema::by_kind(row.group, row.version, row.kind).map_or(json!({"type": "object"}), reference);
    let input = || Some((&["*/*"][..], own.clone()));
    let below = match row.namespaced {
        true => format!("{root}/namespaces/{{namespace}}/{}", row.plural),
        false => format!("{root}/{}", row.plural),
    };
    let path_parameter =
        |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}});
    let mut common = vec![parameter("pretty", "string")];
    if row.namespaced {
        common.push(path_parameter("namespace"));
    }
    let mut collection = json!({"parameters": common, "post": operation(row, "post", WRITE, input())});
    if row.virtual_only {
        paths.insert(below, collection);
        return;
    }
    if row.namespaced {
        let all = json!({"get": operation(row, "list", LIST, None), "parameters": [parameter("pretty", "string")]});
        paths.insert(format!("{root}/{}", row.plural), all);
    }
    collection["get"] = operation(row, "list", LIST, None);
    collection["delete"] = operation(row, "deletecollection", DELETE, None);
    paths.insert(below.clone(), collection);
    common.push(path_parameter("name"));
    let patch = Some((PATCHES, json!({"type": "object"})));
    let one = json!({
        "get": operation(row, "get", &[], None),
        "put": operation(row, "put", WRITE, input()),
        "patch": operation(row, "patch", PATCH, patch.clone()),
        "delete": operation(row, "delete", DELETE, None),
        "parameters": common,
    });
    paths.insert(format!("{below}/{{name}}"), one);
    for subresource in row.subresources {
        let mut part = json!({"parameters": common});
        match subresource {
            Subresource::Status | Subresource::Scale | Subresource::EphemeralContainers | Subresource::Resize => {
                part["get"] = operation(row, "get", &[], None);
                part["put"] = operation(row, "put", WRITE, input());
                part["patch"] = operation(row, "patch", PATCH, patch.clone());
            }
            Subresource::Finalize => part["put"] = operation(row, "put", WRITE, input()),
            Subresource::Log => part["get"] = operation(row, "connect", &[], None),
            _ => part["post"] = operation(row, "post", WRITE, input()),
        }
        paths.insert(format!("{below}/{{name}}/{}", subresource.path()), part);
    }
}
