//! OpenAPI v2, as JSON and in the protobuf form that kubectl asks for (gnostic's `OpenAPIv2.proto`). Kubectl reads it for
//! kinds that v3 does not know, to find out that nobody does.

use std::collections::BTreeMap;

use api::protobuf::{put_bytes, put_number};
use api::status::Status;
use http::{HeaderValue, Response, header};
use serde_json::{Map, Value, json};

use super::{describe, versions};
use crate::ports::Body;
use crate::registry::Registry;
use crate::request::{Asked, body, text};

/// How the protobuf form is called in an answer; requests write it with an @ that a media type may not have.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v2`
pub(in crate::request) fn document(asked: &Asked<'_>) -> Result<Response<Body>, Status> {
    let document = merged(&asked.server.registry);
    let accepted = text(&asked.head, header::ACCEPT).unwrap_or_default();
    let (media, bytes) = match accepted.contains("proto-openapi.spec.v2") {
        true => (PROTOBUF, encode(&document)),
        false => ("application/json", document.to_string().into_bytes()),
    };
    let mut response = body::answer(200, media, Vec::new());
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(body::compressed(&asked.head.headers, response, bytes.into()))
}

/// The documents of all groups as one.
fn merged(registry: &Registry) -> Value {
    let mut paths = Map::new();
    let mut definitions = Map::new();
    for (group, version) in versions(registry) {
        let Value::Object(mut of) = describe(registry, group, version) else { continue };
        for (path, item) in of.remove("paths").into_iter().flat_map(entries) {
            paths.insert(path, path_item(item));
        }
        let components = of.remove("components").and_then(|mut c| c.get_mut("schemas").map(Value::take));
        for (name, shape) in components.into_iter().flat_map(entries) {
            definitions.entry(name).or_insert_with(|| schema(shape));
        }
    }
    json!({
        "swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.37.1"},
        "paths": paths, "definitions": definitions,
    })
}

fn entries(value: Value) -> impl Iterator<Item = (String, Value)> {
    let map = if let Value::Object(map) = value { map } else { Map::new() };
    map.into_iter()
}

/// A schema of v3 in v2's terms: a reference stands alone, and what has several forms is a string.
fn schema(shape: Value) -> Value {
    let Value::Object(mut shape) = shape else { return shape };
    if let Some(reference) = shape.get("allOf").and_then(|all| all[0]["$ref"].as_str()) {
        let name = reference.trim_start_matches("#/components/schemas/");
        let reference = format!("#/definitions/{name}");
        shape.shift_remove("allOf");
        shape.insert("$ref".into(), reference.into());
    }
    if shape.shift_remove("oneOf").is_some() {
        shape.insert("type".into(), "string".into());
    }
    shape.shift_remove("default");
    for inner in ["items", "additionalProperties"] {
        if let Some(value) = shape.get_mut(inner) {
            *value = schema(value.take());
        }
    }
    if let Some(properties) = shape.get_mut("properties") {
        *properties =
            entries(properties.take()).map(|(name, value)| (name, schema(value))).collect::<Map<_, _>>().into();
    }
    shape.into()
}

fn path_item(item: Value) -> Value {
    let translated = entries(item).map(|(key, value)| match key.as_str() {
        "parameters" => (key, parameters(value)),
        _ => (key, operation(value)),
    });
    translated.collect::<Map<_, _>>().into()
}

fn operation(operation: Value) -> Value {
    let Value::Object(mut operation) = operation else { return operation };
    operation.shift_remove("requestBody");
    operation.insert("responses".into(), json!({"200": {"description": "OK"}}));
    if let Some(list) = operation.get_mut("parameters") {
        *list = parameters(list.take());
    }
    operation.into()
}

/// v2 says a parameter's type beside its name.
fn parameters(list: Value) -> Value {
    let Value::Array(list) = list else { return list };
    let flat = list.into_iter().map(|parameter| {
        let (own, mut rest): (Map<_, _>, Map<_, _>) = entries(parameter).partition(|(key, _)| key == "schema");
        rest.extend(own.into_iter().flat_map(|(_, shape)| entries(shape)));
        Value::Object(rest)
    });
    flat.collect::<Vec<_>>().into()
}

/// One message under construction. Empty strings are left out, as proto3 does.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn text(mut self, tag: u32, value: &Value) -> Self {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            put_bytes(&mut self.0, tag, text.as_bytes());
        }
        self
    }

    fn texts(self, tag: u32, list: &Value) -> Self {
        list.as_array().into_iter().flatten().fold(self, |message, value| message.text(tag, value))
    }

    fn flag(mut self, tag: u32, value: &Value) -> Self {
        if value.as_bool() == Some(true) {
            put_number(&mut self.0, tag, 1);
        }
        self
    }

    fn message(mut self, tag: u32, message: &Self) -> Self {
        put_bytes(&mut self.0, tag, &message.0);
        self
    }

    fn messages(self, tag: u32, messages: impl Iterator<Item = Self>) -> Self {
        messages.fold(self, |message, inner| message.message(tag, &inner))
    }

    /// A name and a value, as all maps are written.
    fn named(name: &str, value: &Self) -> Self {
        Self::default().text(1, &name.into()).message(2, value)
    }

    /// The fields that begin with `x-`, each as text in YAML, of which JSON is a part.
    fn extensions(self, tag: u32, of: &Value) -> Self {
        let fields = of.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("x-"));
        let named = fields.map(|(key, value)| Self::named(key, &Self::default().text(2, &value.to_string().into())));
        self.messages(tag, named)
    }
}

fn encode(document: &Value) -> Vec<u8> {
    let pairs = |key: &str| document[key].as_object().into_iter().flatten();
    let info = Message::default().text(1, &document["info"]["title"]).text(2, &document["info"]["version"]);
    let paths = pairs("paths").map(|(path, item)| Message::named(path, &path_message(item)));
    let definitions = pairs("definitions").map(|(name, shape)| Message::named(name, &schema_message(shape)));
    Message::default()
        .text(1, &document["swagger"])
        .message(2, &info)
        .message(8, &Message::default().messages(2, paths))
        .message(9, &Message::default().messages(1, definitions))
        .0
}

fn path_message(item: &Value) -> Message {
    let tags = BTreeMap::from([("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)]);
    let operations = item.as_object().into_iter().flatten().filter_map(|(key, value)| Some((tags.get(&**key)?, value)));
    let message = operations.fold(Message::default(), |m, (tag, value)| m.message(*tag, &operation_message(value)));
    message.messages(9, parameter_messages(&item["parameters"]))
}

fn operation_message(operation: &Value) -> Message {
    let described = Message::default().text(1, &operation["responses"]["200"]["description"]);
    let ok = Message::named("200", &Message::default().message(1, &described));
    Message::default()
        .texts(1, &operation["tags"])
        .text(5, &operation["operationId"])
        .messages(8, parameter_messages(&operation["parameters"]))
        .message(9, &Message::default().message(1, &ok))
        .extensions(13, operation)
}

fn parameter_messages(list: &Value) -> impl Iterator<Item = Message> {
    list.as_array().into_iter().flatten().map(|parameter| {
        let inner =
            Message::default().flag(1, &parameter["required"]).text(2, &parameter["in"]).text(4, &parameter["name"]);
        // A parameter in the path has no `allowEmptyValue`, and its numbers are one less from there on.
        let (kind, inner) = match parameter["in"] == "path" {
            true => (4, inner.text(5, &parameter["type"])),
            false => (3, inner.text(6, &parameter["type"]).flag(20, &parameter["uniqueItems"])),
        };
        let wrap = |tag, message: &Message| Message::default().message(tag, message);
        wrap(1, &wrap(2, &wrap(kind, &inner)))
    })
}

fn schema_message(shape: &Value) -> Message {
    let mut message = Message::default()
        .text(1, &shape["$ref"])
        .text(2, &shape["format"])
        .text(4, &shape["description"])
        .texts(19, &shape["required"]);
    if let Some(inner) = shape.get("additionalProperties") {
        message = message.message(21, &Message::default().message(1, &schema_message(inner)));
    }
    if shape["type"].is_string() {
        message = message.message(22, &Message::default().text(1, &shape["type"]));
    }
    if let Some(inner) = shape.get("items") {
        message = message.message(23, &Message::default().message(1, &schema_message(inner)));
    }
    if let Some(properties) = shape["properties"].as_object() {
        let named = properties.iter().map(|(name, shape)| Message::named(name, &schema_message(shape)));
        message = message.message(25, &Message::default().messages(1, named));
    }
    message.extensions(31, shape)
}
